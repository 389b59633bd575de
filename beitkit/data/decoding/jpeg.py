"""JPEG decoding by simplejpeg: the same pixels as Pillow, faster, and it tells when a file is damaged.

Both wrap libjpeg-turbo. Where simplejpeg's pixels would differ, Pillow decodes (`tests/data/decoding/test_jpeg.py`). What is
missing in the middle of a file, or was cut off before an end marker was put there, libjpeg fills with gray and warns; Pillow
drops the warning, so every JPEG is asked for here.
"""

from __future__ import annotations

import re

import numpy as np
import simplejpeg
from jaxtyping import UInt8

from beitkit.configs.model import Pair

MODES = {"RGB": "RGB", "L": "GRAY"}
"""Pillow's modes of stored images, and simplejpeg's names for them; CMYK is left to Pillow."""
SMALLEST = 16
"""Below this side two of libjpeg-turbo's scales round to one size, and simplejpeg may pick the other."""
DAMAGE = ("premature end", "bad huffman code", "bad arithmetic code", "instead of rst")
"""What libjpeg warns of where it makes pixels up (jerror.h: JPEG_EOF and HIT_MARKER, the codes, MUST_RESYNC)."""
LEFT_OVER = re.compile(r"extraneous bytes before marker 0x(\w\w)")
"""Its warning of bytes that no pixel was made of. Behind a hole it loses its place and is done before the bytes are."""
PADDING = 2
"""Different values in bytes that some cameras put before the end marker; what is left of pixels has more."""
START_OF_SCAN, END_OF_IMAGE, ALONE = 0xDA, 0xD9, (0x01, *range(0xD0, 0xD9))
"""Markers, and those without a length."""


class DamagedJPEG(ValueError):  # noqa: N818 - it names a file, as `BrokenImage` does
    """Some of the pixels are missing."""


def is_decodable(mode: str, size: Pair) -> bool:
    """Whether simplejpeg decodes JPEGs of this mode, in Pillow's words, and (height, width) as Pillow does."""
    return mode in MODES and max(size) >= SMALLEST


def decode_jpeg(data: bytes, mode: str, size: Pair, reduction: int) -> UInt8[np.ndarray, "h w *channels"] | None:
    """The pixels of a decodable JPEG as they are stored, (h, w, 3) or (h, w); None where Pillow has to decode it.

    That is whatever libjpeg-turbo warns of and is no damage: Pillow reads some such files and refuses others.

    Args:
        data: the file.
        mode: what is stored, in Pillow's words.
        size: (height, width) at full size, before it is turned.
        reduction: 1, 2, 4 or 8; the sides are divided by it and rounded up.

    Raises:
        DamagedJPEG: some of the pixels are missing.
    """
    # It takes the smallest of libjpeg-turbo's sizes (eighths, rounded up) that is not below these; 0 is the full size.
    height, width = (-(-side // reduction) if reduction > 1 else 0 for side in size)
    try:
        pixels = simplejpeg.decode_jpeg(data, colorspace=MODES[mode], min_height=height, min_width=width)
    except ValueError as error:
        _raise_if_damaged(data, error)
        return None
    return pixels if mode == "RGB" else pixels[..., 0]


def check_jpeg(data: bytes, mode: str) -> None:
    """Decode a JPEG at 1/8 of its size, to its end; `mode` is what is stored, in Pillow's words.

    Raises:
        DamagedJPEG: some of the pixels are missing.
    """
    try:
        simplejpeg.decode_jpeg(data, colorspace="CMYK" if mode == "CMYK" else "GRAY", min_height=1, min_width=1, min_factor=8)
    except ValueError as error:
        _raise_if_damaged(data, error)


def _raise_if_damaged(data: bytes, error: ValueError) -> None:
    """Much that libjpeg warns of harms nothing: an unknown version of JFIF, a few bytes too many between headers."""
    found = LEFT_OVER.search(str(error))
    is_left_over = found is not None and _are_of_pixels(data, int(found[1], 16))
    if is_left_over or any(sign in str(error).lower() for sign in DAMAGE):
        raise DamagedJPEG(str(error).removeprefix("Corrupt JPEG data: ")) from error


def _are_of_pixels(data: bytes, marker: int) -> bool:
    """Whether bytes that are left over before a marker are some of the pixels'."""
    start = _first_scan(data)
    if start is None:
        return False  # there is something between the headers, which the warning may be about
    if marker != END_OF_IMAGE:
        return True
    end = data.find(b"\xff\xd9", start)
    return len(set(data[max(start, end - 16) : end])) > PADDING


def _first_scan(data: bytes) -> int | None:
    """Where the pixels begin, if headers without gaps lead there."""
    place = 2
    while place + 4 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        length = 0 if marker in ALONE else -1 if marker == 0xFF else int.from_bytes(data[place + 2 : place + 4])
        place += 2 + length
        if marker == START_OF_SCAN:
            return place
    return None
