"""Parquet files in parts; pyarrow is imported where it is used only."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from beitkit.errors import UserError


def pyarrow() -> Any:
    """The module pyarrow.

    Raises:
        UserError: it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(
            "--out with the ending .parquet needs pyarrow; pip install 'beitkit[parquet]', or choose another ending"
        ) from None
    return pyarrow


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
