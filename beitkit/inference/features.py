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
from beitkit.inference.part import OutputFile, ParquetFile, Rows, TextFile, text_of

FeatureType = Literal["float32", "float16"]


def feature_tables(out: Path, shape: tuple[int, ...], dtype: FeatureType) -> dict[Path, OutputFile]:
    """The files that features, each image's of this shape, are written to, `out` last.

    Raises:
        UserError: another ending, or .parquet without pyarrow.
    """
    if out.suffix == ".npy":
        return {out.with_suffix(".paths.jsonl"): TextFile(_path_lines), out: ArrayFile(shape, dtype)}
    if out.suffix == ".parquet":
        pyarrow(out)
        return {out: ParquetFile(lambda part: _arrow_table(part, dtype), shape)}
    raise UserError(f"`out` must end in .npy or .parquet, got {out}")


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


def _path_lines(part: Rows) -> bytes:
    """A line {path, error} for each row of the array; error is null where the image could be read."""
    rows = zip(part.paths, part.errors, strict=True)
    return "".join(json.dumps({"path": str(path), "error": error or None}) + "\n" for path, error in rows).encode()


def _arrow_table(part: Rows, dtype: FeatureType) -> Any:
    """path, features (lists of fixed size, one in the other for several axes), error or null."""
    arrow = pyarrow()
    features = arrow.array(part.values.astype(dtype).ravel())
    for size in reversed(part.values.shape[1:]):
        features = arrow.FixedSizeListArray.from_arrays(features, size)
    paths = arrow.array([text_of(path) for path in part.paths], arrow.string())
    errors = arrow.array([error or None for error in part.errors], arrow.string())
    return arrow.table({"path": paths, "features": features, "error": errors})
