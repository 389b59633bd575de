"""Features as a NumPy array with its paths beside it, or as Parquet."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from beitkit.data.sources.parquet import pyarrow
from beitkit.errors import UserError
from beitkit.inference.parquet import encode_table, join_tables
from beitkit.inference.part import OutputFile, Rows, text_of
from beitkit.inference.predictions import append_all

FeatureType = Literal["float32", "float16"]


def feature_tables(out: Path, shape: tuple[int, ...], dtype: FeatureType) -> dict[Path, OutputFile]:
    """The files that features are written to, `out` last.

    Args:
        out: a file that ends in .npy or .parquet.
        shape: of one image's features.
        dtype: of the stored numbers.

    Raises:
        UserError: another ending, or .parquet without pyarrow.
    """
    if out.suffix == ".npy":
        return {out.with_suffix(".paths.jsonl"): PathList(), out: ArrayFile(shape, dtype)}
    if out.suffix == ".parquet":
        pyarrow(out)
        return {out: FeatureTable(shape, dtype)}
    raise UserError(f"`out` must end in .npy or .parquet, got {out}")


@dataclass(frozen=True)
class PathList:
    """A line {path, error} for each row of the array; error is null where the image could be read."""

    def encode(self, part: Rows) -> bytes:
        """A line for each image."""
        rows = zip(part.paths, part.errors, strict=True)
        return "".join(json.dumps({"path": str(path), "error": error or None}) + "\n" for path, error in rows).encode()

    def join(self, parts: Sequence[Path], file: IO[bytes]) -> None:
        """All lines."""
        append_all(parts, file)


@dataclass(frozen=True)
class ArrayFile:
    """(images, ...) in NumPy's format, which `numpy.load(path, mmap_mode="r")` reads without taking memory."""

    shape: tuple[int, ...]
    dtype: FeatureType

    def encode(self, part: Rows) -> bytes:
        """An array of its own."""
        file = io.BytesIO()
        np.save(file, part.values.astype(self.dtype))
        return file.getvalue()

    def join(self, parts: Sequence[Path], file: IO[bytes]) -> None:
        """One array."""
        images = sum(len(np.load(path, mmap_mode="r")) for path in parts)
        description = np.lib.format.dtype_to_descr(np.dtype(self.dtype))
        header = {"descr": description, "fortran_order": False, "shape": (images, *self.shape)}
        np.lib.format.write_array_header_1_0(file, header)
        for path in parts:
            file.write(np.load(path).tobytes())


@dataclass(frozen=True)
class FeatureTable:
    """path, features (lists of fixed size, one in the other for several axes), error or null."""

    shape: tuple[int, ...]
    dtype: FeatureType

    def encode(self, part: Rows) -> bytes:
        """A Parquet file of its own."""
        return encode_table(self._table(part))

    def join(self, parts: Sequence[Path], file: IO[bytes]) -> None:
        """A row group for each part."""
        join_tables(parts, self._table(Rows([], [], np.zeros((0, *self.shape), np.float32))).schema, file)

    def _table(self, part: Rows) -> Any:
        arrow = pyarrow()
        features = arrow.array(part.values.astype(self.dtype).ravel())
        for size in reversed(self.shape):
            features = arrow.FixedSizeListArray.from_arrays(features, size)
        paths = arrow.array([text_of(path) for path in part.paths], arrow.string())
        errors = arrow.array([error or None for error in part.errors], arrow.string())
        return arrow.table({"path": paths, "features": features, "error": errors})
