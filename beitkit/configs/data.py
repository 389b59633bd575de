"""What the network sees: masks, views of an image, normalization, and how files are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from beitkit.configs.codec import later
from beitkit.errors import UserError, check_finite

Triple = tuple[float, float, float]
Filter = Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"]
"""Pillow's filters, in the order of its numbers."""


@dataclass(frozen=True, kw_only=True)
class MaskConfig:
    """Which patches are hidden from the network."""

    kind: Literal["block", "official", "random", "none"] = "block"
    """block: BEiT's Algorithm 1 with an exact count; official: the original code bit for bit (the count may fall short);
    random: uniform over patches; none: hide nothing (needs --recover all). The last two are for ablations."""
    ratio: float = 0.4
    """Share of patches to mask; the original's 75 of 196 is 0.3827."""
    min_block: float = 16 / 196
    """Smallest block as a share of the grid: 16 patches of a 14x14 grid."""
    min_aspect: float = 0.3
    """Blocks have an aspect ratio between this and its inverse."""

    def __post_init__(self) -> None:
        check_finite(self)
        if not 0 < self.ratio < 1:
            raise UserError(f"--mask.ratio must lie between 0 and 1, got {self.ratio:g}")
        if not 0 < self.min_block <= 1:
            raise UserError(f"--mask.min-block must be a share of the grid in (0, 1], got {self.min_block:g}")
        if not 0 < self.min_aspect <= 1:
            raise UserError(f"--mask.min-aspect must lie in (0, 1], got {self.min_aspect:g}")


@dataclass(frozen=True, kw_only=True)
class ViewConfig:
    """How one image becomes what is fed to the networks: one crop and flip, and color jitter."""

    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Share of the image's area that a random crop keeps, smallest and largest."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Aspect ratio (width / height) of a random crop, smallest and largest."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    color_jitter: float = 0.4
    """Strength of the brightness, contrast and saturation jitter; 0 turns it off."""

    def __post_init__(self) -> None:
        check_finite(self)
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise UserError(f"--view.crop-scale must satisfy 0 < smallest <= largest <= 1, got {low} {high}")
        low, high = self.crop_ratio
        if not 0 < low <= high:
            raise UserError(f"--view.crop-ratio must satisfy 0 < smallest <= largest, got {low} {high}")
        if not 0 <= self.flip <= 1:
            raise UserError(f"--view.flip is a probability in [0, 1], got {self.flip}")
        if not 0 <= self.color_jitter < 1:
            raise UserError(f"--view.color-jitter must lie in [0, 1), got {self.color_jitter}")


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """How the training images of a classifier are changed beyond crop and flip; None is chosen by the data."""

    operations: int | None = None
    """RandAugment's operations for each image (the original: 2); 0 turns it off. With it there is no color jitter."""
    magnitude: float | None = None
    """Mean magnitude of RandAugment, of at most 10 (the original: 9)."""
    magnitude_std: float = 0.5
    """Standard deviation of the magnitude."""
    erasing: float | None = None
    """Probability that a box of the image is filled with noise (the original: 0.25); 0 turns it off."""
    mixup: float | None = None
    """Mixup: lambda ~ Beta(a, a) with this a (the original: 0.8); 0 turns it off."""
    cutmix: float | None = None
    """CutMix: lambda ~ Beta(a, a) with this a (the original: 1); 0 turns it off."""
    mix_probability: float = 1.0
    """Probability that a batch is mixed, where Mixup or CutMix is on."""
    switch_probability: float = 0.5
    """Probability of CutMix for a batch that is mixed, where both are on."""
    repeats: int = 1
    """Repeated augmentation: how often each drawn image is shown in a row, each time in another view; an epoch keeps its
    length (the paper: 3 for the base size)."""

    def __post_init__(self) -> None:
        check_finite(self)
        if self.operations is not None and self.operations < 0:
            raise UserError(f"--augment.operations must be 0 or more, got {self.operations}")
        if self.magnitude is not None and not 0 <= self.magnitude <= 10:
            raise UserError(f"--augment.magnitude must lie in [0, 10], got {self.magnitude:g}")
        if self.magnitude_std < 0:
            raise UserError(f"--augment.magnitude-std must not be negative, got {self.magnitude_std:g}")
        for name in ("mixup", "cutmix"):
            strength = getattr(self, name)
            if strength is not None and strength < 0:
                raise UserError(f"--augment.{name} must not be negative, got {strength:g}")
        for name in ("erasing", "mix_probability", "switch_probability"):
            probability = getattr(self, name)
            if probability is not None and not 0 <= probability <= 1:
                raise UserError(f"--augment.{name.replace('_', '-')} is a probability in [0, 1], got {probability:g}")
        if self.repeats < 1:
            raise UserError(f"--augment.repeats must be at least 1, got {self.repeats}")

    @property
    def is_mixing(self) -> bool:
        """Whether images are mixed with each other."""
        return bool(self.mixup or self.cutmix) and self.mix_probability > 0


