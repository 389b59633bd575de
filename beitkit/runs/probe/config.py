"""`beitkit probe` and `beitkit evaluate`: what they take."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional

from beitkit.configs.data import ReadConfig
from beitkit.configs.parts import Flat, check_batch
from beitkit.configs.train import MachineConfig
from beitkit.errors import UserError, check_finite

Protocol = Literal["quick", "official", "paper"]


@dataclass(frozen=True)
class ProbeRun:
    """Judge frozen features: nearest neighbors, and a linear probe on every block."""

    images: Positional[Path]
    """Class folders with train/ and val/, or a .csv or .jsonl list with path and label."""
    _: KW_ONLY
    model: Path
    """Run folder or checkpoint to judge."""
    val: Path | None = None
    """Labeled images to report on, when they are not in a val/ folder beside train/."""
    out: Path | None = None
    """Where to write probe.json and report.html; nothing is written without it."""
    protocol: Protocol = "quick"
    """quick: nearest neighbors and logistic regression on features that are computed once; official: the released script's
    linear layers on class token and mean patch, trained on random crops; paper: the same on the mean patch alone."""
    blocks: tuple[int, ...] | None = None
    """Probe these blocks only, counted from 1; None probes every block."""
    neighbors: int = 20
    """Nearest training images that vote (quick)."""
    epochs: int | None = None
    """Passes over the training images (official and paper); None takes 100 for official, 50 for paper."""
    batch_size: int | None = None
    """Images per forward pass, and per step where there are steps; None takes 64 for quick, else 1024 or as many as there
    are."""
    lr: float | None = None
    """First learning rate (official and paper), as it is; None takes 1e-3 x batch / 256."""
    limit: int = 10_000
    """At most this many training images, as evenly over the classes as can be."""
    seed: int = 0
    """Draws first weights, order and crops, the images when there are more than --limit, and the validation part where there
    is none."""
    json: bool = False
    """Print the result as JSON on stdout."""
    machine: Annotated[MachineConfig, Flat] = MachineConfig()
    read: ReadConfig = ReadConfig()

    def __post_init__(self) -> None:
        check_finite(self)
        if self.batch_size is not None:
            check_batch(self.batch_size)
        for name in ("limit", "neighbors", "epochs"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name} must be at least 1, got {value}")
        if self.lr is not None and self.lr <= 0:
            raise UserError(f"--lr must be positive, got {self.lr:g}")
        if self.protocol == "quick" and (self.epochs, self.lr) != (None, None):
            raise UserError("--epochs and --lr are for --protocol official and paper; the quick one solves, it takes no steps")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"--seed must lie in [0, 2**63), got {self.seed}")
        if self.blocks is not None and (not self.blocks or min(self.blocks) < 1 or len(set(self.blocks)) < len(self.blocks)):
            given = " ".join(map(str, self.blocks)) or "none"
            raise UserError(f"--blocks must be different numbers from 1 up, got {given}")
