"""Configs of masking, image views, normalization and reading of files."""

from __future__ import annotations

from dataclasses import replace
from math import inf
from typing import Annotated, Literal

from beitkit.configs.bounds import (
    Bounds,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    PositiveShare,
    Share,
    ShareBelowOne,
    config,
)
from beitkit.configs.codec import later
from beitkit.errors import UserError

ValueRange = tuple[tuple[float, float], ...]
"""The values (lowest, highest) of each channel that are shown as 0 and as 1."""
MOST_CHANNELS = 16
Channels = Annotated[int, Bounds(ge=1, le=MOST_CHANNELS)]
ValueLimits = Annotated[tuple[float, float], Bounds(is_range=True)]
"""The values of files that are black and white, for all channels."""
Filter = Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"]
"""Pillow's filters, in the order of its numbers."""
Fit = Literal["crop", "squeeze", "letterbox"]
"""How an image comes to the shape of the network's."""


@config("mask")
class MaskConfig:
    """Which patches are hidden from the network."""

    kind: Literal["block", "official", "random", "none"] = "block"
    """block: BEiT's Algorithm 1 with an exact count; official: the original code bit for bit (the count may fall short);
    random: uniform over patches; none: hide nothing (needs `recover='all'`). The last two are for ablations."""
    ratio: Annotated[float, Bounds(gt=0, lt=1)] = 0.4
    """Share of patches to mask; the original's 75 of 196 is 0.3827."""
    min_block: PositiveShare = 16 / 196
    """Smallest block as a share of the grid: 16 patches of a 14x14 grid."""
    min_aspect: PositiveShare = 0.3
    """Blocks have an aspect ratio between this and its inverse."""


PAPER_CROP, PAPER_JITTER = (0.08, 1.0), 0.4
"""The original's crops and color jitter (method 2.1, method 5.1)."""


@config("view")
class ViewConfig:
    """How one image becomes what is fed to the networks: one crop and flip, and color jitter."""

    crop_scale: Annotated[tuple[float, float], Bounds(gt=0, le=1, is_range=True)] | None = PAPER_CROP
    """Share of the image's area that a random crop keeps, smallest and largest. None: 0.08 to 1, in fine-tuning chosen."""
    crop_ratio: Annotated[tuple[float, float], Bounds(gt=0, is_range=True)] = (3 / 4, 4 / 3)
    """Aspect ratio (width / height) of a random crop, smallest and largest."""
    shift: NonNegativeInt | None = later(None)
    """In place of a random crop, the whole image moved by up to this many pixels along each axis, black where it has left: for
    small images that one thing fills. Pixels are those of the network's image size. None crops; classifiers of images of at most
    32 pixels always move them, by up to 4 unless this says otherwise."""
    flip: Share = 0.5
    """Probability of a horizontal flip."""
    vertical_flip: Share = later(0.0)
    """Probability of a vertical flip, for images without an above and below (cells, satellites)."""
    quarter_turns: Share = later(0.0)
    """Probability of a turn by 90, 180 or 270 degrees, each as likely; at 0.75 all four orientations are."""
    color_jitter: ShareBelowOne | None = PAPER_JITTER
    """Strength of the brightness, contrast and saturation jitter; 0 turns it off. None is 0.4; in fine-tuning it is chosen."""

    @property
    def crop_area(self) -> tuple[float, float]:
        """Smallest and largest share of the area, the original's where it is open."""
        return PAPER_CROP if self.crop_scale is None else self.crop_scale

    @property
    def jitter(self) -> float:
        """Strength of the color jitter, the original's where it is open."""
        return PAPER_JITTER if self.color_jitter is None else self.color_jitter


CHOSEN_VIEW = ViewConfig(crop_scale=None, color_jitter=None)
"""Crops and color jitter as the data needs them."""


