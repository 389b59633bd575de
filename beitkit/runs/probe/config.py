"""Options of `beitkit probe` and `beitkit evaluate`."""

from __future__ import annotations

from dataclasses import KW_ONLY
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional

from beitkit.configs.bounds import Bounds, PositiveFloat, PositiveInt, Seed, config
from beitkit.configs.codec import later
from beitkit.configs.data import ColumnsConfig, ReadConfig
from beitkit.configs.parts import Flat, Json
from beitkit.configs.train import MachineConfig
from beitkit.errors import UserError

Protocol = Literal["quick", "official", "paper"]
CELLS = 2
"""Rows and columns of a grid, where nothing is said: a quarter of the image each, as the floors' patch dictionary has them."""


@config(kw_only=False)
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
    pooling: Literal["mean", "grid"] = later("mean")
    """mean: class token and mean patch (paper: the mean patch alone); grid: means over the cells of a coarse grid side by side,
    which keep where something is (quick)."""
    pool_cells: PositiveInt | None = later(None)
    """Rows and columns of that grid; None takes 2."""
    blocks: Annotated[tuple[int, ...], Bounds(ge=1, is_distinct=True)] | None = None
    """Probe these blocks only, counted from 1; None probes every block."""
    neighbors: PositiveInt = 20
    """Nearest training images that vote (quick)."""
    epochs: PositiveInt | None = None
    """Passes over the training images (official and paper); None takes 100 for official, 50 for paper."""
    batch_size: PositiveInt | None = None
    """Images per forward pass, and per step where there are steps; None takes 64 for quick, else 1024 or as many as there
    are."""
    lr: PositiveFloat | None = None
    """First learning rate (official and paper), as it is; None takes 1e-3 x batch / 256."""
    limit: PositiveInt = 10_000
    """At most this many training images, as evenly over the classes as can be."""
    seed: Seed = 0
    """Draws first weights, order and crops, the images when there are more than `limit`, and the validation part where there
    is none."""
    json: Json = False
    machine: Annotated[MachineConfig, Flat] = MachineConfig()
    read: ReadConfig = ReadConfig()
    columns: ColumnsConfig = later(ColumnsConfig())

    def __post_init__(self) -> None:
        if self.protocol == "quick" and (self.epochs, self.lr) != (None, None):
            raise UserError("`epochs` and `lr` are for `protocol` official and paper; the quick one solves, it takes no steps")
        if self.protocol != "quick" and self.pooling != "mean":
            raise UserError(f"`pooling={self.pooling!r}` is for `protocol` quick; {self.protocol} has features of its own")
        if self.pool_cells is not None and self.pooling != "grid":
            raise UserError("`pool_cells` are those of `pooling='grid'`; give it as well, or leave them out")

    @property
    def cells(self) -> int | None:
        """Rows and columns of the grid; None where there is none."""
        return (self.pool_cells or CELLS) if self.pooling == "grid" else None
