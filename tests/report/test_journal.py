from __future__ import annotations

import math
from pathlib import Path

import pytest

from beitkit.errors import UserError
from beitkit.report.journal import read_journal, series


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "journal.jsonl"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_events_keep_numbers_and_texts_apart(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        '{"kind": "train", "step": 20, "epoch": 0.5, "loss": 4, "lr": 0.001, "grad_norm": null}\n'
        '{"kind": "note", "step": 21, "text": "resumed", "is_best": true}\n',
    )
    train, note = read_journal(path)
    assert (train.kind, train.step, train.texts) == ("train", 20, {})
    assert train.numbers.keys() == {"epoch", "loss", "lr", "grad_norm"}
    assert train.numbers["epoch"] == 0.5
    assert train.numbers["loss"] == 4.0
    assert math.isnan(train.numbers["grad_norm"])
    assert (note.numbers, note.texts) == ({}, {"text": "resumed"})


def test_every_cut_of_the_last_line_keeps_the_lines_before_it(tmp_path: Path) -> None:
    first = '{"kind": "train", "step": 1, "loss": 2.5}\n'
    last = '{"kind": "note", "step": 2, "text": "größer"}'
    data = (first + last).encode()
    for length in range(len(first), len(data)):
        events = read_journal(written(tmp_path, data[:length]))
        assert [event.step for event in events] == [1]
    assert [event.step for event in read_journal(written(tmp_path, data))] == [1, 2]


def test_a_line_torn_in_the_middle_costs_only_itself(tmp_path: Path) -> None:
    path = written(
        tmp_path, '{"kind": "train", "st{"kind": "train", "step": 1, "loss": 1}\n{"kind": "train", "step": 2, "loss": 3}\n'
    )
    assert [event.step for event in read_journal(path)] == [2]


def test_series_takes_the_later_of_two_and_sorts(tmp_path: Path) -> None:
    lines = [
        '{"kind": "train", "step": 20, "loss": 3}',
        '{"kind": "train", "step": 40, "loss": 9}',
        '{"kind": "evaluate", "step": 40, "loss": 7}',
        '{"kind": "train", "step": 30, "lr": 1}',
        '{"kind": "train", "step": 40, "loss": 2}',
        '{"kind": "train", "step": 10, "loss": 4}',
    ]
    events = read_journal(written(tmp_path, "\n".join(lines)))
    assert series(events, "loss") == ([10, 20, 40], [4, 3, 2])
    assert series(events, "loss", kind="evaluate") == ([40], [7])
    assert series(events, "accuracy") == ([], [])


def test_an_empty_journal_has_no_events(tmp_path: Path) -> None:
    assert read_journal(written(tmp_path, "")) == []


@pytest.mark.parametrize(
    "text",
    ["step,loss\n1,2\n", "[1, 2]\n", '{"loss": 2}\n', '{"kind": "train", "step": null}\n', '{"kind": "train", "step": NaN}\n'],
)
def test_a_foreign_file_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match="no event of a run"):
        read_journal(written(tmp_path, text))


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_journal(tmp_path / "journal.jsonl")
    with pytest.raises(UserError, match="cannot be read"):
        read_journal(tmp_path)
