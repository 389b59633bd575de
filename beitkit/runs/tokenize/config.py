"""Options of `beitkit tokenize`."""

from __future__ import annotations

from dataclasses import KW_ONLY
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional

from beitkit.configs.bounds import PositiveInt, Seed, config
from beitkit.configs.codec import later
from beitkit.configs.data import ImageColumnConfig, ReadConfig, ViewConfig
from beitkit.configs.model import ImageSize, as_pair, by
from beitkit.configs.parts import EngineName, Flat, Json, Views, shard_of
from beitkit.configs.train import MachineConfig
from beitkit.errors import UserError


@config(kw_only=False)
class TokenizeRun:
    """Compute the visual tokens of stored views once, for pre-training to read."""

    images: Positional[Path]
    """Folder of images (nested or flat), a list of files (.txt, .csv, .jsonl), tar shards, Parquet files, or an .index."""
    _: KW_ONLY
    tokenizer: Path
    """Tokenizer: a run folder of `beitkit tokenizer`, or a file that holds one."""
    out: Path
    """Folder of the token cache to make or to complete. The same command continues it."""
    views: Views
    """Stored views of an image."""
    image_size: ImageSize = 224
    """Of the images that will be pre-trained on, in pixels: the side of squares, or height and width."""
    patch: PositiveInt = 16
    """Side of a patch, in pixels."""
    seed: Seed = 0
    """Fixes the views; the `seed` of the pre-training."""
    batch_size: PositiveInt = 64
    """Images that the tokenizer is given at once."""
    shard: str | None = None
    """Take one of n equal runs of consecutive images, as 1/8 to 8/8; each shard fills a cache of its own, such as
    OUT-00003-of-00008. Without it, shards that lie beside `out` are joined there."""
    engine: EngineName = "local"
    """local: this machine; ray: a Ray cluster (the one of RAY_ADDRESS, else a local one). Needs beitkit[ray]."""
    json: Json = later(False)
    machine: Annotated[MachineConfig, Flat] = MachineConfig()
    view: ViewConfig = ViewConfig()
    read: ReadConfig = ReadConfig()
    columns: ImageColumnConfig = later(ImageColumnConfig())

    def __post_init__(self) -> None:
        shard_of(self.shard)
        if self.patch > min(as_pair(self.image_size)) // 2:
            raise UserError(f"`image_size` {by(self.image_size)} must hold at least 2x2 patches of `patch={self.patch}`")
