"""Options of `beitkit recipes`."""

from __future__ import annotations

from typing import Annotated

from tyro.conf import Positional, arg

from beitkit.configs.bounds import config
from beitkit.configs.parts import Json


@config(kw_only=False)
class RecipesRun:
    """List the published set-ups, or show one of them in full."""

    name: Annotated[Positional[str | None], arg(metavar="NAME")] = None
    """The recipe to show; without it all are listed."""
    json: Json = False
