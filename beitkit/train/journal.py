"""Logging of a run: one JSON object per event in `journal.jsonl`, and progress on stderr."""

from __future__ import annotations

import json
import math
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOBase
from pathlib import Path
from typing import TextIO, TypeVar

from beitkit.files import MOST_OWN, parse_json, read_regular, why
from beitkit.system import append, write_atomically
from beitkit.terminal import bare, harmless, one_line
from beitkit.train.sinks import Tracker

SECONDS_PER_LINE = 0.5
"""Minimum interval between updates of the progress line on a terminal."""
SECONDS_OF_SILENCE = 30.0
"""Off a terminal, a run says how far it is at least this often, steps permitting."""
BAR = 20
"""Characters of the progress bar."""
Item = TypeVar("Item")


class Journal:
    """The log of one run. Events have a kind (train, evaluate, note), a step, and numbers or a sentence.

    Only rank 0 logs; calls on other ranks do nothing.
    """

    def __init__(
        self, path: Path, *, stream: TextIOBase | None = None, is_main: bool = True, tracker: Tracker | None = None
    ) -> None:
        """`tracker`: gets the numbers of all events as well."""
        self.is_main = is_main
        self.tracker = tracker if is_main else None
        if is_main:
            path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._is_quiet = not is_main
        self.stream: TextIO | TextIOBase = bare(sys.stderr if stream is None else stream)
        self.is_terminal = self.stream.isatty()
        self._unwritten = b""
        self._is_failing = False
        self._line_open = False
        self._last_drawn = 0.0
        self._last_said = -math.inf

    def rewind(self, step: int) -> None:
        """Remove events after `step`: a run that resumes from a checkpoint writes them again."""
        if self.tracker is not None:
            self.tracker.begin_after(step)
        if not self.is_main or not self.path.exists():
            return
        kept = []
        for line in read_regular(self.path, MOST_OWN).splitlines(keepends=True):
            try:
                is_kept = line.endswith(b"\n") and parse_json(line)["step"] <= step
            except (ValueError, KeyError, TypeError, IndexError):
                is_kept = False  # an incomplete line of a killed run, or a damaged one
            if is_kept:
                kept.append(line)
        write_atomically(self.path, b"".join(kept))

    def note(self, step: int, sentence: str) -> None:
        """Say a sentence, and append it to the file."""
        self.record("note", step, text=sentence)
        self.say(sentence)

    def record(self, kind: str, step: int, **values: float | str) -> None:
        """Append one event to the file."""
        if not self.is_main:
            return
        clean = {key: (None if isinstance(value, float) and not math.isfinite(value) else value) for key, value in values.items()}
        self._unwritten += (json.dumps({"kind": kind, "step": step, **clean}) + "\n").encode()
        try:
            append(self.path, self._unwritten)
        except OSError as error:
            if not self._is_failing:
                self._is_failing = True
                self.say(f"{self.path} cannot be written ({why(error)}); its lines are kept and written when that is possible")
        else:
            self._unwritten, self._is_failing = b"", False
        if self.tracker is not None and kind != "note" and (warning := self.tracker.send(values, step)) is not None:
            self.say(warning)

    def close(self) -> None:
        """The run is finished: so it is for its tracker."""
        if self.tracker is not None and (warning := self.tracker.close()) is not None:
            self.say(warning)

    def say(self, text: str) -> None:
        """Print a line that stays."""
        if self._line_open:
            self._write("\r\x1b[K")
            self._line_open = False
        self._write(harmless(text) + "\n")
        self._last_said = time.monotonic()

    def progress(self, text: str, share: float) -> None:
        """Say how far the run is, `share` in [0, 1]: a bar that the next one replaces; off a terminal and at the end, a line."""
        if not self.is_terminal or share >= 1:
            self.say(text)
        elif time.monotonic() - self._last_drawn > SECONDS_PER_LINE:
            done = int(share * BAR)
            # A line that wraps could not be erased again.
            line = f"{'━' * done}{'╌' * (BAR - done)} {harmless(text)}"[: shutil.get_terminal_size().columns - 1]
            self._write("\r\x1b[K" + line)
            self._line_open, self._last_drawn = True, time.monotonic()

    @property
    def is_awaited(self) -> bool:
        """Whether it is time for a sign of life between two logged steps."""
        if self.is_terminal:
            return time.monotonic() - self._last_drawn > SECONDS_PER_LINE
        return time.monotonic() - self._last_said > SECONDS_OF_SILENCE

    @contextmanager
    def open_line(self) -> Iterator[None]:
        """End the progress line on exit, so that other output starts on a new line."""
        try:
            yield
        finally:
            if self._line_open:
                self._write("\n")
                self._line_open = False

    def _write(self, text: str) -> None:
        if self._is_quiet:
            return
        try:
            self.stream.write(text)
            self.stream.flush()
        except BrokenPipeError:
            self._is_quiet = True  # the reader is gone; the run goes on


class WaitMeter:
    """Measures the time spent waiting for a stream."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def metered(self, stream: Iterator[Item]) -> Iterator[Item]:
        """The same stream, with its waiting time counted."""
        while True:
            start = time.perf_counter()
            try:
                item = next(stream)
            except StopIteration:
                return
            finally:
                self.seconds += time.perf_counter() - start
            yield item


def say_skipped(file: Path, reason: str) -> None:
    """Print on stderr that a file cannot be read."""
    print(one_line(f"skipped {file}: {reason}"), file=sys.stderr)


def duration(seconds: float) -> str:
    """A duration in words: 42 s, 3 min 05 s, 2 h 10 min, 3 d 4 h."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"
