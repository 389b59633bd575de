"""`beitkit finetune`: what it takes."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional

from beitkit.configs.data import ReadConfig, ViewConfig
from beitkit.configs.train import LoopConfig, MachineConfig, OptimConfig, TrainConfig
from beitkit.configs.verbs.parts import Flat
from beitkit.errors import UserError, check_finite


@dataclass(frozen=True)
class FinetuneRun:
    """Fine-tune for classification, from a pre-trained model or from scratch in the same set-up."""

    images: Positional[Path]
    """Class folders (train/<class>/ and val/<class>/, or <class>/ alone), or a .csv with path and label."""
    _: KW_ONLY
    model: Path
    """Pre-trained run folder or checkpoint to start from."""
    out: Path
    """Run folder to make or to continue."""
    recipe: str | None = None
    """Start from a recipe's values instead of the defaults; other options override them. `beitkit recipes` lists them."""
    scratch: bool = False
    """Start from fresh weights instead, with the network that --model describes: what did pre-training buy?"""
    val: Path | None = None
    """Labelled pictures to evaluate on, when they are not in a val/ folder beside train/."""
    labels: int | None = None
    """Train on this many labelled pictures only, as evenly over the classes as can be, drawn by --seed."""
    compare: Path | None = None
    """Another fine-tuning run to set beside this one in the report (from scratch, say)."""
    drop_path: float = 0.1
    """Stochastic depth of the last block."""
    label_smoothing: float = 0.1
    """Share of the target spread evenly over all classes."""
    train: Annotated[TrainConfig, Flat] = TrainConfig(lr=4e-3)
    machine: Annotated[MachineConfig, Flat] = MachineConfig()
    view: ViewConfig = ViewConfig()
    optim: OptimConfig = OptimConfig(lr_batch=1024, min_lr=1e-6, warmup_epochs=20.0, clip=None)
    loop: LoopConfig = LoopConfig()
    read: ReadConfig = ReadConfig()

    def __post_init__(self) -> None:
        check_finite(self)
        if not 0 <= self.drop_path < 1:
            raise UserError(f"--drop-path must lie in [0, 1), got {self.drop_path}")
        if self.labels is not None and self.labels < 1:
            raise UserError(f"--labels must be at least 1, got {self.labels}")
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"--label-smoothing must lie in [0, 1), got {self.label_smoothing}")
