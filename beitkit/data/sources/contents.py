"""The same image twice, by the bytes of its file: sizes are compared first, so that hardly any file is opened.

Of files of one size three small pieces are read, and only where these agree the whole.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from beitkit.data.decoding.decode import Bands, BrokenImage, opened_file
from beitkit.data.sources.image_list import ImageList

PIECE = 4096
"""Bytes that are compared at the beginning, in the middle and at the end."""
MOST_OPENED = 200_000
"""Files that are opened to compare two lists; with more of one size it would take minutes."""
UNKNOWN = -1


class Place(NamedTuple):
    """An image of one of several lists."""

    part: int
    """Which list."""
    position: int
    """Where in it."""


def file_sizes(files: ImageList) -> NDArray[np.int64]:
    """Bytes of every image's file; `UNKNOWN` where there is none, or it lies in a Parquet file, or is an item of a dataset."""
    if files.items is not None:
        return np.full(len(files), UNKNOWN, dtype=np.int64)
    if files.members is not None:
        if files.members.kind == "tar":
            return files.members.places[:, 1].astype(np.int64)
        return np.full(len(files), UNKNOWN, dtype=np.int64)
    return np.fromiter((_size(path) for path in files.paths()), dtype=np.int64, count=len(files))


def _size(path: bytes) -> int:
    try:
        return os.stat(path).st_size  # noqa: PTH116 - as bytes; the name of an image in several files is none of a file
    except (OSError, ValueError):
        return UNKNOWN


def same_contents(parts: list[ImageList], candidates: list[list[Place]]) -> Iterator[list[Place]]:
    """Which images have the same bytes, among those of each group of candidates; unreadable ones equal nothing."""
    for group in candidates:
        for alike in _grouped(parts, group, whole=False):
            if len(alike) > 1:
                yield from (same for same in _grouped(parts, alike, whole=True) if len(same) > 1)


def shared_contents(train: ImageList, val: ImageList) -> list[tuple[int, int]] | None:
    """The images of `val` whose bytes are those of an image of `train`, as pairs (index in val, index in train), in val's order.

    None where more than `MOST_OPENED` files would have to be opened to find out. Where the lists overlap, an image equals itself.
    """
    sizes = file_sizes(train), file_sizes(val)
    common = np.intersect1d(*sizes)
    common = common[common > 0]  # what is empty is no image
    suspects = [np.flatnonzero(np.isin(of_part, common)) for of_part in sizes]
    if sum(map(len, suspects)) > MOST_OPENED:
        return None
    by_size: dict[int, list[Place]] = {}
    for part, indices in enumerate(suspects):
        for index in indices.tolist():
            by_size.setdefault(int(sizes[part][index]), []).append(Place(part, index))
    first_of_train: dict[int, int] = {}
    for same in same_contents([train, val], list(by_size.values())):
        trained_on = [place.position for place in same if place.part == 0]
        if trained_on:
            first_of_train |= {place.position: trained_on[0] for place in same if place.part == 1}
    return sorted(first_of_train.items())


def _grouped(parts: list[ImageList], group: list[Place], *, whole: bool) -> list[list[Place]]:
    """A group divided by the bytes of its images, or by some of them."""
    found: dict[bytes, list[Place]] = {}
    for place in group:
        with suppress(OSError, BrokenImage):
            found.setdefault(_digest(parts[place.part], place.position, whole=whole), []).append(place)
    return list(found.values())


def _digest(files: ImageList, index: int, *, whole: bool) -> bytes:
    source = files.source(index)
    if isinstance(source, Bands):
        raise BrokenImage(source.path, "lies in several files")
    digest = hashlib.blake2b(digest_size=16)
    with opened_file(source) as file:
        if whole:
            while piece := file.read(2**20):
                digest.update(piece)
        else:
            size = file.seek(0, os.SEEK_END)
            for start in sorted({0, max(0, size // 2 - PIECE // 2), max(0, size - PIECE)}):
                file.seek(start)
                digest.update(file.read(PIECE))
    return digest.digest()