@config("augment")
class AugmentConfig:
    """How the training images of a classifier are changed beyond crop and flip; None is chosen by the data."""

    operations: NonNegativeInt | None = None
    """RandAugment's operations for each image (the original: 2); 0 turns it off. With it there is no color jitter."""
    magnitude: Annotated[float, Bounds(ge=0, le=10)] | None = None
    """Mean magnitude of RandAugment, of at most 10 (the original: 9)."""
    magnitude_std: NonNegativeFloat = 0.5
    """Standard deviation of the magnitude."""
    erasing: Share | None = None
    """Probability that a box of the image is filled with noise (the original: 0.25); 0 turns it off."""
    mixup: NonNegativeFloat | None = None
    """Mixup: lambda ~ Beta(a, a) with this a (the original: 0.8); 0 turns it off."""
    cutmix: NonNegativeFloat | None = None
    """CutMix: lambda ~ Beta(a, a) with this a (the original: 1); 0 turns it off."""
    mix_probability: Share = 1.0
    """Probability that a batch is mixed, where Mixup or CutMix is on."""
    switch_probability: Share = 0.5
    """Probability of CutMix for a batch that is mixed, where both are on."""
    repeats: PositiveInt = 1
    """Repeated augmentation: how often each drawn image is shown in a row, each time in another view; an epoch keeps its
    length (the paper: 3 for the base size)."""

    @property
    def is_mixing(self) -> bool:
        """Whether images are mixed with each other."""
        return bool(self.mixup or self.cutmix) and self.mix_probability > 0


NO_AUGMENT = AugmentConfig(operations=0, magnitude=0.0, erasing=0.0, mixup=0.0, cutmix=0.0)
"""Nothing beyond crop, flip and color jitter."""
PAPER_AUGMENT = AugmentConfig(operations=2, magnitude=9.0, erasing=0.25, mixup=0.8, cutmix=1.0)
"""The original's `rand-m9-mstd0.5-inc1`, erasing, Mixup and CutMix (method 5.3)."""


SMALL = 32
"""Networks for images of up to this many pixels a side are shown whole ones, never crops (BEiT's fine-tuning, after timm)."""


@config()
class Preprocessing:
    """What a checkpoint expects of its input images; stored with the weights."""

    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    """Of each channel, with values in [0, 1]. A network of another number of channels takes the average."""
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    crop_share: float = 0.875
    """Evaluation: the image is resized to image size / crop_share, then the center is cut out. Of networks for at most `SMALL`
    pixels it has a meaning for letterbox alone (see `shows_whole`)."""
    fit: Fit = later("crop")
    """crop: resizing keeps the aspect, and the short side decides; squeeze: the whole image is brought to that size; letterbox:
    the long side decides, and what is left over has the mean color."""
    filter: Filter = later("bicubic")
    """How evaluation resizes."""
    value_range: ValueRange | None = later(None)
    """The values shown as 0 and as 1, for files of more than 8 bits or of other channels than gray and RGB; None reads 8-bit
    images, whose values go from 0 to 255."""

    def __post_init__(self) -> None:
        check_range(self.value_range)
        if not len(self.mean) == len(self.std) <= MOST_CHANNELS or not self.mean:
            raise UserError(
                f"`mean` and `std` have a value for each of 1 to {MOST_CHANNELS} channels, got {self.mean}, {self.std}"
            )
        if min(self.std) <= 0:
            raise UserError(f"`std` must be positive, got {self.std}")

    def shows_whole(self, image_size: tuple[int, int]) -> bool:
        """Whether evaluation brings whole images to the network's size, whatever `crop_share` says: networks for small ones."""
        return max(image_size) <= SMALL and self.fit != "letterbox"

    def check_share(self, crop_share: float | None, image_size: tuple[int, int]) -> None:
        """Raise a `UserError` for a crop share that a network of this size has no use for."""
        if crop_share not in (None, 1.0) and self.shows_whole(image_size):
            raise UserError(
                f"`crop_share` {crop_share:g} has no meaning for a network for images of {max(image_size)} pixels: up to {SMALL} "
                "they are shown whole; leave it out"
            )

    def shown(self, fit: Fit | None, crop_share: float | None) -> Preprocessing:
        """With another fit or crop share, where they are given; a new fit that shows whole images cuts nothing off by itself."""
        changed = self
        if fit is not None and fit != self.fit:
            changed = replace(self, fit=fit, crop_share=self.crop_share if fit == "crop" else 1.0)
        return changed if crop_share is None else replace(changed, crop_share=crop_share)


def check_range(value_range: ValueRange | None) -> None:
    """Raise a `UserError` for a range that holds nothing."""
    for low, high in value_range or ():
        if not -inf < low < high < inf:
            raise UserError(f"`value_range` is the lowest and the highest value, the lowest first, got {low:g} {high:g}")


