"""Options of `beitkit evaluate`."""

from __future__ import annotations

from dataclasses import KW_ONLY
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional

from beitkit.configs.bounds import Bounds, PositiveInt, PositiveShare, config
from beitkit.configs.codec import later
from beitkit.configs.data import ColumnsConfig, Fit, ReadConfig
from beitkit.configs.model import ImageSize
from beitkit.configs.parts import Flat, Json
from beitkit.configs.segmentation import InferenceConfig
from beitkit.configs.train import MachineConfig


@config(kw_only=False)
class EvaluateRun:
    """Measure one or several fine-tuned networks on the same labeled images: classifiers, or segmenters."""

    images: Positional[Path]
    """Class folders, or a .csv or .jsonl list with labels; for segmenters images and masks. The val part, if there is one."""
    _: KW_ONLY
    model: Annotated[tuple[Path, ...], Bounds(is_distinct=True)]
    """Run folders or checkpoints with the same classes; several are compared side by side."""
    out: Path | None = None
    """Where to write report.html, evaluation.json and predictions.csv (images.csv); nothing is written without it."""
    image_size: ImageSize | None = None
    """Of the images in pixels, the side of squares or height and width; None takes what each model was trained for."""
    crop_share: PositiveShare | None = None
    """Share of the resized image's side that the center crop keeps; None takes what each model was trained for."""
    fit: Fit | None = later(None)
    """How images come to a classifier's shape: crop shows the center, squeeze and letterbox (with bars) the whole; None takes
    what each model was trained for."""
    batch_size: PositiveInt = 64
    """Images per forward pass."""
    classes: Path | None = None
    """Segmentation: a classes.json that says what masks mean, when it does not lie beside the images."""
    json: Json = False
    machine: Annotated[MachineConfig, Flat] = MachineConfig()
    read: ReadConfig = ReadConfig()
    columns: ColumnsConfig = later(ColumnsConfig())
    inference: InferenceConfig = InferenceConfig()
