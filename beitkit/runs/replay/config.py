"""Options of `beitkit replay`."""

from __future__ import annotations

from dataclasses import KW_ONLY
from pathlib import Path

from tyro.conf import Positional

from beitkit.configs.bounds import PositiveInt, config
from beitkit.configs.codec import later
from beitkit.configs.parts import Json


@config(kw_only=False)
class ReplayRun:
    """Compute steps of a run again, from the last checkpoint before them: the same numbers that the run wrote down, or the first
    difference.

    The run's folder is only read. Paths that the run was given are looked up from here, so start it where the run was started.
    """

    run: Positional[Path]
    """A folder of `pretrain`, `finetune`, `segment` or a discrete VAE."""
    _: KW_ONLY
    step: PositiveInt
    """Counted from 1; steps go on to the next one that the run logged, so that there is something to compare."""
    json: Json = later(False)
