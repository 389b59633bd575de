"""Lists of images (text, CSV, JSON lines), read into a table of columns.

A text list has one path a line; empty lines and lines that begin with `#` are skipped. A CSV table has a header with the
column `path` (or another usual name) and, where there are any, `label` or `labels`, or a column of 0 and 1 for each class, and
`split`. JSON lines have one object a line with the same keys. Paths are relative to the list's own folder, with the slashes of
Windows too. Other columns and keys are passed over.

Several labels an image are a list under `labels` in JSON, and in CSV one cell with `|` between them. A list may begin with
rows whose split is `class`: they have no path and name the classes in their order, so that a class without images is
known too. The cells of such a CSV table are taken exactly as they are: neither trimmed nor, under `label`, divided at `|`.

Columns are flat arrays: a list of a million rows keeps no Python object per row.
"""

from __future__ import annotations

import codecs
import os
import stat
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn

import numpy as np
from numpy.typing import NDArray

from beitkit.configs.data import ColumnsConfig
from beitkit.data.decoding.formats import EXTENSIONS
from beitkit.data.sources.list_rows import BETWEEN_BANDS, CLASS_ROW, SEPARATORS, ListRow, as_text, csv_rows, json_rows, text_rows
from beitkit.errors import UserError
from beitkit.files import opened_regular, why

Split = Literal["train", "val", "test"]
SPLIT_NAMES: dict[Split, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "validation", "valid"),
    "test": ("test", "testing"),
}

_SPLITS: tuple[Split, ...] = tuple(SPLIT_NAMES)
_SPLIT_CODES = {name: code for code, split in enumerate(_SPLITS) for name in SPLIT_NAMES[split]}
_NO_SPLIT = -1
FIRST_BLOCK = 2**13  # bytes that are looked at
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
TABLES = (".csv", ".tsv")
"""Endings of tables of cells."""
_LONGEST_SHOWN = 200  # characters of a value in an error


@dataclass(frozen=True, eq=False)
class ListTable:
    """A list in columns. Row i has the labels `label_ids[label_offsets[i] : label_offsets[i + 1]]`."""

    path: Path
    """The list's own file."""
    names: bytes
    """All names, one after the other."""
    offsets: NDArray[np.int64]
    """Where each name begins in `names`, and at the end where the last one stops."""
    lines: NDArray[np.int64]
    """Line number of each row."""
    labels: tuple[str, ...]
    """The distinct labels, in the order of their first appearance."""
    label_ids: NDArray[np.int64]
    """Indices into `labels`, row after row."""
    label_offsets: NDArray[np.int64]
    has_several: bool
    """Whether an image may have any number of labels, instead of exactly one."""
    declared: tuple[str, ...]
    """The classes that the list names ahead of its images; empty where it does not."""
    split_codes: NDArray[np.int8] | None
    """Index into the splits per row; None where the list is not divided."""

    @property
    def splits(self) -> tuple[Split, ...]:
        """The splits that have rows."""
        return () if self.split_codes is None else tuple(_SPLITS[code] for code in np.unique(self.split_codes))

    def rows_of(self, split: Split) -> NDArray[np.int64]:
        """Indices of the rows of a split."""
        assert self.split_codes is not None
        return np.flatnonzero(self.split_codes == _SPLITS.index(split))


def read_list(path: Path, *, labeled: bool, columns: ColumnsConfig = ColumnsConfig()) -> ListTable:
    """A list by its ending: `.csv` or `.tsv`, `.jsonl`, anything else is text; labels and splits only when `labeled`.

    Raises:
        UserError: no text, nothing listed, or a row that cannot be read, names no regular file or has no usable label or split;
            names the line. Labels of a table that look like several in one cell, where `columns` does not say what they are.
    """
    _refuse_binary(path)
    ending = path.suffix.lower()
    if ending in TABLES:
        rows = csv_rows(path, labeled=labeled, columns=columns)
    elif ending == ".jsonl":
        rows = json_rows(path, labeled=labeled, columns=columns)
    elif labeled:
        raise UserError(f"{path} has no labels; give one folder per class, or a .csv or .jsonl list with path and label")
    else:
        rows = text_rows(path)
    collected = _Columns(path, labeled=labeled)
    for row in rows:
        collected.add(row)
    table = collected.table()
    if labeled and ending in TABLES and columns.separator is None and not table.declared:
        _ask_for_separator(table)
    return table


def _ask_for_separator(table: ListTable) -> None:
    """Raise if labels are probably lists of labels: divided, they share parts with each other.

    Words are shared by names of classes, too, as in "brown bear" and "black bear"; so at spaces there must be no more words
    than labels, as where a few tags are combined. Where bars divide some cells, they divide all.
    """
    if (np.diff(table.label_offsets) > 1).any():
        return
    for word in ("comma", "semicolon", "space"):
        divided = {label: {part.strip() for part in label.split(SEPARATORS[word])} - {""} for label in table.labels}
        first = next((number for number, label in enumerate(table.labels) if len(divided[label]) > 1), None)
        if first is None:
            continue
        parts = Counter(part for found in divided.values() for part in found)
        is_shared = any(parts[part] > 1 for found in divided.values() if len(found) > 1 for part in found)
        if is_shared and (word != "space" or len(parts) <= len(table.labels)):
            place = int(np.flatnonzero(table.label_ids == first)[0])
            row = int(np.searchsorted(table.label_offsets, place, side="right")) - 1
            raise UserError(
                f"{table.path}, line {table.lines[row]}: the label {_shown(table.labels[first])} may be one class, or several "
                f"with a {word} between them; say which, with `columns.separator='single'` or `columns.separator='{word}'`"
            )


