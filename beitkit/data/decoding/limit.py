"""How large an image may be: a larger one is refused by its header, before any memory is spent on it.

Two numbers: pixels, and the bytes that decoding takes, which pixels alone do not tell (`decode.bytes_per_pixel`). One pair for a
process and for those that it forks, as Pillow has one: every decoder asks for it, and a verb sets it for as long as it runs, to
its `read.max_pixels` and `read.max_memory` (`beitkit.verbs`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image

from beitkit.configs.data import ReadLimit

MILLION = 1_000_000
BYTES = 3
"""Of a decoded pixel in RGB."""
LARGEST_FILE = 2**30
"""Bytes of one image's file; more cannot be an image of at most 64 million pixels."""
PILLOW = Image.MAX_IMAGE_PIXELS or 0
_limit = ReadLimit()


@contextmanager
def reading_up_to(limit: ReadLimit) -> Iterator[None]:
    """Images up to this limit are read inside the block."""
    global _limit
    before = _limit
    _set(limit)
    try:
        yield
    finally:
        _set(before)


def _set(limit: ReadLimit) -> None:
    global _limit
    _limit = limit
    # Pillow refuses what has twice its own limit.
    Image.MAX_IMAGE_PIXELS = max(PILLOW, round(limit.max_pixels * MILLION))


def allowed() -> float:
    """Millions of pixels that an image may have."""
    return _limit.max_pixels


def why_too_large(width: int, height: int, bytes_per_pixel: int | float) -> str | None:
    """Why an image of this size is refused, if it is, and what it would take to read it."""
    pixels = width * height
    if pixels > round(_limit.max_pixels * MILLION):
        decoded = f"{pixels * BYTES / MILLION:.0f} MB decoded, in every process that reads"
        return (
            f"{width}x{height} pixels, more than {allowed():g} million; "
            f"`read.max_pixels={math.ceil(pixels / MILLION)}` lets it in ({decoded})"
        )
    reason = why_too_much_memory(pixels * bytes_per_pixel)
    return None if reason is None else f"{width}x{height} pixels {reason}"


def why_too_much_memory(size: int | float) -> str | None:
    """Why something that takes this many bytes is refused, if it is: to follow its name."""
    megabytes = math.ceil(size / MILLION)
    if size <= _limit.decoding_memory * MILLION:
        return None
    return (
        f"take {megabytes} MB decoded, more than {_limit.decoding_memory:g}; "
        f"`read.max_memory={megabytes}` lets it in (in every process that reads)"
    )
