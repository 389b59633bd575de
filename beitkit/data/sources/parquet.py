"""Images in Parquet files, as written by Hugging Face datasets; pyarrow is imported on first use.

The column `image` is a struct of `bytes` and `path`, or plain binary. An image is read by decoding its row group; each
process caches the last few.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from beitkit.data.decoding.decode import one_line
from beitkit.data.sources.locations import opened, stamp_of, unreadable
from beitkit.errors import UserError

COLUMN, LABEL = "image", "label"
KEPT_GROUPS = 4
"""Row groups that a process keeps decoded."""


class ArchiveImages(NamedTuple):
    """What one archive holds."""

    names: list[bytes]
    places: NDArray[np.int64]
    """(images, 2), as in `Members`."""
    labels: Sequence[str | None]
    """The class of each image, by name or number; None where it has none."""
    classes: tuple[str, ...] = ()
    """The classes that the archive names, in order; empty where it does not."""


def pyarrow(what: object = "a Parquet file") -> Any:
    """The module pyarrow, with its Parquet files; `what` is called by this name where it is missing.

    Raises:
        UserError: it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"{what} needs pyarrow; pip install 'beitkit[parquet]'") from None
    return pyarrow


def read_row(place: str, group: int, row: int) -> bytes:
    """The bytes of the image in a row.

    Raises:
        OSError: the file cannot be read, has no such row or no image there.
        UserError: pyarrow is not installed.
    """
    arrow = pyarrow(place)
    try:
        value = _group(place, stamp_of(place), group)[row].as_py()
    except (arrow.ArrowException, IndexError) as error:
        raise OSError(one_line(error)) from error
    if value is None:
        raise OSError("the row holds no bytes of an image")
    return value


def parquet_images(place: str, labeled: bool) -> ArchiveImages:
    """The images of a file, named by their paths in it, else by the file and their row.

    Raises:
        UserError: pyarrow is not installed, or the file cannot be read, has no column of images or no usable labels.
    """
    arrow = pyarrow(place)
    try:
        with opened(place) as source, arrow.parquet.ParquetFile(source) as file:
            return _images(arrow, file, place, labeled)
    except arrow.ArrowException as error:
        raise UserError(f"{place} is no Parquet file that can be read: {one_line(error)}") from None
    except OSError as error:
        raise UserError(unreadable(place, error)) from None


def _images(arrow: Any, file: Any, place: str, labeled: bool) -> ArchiveImages:
    schema = file.schema_arrow
    column = _bytes_column(arrow, schema, place)
    kind = schema.field(COLUMN).type
    wanted = [f"{COLUMN}.path"] if column != COLUMN and kind.get_field_index("path") >= 0 else []
    with_labels = labeled and LABEL in schema.names
    declared = _declared(schema) if with_labels else ()
    stem = place.rpartition("/")[2].removesuffix(".parquet")
    names: list[bytes] = []
    labels: list[str] = []
    places = []
    for group in range(file.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        table = file.read_row_group(group, columns=[*wanted, *([LABEL] if with_labels else [])])
        paths = table.column(COLUMN).combine_chunks().field("path").to_pylist() if wanted else [None] * rows
        first = len(names)
        names += [path.encode().lstrip(b"/") if path else f"{stem}/{first + row:08d}".encode() for row, path in enumerate(paths)]
        places.append(np.column_stack([np.full(rows, group), np.arange(rows)]))
        if with_labels:
            labels += _class_names(table.column(LABEL).to_pylist(), declared, place, first)
    where = np.concatenate([np.empty((0, 2)), *places]).astype(np.int64)
    return ArchiveImages(names, where, labels if with_labels else [None] * len(names), declared)


def _bytes_column(arrow: Any, schema: Any, place: str) -> str:
    """The column that holds images' bytes."""
    kind = schema.field(COLUMN).type if COLUMN in schema.names else None
    if kind is not None and (arrow.types.is_binary(kind) or arrow.types.is_large_binary(kind)):
        return COLUMN
    if kind is not None and arrow.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        return f"{COLUMN}.bytes"
    found = "is missing" if kind is None else f"is {str(kind)[:100]}"
    raise UserError(f"{place} holds no images: its column {COLUMN!r} {found}; expected binary, or a struct with bytes and path")


def _declared(schema: Any) -> tuple[str, ...]:
    """The names of the classes in what Hugging Face's datasets note beside the schema."""
    try:
        feature = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][LABEL]
        names = feature["names"]
    except (KeyError, TypeError, ValueError):
        return ()
    return tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else ()


def _class_names(labels: list[Any], declared: tuple[str, ...], place: str, first: int) -> list[str]:
    """The class of each row by name."""
    names = []
    for row, label in enumerate(labels, start=first):
        if isinstance(label, bool) or not isinstance(label, int | str):
            raise UserError(f"{place}, row {row}: the label is {str(label)[:100]!r}; expected a number or a name")
        if declared and isinstance(label, int):
            if not 0 <= label < len(declared):
                raise UserError(f"{place}, row {row}: the label {label} is not one of the {len(declared)} classes it names")
            label = declared[label]
        names.append(str(label))
    return names


@functools.lru_cache(maxsize=KEPT_GROUPS)
def _group(place: str, stamp: int, group: int) -> Any:
    """The encoded images of a row group; `stamp` is in the key, so that a file that was written anew is read anew."""
    arrow = pyarrow(place)
    with opened(place) as source, arrow.parquet.ParquetFile(source) as file:
        column = _bytes_column(arrow, file.schema_arrow, place)
        values = file.read_row_group(group, columns=[column], use_threads=False).column(COLUMN).combine_chunks()
        return values if column == COLUMN else values.field("bytes")
