"""Walk nested folders for image files.

Only regular files count; a pipe, a device or a folder named `x.jpg` is skipped, so that nothing blocks on it later. Names are
bytes, as they need not be valid UTF-8.
"""

from __future__ import annotations

import heapq
import itertools
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from beitkit.data.decoding.formats import has_ending
from beitkit.errors import UserError

SORTED_TOGETHER = 500_000
"""Names that a sorted walk keeps in memory."""


def walk(root: Path) -> Iterator[bytes]:
    """Names relative to `root` of all images below it, in no promised order."""
    top = os.path.join(os.fsencode(root), b"")  # noqa: PTH118 - names are bytes here, which a Path cannot hold
    entered: set[tuple[int, int]] = set()
    folders = [top]
    while folders:
        folder = folders.pop()
        status = os.stat(folder)  # noqa: PTH116
        # A folder is known by device and inode: links that lead back up would otherwise be followed for ever.
        if (status.st_dev, status.st_ino) in entered:
            continue
        entered.add((status.st_dev, status.st_ino))
        inside = []
        for entry in entries_of(folder):
            if entry.is_dir():
                inside.append(entry.path)
            elif is_image(entry):
                yield entry.path[len(top) :]
        folders.extend(sorted(inside, reverse=True))


def sorted_walk(root: Path, scratch: Path) -> Iterator[bytes]:
    """The names that `walk` finds, sorted; a part of them at a time is in memory, the others in a file in `scratch`."""
    names = walk(root)
    with tempfile.TemporaryFile(dir=scratch) as file:
        runs: list[tuple[int, int]] = []
        while part := sorted(itertools.islice(names, SORTED_TOGETHER)):
            start = file.tell()
            file.write(b"\0".join(part))
            runs.append((start, file.tell()))
        file.flush()
        yield from heapq.merge(*(_run(file, start, stop) for start, stop in runs))


def _run(file: IO[bytes], start: int, stop: int) -> Iterator[bytes]:
    rest = b""
    while start < stop:
        part = rest + os.pread(file.fileno(), min(2**16, stop - start), start)
        start += 2**16
        *names, rest = part.split(b"\0")
        yield from names
    if rest:
        yield rest


def is_image(entry: os.DirEntry[bytes]) -> bool:
    """Whether this is a regular file with the ending of an image."""
    return has_ending(entry.name) and entry.is_file()


def entries_of(folder: bytes) -> Iterator[os.DirEntry[bytes]]:
    """What lies in a folder, without hidden entries, one after the other: there may be millions."""
    try:
        with os.scandir(folder) as entries:
            yield from (entry for entry in entries if not entry.name.startswith(b"."))
    except OSError as error:
        raise UserError(f"the folder {os.fsdecode(folder)} cannot be listed: {error.strerror}") from error
