"""`beitkit probe` and `beitkit evaluate`: what they take."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional

from beitkit.configs.data import ReadConfig
from beitkit.configs.train import MachineConfig
from beitkit.configs.verbs.parts import Flat, check_batch
from beitkit.errors import UserError


@dataclass(frozen=True)
class ProbeRun:
    """Judge frozen features: nearest neighbors, and a linear probe on every block."""

    images: Positional[Path]
    """Class folders with train/ and val/, or a .csv with path and label."""
    _: KW_ONLY
    model: Path
    """Run folder or checkpoint to judge."""
    val: Path | None = None
    """Labelled pictures to report on, when they are not in a val/ folder beside train/."""
    out: Path | None = None
    """Where to write probe.json and report.html; nothing is written without it."""
    limit: int = 10_000
    """At most this many training pictures, as evenly over the classes as can be."""
    batch_size: int = 64
    """Pictures per forward pass."""
    seed: int = 0
    """Draws the pictures when there are more than --limit, and the validation part where there is none."""
    json: bool = False
    """Print the result as JSON on stdout."""
    machine: Annotated[MachineConfig, Flat] = MachineConfig()
    read: ReadConfig = ReadConfig()

    def __post_init__(self) -> None:
        check_batch(self.batch_size)
        if self.limit < 1:
            raise UserError(f"--limit must be at least 1, got {self.limit}")


@dataclass(frozen=True)
class EvaluateRun:
    """Measure a fine-tuned classifier on labelled pictures."""

    images: Positional[Path]
    """Class folders (the val/ part where there is one), or a .csv with path and label."""
    _: KW_ONLY
    model: Path
    """Run folder or checkpoint of a classifier."""
    batch_size: int = 64
    """Pictures per forward pass."""
    json: bool = False
    """Print the result as JSON on stdout."""
    machine: Annotated[MachineConfig, Flat] = MachineConfig()
    read: ReadConfig = ReadConfig()

    def __post_init__(self) -> None:
        check_batch(self.batch_size)
