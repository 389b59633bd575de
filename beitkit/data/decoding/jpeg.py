"""JPEG decoding by simplejpeg, if installed (`pip install 'beitkit[fast]'`): the same pixels as Pillow, faster.

Both wrap libjpeg-turbo. Where simplejpeg would differ, Pillow is used, so neither pixels nor errors depend on whether it is
installed (`tests/data/decoding/test_jpeg.py`).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt8

from beitkit.configs.model import Pair

try:
    import simplejpeg
except ImportError:
    simplejpeg = None

MODES = {"RGB": "RGB", "L": "GRAY"}
"""Pillow's modes of stored images, and simplejpeg's names for them; CMYK is left to Pillow."""
SMALLEST = 16
"""Below this side two of libjpeg-turbo's scales round to one size, and simplejpeg may pick the other."""


def is_decodable(mode: str, size: Pair) -> bool:
    """Whether simplejpeg is there, and decodes JPEGs of this mode, in Pillow's words, and (height, width) as Pillow does."""
    return simplejpeg is not None and mode in MODES and max(size) >= SMALLEST


def decode_jpeg(data: bytes, mode: str, size: Pair, reduction: int) -> UInt8[np.ndarray, "h w *channels"] | None:
    """The pixels of a decodable JPEG as they are stored, (h, w, 3) or (h, w); None where Pillow has to decode it.

    That is whatever libjpeg-turbo warns of: Pillow reads some such files and refuses others, which has to be its decision.

    Args:
        data: the file.
        mode: what is stored, in Pillow's words.
        size: (height, width) at full size, before it is turned.
        reduction: 1, 2, 4 or 8; the sides are divided by it and rounded up.
    """
    assert simplejpeg is not None
    # It takes the smallest of libjpeg-turbo's sizes (eighths, rounded up) that is not below these; 0 is the full size.
    height, width = (-(-side // reduction) if reduction > 1 else 0 for side in size)
    try:
        pixels = simplejpeg.decode_jpeg(data, colorspace=MODES[mode], min_height=height, min_width=width)
    except ValueError:
        return None
    return pixels if mode == "RGB" else pixels[..., 0]
