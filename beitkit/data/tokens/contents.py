"""Detect images whose content has changed since something was computed from them.

24 bytes are stored per image: digest, size and mtime. The file is read again only if size or mtime differ, as in make and rsync.
Images in archives have the mtime of the archive.
"""

from __future__ import annotations

import functools
import hashlib
import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from beitkit.data.decoding.decode import Bands, BrokenImage, Encoded
from beitkit.data.sources.image_list import ImageList
from beitkit.data.sources.locations import stamp_of
from beitkit.files import opened_regular
from beitkit.system import usable_cores

BYTES_PER_IMAGE = 24
"""Digest, size and mtime, 8 bytes each."""
AT_ONCE = 4096  # files that are handed to the threads together: millions of waiting tasks would only take memory


def contents_of(files: ImageList) -> NDArray[np.int64]:
    """Digest, size (-1 without a file) and mtime (ns) of every image, (images, 3); reads every file once."""
    contents = np.zeros((len(files), 3), dtype=np.int64)
    stamps = _Stamps(files)

    def look(index: int) -> None:
        contents[index] = _content(files, index, stamps)

    _by_threads(files, look)
    return contents


def first_changed(files: ImageList, before: NDArray[np.int64]) -> int | None:
    """The first image whose content has changed; None if there is none."""
    suspects: list[int] = []
    stamps = _Stamps(files)

    def look(index: int) -> None:
        if stamps.size_and_time(index) != tuple(before[index, 1:].tolist()):
            suspects.append(index)

    _by_threads(files, look)
    for index in sorted(suspects):
        digest, size, _ = _content(files, index, stamps)
        # Sizes are not compared: the same image has none in Parquet. An image that is not there has another size than all.
        if (digest, size < 0) != (int(before[index, 0]), bool(before[index, 1] < 0)):
            return index
    return None


def _by_threads(files: ImageList, do: Callable[[int], None]) -> None:
    with ThreadPoolExecutor(usable_cores()) as pool:
        for start in range(0, len(files), AT_ONCE):
            list(pool.map(do, range(start, min(start + AT_ONCE, len(files)))))


class _Stamps:
    """Sizes and times of change of images; an archive is asked for its time once."""

    def __init__(self, files: ImageList) -> None:
        self.files = files
        self._time_of = functools.cache(stamp_of)

    def size_and_time(self, index: int) -> tuple[int, int]:
        """Size of an image (-1 where it is not there, 0 in Parquet, which does not keep it) and time of change."""
        members = self.files.members
        try:
            if members is None:
                status = self.files.path(index).stat()
                return status.st_size, status.st_mtime_ns
            size = int(members.places[index, 1]) if members.kind == "tar" else 0
            return size, self._time_of(members.archives[members.archive[index]])
        except OSError:
            return -1, 0


def _content(files: ImageList, index: int, stamps: _Stamps) -> tuple[int, int, int]:
    size, changed = stamps.size_and_time(index)
    if size < 0:
        return 0, size, changed
    digest = hashlib.blake2b(digest_size=8)
    try:
        source = files.source(index)
        for one in source.paths if isinstance(source, Bands) else (source,):
            with io.BytesIO(one.content) if isinstance(one, Encoded) else opened_regular(one) as file:
                while part := file.read(2**20):
                    digest.update(part)
    except (OSError, BrokenImage):
        return 0, size, changed  # it cannot be read as an image either
    return int.from_bytes(digest.digest(), "little", signed=True), size, changed
