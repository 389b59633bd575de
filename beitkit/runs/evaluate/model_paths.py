"""Models given to a command: the configs of their runs, and short distinct names."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from beitkit.data.own.images import OwnImages
from beitkit.files import read_json
from beitkit.train.folder import OWN_IMAGES


def run_config(model: Path) -> dict[str, Any] | None:
    """What the run of this folder was asked for; None for a checkpoint that is no run."""
    try:
        content = read_json(model / "config.json")
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and "verb" in content else None


def short_names(paths: Sequence[Path]) -> list[str]:
    """The last parts of the paths, or all of them where these are the same."""
    last = [Path(os.path.realpath(path)).name for path in paths]  # a link to itself has no `resolve`
    return [name if last.count(name) == 1 else str(path) for name, path in zip(last, paths, strict=True)]


def run_on(model: Path, images: Path | OwnImages) -> dict[str, Any] | None:
    """What the run of this folder was asked for, if these very images were given to it."""
    run = run_config(model)
    try:
        if isinstance(images, OwnImages):  # which share their description with others of the same class and length
            return run if run is not None and read_json(model / "inputs.json")[OWN_IMAGES] == images.fingerprint else None
        return run if run is not None and "val" in run and os.path.realpath(run["images"]) == os.path.realpath(images) else None
    except (KeyError, OSError, TypeError, ValueError):
        return None
