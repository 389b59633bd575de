"""`beitkit ablate`: what it takes."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional

from beitkit.configs.data import ViewConfig
from beitkit.configs.model import SizeName
from beitkit.configs.parts import Flat
from beitkit.configs.train import MachineConfig
from beitkit.errors import UserError, check_finite

Variant = Literal["full", "random-mask", "pixels", "pixels-random-mask", "recover-all", "no-mask"]


@dataclass(frozen=True)
class AblateRun:
    """The paper's table 4 on your images: what each part of BEiT is worth, against training from scratch."""

    images: Positional[Path]
    """Unlabeled images for pre-training: a folder (nested or flat), or a list of files (.txt, .csv, .jsonl)."""
    labelled: Positional[Path]
    """Labeled images for fine-tuning: train/<class>/ and val/<class>/, or <class>/ alone, or a .csv or .jsonl list."""
    _: KW_ONLY
    tokenizer: Path
    """Tokenizer: a run folder of `beitkit tokenizer`, or a file that holds one."""
    out: Path = Path("runs/ablate")
    """Folder for the runs, ablate.json and report.html; made or continued."""
    variants: tuple[Variant, ...] = ("full", "random-mask", "pixels", "pixels-random-mask", "recover-all", "no-mask")
    """full BEiT; masks without blocks; pixels instead of visual tokens; neither; all patches predicted; the same and no mask."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """One fine-tuning for each; they draw --labels, the head and the order. Each variant is pre-trained once, with the first."""
    size: SizeName = "base"
    """Size of the network."""
    image_size: int = 224
    """Side of the square images, in pixels."""
    patch: int = 16
    """Side of a patch, in pixels."""
    steps: int = 10_000
    """Optimizer steps of every pre-training."""
    finetune_steps: int = 1_000
    """Optimizer steps of every fine-tuning."""
    batch_size: int = 64
    """Images per step."""
    lr: float = 1.5e-3
    """Peak rate of pre-training at 2048 images a step; follows the square root of --batch-size."""
    finetune_lr: float = 4e-3
    """Peak rate of fine-tuning at 1024 images a step; follows the square root of --batch-size."""
    labels: int | None = None
    """Fine-tune on this many labeled images only, as evenly over the classes as can be, drawn by the seed."""
    machine: Annotated[MachineConfig, Flat] = MachineConfig()
    view: ViewConfig = ViewConfig()

    def __post_init__(self) -> None:
        check_finite(self)
        if "full" not in self.variants:
            raise UserError(f"--variants must name full, which the others are compared with, got {' '.join(self.variants)}")
        for name, values in (("variants", self.variants), ("seeds", self.seeds)):
            if not values or len(set(values)) != len(values):
                raise UserError(f"--{name} must name each at most once, and at least one, got {' '.join(map(str, values))}")
        for name, count in (
            ("image-size", self.image_size),
            ("patch", self.patch),
            ("steps", self.steps),
            ("finetune-steps", self.finetune_steps),
            ("batch-size", self.batch_size),
            ("labels", self.labels),
        ):
            if count is not None and count < 1:
                raise UserError(f"--{name} must be at least 1, got {count}")
        if min(self.lr, self.finetune_lr) <= 0:
            raise UserError(f"--lr and --finetune-lr must be positive, got {self.lr} and {self.finetune_lr}")
