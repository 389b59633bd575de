"""How many pixels an image may have: a larger one is refused by its header, before any memory is spent on it.

One number for a process and for those that it forks, as Pillow has one: every decoder asks for it, and a verb sets it for as
long as it runs, to its `read.max_pixels` (`beitkit.verbs`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image

MILLION = 1_000_000
MAX_PIXELS = 64 * MILLION
"""Where nothing else is said: 192 MB decoded."""
BYTES = 3
"""Of a decoded pixel in RGB."""
PILLOW = Image.MAX_IMAGE_PIXELS or 0
_allowed = MAX_PIXELS


@contextmanager
def pixels_up_to(millions: float) -> Iterator[None]:
    """Images of up to this many million pixels are read inside the block."""
    global _allowed
    before = _allowed
    _allowed = round(millions * MILLION)
    # Pillow refuses what has twice its own limit.
    Image.MAX_IMAGE_PIXELS = max(PILLOW, _allowed)
    try:
        yield
    finally:
        _allowed, Image.MAX_IMAGE_PIXELS = before, max(PILLOW, before)


def allowed() -> float:
    """Millions of pixels that an image may have."""
    return _allowed / MILLION


def is_too_large(width: int, height: int) -> bool:
    """Whether an image of this size is refused."""
    return width * height > _allowed


def too_large(width: int, height: int) -> str:
    """Why it is refused, and what it would take to read it."""
    millions, memory = math.ceil(width * height / MILLION), width * height * BYTES / MILLION
    return (
        f"{width}x{height} pixels, more than {allowed():g} million; --read.max-pixels {millions} reads it "
        f"({memory:.0f} MB decoded, in every process that reads)"
    )
