"""`beitkit evaluate`: what it takes."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional

from beitkit.configs.data import ReadConfig
from beitkit.configs.parts import Flat, check_batch
from beitkit.configs.segmentation import InferenceConfig
from beitkit.configs.train import MachineConfig
from beitkit.errors import UserError, check_finite


@dataclass(frozen=True)
class EvaluateRun:
    """Measure one or several fine-tuned networks on the same labeled images: classifiers, or segmenters."""

    images: Positional[Path]
    """Class folders, or a .csv or .jsonl list with labels; for segmenters images and masks. The val part, if there is one."""
    _: KW_ONLY
    model: tuple[Path, ...]
    """Run folders or checkpoints with the same classes; several are compared side by side."""
    out: Path | None = None
    """Where to write report.html, evaluation.json and predictions.csv (images.csv); nothing is written without it."""
    image_size: int | None = None
    """Side of the images in pixels, with positions resized; None takes what each model was trained for."""
    crop_share: float | None = None
    """Share of the resized image's side that the center crop keeps; None takes what each model was trained for."""
    batch_size: int = 64
    """Images per forward pass."""
    classes: Path | None = None
    """Segmentation: a classes.json that says what masks mean, when it does not lie beside the images."""
    json: bool = False
    """Print the result as JSON on stdout."""
    machine: Annotated[MachineConfig, Flat] = MachineConfig()
    read: ReadConfig = ReadConfig()
    inference: InferenceConfig = InferenceConfig()

    def __post_init__(self) -> None:
        check_finite(self)
        check_batch(self.batch_size)
        if not self.model:
            raise UserError("--model needs at least one run folder or checkpoint, got none")
        twice = next((path for index, path in enumerate(self.model) if path in self.model[:index]), None)
        if twice is not None:
            raise UserError(f"--model names {twice} twice; give every model once")
        if self.image_size is not None and self.image_size < 1:
            raise UserError(f"--image-size must be at least 1, got {self.image_size}")
        if self.crop_share is not None and not 0 < self.crop_share <= 1:
            raise UserError(f"--crop-share must lie in (0, 1], got {self.crop_share:g}")
