"""Options of `beitkit tokenizer`."""

from __future__ import annotations

from dataclasses import KW_ONLY, fields
from pathlib import Path
from typing import Annotated, ClassVar

from tyro.conf import Positional

from beitkit.configs.bounds import config
from beitkit.configs.codec import later
from beitkit.configs.data import Channels, ImageColumnConfig, ReadConfig, ValueLimits, ViewConfig
from beitkit.configs.model import ImageSize, as_pair, by
from beitkit.configs.parts import Flat, Json
from beitkit.configs.tokenizer import DVAEConfig, KMeansConfig, ReconstructConfig, TokenizerKind
from beitkit.configs.train import LoopConfig, MachineConfig, OptimConfig, SinkName, TrainConfig, check_given
from beitkit.errors import UserError

NOT_FOR: dict[TokenizerKind, tuple[str, ...]] = {
    "dvae": ("kmeans",),
    "kmeans": ("dvae", "reconstruct", "optim", "loop", "train"),
}
"""The parts that mean nothing for a kind of tokenizer."""
FOR_BOTH = ("batch_size", "seed")
"""What of these parts means something all the same."""


@config(kw_only=False)
class TokenizerRun:
    """Make a tokenizer of your images, a discrete VAE or k-means of patches, so that each patch gets a visual token."""

    TEXTS: ClassVar[dict[str, str]] = {
        "epochs": "Passes over the images; None takes 20.",
        "optim.layer_decay": "Has no meaning for a tokenizer.",
        "loop.ema": "Decay of a moving average of the weights, which is then the finished tokenizer; 0 and None keep none.",
    }
    """What options of shared parts mean here, in place of their own texts."""

    images: Positional[Path]
    """Folder of images (nested or flat), a list of files (.txt, .csv, .jsonl), tar shards, Parquet files, or an .index."""
    _: KW_ONLY
    out: Path
    """Run folder to make or to continue."""
    kind: TokenizerKind = later("dvae")
    """dvae: a discrete VAE, trained; kmeans: centers of whitened patches, which takes seconds and decodes to mean patches."""
    image_size: ImageSize = 112
    """Of the images it is trained on, in pixels: the side of squares, or height and width; it can encode other sizes later."""
    channels: Channels | None = later(None)
    """Channels of the images; None takes those of images that are neither gray nor RGB, else those of `dvae` or `kmeans`."""
    value_range: ValueLimits | None = later(None)
    """Values of the files that are black and white, such as 0 4095; None takes 0 to 255 for images of 8 bits, and else finds
    them in the images."""
    log: SinkName | None = later(None)
    """Send the numbers of the journal there as well (`pip install beitkit[NAME]`); nothing is sent without it."""
    json: Json = later(False)
    train: Annotated[TrainConfig, Flat] = TrainConfig(lr=5e-3)
    machine: Annotated[MachineConfig, Flat] = MachineConfig()
    dvae: DVAEConfig = DVAEConfig()
    kmeans: KMeansConfig = later(KMeansConfig())
    reconstruct: ReconstructConfig = ReconstructConfig()
    view: ViewConfig = ViewConfig(crop_scale=(0.3, 1.0), color_jitter=0.0)
    optim: OptimConfig = OptimConfig(lr_batch=64, weight_decay=1e-4, warmup_epochs=1.0, clip=1.0)
    loop: LoopConfig = LoopConfig()
    read: ReadConfig = ReadConfig()
    columns: ImageColumnConfig = later(ImageColumnConfig())

    def __post_init__(self) -> None:
        check_given(self.train, self.optim)
        self._check_kind()
        if min(as_pair(self.image_size)) < self.tokenizer.stride:
            size, stride = by(self.image_size), self.tokenizer.stride
            raise UserError(f"`image_size` must be at least `{self.kind}.stride`, got {size} and {stride}")
        if self.optim.layer_decay not in (None, 1.0):
            raise UserError(f"`optim.layer_decay={self.optim.layer_decay:g}` has no meaning for a tokenizer; leave it out")

    @property
    def tokenizer(self) -> DVAEConfig | KMeansConfig:
        """What is made, of the kind that is asked for."""
        return self.dvae if self.kind == "dvae" else self.kmeans

    def _check_kind(self) -> None:
        """Raise a `UserError` for an option that the kind of tokenizer has no use for."""
        for part in fields(self):
            if part.name not in NOT_FOR[self.kind]:
                continue
            prefix = "" if part.name == "train" else f"{part.name}."
            given = getattr(self, part.name)
            for field in fields(given):
                value = getattr(given, field.name)
                if field.name not in FOR_BOTH and value != getattr(part.default, field.name):
                    raise UserError(
                        f"`{prefix}{field.name}` has no meaning for a tokenizer of `kind={self.kind!r}`; "
                        "leave it out, or change `kind`"
                    )
