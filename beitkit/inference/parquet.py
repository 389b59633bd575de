"""Parquet files in parts."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from beitkit.data.sources.parquet import pyarrow


def encode_table(table: Any) -> bytes:
    """A table as a Parquet file."""
    file = io.BytesIO()
    pyarrow().parquet.write_table(table, file)
    return file.getvalue()


def join_tables(parts: Sequence[Path], schema: Any, file: IO[bytes]) -> None:
    """Write a Parquet file with a row group for each of these files."""
    parquet = pyarrow().parquet
    with parquet.ParquetWriter(file, schema) as writer:
        for path in parts:
            # Not by its path: pyarrow would read a folder called `a=1` as a column.
            writer.write_table(parquet.ParquetFile(io.BytesIO(path.read_bytes())).read())
