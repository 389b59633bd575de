"""Other libraries with BEiT that can be imported here."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable

from beitkit.errors import UserError
from benchmarks.compare.config import Rival
from benchmarks.compare.torchvision_stand_in import torchvision_stand_in

RIVALS: dict[Rival, str] = {"transformers": "transformers.models.beit.modeling_beit", "timm": "timm.models.beit"}
"""The module that holds BEiT in each, in the order of their import."""


def present_rivals(against: tuple[Rival, ...] | None, say: Callable[[str], None] = lambda line: None) -> list[Rival]:
    """The rivals that take part, imported.

    Args:
        against: those that were asked for; None takes what is installed.
        say: hears which rival is left out, and why.

    Raises:
        UserError: one that was asked for cannot be imported.
    """
    present = []
    for rival, module in RIVALS.items():
        if against is not None and rival not in against:
            continue
        try:
            with torchvision_stand_in() if rival == "timm" else contextlib.nullcontext():
                importlib.import_module(module)
        except ImportError as error:
            if against is not None:
                raise UserError(f"--against {rival}: it cannot be imported ({error}); pip install {rival}") from None
            say(f"{rival} is left out, it cannot be imported ({error}); pip install {rival}")
        else:
            present.append(rival)
    return present
