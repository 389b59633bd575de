"""What a bench works with: the rivals that are there, the network, and what our runs do to it before they train it."""

from __future__ import annotations

import importlib
import sys

from beitkit.configs.model import SizeName
from beitkit.configs.verbs.bench import BenchRun, Rival
from beitkit.errors import UserError
from beitkit.measuring.ours import Accelerate
from beitkit.measuring.workload import Workload
from beitkit.runs.training.speed import accelerate
from beitkit.train.machine.runtime import Runtime

RIVALS: dict[Rival, str] = {"transformers": "transformers.models.beit.modeling_beit", "timm": "timm.models.beit"}
"""The module that holds BEiT in each, in the order of their import."""


def present_rivals(config: BenchRun) -> list[Rival]:
    """The rivals that take part; says why one does not.

    Raises:
        UserError: one that was asked for cannot be imported.
    """
    present = []
    for rival in RIVALS:
        if config.against is not None and rival not in config.against:
            continue
        try:
            importlib.import_module(RIVALS[rival])
        except ImportError as error:
            if config.against is not None:
                raise UserError(f"--against {rival}: it cannot be imported ({error}); pip install {rival}") from None
            say(f"{rival} is left out, it cannot be imported ({error}); pip install {rival}")
        else:
            present.append(rival)
    return present


def workload_of(config: BenchRun, size: SizeName) -> Workload:
    """The network and batch of a size."""
    return Workload(size=size, image_size=config.image_size, patch=config.patch, batch_size=config.batch_size)


def accelerated(config: BenchRun, runtime: Runtime) -> Accelerate:
    """What a run does to its objective before it trains it."""

    return lambda objective, plan: accelerate(objective, config.speed, runtime, plan)


def say(line: str) -> None:
    """Tell on stderr how far it is; stdout is for the result."""
    print(line, file=sys.stderr, flush=True)
