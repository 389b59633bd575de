"""Options of `beitkit ablate`."""

from __future__ import annotations

from dataclasses import KW_ONLY
from pathlib import Path
from typing import Annotated, Literal, get_args

from tyro.conf import Positional

from beitkit.configs.bounds import Bounds, PositiveFloat, PositiveInt, config
from beitkit.configs.codec import later
from beitkit.configs.data import ReadConfig, ViewConfig
from beitkit.configs.model import ImageSize, SizeName
from beitkit.configs.parts import Flat, Json, NetworkConfig
from beitkit.configs.train import MachineConfig
from beitkit.errors import UserError

Variant = Literal["full", "random-mask", "pixels", "pixels-random-mask", "recover-all", "no-mask"]


@config(kw_only=False)
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
    variants: Annotated[tuple[Variant, ...], Bounds(is_distinct=True)] = get_args(Variant)
    """full BEiT; masks without blocks; pixels instead of visual tokens; neither; all patches predicted; the same and no mask."""
    seeds: Annotated[tuple[int, ...], Bounds(is_distinct=True)] = (0, 1, 2)
    """One fine-tuning for each, of every pre-training; they draw `labels`, the head and the order."""
    pretrain_seeds: Annotated[tuple[int, ...] | None, Bounds(is_distinct=True)] = later(None)
    """One pre-training of each variant for each; they draw first weights, order, views and masks. The spread is then that of
    pre-training, and from scratch each seed of either option is trained. None pre-trains once, with the first of `seeds`."""
    size: SizeName = "base"
    """Size of the network."""
    image_size: ImageSize = 224
    """Of the images in pixels: the side of squares, or height and width."""
    patch: PositiveInt = 16
    """Side of a patch, in pixels."""
    steps: PositiveInt = 10_000
    """Optimizer steps of every pre-training."""
    finetune_steps: PositiveInt = 1_000
    """Optimizer steps of every fine-tuning."""
    batch_size: PositiveInt = 64
    """Images per step."""
    lr: PositiveFloat = 1.5e-3
    """Peak rate of pre-training at 2048 images a step; follows the square root of `batch_size`."""
    finetune_lr: PositiveFloat = 4e-3
    """Peak rate of fine-tuning at 1024 images a step; follows the square root of `batch_size`."""
    scratch_lr: PositiveFloat | None = later(None)
    """The same from scratch; None chooses it by the network's width, as fine-tuning does."""
    labels: PositiveInt | None = None
    """Fine-tune on this many labeled images only, as evenly over the classes as can be, drawn by the seed."""
    json: Json = later(False)
    machine: Annotated[MachineConfig, Flat] = MachineConfig()
    network: NetworkConfig = later(NetworkConfig())
    view: ViewConfig = ViewConfig()
    read: ReadConfig = ReadConfig()

    def __post_init__(self) -> None:
        if "full" not in self.variants:
            raise UserError(f"`variants` must name full, which the others are compared with, got {' '.join(self.variants)}")

    @property
    def pretrainings(self) -> tuple[int, ...]:
        """Seeds of the pre-trainings of each variant."""
        return self.pretrain_seeds or self.seeds[:1]

    @property
    def scratch_seeds(self) -> tuple[int, ...]:
        """Seeds of the trainings from scratch: as many as a spread needs, also where there is one fine-tuning a pre-training."""
        return tuple(dict.fromkeys((*self.seeds, *self.pretrainings)))
