"""Image reader: from a path, Pillow image, array or tensor to the input of a network, as in its evaluation."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Shaped
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from beitkit.configs.data import Preprocessing, ValueRange
from beitkit.configs.model import BackboneConfig, Pair
from beitkit.contracts import ImageInput
from beitkit.data.decoding.decode import BrokenImage, StoredImage, image_mode, opaque, upright
from beitkit.data.decoding.deep import DeepImage
from beitkit.data.decoding.raw import RawImage, channels_first
from beitkit.data.decoding.reading import AnyImage, as_tensor, is_deep, readable_image, scaled
from beitkit.data.stream import normalized
from beitkit.data.views.image import EvaluationView
from beitkit.errors import UserError

CHANNELS = (1, 3, 4)
"""What an axis of channels can have: gray, RGB, RGB with transparency."""


@dataclass(frozen=True, kw_only=True)
class ImageReader:
    """Prepares images for a network: read, cut and resized by `EvaluationView`, normalized."""

    preprocessing: Preprocessing
    image_size: Pair
    patch: Pair
    channels: int

    @classmethod
    def of(cls, backbone: BackboneConfig, preprocessing: Preprocessing) -> ImageReader:
        """The reader of the network that these describe."""
        return cls(preprocessing=preprocessing, image_size=backbone.image_size, patch=backbone.patch, channels=backbone.channels)

    def __call__(self, images: Sequence[ImageInput]) -> Float[Tensor, "b c h w"]:
        """Normalized images on the CPU.

        Args:
            images: paths, Pillow images, or arrays and tensors, uint8 or float in [0, 1], of shape (h, w), (h, w, c) or
                (c, h, w) with 1, 3 or 4 channels; where both could be meant, arrays are (h, w, c) and tensors (c, h, w). For
                a network with a value range: of any type and of its channels, in the numbers that its files have.

        Raises:
            UserError: a file that cannot be read, or an array that is not an image.
        """
        pixels = []
        for image in images:
            try:
                pixels.append(self.pixels(image))
            except BrokenImage as broken:
                raise UserError(f"{broken.path} cannot be read: {broken.reason}") from None
        return self.normalized(torch.stack(pixels))

    def pixels(self, image: ImageInput) -> Shaped[Tensor, "c h w"]:
        """One image at the network's size, not yet normalized.

        Raises:
            BrokenImage: a file that cannot be read.
            UserError: an array that is not an image.
        """
        loaded = opened(image, self.channels, self.preprocessing.value_range, self.patch)
        return EvaluationView(self.preprocessing, self.image_size)(loaded, random.Random(0))["images"]

    def normalized(self, pixels: Shaped[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """What the network takes of pixels."""
        return next(normalized([{"images": pixels}], self.preprocessing.mean, self.preprocessing.std))["images"]


@dataclass(frozen=True, kw_only=True)
class WholeReader:
    """Reads images at their own size."""

    channels: int
    value_range: ValueRange | None = None

    def __call__(self, image: ImageInput) -> Shaped[Tensor, "c h w"]:
        """The pixels of an image in any form that `ImageReader` takes.

        Raises:
            UserError: a file that cannot be read, or an array that is not an image.
        """
        try:
            loaded = opened(image, self.channels, self.value_range)
            return as_tensor(loaded.decoded() if isinstance(loaded, StoredImage) else loaded)
        except BrokenImage as broken:
            raise UserError(f"{broken.path} cannot be read: {broken.reason}") from None


def opened(
    image: ImageInput, channels: int, value_range: ValueRange | None = None, smallest: Pair = (1, 1)
) -> AnyImage | StoredImage:
    """An image in any form, upright, as a network with these channels and this range takes it; a JPEG is not decoded yet.

    Raises:
        BrokenImage: a file that cannot be read, or is smaller than `smallest` (height, width).
        UserError: an array that is not an image.
    """
    if isinstance(image, str | bytes | os.PathLike):
        return readable_image(Path(os.fsdecode(image)), channels, value_range, smallest)
    if not isinstance(image, Image.Image | np.ndarray | Tensor):
        nested = isinstance(image, list | tuple)
        what = f"a {type(image).__name__} in the list of images" if nested else f"a {type(image).__name__}"
        raise UserError(
            f"{what} is no image; expected a path, a Pillow image, or an array or tensor (numpy.array(list) makes one)"
        )
    if is_deep(channels, value_range):
        return _as_deep_image(image, channels, value_range)
    given = image if isinstance(image, Image.Image) else _as_image(image)
    try:
        return upright(opaque(given, image_mode(channels)), given)
    except ValueError as error:
        raise UserError(f"an image of mode {given.mode} cannot be shown: {error}") from None


def _as_deep_image(image: Image.Image | NDArray[np.generic] | Tensor, channels: int, value_range: ValueRange | None) -> DeepImage:
    """A Pillow image, an array or a tensor in the numbers that the network's files have."""
    if isinstance(image, Image.Image):
        is_wide = image.mode.startswith("I") or image.mode == "F"
        given = np.asarray(image if is_wide else upright(opaque(image, "L" if image.mode in ("1", "L", "LA") else "RGB"), image))
        values = channels_first(given)
    else:
        given = _numpy(image)
        values = channels_first(given, channels, first=isinstance(image, Tensor))
    if values is None or 0 in values.shape or values.dtype.kind not in "uifb":
        raise UserError(f"an array of {given.dtype} and shape {given.shape} is no image; expected (h, w), (h, w, c) or (c, h, w)")
    try:
        return scaled(RawImage(values), channels, value_range, Path("the image"))
    except BrokenImage as broken:
        raise UserError(f"{broken.path} {broken.reason}") from None


def _numpy(array: NDArray[np.generic] | Tensor) -> NDArray[np.generic]:
    if not isinstance(array, Tensor):
        return array
    # NumPy has no bfloat16; in float32 it is the same number.
    return (array.float() if array.dtype == torch.bfloat16 else array).detach().cpu().numpy()


def _as_image(array: NDArray[np.generic] | Tensor) -> Image.Image:
    """An array or tensor as a Pillow image."""
    is_tensor, pixels = isinstance(array, Tensor), _numpy(array)
    if pixels.ndim == 3:
        is_first, is_last = pixels.shape[0] in CHANNELS, pixels.shape[2] in CHANNELS
        if is_first and (is_tensor or not is_last):
            pixels = pixels.transpose(1, 2, 0)
        pixels = pixels[..., 0] if pixels.shape[2] == 1 else pixels
    if 0 in pixels.shape or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in CHANNELS)):
        raise UserError(
            f"an array of shape {tuple(array.shape)} is no image; expected (h, w), (h, w, c) or (c, h, w) with 1, 3 or 4 channels"
        )
    if np.issubdtype(pixels.dtype, np.floating):
        if not (pixels.min() >= 0 and pixels.max() <= 1):  # also refuses NaN
            raise UserError(f"an image of floats must lie in [0, 1], got {pixels.min():g} to {pixels.max():g}; divide by 255?")
        pixels = np.rint(np.multiply(pixels, 255)).astype(np.uint8)
    if pixels.dtype != np.uint8:
        raise UserError(f"an image of {pixels.dtype} is not understood; give uint8, or floats in [0, 1]")
    return Image.fromarray(np.ascontiguousarray(pixels))
