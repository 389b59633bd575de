"""Options of `beitkit tokenizer`."""

from __future__ import annotations

from dataclasses import KW_ONLY
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional

from beitkit.configs.bounds import config
from beitkit.configs.codec import later
from beitkit.configs.data import Channels, ImageColumnConfig, ReadConfig, ValueLimits, ViewConfig
from beitkit.configs.model import ImageSize, as_pair, by
from beitkit.configs.parts import Flat
from beitkit.configs.tokenizer import DVAEConfig, ReconstructConfig
from beitkit.configs.train import LoopConfig, MachineConfig, OptimConfig, TrainConfig, check_given
from beitkit.errors import UserError


@config(kw_only=False)
class TokenizerRun:
    """Train a discrete VAE on your images, so that each patch gets a visual token."""

    images: Positional[Path]
    """Folder of images (nested or flat), a list of files (.txt, .csv, .jsonl), tar shards, Parquet files, or an .index."""
    _: KW_ONLY
    out: Path
    """Run folder to make or to continue."""
    image_size: ImageSize = 112
    """Of the images it is trained on, in pixels: the side of squares, or height and width; it can encode other sizes later."""
    channels: Channels | None = later(None)
    """Channels of the images; None takes those of images that are neither gray nor RGB, else `dvae.channels`."""
    value_range: ValueLimits | None = later(None)
    """Values of the files that are black and white, such as 0 4095; None takes 0 to 255 for images of 8 bits, and else finds
    them in the images."""
    train: Annotated[TrainConfig, Flat] = TrainConfig(lr=5e-3)
    machine: Annotated[MachineConfig, Flat] = MachineConfig()
    dvae: DVAEConfig = DVAEConfig()
    reconstruct: ReconstructConfig = ReconstructConfig()
    view: ViewConfig = ViewConfig(crop_scale=(0.3, 1.0), color_jitter=0.0)
    optim: OptimConfig = OptimConfig(lr_batch=64, weight_decay=1e-4, warmup_epochs=1.0, clip=1.0)
    loop: LoopConfig = LoopConfig()
    read: ReadConfig = ReadConfig()
    columns: ImageColumnConfig = later(ImageColumnConfig())

    def __post_init__(self) -> None:
        check_given(self.train, self.optim)
        if min(as_pair(self.image_size)) < self.dvae.stride:
            raise UserError(f"`image_size` must be at least `dvae.stride`, got {by(self.image_size)} and {self.dvae.stride}")
        if self.optim.layer_decay not in (None, 1.0):
            raise UserError(f"`optim.layer_decay={self.optim.layer_decay:g}` has no meaning for a tokenizer; leave it out")
