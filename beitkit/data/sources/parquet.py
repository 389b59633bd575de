"""Images in Parquet files, as written by Hugging Face datasets; pyarrow is imported on first use.

The column of images is a struct of `bytes` and `path`, or plain binary under a usual name. An image is read by decoding its row
group; each process caches the last few.

Arrow's own threads are not used: one that is still busy when the program ends, and holds bytes of Python, aborts it.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from beitkit.configs.data import ColumnsConfig
from beitkit.data.decoding.decode import one_line
from beitkit.data.decoding.limit import why_too_much_memory
from beitkit.data.sources.locations import opened, stamp_of, unreadable
from beitkit.errors import UserError, few
from beitkit.files import parse_json

COLUMNS = ("image", "img", "images", "picture", "photo", "jpg", "png", "jpeg")
"""Names of a column of images, in the order in which they are looked for."""
LABELS = ("label", "labels", "class", "target", "category", "fine_label")
"""Names of a column of labels; also any that Hugging Face's datasets note as `ClassLabel` is one."""
NAMED = 8  # columns that an error names
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


class _Column(NamedTuple):
    """A column of images."""

    name: str
    leaf: str
    """What Arrow reads of it: the column, or its field `bytes`."""
    has_paths: bool


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


def read_row(place: str, group: int, row: int, column: str | None = None) -> bytes:
    """The bytes of the image in a row of a column; None takes the one that its name or its type tells.

    Raises:
        OSError: the file cannot be read, has no such row or no image there.
        UserError: pyarrow is not installed.
    """
    arrow = pyarrow(place)
    try:
        value = _group(place, stamp_of(place), group, column)[row].as_py()
    except (arrow.ArrowException, ValueError, LookupError, TypeError, AttributeError) as error:
        raise OSError(one_line(error)) from error
    if not isinstance(value, bytes):
        raise OSError("the row holds no bytes of an image")
    return value


