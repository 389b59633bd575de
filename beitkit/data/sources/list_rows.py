"""Parse the rows of an image list: text, CSV or JSON lines.

Only the syntax is checked here: columns and keys, types, numbers of cells. `data.sources.lists` checks the content.
"""

from __future__ import annotations

import codecs
import csv
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from beitkit.configs.data import ColumnsConfig
from beitkit.errors import UserError
from beitkit.files import opened_regular, opened_text, parse_json, why

CLASS_ROW = "class"
"""In place of a split: the row names a class, not an image."""
SEPARATOR = "|"
"""Between the labels of one image in a CSV cell."""
SEPARATORS = {"comma": ",", "semicolon": ";", "space": None, "bar": SEPARATOR}
"""What `str.split` takes for each word of `ColumnsConfig.separator`."""
DELIMITERS = ",;\t"
"""Between the cells of a table; the one that gives the first line most columns."""
IMAGE_COLUMNS = (
    *("path", "file_name", "filename", "file_path", "filepath", "image_path", "image", "img", "image_name", "image_id", "id"),
)
"""Names of a column with images' files, in the order in which they are looked for, upper or lower case."""
NUMBERS = ("image_id", "id")
"""Those of them that number the images where other columns name their files."""
LABEL_COLUMNS = ("class", "class_name", "category", "target", "tags")
"""Names of a column with labels, where there is neither `label` nor `labels`."""
PLURAL = ("labels", "tags")
"""Names of columns whose cells may hold any number of labels."""
LONGEST_HEADER = 300  # characters of the first line in an error
LONGEST_LINE = 2**24  # characters
HOT = {"0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}
"""What one-hot columns may hold."""
BAND = "band"
"""What the columns begin with that name the files of an image in several files, a channel in each (`band1`, `band2`, ...)."""
BETWEEN_BANDS = "\0"
"""Between these files in an image's name: no path can hold it."""


class ListRow(NamedTuple):
    """One row of a list, unchecked."""

    line: int
    name: str
    """As written; empty for a row that names a class. Several files of an image with `BETWEEN_BANDS` between them."""
    labels: tuple[str, ...]
    has_several: bool
    """Whether the labels are written as if there could be any number of them."""
    split: str
    """As written; empty where there is none."""


def text_rows(path: Path) -> Iterator[ListRow]:
    """One path a line; empty lines and lines that begin with `#` are skipped."""
    for line, text in enumerate(_lines(path), start=1):
        name = text.strip()
        if name and not name.startswith("#"):
            yield ListRow(line, name, (), has_several=False, split="")


def as_text(value: str) -> str:
    """The text of a name or label; bytes in it that are not UTF-8 are taken for Windows-1252 (Latin-1 and a few more)."""
    try:
        value.encode()
    except UnicodeEncodeError:
        try:
            return value.encode("utf-8", "surrogateescape").decode("cp1252")
        except UnicodeError:  # half of a surrogate pair, or a byte that Windows-1252 does not have
            return value
    return value


def csv_cells(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The lines of a table, by number: first the names of its columns, then as many cells in each; empty lines are skipped.

    Raises:
        UserError: another number of cells, or broken quotes; names the line.
    """
    lines = _lines(path)
    first = next(lines, "")
    try:
        widths = {delimiter: len(next(csv.reader([first], delimiter=delimiter), [])) for delimiter in DELIMITERS}
    except csv.Error as error:
        raise UserError(f"{path}, line 1: {error}") from error
    reader = csv.reader(itertools.chain((first,), lines), strict=True, delimiter=max(DELIMITERS, key=widths.__getitem__))
    try:
        columns = [name.strip() for name in next(reader, [])]
        yield 1, columns
        for cells in filter(None, reader):
            if len(cells) != len(columns):
                line, expected = reader.line_num, f"{len(columns)} columns as in the first line"
                raise UserError(f"{path}, line {line}: expected {expected}, found {len(cells)}")
            yield reader.line_num, cells
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: {error}") from error


def csv_rows(path: Path, *, labeled: bool, columns: ColumnsConfig = ColumnsConfig()) -> Iterator[ListRow]:
    """A table with a column of images, one or several of labels (read only when `labeled`), and perhaps `split`.

    In place of `path` several columns that begin with `band` may name the files of an image, in their order.

    Raises:
        UserError: missing columns, or as `csv_cells`.
    """
    lines = csv_cells(path)
    _, names = next(lines)
    image_columns = _image_columns(path, names, columns)
    label_columns = _label_columns(path, names, columns, image_columns) if labeled else ()
    places, places_of_labels = ([names.index(name) for name in found] for found in (image_columns, label_columns))
    place_of_split = names.index("split") if "split" in names else None
    is_one_hot = len(label_columns) > 1
    if is_one_hot:
        yield from _class_rows(label_columns)
    is_plural = bool(label_columns) and label_columns[0].lower() in PLURAL
    is_exact = False
    for line, cells in lines:
        split = "" if place_of_split is None else cells[place_of_split].strip()
        is_exact = is_exact or split == CLASS_ROW
        parts = [cells[place] if is_exact else cells[place].strip() for place in places]
        name = BETWEEN_BANDS.join(parts) if any(parts) else ""
        labels, has_several = (), False
        if is_one_hot:
            labels, has_several = _hot(f"{path}, line {line}", label_columns, [cells[place] for place in places_of_labels])
        elif places_of_labels:
            cell = cells[places_of_labels[0]]
            labels, has_several = _exact(cell, is_plural) if is_exact else _divided(cell, is_plural, columns)
        yield ListRow(line, name, labels, has_several, split)


def names_labels(path: Path, columns: ColumnsConfig) -> bool:
    """Whether a table or JSON lines name labels in the first line."""
    if path.suffix.lower() == ".jsonl":
        found = next(json_objects(path), (0, {}))[1]
    else:
        _, found = next(csv_cells(path))
    if not isinstance(found, dict | list):
        return False
    return known_column(tuple(found), columns.label or ("label", "labels", *LABEL_COLUMNS)) is not None


def _lines(path: Path) -> Iterator[str]:
    """The lines of a list with their ends: UTF-8, with or without a BOM, in which other bytes are kept; UTF-16 if it says so.

    Raises:
        UserError: it is not there or no regular file, a line has no end, or what begins as UTF-16 is not.
    """
    line = 0
    try:
        with opened_regular(path) as file:
            is_wide = file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        kind = ("utf-16", "strict") if is_wide else ("utf-8-sig", "surrogateescape")
        with opened_text(path, *kind, newline="") as text:
            while read := text.readline(LONGEST_LINE):
                line += 1
                if len(read) == LONGEST_LINE:
                    raise UserError(f"{path}, line {line}: has {LONGEST_LINE:,} characters or more; expected one image a line")
                yield read
    except UnicodeError:
        raise UserError(f"{path}, line {line + 1}: it begins as UTF-16, but this line is not") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {why(error)}") from None


def _image_columns(path: Path, names: Sequence[str], columns: ColumnsConfig) -> tuple[str, ...]:
    """The column of images, or the columns of their files where an image has one for each of its channels."""
    found = ", ".join(names)[:LONGEST_HEADER] or "nothing"
    if columns.image is not None:
        if columns.image not in names:
            raise UserError(f"{path}: there is no column {columns.image!r}, as `columns.image` says; found {found}")
        return (columns.image,)
    image = known_column(names, IMAGE_COLUMNS)
    bands = band_columns(names)
    if bands and (image is None or image.lower() in NUMBERS):
        return bands
    if image is None:
        some = ", ".join(IMAGE_COLUMNS[1:3])
        raise UserError(
            f"{path}: the first line must name a column 'path'; found {found}; {some}, image, id and the like do as well, and "
            "`columns.image` names any other"
        )
    return (image,)


def band_columns(names: Sequence[str]) -> tuple[str, ...]:
    """The columns that name the files of an image, a channel in each, in their order."""
    return tuple(name for name in names if name.lower().startswith(BAND))


def _label_columns(path: Path, names: Sequence[str], columns: ColumnsConfig, images: tuple[str, ...]) -> tuple[str, ...]:
    """The column of labels, or the columns that are a class each."""
    found = ", ".join(names)[:LONGEST_HEADER]
    if columns.label is not None:
        absent = next((name for name in columns.label if name not in names), None)
        if absent is not None:
            raise UserError(f"{path}: there is no column {absent!r}, as `columns.label` says; found {found}")
        return columns.label
    if "label" in names and "labels" in names:
        raise UserError(f"{path}: the first line must name a column 'label', or else 'labels'; found {found}")
    label = known_column(names, ("label", "labels", *LABEL_COLUMNS))
    if label is not None and label not in images:
        return (label,)
    others = tuple(name for name in names if name not in (*images, "split"))
    if len(others) > 1 and len(set(others)) == len(others) and _all_hot(path, [names.index(name) for name in others]):
        return others
    raise UserError(
        f"{path}: the first line must name a column 'label', or else 'labels'; found {found}; `columns.label` names any "
        "other (several columns of 0 and 1 are a class each)"
    )


def known_column(names: Sequence[str], known: Sequence[str]) -> str | None:
    """The first of the known names that a column has, as it is written there."""
    by_lower = {name.lower(): name for name in reversed(names)}
    return next((by_lower[name] for name in known if name in by_lower), None)


def _all_hot(path: Path, places: Sequence[int]) -> bool:
    lines = csv_cells(path)
    next(lines)
    return all(cells[place].strip().lower() in HOT for _, cells in lines for place in places)


def _class_rows(names: Sequence[str]) -> Iterator[ListRow]:
    """One-hot columns name the classes ahead of the images, in their order."""
    return (ListRow(1, "", (name,), has_several=False, split=CLASS_ROW) for name in names)


def _hot(where: str, names: Sequence[str], cells: Sequence[object]) -> tuple[tuple[str, ...], bool]:
    """The labels of an image in one-hot columns, and whether they are none or several."""
    labels = []
    for name, cell in zip(names, cells, strict=True):
        value = HOT.get(str(cell).strip().lower())
        if value is None:
            raise UserError(f"{where}: the column {name!r} holds {str(cell)[:100]!r}; of several columns each must hold 0 or 1")
        if value:
            labels.append(name)
    return tuple(labels), len(labels) != 1


def _exact(cell: str, is_plural: bool) -> tuple[tuple[str, ...], bool]:
    """The labels of a cell whose classes were declared: as they are written."""
    if not is_plural:
        return (cell,), False
    return (tuple(cell.split(SEPARATOR)) if cell.strip() else ()), True


def _divided(cell: str, is_plural: bool, columns: ColumnsConfig) -> tuple[tuple[str, ...], bool]:
    """The labels of a cell, and whether it is one that may have several."""
    text = as_text(cell).strip()
    if columns.separator == "single" or (columns.separator is None and not is_plural and SEPARATOR not in text):
        return (text,), False
    if not text and (is_plural or columns.separator is not None):
        return (), True
    return tuple(part.strip() for part in text.split(SEPARATORS[columns.separator or "bar"])), True


def json_objects(path: Path) -> Iterator[tuple[int, Any]]:
    """What the lines of a file hold, by number; empty lines are skipped.

    Raises:
        UserError: no JSON; names the line.
    """
    for line, text in enumerate(_lines(path), start=1):
        if text.isspace():
            continue
        try:
            content = parse_json(text)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {line}: not valid JSON ({error.msg}, column {error.colno})") from error
        except ValueError as error:
            raise UserError(f"{path}, line {line}: not valid JSON ({error})") from error
        yield line, content


def json_rows(path: Path, *, labeled: bool, columns: ColumnsConfig = ColumnsConfig()) -> Iterator[ListRow]:
    """One object a line: an image, its label or labels (read only when `labeled`), `split`; empty lines are skipped.

    Raises:
        UserError: no JSON, no object, or a missing or mistyped value; names the line.
    """
    if labeled and columns.label is not None and len(columns.label) > 1:
        yield from _class_rows(columns.label)
    for line, content in json_objects(path):
        yield _json_row(f"{path}, line {line}", line, content, labeled=labeled, columns=columns)


def _json_row(where: str, line: int, content: Any, *, labeled: bool, columns: ColumnsConfig) -> ListRow:
    if not isinstance(content, dict):
        raise UserError(f'{where}: expected an object such as {{"path": "a.jpg", "label": "cat"}}, found {_kind(content)}')
    split = content.get("split", "")
    if not isinstance(split, str):
        raise UserError(f'{where}: "split" must be a string, found {_kind(split)}')
    key = columns.image or known_column(tuple(content), IMAGE_COLUMNS) or "path"
    bands = content.get("bands")
    if BETWEEN_BANDS in str(content.get(key)):
        raise UserError(f"{where}: there is no image {content[key]!r}")
    if key not in content and isinstance(bands, list) and bands and all(isinstance(band, str) for band in bands):
        content = content | {key: BETWEEN_BANDS.join(bands)}
    if key not in content and split != CLASS_ROW:
        raise UserError(f'{where}: "{key}" is missing')
    name = content.get(key, "")
    if not isinstance(name, str):
        raise UserError(f'{where}: "{key}" must be a string, found {_kind(name)}')
    labels, has_several = _json_labels(where, content, columns) if labeled else ((), False)
    return ListRow(line, name, labels, has_several, split)


def _json_labels(where: str, content: dict[str, Any], columns: ColumnsConfig) -> tuple[tuple[str, ...], bool]:
    """The labels of an object, and whether they are written as if there could be any number of them."""
    if columns.label is not None:
        absent = next((name for name in columns.label if name not in content), None)
        if absent is not None:
            raise UserError(f'{where}: "{absent}" is missing, which `columns.label` names')
        key, *others = columns.label
        if others:
            return _hot(where, columns.label, [content[name] for name in columns.label])
    elif "label" in content and "labels" in content:
        raise UserError(f'{where}: expected "label" or "labels", found both')
    else:
        key = known_column(tuple(content), ("label", "labels", *LABEL_COLUMNS))
    if key is None:
        raise UserError(f'{where}: expected "label" or "labels", found neither')
    value = content[key]
    if isinstance(value, list):
        if key == "label":
            raise UserError(f'{where}: a label must be a string or a number, found a list; several are written as "labels"')
        return tuple(_json_label(where, label) for label in value), True
    if key in PLURAL and columns.separator is None:
        raise UserError(f'{where}: "{key}" must be a list, found {_kind(value)}')
    label = _json_label(where, value)
    if columns.separator is None:
        return (label,), False
    return _divided(label, False, columns)


def _json_label(where: str, label: Any) -> str:
    """A label as a class name; 3 and 3.0 are the same number in JSON."""
    if isinstance(label, str):
        return as_text(label)
    if isinstance(label, bool) or not isinstance(label, int | float) or label in (float("inf"), float("-inf")):
        raise UserError(f"{where}: a label must be a string or a number, found {_kind(label)}")
    return str(int(label) if label == int(label) else label)


def _kind(value: Any) -> str:
    """What JSON calls a value's type."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, int | float):
        return f"the number {value}"
    return {str: "a string", list: "a list", dict: "an object"}[type(value)]
