"""RandAugment and random erasing, as BEiT's fine-tuning uses them (method 5.1: timm 0.3.2's `rand-m9-mstd0.5-inc1`).

RandAugment changes the image (arXiv 1909.13719); erasing fills a box with noise after normalization (arXiv 1708.04896). Both
draw from the sample's own `random.Random`, in the order in which timm draws from the global one.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int64
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from beitkit.configs.model import Pair
from beitkit.contracts import Batch
from beitkit.data.decoding.deep import DeepImage
from beitkit.data.decoding.reading import AnyImage
from beitkit.data.transfer import moved

FULL_MAGNITUDE = 10
"""Magnitudes lie between 0 and this."""
OPERATION_PROBABILITY = 0.5
"""Each chosen operation is applied as often as not."""
ERASED_AREA = (0.02, 1 / 3)
"""Share of the image's area that is erased, smallest and largest."""
ERASED_ASPECT = (0.3, 1 / 0.3)
"""Height / width of the erased box, smallest and largest."""
ERASING_ATTEMPTS = 10
"""Boxes tried before an image stays whole."""

Fill = int | float | tuple[int, int, int]
Operation = Callable[[Image.Image, float, random.Random, Fill], Image.Image]
"""Takes an image, the magnitude as a share of the full one, the generator of its sign, and what shows where the image has
left."""


@dataclass(frozen=True)
class RandAugment:
    """A few operations, drawn with replacement and each applied with probability 1/2, at a magnitude around a given one."""

    operations: int
    """How many are drawn for each image."""
    magnitude: float
    """Mean of the magnitude, of at most 10."""
    magnitude_std: float
    """Standard deviation of the magnitude, which is then clipped to [0, 10]."""
    mean: Sequence[float]
    """The network's pixel mean: what shows where the image has left."""

    def __call__(self, image: AnyImage, rng: random.Random) -> AnyImage:
        """The image after its operations.

        Those on colors are for RGB alone; a deep image is never given what is defined on 256 values (`ON_FLOATS` are the others).
        """
        names = [name for name in OPERATIONS if image.mode == "RGB" or name != "color"]
        names = [name for name in names if name in ON_FLOATS] if isinstance(image, DeepImage) else names
        for name in [rng.choice(names) for _ in range(self.operations)]:
            image = self.apply(name, image, rng)
        return image

    def apply(self, name: str, image: AnyImage, rng: random.Random) -> AnyImage:
        """The image after one operation of `OPERATIONS`, or as it is, as drawn."""
        if rng.random() > OPERATION_PROBABILITY:
            return image
        magnitude = rng.gauss(self.magnitude, self.magnitude_std) if self.magnitude_std > 0 else self.magnitude
        share = max(0.0, min(magnitude, FULL_MAGNITUDE)) / FULL_MAGNITUDE
        if isinstance(image, DeepImage):
            return _applied_deeply(name, image, share, rng, self.mean)
        return OPERATIONS[name](image, share, rng, _fill(self.mean, image.mode))


def draw_erasing(image_size: Pair, probability: float, rng: random.Random) -> Int64[Tensor, 5]:
    """What to erase of an image: top, left, height, width, and the seed of the noise; height 0 erases nothing."""
    height, width = image_size
    if rng.random() <= probability:
        for _ in range(ERASING_ATTEMPTS):
            area = rng.uniform(*ERASED_AREA) * height * width
            aspect = math.exp(rng.uniform(math.log(ERASED_ASPECT[0]), math.log(ERASED_ASPECT[1])))
            box_height, box_width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if box_height < height and box_width < width:
                top, left = rng.randint(0, height - box_height), rng.randint(0, width - box_width)
                return torch.tensor([top, left, box_height, box_width, rng.getrandbits(63)])
    return torch.zeros(5, dtype=torch.int64)


def erased(stream: Iterable[Batch]) -> Iterator[Batch]:
    """Batches whose normalized `images` hold N(0, 1) noise in the boxes of `erased` (b, 5), which is taken out.

    The noise is drawn on the CPU from each sample's seed, the same on every device; that of a batch is moved at once.
    """
    for batch in stream:
        images = batch["images"].clone()
        channels = images.shape[1]
        boxes = [(place, *box) for place, box in enumerate(batch["erased"].tolist()) if box[2] and box[3]]
        drawn = [
            torch.randn(channels, height, width, generator=torch.Generator().manual_seed(seed)).flatten()
            for _, _, _, height, width, seed in boxes
        ]
        noise = moved(torch.cat(drawn), images.device).split([len(one) for one in drawn]) if drawn else ()
        for (place, top, left, height, width, _), one in zip(boxes, noise, strict=True):
            images[place, :, top : top + height, left : left + width] = one.view(channels, height, width)
        yield {key: value for key, value in batch.items() if key != "erased"} | {"images": images}


def _fill(mean: Sequence[float], mode: str) -> Fill:
    """The pixel value of the mean."""
    if mode == "L" or len(mean) != 3:
        gray = min(255, round(255 * sum(mean) / len(mean)))
        return gray if mode == "L" else (gray, gray, gray)
    red, green, blue = (min(255, round(255 * channel)) for channel in mean)
    return red, green, blue


