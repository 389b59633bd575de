"""Options of `beitkit show`."""

from __future__ import annotations

from dataclasses import KW_ONLY
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from beitkit.configs.bounds import Bounds, PositiveInt, Seed, config
from beitkit.configs.codec import later
from beitkit.configs.data import Fit, ImageColumnConfig, ReadLimit
from beitkit.configs.model import Pair
from beitkit.configs.parts import Flat, Json
from beitkit.configs.segmentation import InferenceConfig
from beitkit.configs.train import MachineConfig

ShownPart = Literal["classes", "scenes", "masks", "tokens", "attention", "heads", "colors", "neighbors"]


@config(kw_only=False)
class ShowRun:
    """Show what a network makes of images: masks and what it fills in, tokens, attention, features, neighbors, reasons."""

    inputs: Annotated[Positional[tuple[Path, ...]], arg(help_behavior_hint="(one or more)"), Bounds(min_length=1)]
    """Images, folders, quoted globs and lists (.txt, .csv, .jsonl), mixed; or tar shards, Parquet files or an .index."""
    _: KW_ONLY
    model: Path
    """Run folder or checkpoint of any network, or of a tokenizer; of a run that is not finished its newest state is shown."""
    out: Path
    """Page to write, NAME.html; its sheets are written as PNG files into the folder NAME beside it."""
    tokenizer: Path | None = None
    """Tokenizer that a pre-training network learned from; None takes the one that its run was given."""
    only: Annotated[tuple[ShownPart, ...] | None, Bounds(is_distinct=True)] = None
    """Parts of the page; None takes all that the network has. classes: Grad-CAM of a classifier; scenes: overlays of a segmenter;
    masks: hidden patches and what is filled in; tokens: token maps and the codebook; attention: of a block, from the chosen
    patches; heads: the same in every block and head; colors: features by their principal components; neighbors: the most similar
    images and patches."""
    count: PositiveInt = 6
    """Images that are shown, evenly spread over those that are given."""
    gallery: PositiveInt = 1000
    """Images, evenly spread, that neighbors are looked for in and whose tokens are counted."""
    neighbors: PositiveInt = 5
    """Nearest images that are shown of each."""
    block: PositiveInt | None = None
    """Block whose attention and features are shown, from 1 as `beitkit probe` counts; None takes the last, and the network's
    output for features."""
    queries: Annotated[tuple[Pair, ...] | None, Bounds(ge=1)] = None
    """Patches whose attention and neighbors are shown, each as its row and column from 1, such as 4 4 11 8; None takes four, a
    third from the edges."""
    target: str | None = None
    """Class that Grad-CAM explains; None takes the most probable one of each image."""
    seed: Seed = 0
    """Of the masks."""
    fit: Fit | None = None
    """How images come to the network's shape: crop shows the center, squeeze and letterbox (with bars) the whole; None takes
    what the model was trained for."""
    batch_size: PositiveInt = 32
    """Images per forward pass."""
    json: Json = later(False)
    machine: Annotated[MachineConfig, Flat] = MachineConfig()
    read: ReadLimit = ReadLimit()
    columns: ImageColumnConfig = ImageColumnConfig()
    inference: InferenceConfig = InferenceConfig()
