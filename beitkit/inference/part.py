"""Results of consecutive images, and how parts are joined to a file of text lines or of Parquet row groups."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from beitkit.data.sources.parquet import pyarrow


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

    def encode(self, part: Rows, /) -> bytes:
        """The file of one part."""
        ...

    def join(self, parts: Sequence[Path], file: IO[bytes]) -> None:
        """Write the whole from the files of its parts, holding one of them at a time."""
        ...


@dataclass(frozen=True)
class TextFile:
    """Text with a line or more for each image, such as CSV or JSON lines."""

    encode: Callable[[Rows], bytes]
    header: bytes = b""

    def join(self, parts: Sequence[Path], file: IO[bytes]) -> None:
        """The header, and all lines."""
        file.write(self.header)
        for path in parts:
            file.write(path.read_bytes())


@dataclass(frozen=True)
class ParquetFile:
    """A Parquet file with a row group for each part."""

    table: Callable[[Rows], Any]
    """A part as a pyarrow table."""
    shape: tuple[int, ...]
    """Of the values of one image."""

    def encode(self, part: Rows) -> bytes:
        """A Parquet file of its own."""
        file = io.BytesIO()
        pyarrow().parquet.write_table(self.table(part), file)
        return file.getvalue()

    def join(self, parts: Sequence[Path], file: IO[bytes]) -> None:
        """All row groups."""
        parquet, nothing = pyarrow().parquet, Rows([], [], np.zeros((0, *self.shape), np.float32))
        with parquet.ParquetWriter(file, self.table(nothing).schema) as writer:
            for path in parts:
                # Not by its path: pyarrow would read a folder called `a=1` as a column.
                writer.write_table(parquet.ParquetFile(io.BytesIO(path.read_bytes())).read())


def csv_bytes(rows: Iterable[Sequence[object]]) -> bytes:
    """The rows as a CSV file; paths are written byte for byte."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode("utf-8", "surrogateescape")


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
