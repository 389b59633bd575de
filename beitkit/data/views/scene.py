"""Training transforms of segmentation: image and label map resized, cropped and flipped together.

A view is called as `view(image, label_map, rng)` with upright Pillow images of equal size, the image in mode "RGB" or "L"
and class ids in mode "L", and a `random.Random`. Images are resized with a bilinear filter, label maps always by taking the
nearest pixel: a class id between two others means nothing. The steps and their order are those of mmsegmentation 0.11, with
which the official code trains (method 7.3).
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from beitkit.configs.data import SceneViewConfig
from beitkit.configs.model import Pair
from beitkit.contracts import IGNORED, Batch
from beitkit.data.decoding.decode import to_tensor
from beitkit.data.decoding.reading import AnyImage, as_tensor
from beitkit.data.views.image import Box
from beitkit.data.views.orientation import drawn_orientation, drawn_turns, on_its_side

REDRAWS = 10  # crops that are drawn in place of a too uniform one, before the last of them is taken anyway


@dataclass(frozen=True)
class SceneTrainView:
    """Training of a segmenter: random scale, crop, flip (and turn) and distortion of colors, padded to the size of the crop.

    What is padded (below and to the right) is black and has the label 255; `extent` says where it begins, so that
    `with_zeroed_padding` can set it to 0 after normalization.
    """

    view: SceneViewConfig
    crop: Pair
    """(height, width) of the sample."""

    def __call__(self, image: AnyImage, label_map: Image.Image, rng: random.Random) -> dict[str, Tensor]:
        """`images` (c, h, w), uint8 or of deep images float32, `label_map` (h, w) uint8, and `extent` (2).

        `extent` is int64, the height and width that are not padding.
        """
        turns = drawn_turns(self.view, rng)
        crop = on_its_side(self.crop, turns)
        size = training_size((image.height, image.width), crop, self.view, rng.uniform(*self.view.scale))
        label_map = label_map.resize((size[1], size[0]), Image.Resampling.NEAREST)
        box = varied_crop(np.asarray(label_map), crop, self.view.max_share, rng)
        shown, label_map = resized_part(image, size, box), label_map.crop(_corners(box))
        if (orientation := drawn_orientation(self.view, turns, rng)) is not None:
            shown, label_map = shown.transpose(orientation), label_map.transpose(orientation)
        pixels = distorted(as_tensor(shown), self.view, rng)
        height, width = on_its_side((box.height, box.width), turns)
        images = pixels.new_zeros((len(pixels), *self.crop))
        images[:, :height, :width] = pixels
        labels = torch.full(self.crop, IGNORED, dtype=torch.uint8)
        labels[:height, :width] = to_tensor(label_map)[0]
        return {"images": images, "label_map": labels, "extent": torch.tensor([height, width])}


def fitted_size(image: Pair, short: int, long: int) -> Pair:
    """The largest (height, width) with the image's aspect whose shorter side is at most `short` and the longer at most `long`.

    Sides are rounded to whole pixels, halves up, as in mmcv.
    """
    factor = min(short / min(image), long / max(image))
    height, width = (max(1, int(side * factor + 0.5)) for side in image)
    return height, width


def training_size(image: Pair, crop: Pair, view: SceneViewConfig, scale: float) -> Pair:
    """The size an image is trained at: the fit into (long_side * c, c), each times `scale`, c the crop's shorter side."""
    short = min(crop)
    return fitted_size(image, max(1, int(short * scale)), max(1, int(short * view.long_side * scale)))


def varied_crop(label_map: NDArray[np.uint8], crop: Pair, max_share: float, rng: random.Random) -> Box:
    """A random box of at most the crop's size in which more than one class shows and none has `max_share` of what counts.

    When ten further draws find none, the last of them.
    """
    box = _random_box(label_map.shape[:2], crop, rng)
    if max_share == 1 or box[2:] == label_map.shape:
        return box
    for _ in range(REDRAWS):
        part = label_map[box.top : box.top + box.height, box.left : box.left + box.width]
        counts = np.bincount(part.ravel(), minlength=IGNORED + 1)[:IGNORED]
        if (counts > 0).sum() > 1 and counts.max() < max_share * counts.sum():
            return box
        box = _random_box(label_map.shape[:2], crop, rng)
    return box


def resized_part(image: AnyImage, size: Pair, box: Box) -> AnyImage:
    """A box of the image as it would be at (height, width) `size`, without computing the rest of it.

    Unlike OpenCV's, Pillow's bilinear filter averages over all pixels that become one when an image shrinks.
    """
    down, across = image.height / size[0], image.width / size[1]
    left, top, right, bottom = _corners(box)
    source = left * across, top * down, min(right * across, image.width), min(bottom * down, image.height)
    return image.resize((box.width, box.height), Image.Resampling.BILINEAR, box=source)