INCEPTION = Preprocessing()
CLIP = Preprocessing(mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711))
IMAGENET = Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


@config("read")
class ReadLimit:
    """What is too large to be read."""

    max_pixels: PositiveFloat = later(64.0)
    """Largest images that are read, in millions of pixels; decoded, one takes 3 bytes a pixel (64: 192 MB) in every process that
    reads (`workers`)."""
    max_memory: PositiveFloat | None = later(None)
    """Largest images that are read, in MB of memory that decoding them takes, in every process that reads: 4 bytes a pixel for
    RGB, 8 with transparency, 7 to 10 for a progressive JPEG, 18 for WebP. Also the largest row groups of Parquet files. None
    takes 400, or, where `read.max_pixels` is above 64, 12 for each million."""

    @property
    def decoding_memory(self) -> float:
        """`max_memory`, or the rule."""
        return self.max_memory or (400.0 if self.max_pixels <= 64 else 12.0 * self.max_pixels)


@config("read")
class ReadConfig(ReadLimit):
    """What happens to files that cannot be read, and how much is held of those that can."""

    max_broken: Share = 0.01
    """Stop when more than this share of the files cannot be read; fewer are skipped and listed."""
    cache: NonNegativeFloat = later(512.0)
    """MiB of decoded images that a process of a run may hold, together with those that read for it: small ones (up to 128x128
    pixels) are then decoded once, and the views of an evaluation are made once; 0 holds nothing. What comes out is the same."""
    timeout: NonNegativeFloat = later(300.0)
    """Seconds after which processes that read (`workers`) and bring no batch are taken to hang, and are started anew at the same
    image; 0 waits for ever."""


Separator = Literal["comma", "semicolon", "space", "bar", "single"]


@config("columns")
class ImageColumnConfig:
    """Which column of a table, or of Parquet files, holds the images."""

    image: str | None = None
    """Name of the column; None takes the one that a known name (path, file_name, image) or its type tells."""


@config("columns")
class ColumnsConfig:
    """Which columns of a table, or of Parquet files, hold images and labels, and how labels are written."""

    image: str | None = None
    """Name of the column; None takes the one that a known name (path, file_name, image) or its type tells."""
    label: Annotated[tuple[str, ...], Bounds(is_distinct=True)] | None = None
    """Name of the column; of several columns of 0 and 1 each is a class (one-hot). None takes the one that a known name (label,
    labels) or its type tells."""
    separator: Separator | None = None
    """What stands between the labels of an image in a table; single: a cell is one class. None divides at bars, and stops where
    cells look like several labels."""


@config("view")
class SceneViewConfig:
    """How an image and its label map become a training sample for segmentation; the defaults are those of the official code."""

    scale: Annotated[tuple[float, float], Bounds(gt=0, is_range=True)] = (0.5, 2.0)
    """Smallest and largest factor on the size at which the image fits its shorter side into the crop's shorter side."""
    long_side: Annotated[float, Bounds(ge=1)] = 4.0
    """How many times the crop's shorter side the image's longer side may have at factor 1; longer images are made smaller."""
    max_share: PositiveShare = 0.75
    """A crop is drawn again, up to 10 times, while one class has this share of its counted pixels or more; 1 turns it off."""
    flip: Share = 0.5
    """Probability of a horizontal flip."""
    vertical_flip: Share = later(0.0)
    """Probability of a vertical flip, for images without an above and below (cells, satellites)."""
    quarter_turns: Share = later(0.0)
    """Probability of a turn by 90, 180 or 270 degrees, each as likely; at 0.75 all four orientations are."""
    distortion: Share = 0.5
    """Probability of each change of color: brightness, contrast, saturation and hue; 0 turns all of them off."""
    brightness: Annotated[float, Bounds(ge=0, le=255)] = 32.0
    """Most that is added to or taken from every value; values go from 0 to 255."""
    contrast: ShareBelowOne = 0.5
    """Values are multiplied by a factor between 1 - this and 1 + this."""
    saturation: ShareBelowOne = 0.5
    """The saturation is multiplied by a factor between 1 - this and 1 + this."""
    hue: Annotated[int, Bounds(ge=0, le=90)] = 18
    """Most by which the hue is turned, in steps of 2 degrees: the whole circle has 180."""
