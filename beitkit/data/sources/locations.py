"""Local paths and fsspec URLs of archives."""

from __future__ import annotations

import errno
import hashlib
import itertools
import math
import os
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import fsspec.core

from beitkit.data.decoding.decode import one_line
from beitkit.errors import UserError
from beitkit.files import opened_regular, read_regular

ATTEMPTS = 3
"""How often something behind a URL is asked for; networks fail now and then."""
MOST_EXPANDED = 1_000_000  # archives that one pattern may name
_URL = re.compile(r"([a-z][a-z0-9+.-]+(?:::[a-z][a-z0-9+.-]+)*):/+(.*)", re.DOTALL)
_BRACES = re.compile(r"\{(?:([0-9]+)\.\.([0-9]+)|([^{}]*,[^{}]*))\}")


def location(given: Path | str) -> str:
    """A path as it was given, or a URL, of whose two slashes a `Path` has kept one."""
    text = str(given)
    found = _URL.fullmatch(text)
    if found is None or os.path.lexists(text):
        return text
    return f"{found[1]}://{found[2]}"


def is_url(place: str) -> bool:
    """Whether this is a URL, not a path."""
    return "://" in place


def expanded(pattern: str) -> list[str]:
    """What a pattern with `{000..099}` and `{a,b}` names, in order; a shell writes them the same way.

    Raises:
        UserError: a range that runs backward, or more than a million names.
    """
    literals: list[str] = []
    choices: list[Sequence[str]] = []
    end = 0
    for found in _BRACES.finditer(pattern):
        literals.append(pattern[end : found.start()])
        choices.append(found[3].split(",") if found[3] is not None else _range(pattern, found[0], found[1], found[2]))
        end = found.end()
    if math.prod(map(len, choices)) > MOST_EXPANDED:
        raise UserError(f"{pattern} names more than {MOST_EXPANDED:,} archives")
    names = itertools.product(*choices)
    return ["".join(itertools.chain.from_iterable(zip(literals, chosen, strict=True))) + pattern[end:] for chosen in names]


def _range(pattern: str, whole: str, first: str, last: str) -> list[str]:
    """The numbers of `{first..last}`, as wide as the first one where that begins with a zero."""
    numbers = range(int(first), int(last) + 1)
    if not numbers:
        raise UserError(f"{pattern}: the range {whole} runs backward; give the smaller number first")
    if numbers[-1] - numbers[0] >= MOST_EXPANDED:
        raise UserError(f"{pattern}: the range {whole} names more than {MOST_EXPANDED:,} archives")
    width = len(first) if first.startswith("0") else 0
    return [f"{number:0{width}d}" for number in numbers]


def read_range(place: str, start: int, length: int) -> bytes:
    """Some bytes of a file; fewer where it ends before.

    Raises:
        OSError: the file cannot be read; behind a URL after `ATTEMPTS` attempts.
        UserError: its server gives whole files only.
    """
    if not is_url(place):
        # Opened anew each time: workers share no handle, and any number of archives can be read from.
        with opened_regular(place) as file:
            length = min(length, max(0, os.fstat(file.fileno()).st_size - start))  # of what is there, memory is taken for no more
            parts = []
            while length > 0 and (part := os.pread(file.fileno(), length, start)):
                parts.append(part)
                start, length = start + len(part), length - len(part)
            return b"".join(parts)
    system, path = _system(place)
    content = _insisting(lambda: system.cat_file(path, start=start, end=start + length))
    if len(content) > length:
        raise UserError(
            f"{place}: its server answers with the whole file where a part is asked for (it lacks range requests), so single "
            "images cannot be read there; copy the file here, or serve it otherwise"
        )
    return content


def read_whole(place: str, most: int) -> bytes:
    """All bytes of a file that has at most so many.

    Raises:
        OSError: it is not there, is no regular file, has more bytes or cannot be read.
    """
    if not is_url(place):
        return read_regular(place, most)
    if (size := size_of(place)) > most:
        raise OSError(errno.EFBIG, f"{size:,} bytes, more than {most:,}", place)
    system, path = _system(place)
    return _insisting(lambda: system.cat_file(path))


def size_of(place: str) -> int:
    """Length of a file in bytes.

    Raises:
        OSError: it is not there.
    """
    if not is_url(place):
        return os.stat(place).st_size  # noqa: PTH116
    system, path = _system(place)
    size = _insisting(lambda: system.size(path))
    if size is None:
        raise OSError("its server does not say how long it is")
    return int(size)


def stamp_of(place: str) -> int:
    """A version stamp of a file: its time of change in ns, or a number that stands for fsspec's `ukey` of a URL."""
    if not is_url(place):
        return os.stat(place).st_mtime_ns  # noqa: PTH116
    system, path = _system(place)
    key = str(_insisting(lambda: system.ukey(path)))
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little", signed=True)


def entries_at(folder: str) -> list[str]:
    """The visible files of a folder behind a URL, sorted; empty where there is no such folder.

    Raises:
        UserError: the server cannot be asked.
    """
    system, path = _system(folder)
    try:
        found = _insisting(lambda: system.ls(path, detail=True))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UserError(unreadable(folder, error)) from None
    names = [str(entry["name"]).rstrip("/").rpartition("/")[2] for entry in found if entry["type"] == "file"]
    return [f"{folder.rstrip('/')}/{name}" for name in sorted(names) if not name.startswith(".")]


def opened(place: str) -> Any:
    """A file to read from, which is closed by whoever asks for it.

    Raises:
        OSError: it is not there or cannot be read.
    """
    if not is_url(place):
        return opened_regular(place)
    system, path = _system(place)
    return _insisting(lambda: system.open(path, "rb"))


def unreadable(place: str, error: OSError) -> str:
    """What a user is told who named a file that cannot be read."""
    if isinstance(error, FileNotFoundError):
        return f"{place} cannot be read: there is no such file"
    return f"{place} cannot be read: {error.strerror or one_line(error)}"


def _system(place: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it; asked for every time: fsspec keeps one per process, also after a fork.

    Raises:
        UserError: what fsspec needs for this kind of URL is not installed, or there is no such kind.
    """
    try:
        return fsspec.core.url_to_fs(place)
    except (ImportError, ValueError) as error:
        raise UserError(
            f"{place} cannot be read: {one_line(error)}; install what fsspec needs (beitkit[remote] for http), or give a path"
        ) from None


def _insisting(ask: Callable[[], Any]) -> Any:
    """The answer of a server, asked again where it fails for another reason than that there is no such file."""
    for attempt in range(ATTEMPTS):
        try:
            return ask()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError):
            raise
        except Exception as error:  # every kind of server has exceptions of its own
            if attempt == ATTEMPTS - 1:
                raise error if isinstance(error, OSError) else OSError(one_line(error)) from error
            time.sleep(attempt + 0.5)
    raise AssertionError
