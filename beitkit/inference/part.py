"""Results of consecutive images, and how parts are joined to a file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray


class Rows(NamedTuple):
    """Consecutive images and their results."""

    paths: list[Path]
    errors: list[str]
    """Why an image cannot be read; empty where it can."""
    values: NDArray[np.float32]
    """(images, ...); NaN where an image cannot be read."""

    def slice(self, start: int, stop: int) -> Rows:
        """Some of the images."""
        return Rows(self.paths[start:stop], self.errors[start:stop], self.values[start:stop])


@runtime_checkable
class OutputFile(Protocol):
    """One file of a result: how a part of it is written, and how the parts become the whole."""

    def encode(self, part: Rows) -> bytes:
        """The file of one part."""
        ...

    def join(self, parts: Sequence[Path], file: IO[bytes]) -> None:
        """Write the whole from the files of its parts, holding one of them at a time."""
        ...


def in_blocks(results: Iterator[Rows], size: int) -> Iterator[Rows]:
    """The same images in parts of `size`; the last may be smaller."""
    pending: list[Rows] = []
    for result in results:
        pending.append(result)
        while sum(len(part.paths) for part in pending) >= size:
            whole = _joined(pending)
            yield whole.slice(0, size)
            rest = whole.slice(size, len(whole.paths))
            pending = [rest] if rest.paths else []
    if pending:
        yield _joined(pending)


def text_of(path: Path) -> str:
    """A path as text that every format can hold: bytes that are not UTF-8 are written as `\\xff`."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _joined(parts: list[Rows]) -> Rows:
    return Rows(
        [path for part in parts for path in part.paths],
        [error for part in parts for error in part.errors],
        np.concatenate([part.values for part in parts]),
    )