def distorted(image: Shaped[Tensor, "c h w"], view: SceneViewConfig, rng: random.Random) -> Shaped[Tensor, "c h w"]:
    """The image with brightness, contrast, saturation and hue changed, each with a probability.

    The contrast comes before saturation and hue or after them, by a coin. Only RGB has saturation and hue; images of other
    channels draw nothing for them. Deep images, whose values lie in [0, 1], are changed by the same shares without rounding.
    Unlike the official code, which converts to 8-bit HSV and back and loses colors on the way, hue and saturation are changed
    in floating point.
    """
    if view.distortion == 0:
        return image
    is_deep = image.is_floating_point()
    pixels = image.numpy() * np.float32(255) if is_deep else image.numpy().astype(np.float32)
    kept = _within if is_deep else _rounded
    is_color, contrast_first = len(image) == 3, rng.random() < 0.5
    if rng.random() < view.distortion:
        pixels = kept(pixels + rng.uniform(-view.brightness, view.brightness))
    if contrast_first and rng.random() < view.distortion:
        pixels = kept(pixels * _factor(view.contrast, rng))
    if is_color and rng.random() < view.distortion:
        pixels = kept(saturated(pixels, _factor(view.saturation, rng)))
    if is_color and rng.random() < view.distortion:
        # The official code draws with an open end: -18 to 17.
        pixels = kept(turned_hue(pixels, rng.randrange(-view.hue, max(view.hue, 1))))
    if not contrast_first and rng.random() < view.distortion:
        pixels = kept(pixels * _factor(view.contrast, rng))
    return torch.from_numpy(pixels / np.float32(255) if is_deep else pixels.astype(np.uint8))


def saturated(pixels: NDArray[np.float32], factor: float) -> NDArray[np.float32]:
    """RGB values (3, h, w) with the saturation of HSV multiplied by `factor`, at most to 1; hue and value stay."""
    value = pixels.max(axis=0)
    spread = value - pixels.min(axis=0)
    # S = spread / value, so a factor beyond value / spread would make it more than 1.
    limit = np.divide(value, spread, out=np.ones_like(value), where=spread > 0)
    return value - (value - pixels) * np.minimum(factor, limit)


def turned_hue(pixels: NDArray[np.float32], steps: int) -> NDArray[np.float32]:
    """RGB values (3, h, w) with the hue of HSV turned by `steps` of 2 degrees; saturation and value stay."""
    red, green, blue = pixels
    value = pixels.max(axis=0)
    spread = value - pixels.min(axis=0)
    scale = np.divide(1, spread, out=np.zeros_like(spread), where=spread > 0)
    # The sector of the hexagon that the hue lies in, in units of 60 degrees.
    sector = np.where(
        value == red,
        (green - blue) * scale,
        np.where(value == green, 2 + (blue - red) * scale, 4 + (red - green) * scale),
    )
    sector = sector + np.float32(steps / 30)
    turned = np.empty_like(pixels)
    for channel, offset in enumerate((5, 3, 1)):
        distance = (offset + sector) % 6
        turned[channel] = value - spread * np.minimum(distance, 4 - distance).clip(0, 1)
    return turned


def with_zeroed_padding(stream: Iterable[Batch]) -> Iterator[Batch]:
    """Batches in which `images` (b, c, h, w), normalized, are 0 outside of `extent`: a stage after `normalized`."""
    for batch in stream:
        yield batch | {"images": _zeroed_padding(batch["images"], batch["extent"])}


def _zeroed_padding(images: Float[Tensor, "b c h w"], extent: Int[Tensor, "b 2"]) -> Float[Tensor, "b c h w"]:
    rows = torch.arange(images.shape[2], device=images.device) < extent[:, :1]  # (b, h)
    columns = torch.arange(images.shape[3], device=images.device) < extent[:, 1:]  # (b, w)
    return images * (rows[:, None, :, None] & columns[:, None, None, :])


def _random_box(image: Pair, crop: Pair, rng: random.Random) -> Box:
    height, width = min(image[0], crop[0]), min(image[1], crop[1])
    return Box(rng.randint(0, image[0] - height), rng.randint(0, image[1] - width), height, width)


def _corners(box: Box) -> tuple[int, int, int, int]:
    """As Pillow has boxes: (left, top, right, bottom)."""
    return box.left, box.top, box.left + box.width, box.top + box.height


def _factor(strength: float, rng: random.Random) -> float:
    return rng.uniform(1 - strength, 1 + strength)


def _rounded(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rounded and within 0 to 255, as it would be stored between two steps."""
    return np.rint(pixels).clip(0, 255)


def _within(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    return pixels.clip(0, 255).astype(np.float32, copy=False)
