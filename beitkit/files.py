"""Open and read files that others wrote: regular ones of bounded size only, and JSON of bounded depth.

A name says nothing about what lies there. Opening a pipe waits for a writer, for ever; a device may never end; a link may lead
to itself; a file may be larger than the memory. All of these are an `OSError` here, before anything is read.
"""

from __future__ import annotations

import errno
import json
import math
import os
import stat
from io import BufferedReader, TextIOWrapper
from pathlib import Path
from typing import Any, NoReturn

MOST_JSON = 2**24
"""Bytes of a file of JSON, if nothing else is said: class names, configs, digests."""
MOST_OWN = 2**30
"""Bytes of what a run wrote itself, which grows as long as it goes on."""
MOST_TEXT = 2**24
"""Bytes of a file of names."""
DEEPEST = 64
"""Objects and lists inside each other; what was read may then be walked by functions that call themselves."""
LONGEST_NUMBER = 300  # digits of a whole number: more do not fit a float
NOT_REGULAR = "not a regular file"


def opened_regular(path: Path | str, most: int | None = None) -> BufferedReader:
    """A regular file, open for reading; it never waits.

    Args:
        path: may be a link to one.
        most: bytes that it may have; None for those that are read in parts, or mapped.

    Raises:
        OSError: it is not there, is a folder, a pipe, a device or a socket, or has more bytes.
    """
    # Without O_NONBLOCK, opening a pipe would wait before anything could be said about it.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, NOT_REGULAR, str(path))
        if most is not None and status.st_size > most:
            raise OSError(errno.EFBIG, f"{status.st_size:,} bytes, more than {most:,}", str(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def check_regular(path: Path | str) -> None:
    """Raise an `OSError` unless a library that opens the file itself will find a regular one."""
    opened_regular(path).close()


def read_regular(path: Path | str, most: int) -> bytes:
    """All bytes of a regular file.

    Raises:
        OSError: as `opened_regular`.
    """
    with opened_regular(path, most) as file:
        content = file.read(most + 1)  # it may have grown, and some files of the kernel say that they are empty
    if len(content) > most:
        raise OSError(errno.EFBIG, f"more than {most:,} bytes", str(path))
    return content


def opened_text(path: Path | str, encoding: str = "utf-8", errors: str = "strict", newline: str | None = None) -> TextIOWrapper:
    """A regular file as text that is read line by line; see `opened_regular`."""
    return TextIOWrapper(opened_regular(path), encoding=encoding, errors=errors, newline=newline)


def read_text(path: Path | str, most: int = MOST_TEXT, encoding: str = "utf-8") -> str:
    """A regular file as text.

    Raises:
        OSError: as `opened_regular`.
        ValueError: bytes of another encoding.
    """
    return read_regular(path, most).decode(encoding)


def read_json(path: Path | str, most: int = MOST_JSON) -> Any:
    """What a file of JSON holds.

    Raises:
        OSError: as `opened_regular`.
        ValueError: as `parse_json`.
    """
    return parse_json(read_regular(path, most))


def parse_json(text: str | bytes) -> Any:
    """What a text of JSON in UTF-8 holds.

    Raises:
        ValueError: no JSON; deeper than `DEEPEST`; a number that is not finite, or too large for a float.
    """
    try:
        decoded = text.decode("utf-8") if isinstance(text, bytes) else text
        content = _DECODER.decode(decoded)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    if decoded.count("[") + decoded.count("{") > DEEPEST:  # only such a text can be too deep
        _check_depth(content)
    return content


_TOO_DEEP = f"more than {DEEPEST} lists and objects inside each other"


def why(error: OSError | ValueError) -> str:
    """Why a file cannot be read, in a few words on one line."""
    return (isinstance(error, OSError) and error.strerror) or " ".join(str(error).split())[:200] or type(error).__name__


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"the number {digits[:30]} is too large")
    return number


def _whole(digits: str) -> int:
    if len(digits) > LONGEST_NUMBER:
        raise ValueError(f"the number {digits[:30]}... is too large")
    return int(digits)


_DECODER = json.JSONDecoder(parse_constant=_no_constant, parse_float=_finite, parse_int=_whole)


def _check_depth(content: Any) -> None:
    level = [content]
    for _ in range(DEEPEST + 1):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer if isinstance(outer, list) else ())
            if isinstance(inner, dict | list)
        ]
        if not level:
            return
    raise ValueError(_TOO_DEEP)
