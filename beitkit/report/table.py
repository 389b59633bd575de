"""What is shown of a result: a table, built once for the terminal and the page, and the whole of it as JSON."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rich.console import Console
from rich.table import Table as TerminalTable

from beitkit.terminal import bare, one_line

Align = Literal["left", "right"]

WIDTH = 160
"""Characters of a line where stdout is not a terminal."""

thousands = "{:,}".format
"""A whole number as people read it."""


class Column(NamedTuple):
    """What stands above a column, and how its values are written."""

    name: str
    text: Callable[[Any], str] = str
    align: Align = "right"
    """On a page; the first column is always left."""


class Table(NamedTuple):
    """Values in rows; a column that is a name alone holds text."""

    columns: Sequence[str | Column]
    rows: Sequence[Sequence[object]]
    caption: str = ""

    @property
    def whole_columns(self) -> list[Column]:
        """The columns, those that are a name alone as well."""
        return [Column(column) if isinstance(column, str) else column for column in self.columns]

    @property
    def header(self) -> list[str]:
        """The names of the columns."""
        return [column.name for column in self.whole_columns]

    @property
    def cells(self) -> list[list[str]]:
        """The rows as text.

        Raises:
            ValueError: a row has more or fewer values than there are columns.
        """
        columns = self.whole_columns
        other = next((row for row in self.rows if len(row) != len(columns)), None)
        if other is not None:
            raise ValueError(f"the table has {len(columns)} columns, but a row has {len(other)}: {list(other)}")
        return [[column.text(value) for column, value in zip(columns, row, strict=True)] for row in self.rows]

    def print(self) -> None:
        """Show the table on stdout, without its caption."""
        console = Console(file=bare(sys.stdout), highlight=False, markup=False, width=None if Console().is_terminal else WIDTH)
        table = TerminalTable(*map(one_line, self.header), box=None)
        for row in self.cells:
            table.add_row(*map(one_line, row))
        console.print(table)


def percent(share: float | None) -> str:
    """A share in percent with one digit; `-` where there was nothing to measure (None or NaN)."""
    return "-" if share is None or math.isnan(share) else f"{share:.1%}"


def points(difference: float | None) -> str:
    """A difference of shares in points, with its sign; `-` where there is none."""
    return "-" if difference is None or math.isnan(difference) else f"{100 * difference:+z.1f}"


def plain(value: Any) -> Any:
    """A result as dicts, lists, numbers and strings; NaN and infinities, which JSON does not have, as None."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {name: plain(one) for name, one in value._asdict().items()}  # type: ignore[attr-defined]
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items()}
    if isinstance(value, tuple | list):
        return [plain(one) for one in value]
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value