def parquet_images(place: str, labeled: bool, columns: ColumnsConfig = ColumnsConfig()) -> ArchiveImages:
    """The images of a file, named by their paths in it, else by the file and their row.

    Raises:
        UserError: pyarrow is not installed, or the file cannot be read, has no column of images or no usable labels, or several.
    """
    arrow = pyarrow(place)
    try:
        with opened(place) as source, arrow.parquet.ParquetFile(source) as file:
            return _images(arrow, file, place, labeled, columns)
    except UserError:
        raise
    except (arrow.ArrowException, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{place} is no Parquet file that can be read: {one_line(error)}") from None
    except OSError as error:
        raise UserError(unreadable(place, error)) from None


def image_columns(place: str) -> tuple[str, ...]:
    """The columns of a file that hold images by their type: structs with `bytes`.

    Raises:
        UserError: as `parquet_images`.
    """
    arrow = pyarrow(place)
    try:
        with opened(place) as source, arrow.parquet.ParquetFile(source) as file:
            schema = file.schema_arrow
            return tuple(name for name in schema.names if _holds_files(arrow, schema.field(name).type))
    except UserError:
        raise
    except (arrow.ArrowException, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{place} is no Parquet file that can be read: {one_line(error)}") from None
    except OSError as error:
        raise UserError(unreadable(place, error)) from None


def _images(arrow: Any, file: Any, place: str, labeled: bool, columns: ColumnsConfig) -> ArchiveImages:
    schema = file.schema_arrow
    image = _image_column(arrow, schema, place, columns.image)
    wanted = [f"{image.name}.path"] if image.has_paths else []
    label = _label_column(schema, place, columns) if labeled else None
    declared = () if label is None else _declared(schema, label)
    stem = place.rpartition("/")[2].removesuffix(".parquet")
    names: list[bytes] = []
    labels: list[str] = []
    places = []
    for group in range(file.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        _check_group(file, group, image.leaf, place)
        table = file.read_row_group(group, columns=wanted if label is None else [*wanted, label], use_threads=False)
        paths = table.column(image.name).combine_chunks().field("path").to_pylist() if wanted else [None] * rows
        first = len(names)
        names += [_name(path) or os.fsencode(f"{stem}/{first + row:08d}") for row, path in enumerate(paths)]
        places.append(np.column_stack([np.full(rows, group), np.arange(rows)]))
        if label is not None:
            labels += _class_names(table.column(label).to_pylist(), declared, place, first)
    where = np.concatenate([np.empty((0, 2)), *places]).astype(np.int64)
    return ArchiveImages(names, where, [None] * len(names) if label is None else labels, declared)


def _name(path: object) -> bytes:
    """The name of an image by its path; empty where that is no text."""
    if isinstance(path, str):
        path = path.encode("utf-8", "surrogatepass")
    return path.lstrip(b"/").replace(b"\0", b"") if isinstance(path, bytes) else b""


def _check_group(file: Any, group: int, leaf: str, place: str) -> None:
    """Raise for a row group whose images would take more memory than an image may.

    pyarrow ends the process when it is asked about a column whose metadata are damaged, and raises when it reads from it. So
    the group as a whole is asked first, and its images only after a first one has been read.
    """
    metadata = file.metadata.row_group(group)
    if why_too_much_memory(metadata.total_byte_size) is None:
        return
    next(file.iter_batches(1, row_groups=[group], columns=[leaf], use_threads=False), None)
    columns = [number for number in range(metadata.num_columns) if file.schema.column(number).path == leaf]
    size = sum(metadata.column(number).total_uncompressed_size for number in columns)
    if (reason := why_too_much_memory(size)) is not None:
        raise UserError(f"the images of a row group of {place} {reason}; or write it anew with fewer rows in a group")


def _holds_files(arrow: Any, kind: Any) -> bool:
    return arrow.types.is_struct(kind) and kind.get_field_index("bytes") >= 0


def _image_column(arrow: Any, schema: Any, place: str, given: str | None) -> _Column:
    """The column of images: the given one, one of a usual name, or the only one of structs with bytes."""
    twice = [name for name, times in Counter(schema.names).items() if times > 1]
    if twice:
        raise UserError(f"{place} has several columns {_listed(twice)}; name each column once")
    fits = {
        name: _holds_files(arrow, kind := schema.field(name).type)
        or ((name in COLUMNS or name == given) and (arrow.types.is_binary(kind) or arrow.types.is_large_binary(kind)))
        for name in dict.fromkeys(schema.names)
    }
    by_type = [name for name, does_fit in fits.items() if does_fit]
    wanted = given or next((name for name in COLUMNS if fits.get(name)), None)
    if wanted is None and len(by_type) > 1:
        raise UserError(f"{place} has images in the columns {_listed(by_type)}; say which with `columns.image`")
    wanted = wanted or next(iter(by_type), COLUMNS[0])
    if not fits.get(wanted):
        found = f"is {str(schema.field(wanted).type)[:100]}" if wanted in fits else "is missing"
        raise UserError(
            f"{place} holds no images: its column {wanted!r} {found}; expected binary, or a struct with bytes and path; it has "
            f"{_listed(list(fits))}, one of which `columns.image` can name"
        )
    kind = schema.field(wanted).type
    if not arrow.types.is_struct(kind):
        return _Column(wanted, wanted, has_paths=False)
    return _Column(wanted, f"{wanted}.bytes", has_paths=kind.get_field_index("path") >= 0)


def _label_column(schema: Any, place: str, columns: ColumnsConfig) -> str | None:
    """The column of labels: the given one, `label`, or the only one that is known as such; None where there is none."""
    if columns.label is not None:
        first, *others = columns.label
        if others or first not in schema.names:
            raise UserError(
                f"{place}: `columns.label` must name one column of it, got {_listed(columns.label)}; it has "
                f"{_listed(schema.names)}"
            )
        return first
    if LABELS[0] in schema.names:
        return LABELS[0]
    found = [name for name in schema.names if name in LABELS or _feature(schema, name).get("_type") == "ClassLabel"]
    if len(found) > 1:
        raise UserError(f"{place} has labels in the columns {_listed(found)}; say which with `columns.label`")
    return next(iter(found), None)


def _listed(names: Sequence[str]) -> str:
    return few([name[:100] for name in names], NAMED) or "none"


def _feature(schema: Any, column: str) -> dict[str, Any]:
    """What Hugging Face's datasets note beside the schema about a column."""
    try:
        feature = parse_json((schema.metadata or {})[b"huggingface"])["info"]["features"][column]
    except (LookupError, TypeError, ValueError):
        return {}
    return feature if isinstance(feature, dict) else {}


def _declared(schema: Any, label: str) -> tuple[str, ...]:
    """The names of the classes, where they are noted beside the schema."""
    names = _feature(schema, label).get("names")
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


def _group(place: str, stamp: int, group: int, column: str | None) -> Any:
    """The encoded images of a row group, kept with the last few as long as they take no more memory than an image may."""
    key = place, stamp, group, column
    values = _kept.pop(key, None)
    if values is None:
        values = _read_group(place, group, column)
        while _kept and (
            len(_kept) >= KEPT_GROUPS or why_too_much_memory(sum(kept.nbytes for kept in (*_kept.values(), values)))
        ):
            del _kept[next(iter(_kept))]
    _kept[key] = values
    return values


_kept: dict[tuple[str, int, int, str | None], Any] = {}
"""The row groups that this process keeps, the last used last; by when the file changed, so that a new one is read anew."""


def _read_group(place: str, group: int, column: str | None) -> Any:
    arrow = pyarrow(place)
    with opened(place) as source, arrow.parquet.ParquetFile(source) as file:
        image = _image_column(arrow, file.schema_arrow, place, column)
        _check_group(file, group, image.leaf, place)
        values = file.read_row_group(group, columns=[image.leaf], use_threads=False).column(image.name).combine_chunks()
        return values if image.leaf == image.name else values.field("bytes")
