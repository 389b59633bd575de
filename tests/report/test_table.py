"""Tables that are built once and shown at two places."""

import pytest

from beitkit.report.table import Column, Table, percent, thousands


def test_the_terminal_shows_what_the_columns_make_of_the_values(capsys: pytest.CaptureFixture[str]) -> None:
    columns = ["class", Column("images", thousands), Column("right", percent)]
    Table(columns, [["cat", 1200, 0.256], ["[dog]", 0, None], ["emu", 3, float("nan")]], "Not on the terminal.").print()
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [["class", "images", "right"], ["cat", "1,200", "25.6%"], ["[dog]", "0", "-"], ["emu", "3", "-"]]
