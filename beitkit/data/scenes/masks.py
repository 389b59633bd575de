"""Reading mask files: pixel values or colors exactly as stored.

A mask file is an index image (gray, 1 to 16 bits: the value is the id), a palette image (the index is the id, the
palette only colors it) or an RGB image (a table says which color is which class). See `label_codes`
for what values and colors mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngImageFile

from beitkit.configs.segmentation import Color
from beitkit.data.decoding.decode import Bands, BrokenImage, Encoded, bytes_per_pixel, display_name, opened_image
from beitkit.data.decoding.limit import why_too_large

FORMATS = ("PNG", "TIFF", "BMP", "GIF", "PPM")  # those that keep every value; JPEG and WebP do not
MODES = ("1", "L", "P", "RGB", "I", "I;16", "I;16B")
NUM_VALUES = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Mask:
    """The pixels of a mask file as they are stored: values (h, w) or, in RGB, colors (h, w, 3)."""

    path: Path
    pixels: NDArray[np.integer[Any]]
    palette: tuple[Color, ...] = ()
    """Color of each index of a palette image."""

    @property
    def is_color(self) -> bool:
        """Whether pixels are colors, so that only a table of colors can tell classes."""
        return self.pixels.ndim == 3

    def occurring(self) -> NDArray[np.int64]:
        """The values that occur, sorted; colors as r * 65536 + g * 256 + b."""
        if not self.is_color:
            return np.flatnonzero(np.bincount(self.pixels.ravel())).astype(np.int64)
        return np.unique(packed(self.pixels))


def read_mask(source: Path | Encoded | Bands) -> Mask:
    """The stored pixels of a mask file, turned upright by its own EXIF orientation as images are.

    Raises:
        BrokenImage: no image, damaged, too large, of a kind that does not keep values (JPEG), or with transparency.
    """
    path = display_name(source)
    if isinstance(source, Bands):
        raise BrokenImage(path, "a mask is one file, not one for each band")
    with opened_image(source) as image:
        if image.format not in FORMATS:
            raise BrokenImage(path, f"a mask must be a PNG or TIFF file; {image.format} changes pixel values")
        # Besides what Pillow decodes, the array that is made of it.
        if (reason := why_too_large(image.width, image.height, 2 * bytes_per_pixel(image, image.mode))) is not None:
            raise BrokenImage(path, reason)
        step = _gray_step(image)
        image.load()
        return _mask(path, image, step)


def unpacked(colors: NDArray[np.int64]) -> list[Color]:
    """Colors from the numbers that `Mask.occurring` returns."""
    return [(number >> 16, number >> 8 & 255, number & 255) for number in colors.tolist()]


def packed(colors: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
    """Colors (..., 3) as the numbers r * 65536 + g * 256 + b."""
    wide = colors.astype(np.int64)
    return wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]


def _gray_step(image: Image.Image) -> int:
    """What Pillow multiplies the values of a gray PNG of 2 or 4 bits with, to spread them over 8 bits."""
    if not isinstance(image, PngImageFile) or not image.tile:
        return 1
    return {"L;2": 85, "L;4": 17}.get(str(image.tile[0].args), 1)


def _mask(path: Path, image: Image.Image, step: int) -> Mask:
    image = ImageOps.exif_transpose(image)
    if image.mode in ("LA", "RGBA"):
        if image.getchannel("A").getextrema() != (255, 255):
            raise BrokenImage(path, "a mask must not have transparent pixels; save it without alpha channel")
        image = image.convert(image.mode[:-1])
    if image.mode not in MODES:
        raise BrokenImage(path, f"a mask must be gray, palette or RGB, this is of mode {image.mode}")
    pixels = np.array(image)
    if image.mode == "1":
        pixels = pixels.astype(np.uint8)
    if pixels.dtype.kind == "i" and (pixels.min() < 0 or pixels.max() >= NUM_VALUES):
        raise BrokenImage(path, "has values beyond 16 bits")
    if step != 1:
        pixels = pixels // step
    if image.mode != "P":
        return Mask(path=path, pixels=pixels)
    flat = image.getpalette("RGB") or []
    palette = tuple((flat[i], flat[i + 1], flat[i + 2]) for i in range(0, len(flat) - 2, 3))
    return Mask(path=path, pixels=pixels, palette=palette)
