"""Options of `beitkit predict` and `beitkit embed`."""

from __future__ import annotations

from dataclasses import KW_ONLY
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from beitkit.configs.bounds import Bounds, PositiveInt, config
from beitkit.configs.codec import later
from beitkit.configs.data import Fit, ImageColumnConfig, ReadLimit
from beitkit.configs.parts import EngineName, Flat, Json, Pool, shard_of
from beitkit.configs.segmentation import InferenceConfig
from beitkit.configs.train import MachineConfig


@config(kw_only=False)
class PredictRun:
    """Name what new images show, with a trained classifier, or what each of their pixels shows, with a segmenter."""

    inputs: Annotated[Positional[tuple[Path, ...]], arg(help_behavior_hint="(one or more)"), Bounds(min_length=1)]
    """Tar shards, Parquet files or an .index; or images, folders, quoted globs and lists (.txt, .csv, .jsonl), mixed."""
    _: KW_ONLY
    model: Path
    """Run folder or checkpoint of a classifier or a segmenter."""
    out: Path | None = None
    """Table to write: .csv, .jsonl or .parquet; of a segmenter a folder, for masks and overlays. The same command continues it;
    without it the predictions are printed."""
    top: PositiveInt = 5
    """How many of the most probable classes a row has (.jsonl: always all)."""
    fit: Fit | None = later(None)
    """How images come to the network's shape: crop shows the center, squeeze and letterbox (with bars) the whole; None takes
    what the model was trained for."""
    batch_size: PositiveInt | None = None
    """Images per forward pass; None takes 64 or, for 4,096 images or more on a CPU, what is fastest on the first ones."""
    shard: str | None = None
    """Take every n-th block of 16 batches, as 1/8 to 8/8; each shard writes its own file, such as NAME-00003-of-00008.csv."""
    engine: EngineName = "local"
    """local: this machine; ray: a Ray cluster (the one of RAY_ADDRESS, else a local one). Needs beitkit[ray]."""
    json: Json = False
    machine: Annotated[MachineConfig, Flat] = MachineConfig()
    read: ReadLimit = ReadLimit()
    columns: ImageColumnConfig = ImageColumnConfig()
    inference: InferenceConfig = InferenceConfig()

    def __post_init__(self) -> None:
        shard_of(self.shard)


@config(kw_only=False)
class EmbedRun:
    """Write the features of images, for search, clustering or a classifier of one's own."""

    inputs: Annotated[Positional[tuple[Path, ...]], arg(help_behavior_hint="(one or more)"), Bounds(min_length=1)]
    """Tar shards, Parquet files or an .index; or images, folders, quoted globs and lists (.txt, .csv, .jsonl), mixed."""
    _: KW_ONLY
    model: Path
    """Run folder or checkpoint of any network."""
    out: Path
    """What to write: .npy (with the paths beside it, in NAME.paths.jsonl) or .parquet. The same command continues it."""
    block: PositiveInt | Literal["all"] | None = None
    """Block whose raw output is taken, from 1 as `beitkit probe` counts, or all; None takes the network's output."""
    pool: Pool = "mean"
    """Mean of the patches, class token, both side by side (class token first), or every patch by itself."""
    dtype: Literal["float32", "float16"] = "float32"
    """Type of the stored numbers."""
    fit: Fit | None = later(None)
    """How images come to the network's shape: crop shows the center, squeeze and letterbox (with bars) the whole; None takes
    what the model was trained for."""
    batch_size: PositiveInt | None = None
    """Images per forward pass; None takes 64 or, for 4,096 images or more on a CPU, what is fastest on the first ones."""
    shard: str | None = None
    """Take every n-th block of 16 batches, as 1/8 to 8/8; each shard writes its own file, such as NAME-00003-of-00008.npy."""
    engine: EngineName = "local"
    """local: this machine; ray: a Ray cluster (the one of RAY_ADDRESS, else a local one). Needs beitkit[ray]."""
    json: Json = later(False)
    machine: Annotated[MachineConfig, Flat] = MachineConfig()
    read: ReadLimit = ReadLimit()
    columns: ImageColumnConfig = ImageColumnConfig()

    def __post_init__(self) -> None:
        shard_of(self.shard)
