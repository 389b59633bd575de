"""Walk nested folders for image files.

Only regular files count; a pipe, a device or a folder named `x.jpg` is skipped, so that nothing blocks on it later. Names are
bytes, as they need not be valid UTF-8.
"""

from __future__ import annotations

import heapq
import itertools
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import IO

from beitkit.data.decoding.formats import FORMATS, HAS_HEIF, HEIF_EXTRA, ending_of, has_ending
from beitkit.errors import UserError
from beitkit.system import is_first_process

SORTED_TOGETHER = 500_000
"""Names that a sorted walk keeps in memory."""
LONGEST_ENDING = 10
"""Characters; what is longer is part of a name with a dot in it."""
ENDINGS_SHOWN = 6


def walk(root: Path, left_out: Counter[str] | None = None) -> Iterator[bytes]:
    """Names relative to `root` of all images below it, in no promised order; `left_out` counts the other files by ending."""
    top = os.path.join(os.fsencode(root), b"")  # noqa: PTH118 - names are bytes here, which a Path cannot hold
    entered: set[tuple[int, int]] = set()
    folders = [top]
    while folders:
        folder = folders.pop()
        try:
            status = os.stat(folder)  # noqa: PTH116
        except OSError as error:
            raise UserError(f"the folder {os.fsdecode(folder)} cannot be listed: {error.strerror}") from error
        # A folder is known by device and inode: links that lead back up would otherwise be followed for ever.
        if (status.st_dev, status.st_ino) in entered:
            continue
        entered.add((status.st_dev, status.st_ino))
        inside = []
        for entry in entries_of(folder):
            if is_folder(entry):
                inside.append(entry.path)
            elif is_image(entry):
                yield entry.path[len(top) :]
            elif left_out is not None:
                left_out[described_ending(entry.name)] += 1
        folders.extend(sorted(inside, reverse=True))


def sorted_walk(root: Path, scratch: Path, left_out: Counter[str] | None = None) -> Iterator[bytes]:
    """The names that `walk` finds, sorted; a part of them at a time is in memory, the others in a file in `scratch`."""
    names = walk(root, left_out)
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
    return has_ending(entry.name) and is_file(entry)


def is_file(entry: os.DirEntry[bytes]) -> bool:
    """Whether this is a regular file, or a link to one; a link to itself is nothing."""
    try:
        return entry.is_file()
    except OSError:
        return False


def is_folder(entry: os.DirEntry[bytes]) -> bool:
    """Whether this is a folder, or a link to one; a link to itself is nothing."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def described_ending(name: bytes) -> str:
    """What a file that is left out is counted as."""
    if has_ending(name):
        return f"{ending_of(name)} that is no regular file"
    ending = ending_of(name).encode("utf-8", "backslashreplace").decode()
    return ending if 1 < len(ending) <= LONGEST_ENDING else "without an ending"


def say_left_out(where: Path | str, left_out: Counter[str]) -> None:
    """Say on stderr, once and in the first of several processes, which files are no images."""
    if left_out and is_first_process():
        _say_once(f"{where}: left out: {in_words(left_out)}")


def in_words(left_out: Counter[str]) -> str:
    """Endings with their counts, the commonest first."""
    common = left_out.most_common(ENDINGS_SHOWN)
    rest = left_out.total() - sum(count for _, count in common)
    words = [f"{count:,} {ending}" for ending, count in common] + ([f"{rest:,} others"] if rest else [])
    hint = "" if HAS_HEIF or not left_out.keys() & {*FORMATS["HEIF"]} else f" ({HEIF_EXTRA} reads .heic)"
    return ", ".join(words) + hint


@cache
def _say_once(line: str) -> None:
    print(line, file=sys.stderr)


def entries_of(folder: bytes) -> Iterator[os.DirEntry[bytes]]:
    """What lies in a folder, without hidden entries, one after the other: there may be millions."""
    try:
        with os.scandir(folder) as entries:
            yield from (entry for entry in entries if not entry.name.startswith(b"."))
    except OSError as error:
        raise UserError(f"the folder {os.fsdecode(folder)} cannot be listed: {error.strerror}") from error
