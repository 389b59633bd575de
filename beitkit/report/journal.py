"""Reads a run's journal.jsonl: one JSON object per line, written during the run.

A run can be killed in the middle of a line and resumed, so a journal may contain incomplete lines, and steps that were logged
twice (before the kill, and after resuming from the last checkpoint). Both are handled here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from beitkit.errors import UserError
from beitkit.files import MOST_OWN, parse_json, read_regular, why


@dataclass(frozen=True, kw_only=True)
class Event:
    """One line of the journal."""

    kind: str
    """"train", "evaluate" or "note"."""
    step: int
    numbers: dict[str, float]
    """Everything else that is a number: epoch, loss, accuracy, lr, grad_norm, images_per_second, data_wait, seconds, ...; NaN for
    one that was not finite."""
    texts: dict[str, str]
    """Everything else that is text: a note's message."""


class Points(NamedTuple):
    """A value over the steps of a run, ready for a chart."""

    steps: list[float]
    values: list[float]


def read_journal(path: Path) -> list[Event]:
    """The events of a journal in the order they were written; torn lines are left out.

    Raises `UserError` when the file is missing, or holds text but not one readable event.
    """
    try:
        # A kill can cut a character of several bytes in two, which must not cost the rest of the file.
        text = read_regular(path, MOST_OWN).decode("utf-8", errors="replace")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; expected the journal that a run writes into its folder") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({why(error)}); expected the journal of a run") from None
    events = [event for line in text.splitlines() if (event := _parse(line)) is not None]
    if text.strip() and not events:
        raise UserError(f"{path} holds no event of a run; expected one JSON object per line with a kind and a step")
    return events


def series(events: Iterable[Event], key: str, kind: str = "train") -> Points:
    """The value of `key` at every step that has one, by step; of a step that was logged twice the later one counts."""
    by_step = {event.step: event.numbers[key] for event in events if event.kind == kind and key in event.numbers}
    steps = sorted(by_step)
    return Points([float(step) for step in steps], [by_step[step] for step in steps])


def _parse(line: str) -> Event | None:
    try:
        found = parse_json(line)
    except ValueError:
        return None
    if not isinstance(found, dict):
        return None
    kind, step = found.pop("kind", None), found.pop("step", None)
    if not isinstance(kind, str) or not isinstance(step, int):
        return None
    # The journal writes null for a number that is not finite, which JSON cannot express.
    numbers = {
        key: math.nan if value is None else float(value) for key, value in found.items() if value is None or _is_number(value)
    }
    texts = {key: value for key, value in found.items() if isinstance(value, str)}
    return Event(kind=kind, step=step, numbers=numbers, texts=texts)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
