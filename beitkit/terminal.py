"""What reaches a terminal: names of files, classes and tensors come from anywhere, and may hold codes that it would obey.

An escape sequence in a name can hide lines, write others in their place, or type a command. Here every control character becomes
visible (`\\x1b`), as do those that turn the direction of writing round.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

_OBEYED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""Control characters (C0 without tab and line feed, DEL, C1), and Unicode's marks of direction and of lines."""


_URL = re.compile(r"(?<![\w/.])((?:hf|https?|s3|gs|gcs|az|abfss?|hdfs|s?ftp|memory):)/(?=[^/\s])")
"""A URL that went through a `Path`, which keeps one of its two slashes."""


def with_slashes(text: str) -> str:
    """A text whose URLs have their two slashes: `hf://user/name`, of which a `Path` makes `hf:/user/name`."""
    return _URL.sub(r"\1//", text)


def harmless(text: str) -> str:
    """A text with control characters made visible and URLs made whole; lines and tabs stay."""
    return with_slashes(_OBEYED.sub(lambda found: found[0].encode("unicode_escape").decode(), text))


def one_line(text: str) -> str:
    """The same on a single line: a name with a line break in it must not look like a message of its own."""
    return harmless(text).replace("\n", "\\n")


class Harmless:
    """A stream that shows control characters instead of passing them on."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Write what is harmless of a text."""
        self.stream.write(harmless(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def bare(stream: Any) -> Any:
    """The stream itself, for those that write control characters of their own and make everything else harmless."""
    return stream.stream if isinstance(stream, Harmless) else stream


@contextmanager
def printed_harmless() -> Iterator[None]:
    """Whatever is printed inside the block is harmless."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (stream if isinstance(stream, Harmless) else Harmless(stream) for stream in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


_listener: Callable[[str], None] | None = None


@contextmanager
def told_to(listener: Callable[[str], None]) -> Iterator[None]:
    """What is told inside the block goes to `listener`, the journal of a run for instance."""
    global _listener
    before, _listener = _listener, listener
    try:
        yield
    finally:
        _listener = before


def tell(sentence: str) -> None:
    """Say what happened where nobody asked: to whom `told_to` says, else on stderr."""
    if _listener is None:
        print(one_line(sentence), file=sys.stderr)
    else:
        _listener(sentence)


_answers: Any = None


@contextmanager
def only_answers() -> Iterator[None]:
    """Inside the block stdout is for `print_answer` alone; whatever else is printed goes to stderr."""
    global _answers
    before, _answers = _answers, sys.stdout
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _answers = before


def print_answer(text: str) -> None:
    """Print a result that a program reads."""
    print(text, file=_answers)