def _refuse_binary(path: Path) -> None:
    """Raise a `UserError` for a file that is not text: names need not be UTF-8, and may hold nearly anything, but no NUL byte.

    Half the bytes of a list in UTF-16 are NUL; it begins with its byte order mark.
    """
    try:
        with opened_regular(path) as file:
            start = file.read(FIRST_BLOCK)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {why(error)}; give a folder of images, or a list") from None
    if b"\0" in start and not start.startswith(UTF16):
        raise UserError(
            f"{path} is no list: it holds binary data; give a folder of images, or a list as text (.txt, .csv, .jsonl) in UTF-8"
        )


class _Columns:
    """A table that grows row by row; every row is checked."""

    def __init__(self, path: Path, *, labeled: bool) -> None:
        self.path = path
        self.labeled = labeled
        self._root = os.path.join(os.fsencode(path.parent), b"")  # noqa: PTH118 - names are bytes, which a Path cannot hold
        self._names = bytearray()
        self._offsets = array("q", [0])
        self._lines = array("q")
        self._labels: dict[str, int] = {}
        self._label_ids = array("q")
        self._label_offsets = array("q", [0])
        self._declared: list[str] = []
        self._splits = array("b")
        self._has_several = False
        self._ending = ""
        """What was added last to a name without an ending."""

    def add(self, row: ListRow) -> None:
        """Append a row, or declare the class it names."""
        for label in row.labels:
            if label not in self._labels:
                self._check_label(row.line, label)
        if row.split == CLASS_ROW and (self.labeled or not row.name):
            self._declare(row)
            return
        self._names += self._checked_name(row)
        self._offsets.append(len(self._names))
        self._lines.append(row.line)
        self._label_ids.extend([self._labels.setdefault(label, len(self._labels)) for label in row.labels])
        self._label_offsets.append(len(self._label_ids))
        self._has_several |= row.has_several
        self._splits.append(self._split_code(row))

    def table(self) -> ListTable:
        """What was added."""
        if not self._lines:
            raise UserError(f"{self.path} lists no images")
        lines = np.array(self._lines, dtype=np.int64)
        codes = np.array(self._splits, dtype=np.int8)
        without = codes == _NO_SPLIT
        if without.any() and not without.all():
            self._refuse(int(lines[without][0]), "there is no split, but other rows have one; give every row one or none")
        return ListTable(
            path=self.path,
            names=bytes(self._names),
            offsets=np.array(self._offsets, dtype=np.int64),
            lines=lines,
            labels=tuple(self._labels),
            label_ids=np.array(self._label_ids, dtype=np.int64),
            label_offsets=np.array(self._label_offsets, dtype=np.int64),
            has_several=self._has_several,
            declared=tuple(self._declared),
            split_codes=None if without.all() else codes,
        )

    def _refuse(self, line: int, what: str, cause: Exception | None = None) -> NoReturn:
        raise UserError(f"{self.path}, line {line}: {what}") from cause

    def _declare(self, row: ListRow) -> None:
        if not self.labeled:
            return
        if row.name or len(row.labels) != 1:
            self._refuse(row.line, f"a row whose split is {CLASS_ROW!r} names one class as its label and has no path")
        if self._lines:
            self._refuse(row.line, f"rows whose split is {CLASS_ROW!r} come before the images")
        if row.labels[0] in self._declared:
            self._refuse(row.line, f"the class {_shown(row.labels[0])} is named a second time")
        self._declared.append(row.labels[0])

    def _check_label(self, line: int, label: str) -> None:
        if not label.strip():
            self._refuse(line, "the label is empty")
        try:
            os.fsencode(label)
        except UnicodeEncodeError as error:
            self._refuse(line, f"the label {_shown(label)} is no valid text", error)

    def _checked_name(self, row: ListRow) -> bytes:
        """The name as bytes; it must be that of a regular file, or of several for an image with a channel in each."""
        return BETWEEN_BANDS.encode().join(self._checked_file(row.line, name) for name in row.name.split(BETWEEN_BANDS))

    def _checked_file(self, line: int, given: str) -> bytes:
        if not given:
            self._refuse(line, "the path is empty")
        for spelling in self._spellings(given):
            try:
                name = os.fsencode(spelling)
                status = os.stat(name if name.startswith(b"/") else self._root + name)  # noqa: PTH116 - a Path per row is slow
            except (OSError, ValueError):  # ValueError: a NUL character, or half of a surrogate pair
                continue
            if not stat.S_ISREG(status.st_mode):
                self._refuse(line, f"{_shown(given)} is not a regular file")
            return name
        return self._refuse(line, f"there is no image {_shown(given)} (paths are relative to the list's folder)")

    def _spellings(self, name: str) -> Iterator[str]:
        """The name as it is written, with slashes for the backslashes of Windows, as text of Windows, with an image's ending."""
        written = dict.fromkeys((name, name.replace("\\", "/"), as_text(name), as_text(name).replace("\\", "/")))
        yield from written
        for spelling in written:
            if os.path.splitext(spelling)[1].lower() not in EXTENSIONS:  # noqa: PTH122
                for ending in dict.fromkeys((self._ending, *EXTENSIONS)):
                    self._ending = ending
                    yield spelling + ending

    def _split_code(self, row: ListRow) -> int:
        if not row.split or not self.labeled:
            return _NO_SPLIT
        if row.split not in _SPLIT_CODES:
            self._refuse(row.line, f"the split {_shown(row.split)} is none of {', '.join(_SPLIT_CODES)}")
        return _SPLIT_CODES[row.split]


def _shown(value: str) -> str:
    return repr(value if len(value) <= _LONGEST_SHOWN else value[:_LONGEST_SHOWN] + "...")
