"""Models given to a command: the configs of their runs, and short distinct names."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def run_config(model: Path) -> dict[str, Any] | None:
    """What the run of this folder was asked for; None for a checkpoint that is no run."""
    try:
        content = json.loads((model / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and "verb" in content else None


def short_names(paths: Sequence[Path]) -> list[str]:
    """The last parts of the paths, or all of them where these are the same."""
    last = [path.resolve().name for path in paths]
    return [name if last.count(name) == 1 else str(path) for name, path in zip(last, paths, strict=True)]


def run_on(model: Path, images: Path) -> dict[str, Any] | None:
    """What the run of this folder was asked for, if these very images were given to it."""
    run = run_config(model)
    try:
        return run if run is not None and "val" in run and Path(run["images"]).resolve() == images.resolve() else None
    except (KeyError, TypeError):
        return None
