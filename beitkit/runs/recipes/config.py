"""Options of `beitkit recipes`."""

from __future__ import annotations

from dataclasses import KW_ONLY
from typing import Annotated

from tyro.conf import Positional, arg

from beitkit.configs.bounds import config
from beitkit.configs.parts import Json


@config(kw_only=False)
class RecipesRun:
    """List the published set-ups, or show one of them in full."""

    name: Annotated[Positional[str | None], arg(metavar="NAME")] = None
    """The recipe to show, or a word such as v2. A word describes the recipes that have it; without one all are named."""
    _: KW_ONLY
    all: bool = False
    """Describe every recipe with its published number."""
    json: Json = False
