"""Options of `beitkit compare`."""

from __future__ import annotations

from dataclasses import KW_ONLY
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from beitkit.configs.bounds import Bounds, config
from beitkit.configs.parts import Json
from beitkit.errors import UserError


@config(kw_only=False)
class CompareRun:
    """Put runs side by side: what they were asked for, their curves, their results, and where they ran."""

    runs: Annotated[Positional[tuple[Path, ...]], arg(help_behavior_hint="(two or more)"), Bounds(is_distinct=True)]
    """Run folders of any verb, finished or not."""
    _: KW_ONLY
    out: Path | None = None
    """Page to write, NAME.html, with the curves of all runs in one chart each; None only prints the tables."""
    json: Json = False

    def __post_init__(self) -> None:
        if len(self.runs) < 2:
            raise UserError(f"`runs` names one run, {next(iter(self.runs))}; give two or more to compare")
        if self.out is not None and self.out.suffix != ".html":
            raise UserError(f"`out` must end in .html, got {self.out}")
