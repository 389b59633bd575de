"""Whether pictures still have the content that something was computed from.

Of each picture 24 bytes are kept: a digest of its bytes, its size and its time of change. Size and time are asked of the file
system; only where they differ is the file read again, as make and rsync do it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from beitkit.data.picture_list import PictureList
from beitkit.system import usable_cores

BYTES_PER_PICTURE = 24
"""Digest, size and time of change, 8 bytes each."""
AT_ONCE = 4096  # files that are handed to the threads together: millions of waiting tasks would only take memory


def contents_of(files: PictureList) -> NDArray[np.int64]:
    """Digest, size (-1 where there is no file) and time of change (ns) of every picture, (pictures, 3); reads every file once."""
    contents = np.zeros((len(files), 3), dtype=np.int64)

    def look(index: int) -> None:
        contents[index] = _content(files.path(index))

    _by_threads(files, look)
    return contents


def first_changed(files: PictureList, before: NDArray[np.int64]) -> int | None:
    """The first picture whose content is no longer what it was; None if all are the same."""
    suspects: list[int] = []

    def look(index: int) -> None:
        if _size_and_time(files.path(index)) != tuple(before[index, 1:].tolist()):
            suspects.append(index)

    _by_threads(files, look)
    for index in sorted(suspects):
        if _content(files.path(index))[:2] != tuple(before[index, :2].tolist()):
            return index
    return None


def _by_threads(files: PictureList, do: Callable[[int], None]) -> None:
    with ThreadPoolExecutor(usable_cores()) as pool:
        for start in range(0, len(files), AT_ONCE):
            list(pool.map(do, range(start, min(start + AT_ONCE, len(files)))))


def _content(path: Path) -> tuple[int, int, int]:
    size, changed = _size_and_time(path)
    if size < 0:
        return 0, size, changed
    digest = hashlib.blake2b(digest_size=8)
    try:
        with path.open("rb") as file:
            while part := file.read(2**20):
                digest.update(part)
    except OSError:
        return 0, size, changed  # it cannot be read as a picture either
    return int.from_bytes(digest.digest(), "little", signed=True), size, changed


def _size_and_time(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return -1, 0
    return status.st_size, status.st_mtime_ns
