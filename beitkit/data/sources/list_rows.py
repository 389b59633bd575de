"""Parse the rows of an image list: text, CSV or JSON lines.

Only the syntax is checked here: columns and keys, types, numbers of cells. `data.sources.lists` checks the content.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from beitkit.errors import UserError

CLASS_ROW = "class"
"""In place of a split: the row names a class, not an image."""
SEPARATOR = "|"
"""Between the labels of one image in a CSV cell."""
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
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        for line, text in enumerate(file, start=1):
            name = text.strip()
            if name and not name.startswith("#"):
                yield ListRow(line, name, (), has_several=False, split="")


def csv_cells(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The lines of a table, by number: first the names of its columns, then as many cells in each; empty lines are skipped.

    Raises:
        UserError: another number of cells, or broken quotes; names the line.
    """
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, strict=True)
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


def csv_rows(path: Path, *, labeled: bool) -> Iterator[ListRow]:
    """A table with the columns `path`, `label` or `labels` (read only when `labeled`), and perhaps `split`.

    In place of `path` several columns that begin with `band` may name the files of an image, in their order.

    Raises:
        UserError: missing columns, or as `csv_cells`.
    """
    lines = csv_cells(path)
    _, columns = next(lines)
    found = ", ".join(columns) or "nothing"
    places = [columns.index("path")] if "path" in columns else _band_places(columns)
    if not places:
        raise UserError(f"{path}: the first line must name a column 'path'; found {found}")
    if labeled and ("label" in columns) == ("labels" in columns):
        raise UserError(f"{path}: the first line must name a column 'label', or else 'labels'; found {found}")
    is_divided_at_bars = "labels" in columns
    place_of_labels = columns.index("labels" if is_divided_at_bars else "label") if labeled else None
    place_of_split = columns.index("split") if "split" in columns else None
    is_exact = False
    for line, cells in lines:
        split = "" if place_of_split is None else cells[place_of_split].strip()
        is_exact = is_exact or split == CLASS_ROW
        parts = [cells[place] if is_exact else cells[place].strip() for place in places]
        name = BETWEEN_BANDS.join(parts) if any(parts) else ""
        labels, has_several = (), False
        if place_of_labels is not None:
            labels, has_several = _cell_labels(cells[place_of_labels], is_divided_at_bars, is_exact)
        yield ListRow(line, name, labels, has_several, split)


def _band_places(columns: list[str]) -> list[int]:
    return [place for place, name in enumerate(columns) if name.lower().startswith(BAND)]


def _cell_labels(cell: str, is_divided_at_bars: bool, is_exact: bool) -> tuple[tuple[str, ...], bool]:
    """The labels of a CSV cell, and whether it is one that may have several."""
    if not is_divided_at_bars and (is_exact or SEPARATOR not in cell):
        return (cell if is_exact else cell.strip(),), False
    if is_divided_at_bars and not cell.strip():
        return (), True
    parts = cell.split(SEPARATOR)
    return tuple(parts if is_exact else [part.strip() for part in parts]), True


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


_JSON = json.JSONDecoder(parse_constant=_no_constant)


def json_rows(path: Path, *, labeled: bool) -> Iterator[ListRow]:
    """One object a line: `path`, `label` or `labels` (read only when `labeled`), `split`; empty lines are skipped.

    Raises:
        UserError: no JSON, no object, or a missing or mistyped value; names the line.
    """
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        for line, text in enumerate(file, start=1):
            if text.isspace():
                continue
            try:
                content = _JSON.decode(text)
            except json.JSONDecodeError as error:
                raise UserError(f"{path}, line {line}: not valid JSON ({error.msg}, column {error.colno})") from error
            except (ValueError, RecursionError) as error:
                raise UserError(f"{path}, line {line}: not valid JSON ({error})") from error
            yield _json_row(f"{path}, line {line}", line, content, labeled=labeled)


def _json_row(where: str, line: int, content: Any, *, labeled: bool) -> ListRow:
    if not isinstance(content, dict):
        raise UserError(f'{where}: expected an object such as {{"path": "a.jpg", "label": "cat"}}, found {_kind(content)}')
    split = content.get("split", "")
    if not isinstance(split, str):
        raise UserError(f'{where}: "split" must be a string, found {_kind(split)}')
    if BETWEEN_BANDS in str(content.get("path")):
        raise UserError(f"{where}: there is no image {content['path']!r}")
    bands = content.get("bands")
    if "path" not in content and isinstance(bands, list) and bands and all(isinstance(band, str) for band in bands):
        content = content | {"path": BETWEEN_BANDS.join(bands)}
    if "path" not in content and split != CLASS_ROW:
        raise UserError(f'{where}: "path" is missing')
    name = content.get("path", "")
    if not isinstance(name, str):
        raise UserError(f'{where}: "path" must be a string, found {_kind(name)}')
    if not labeled:
        return ListRow(line, name, (), has_several=False, split=split)
    if ("label" in content) == ("labels" in content):
        raise UserError(f'{where}: expected "label" or "labels", found {"both" if "label" in content else "neither"}')
    if "label" in content:
        return ListRow(line, name, (_json_label(where, content["label"]),), has_several=False, split=split)
    labels = content["labels"]
    if not isinstance(labels, list):
        raise UserError(f'{where}: "labels" must be a list, found {_kind(labels)}')
    return ListRow(line, name, tuple(_json_label(where, label) for label in labels), has_several=True, split=split)


def _json_label(where: str, label: Any) -> str:
    """A label as a class name; 3 and 3.0 are the same number in JSON."""
    if isinstance(label, str):
        return label
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