NO_AUGMENT = AugmentConfig(operations=0, magnitude=0.0, erasing=0.0, mixup=0.0, cutmix=0.0)
"""Nothing beyond crop, flip and color jitter."""
PAPER_AUGMENT = AugmentConfig(operations=2, magnitude=9.0, erasing=0.25, mixup=0.8, cutmix=1.0)
"""The original's `rand-m9-mstd0.5-inc1`, erasing, Mixup and CutMix (method 5.3)."""


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """What a checkpoint expects of its input images; stored with the weights."""

    mean: Triple = (0.5, 0.5, 0.5)
    std: Triple = (0.5, 0.5, 0.5)
    crop_share: float = 0.875
    """Evaluation: the image is resized to image size / crop_share, then the center is cut out."""
    fit: Literal["crop", "squeeze"] = later("crop")
    """crop: resizing keeps the aspect, and the short side decides; squeeze: the whole image is brought to that size."""
    filter: Filter = later("bicubic")
    """How evaluation resizes."""


INCEPTION = Preprocessing()
CLIP = Preprocessing(mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711))
IMAGENET = Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


@dataclass(frozen=True, kw_only=True)
class ReadConfig:
    """What happens to files that cannot be read."""

    max_broken: float = 0.01
    """Stop when more than this share of the files cannot be read; fewer are skipped and listed."""

    def __post_init__(self) -> None:
        check_finite(self)
        if not 0 <= self.max_broken <= 1:
            raise UserError(f"--read.max-broken is a share in [0, 1], got {self.max_broken}")


@dataclass(frozen=True, kw_only=True)
class SceneViewConfig:
    """How an image and its label map become a training sample for segmentation; the defaults are those of the official code."""

    scale: tuple[float, float] = (0.5, 2.0)
    """Smallest and largest factor on the size at which the image fits its shorter side into the crop's shorter side."""
    long_side: float = 4.0
    """How many times the crop's shorter side the image's longer side may have at factor 1; longer images are made smaller."""
    max_share: float = 0.75
    """A crop is drawn again, up to 10 times, while one class has this share of its counted pixels or more; 1 turns it off."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    distortion: float = 0.5
    """Probability of each change of color: brightness, contrast, saturation and hue; 0 turns all of them off."""
    brightness: float = 32.0
    """Most that is added to or taken from every value; values go from 0 to 255."""
    contrast: float = 0.5
    """Values are multiplied by a factor between 1 - this and 1 + this."""
    saturation: float = 0.5
    """The saturation is multiplied by a factor between 1 - this and 1 + this."""
    hue: int = 18
    """Most by which the hue is turned, in steps of 2 degrees: the whole circle has 180."""

    def __post_init__(self) -> None:
        check_finite(self)
        low, high = self.scale
        if not 0 < low <= high:
            raise UserError(f"--view.scale must satisfy 0 < smallest <= largest, got {low:g} {high:g}")
        if not self.long_side >= 1:
            raise UserError(f"--view.long-side must be 1 or more, got {self.long_side:g}")
        if not 0 < self.max_share <= 1:
            raise UserError(f"--view.max-share must lie in (0, 1], got {self.max_share:g}")
        for name in ("flip", "distortion"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"--view.{name} is a probability in [0, 1], got {getattr(self, name):g}")
        if not 0 <= self.brightness <= 255:
            raise UserError(f"--view.brightness must lie in [0, 255], got {self.brightness:g}")
        for name in ("contrast", "saturation"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"--view.{name} must lie in [0, 1), got {getattr(self, name):g}")
        if not 0 <= self.hue <= 90:
            raise UserError(f"--view.hue must lie in [0, 90], got {self.hue}")
