"""What a run writes down and says."""

import io
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from beitkit.train.journal import Journal, WaitMeter, duration


def test_events_are_lines_of_strict_json(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl", stream=io.StringIO())
    journal.record("train", 3, loss=math.nan, accuracy=0.5)
    journal.record("note", 4, text="a step\nwas not applied")
    lines = (tmp_path / "journal.jsonl").read_text().splitlines()
    assert [json.loads(line, parse_constant=pytest.fail) for line in lines] == [
        {"kind": "train", "step": 3, "loss": None, "accuracy": 0.5},
        {"kind": "note", "step": 4, "text": "a step\nwas not applied"},
    ]


def test_rewinding_forgets_later_events_and_torn_lines(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl", stream=io.StringIO())
    for step in (1, 2, 3):
        journal.record("train", step, loss=1.0)
    with journal.path.open("a") as file:
        file.write('{"kind": "train", "step": 4')
    journal.rewind(2)
    assert [json.loads(line)["step"] for line in journal.path.read_text().splitlines()] == [1, 2]
    journal.rewind(0)
    assert journal.path.read_text() == ""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_one_changing_bar_and_a_file_plain_lines(tmp_path: Path) -> None:
    bar = "━" * 5 + "╌" * 15
    for stream, expected in ((Terminal(), f"\r\x1b[K{bar} step 1\r\x1b[Kdone\n"), (io.StringIO(), "step 1\ndone\n")):
        journal = Journal(tmp_path / "journal.jsonl", stream=stream)
        journal.progress("step 1", 0.25)
        journal.say("done")
        assert stream.getvalue() == expected


def test_a_run_is_heard_of_within_half_a_minute_and_a_terminal_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    for stream, seconds in ((Terminal(), 0.5), (io.StringIO(), 30)):
        journal = Journal(tmp_path / "journal.jsonl", stream=stream)
        journal.progress("step 1", 0.25)
        now += seconds - 0.1
        assert not journal.is_awaited
        now += 0.2
        assert journal.is_awaited


def test_waiting_is_measured_and_working_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def slow() -> Iterator[int]:
        nonlocal now
        for item in range(3):
            now += 5
            yield item

    monkeypatch.setattr(time, "perf_counter", lambda: now)
    meter = WaitMeter()
    for _ in meter.metered(slow()):
        now += 100
    assert meter.seconds == 15


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.4, "59 s"), (185, "3 min 05 s"), (7800, "2 h 10 min"), (273600, "3 d 4 h"), (-1, "0 s")],
)
def test_durations_are_written_for_people(seconds: float, text: str) -> None:
    assert duration(float(seconds)) == text