def _applied_deeply(name: str, image: DeepImage, share: float, rng: random.Random, mean: Sequence[float]) -> DeepImage:
    """One of `ON_FLOATS`: turned, sheared and shifted channel by channel, values changed without rounding."""
    if name in GEOMETRIC:
        fill = mean if len(mean) == image.channels else (sum(mean) / len(mean),) * image.channels
        state = rng.getstate()

        def moved(channel: Image.Image, number: int) -> Image.Image:
            rng.setstate(state)  # every channel in the same way
            return OPERATIONS[name](channel, share, rng, fill[number])

        return image.by_channel(moved)
    if name == "auto contrast":
        ends = [(float(channel.min()), float(channel.max())) for channel in image.values]
        low, spread = (
            np.array(part, dtype=np.float32)[:, None, None] for part in zip(*[(a, b - a or 1.0) for a, b in ends], strict=True)
        )
        return image.mapped(lambda values: (values - low) / spread)
    if name == "invert":
        return image.mapped(lambda values: 1 - values)
    if name == "solarize":
        return image.mapped(lambda values: np.where(values < 1 - share, values, 1 - values))
    if name == "solarize add":
        return image.mapped(lambda values: np.where(values < 0.5, values + np.float32(share * 110 / 255), values))
    factor = np.float32(max(0.1, 1 + _signed(share * 0.9, rng)))
    center = {"brightness": np.float32(0), "contrast": image.gray().mean(), "color": image.gray()}[name]
    return image.mapped(lambda values: center + factor * (values - center))


def _signed(value: float, rng: random.Random) -> float:
    return -value if rng.random() > 0.5 else value


def _posterize(image: Image.Image, share: float, rng: random.Random, fill: Fill) -> Image.Image:
    kept_bits = 4 - int(share * 4)  # at full magnitude none, which leaves black and which Pillow's own function refuses
    return _tabulated(image, [value & (256 - 2 ** (8 - kept_bits)) for value in range(256)])


def _solarize(image: Image.Image, share: float, rng: random.Random, fill: Fill) -> Image.Image:
    return ImageOps.solarize(image, 256 - int(share * 256))


def _solarize_add(image: Image.Image, share: float, rng: random.Random, fill: Fill) -> Image.Image:
    added = int(share * 110)
    return _tabulated(image, [min(255, value + added) if value < 128 else value for value in range(256)])


def _tabulated(image: Image.Image, table: list[int]) -> Image.Image:
    """Every pixel value replaced by its entry in a table of 256."""
    return image.point(table * len(image.getbands()))


def _rotate(image: Image.Image, share: float, rng: random.Random, fill: Fill) -> Image.Image:
    return image.rotate(_signed(share * 30, rng), Image.Resampling.BICUBIC, fillcolor=fill)


def _shear_x(image: Image.Image, share: float, rng: random.Random, fill: Fill) -> Image.Image:
    return _mapped(image, (1.0, _signed(share * 0.3, rng), 0.0, 0.0, 1.0, 0.0), fill)


def _shear_y(image: Image.Image, share: float, rng: random.Random, fill: Fill) -> Image.Image:
    return _mapped(image, (1.0, 0.0, 0.0, _signed(share * 0.3, rng), 1.0, 0.0), fill)


def _translate_x(image: Image.Image, share: float, rng: random.Random, fill: Fill) -> Image.Image:
    return _mapped(image, (1.0, 0.0, _signed(share * 0.45, rng) * image.width, 0.0, 1.0, 0.0), fill)


def _translate_y(image: Image.Image, share: float, rng: random.Random, fill: Fill) -> Image.Image:
    return _mapped(image, (1.0, 0.0, 0.0, 0.0, 1.0, _signed(share * 0.45, rng) * image.height), fill)


def _mapped(image: Image.Image, matrix: tuple[float, ...], fill: Fill) -> Image.Image:
    """The image seen through an affine map from new to old places."""
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor=fill)


def _enhanced(enhancer: Callable[[Image.Image], ImageEnhance._Enhance]) -> Operation:
    """More or less of something: a factor of 1 ± 0.9 at full magnitude."""

    def operation(image: Image.Image, share: float, rng: random.Random, fill: Fill) -> Image.Image:
        return enhancer(image).enhance(max(0.1, 1 + _signed(share * 0.9, rng)))

    return operation


OPERATIONS: dict[str, Operation] = {
    "auto contrast": lambda image, share, rng, fill: ImageOps.autocontrast(image),
    "equalize": lambda image, share, rng, fill: ImageOps.equalize(image),
    "invert": lambda image, share, rng, fill: ImageOps.invert(image),
    "rotate": _rotate,
    "posterize": _posterize,
    "solarize": _solarize,
    "solarize add": _solarize_add,
    "color": _enhanced(ImageEnhance.Color),
    "contrast": _enhanced(ImageEnhance.Contrast),
    "brightness": _enhanced(ImageEnhance.Brightness),
    "sharpness": _enhanced(ImageEnhance.Sharpness),
    "shear x": _shear_x,
    "shear y": _shear_y,
    "translate x": _translate_x,
    "translate y": _translate_y,
}
"""The 15 operations of `inc1`: those whose effect grows with the magnitude."""
GEOMETRIC = ("rotate", "shear x", "shear y", "translate x", "translate y")
ON_FLOATS = (*GEOMETRIC, "auto contrast", "invert", "solarize", "solarize add", "color", "contrast", "brightness")
"""The operations of deep images."""
ON_BYTES = tuple(name for name in OPERATIONS if name not in ON_FLOATS)
"""The others: they are defined by tables of 256 values or by kernels of 8 bits."""
