"""The exceptions that end a command with one line: a user's mistake, numbers gone bad, a signal. Others are our fault."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


class UserError(ValueError):
    """A mistake in what the user asked for: a path, an option, a file's content.

    The message is one line that says what was found, what was expected, and which field or file to change. It names a field
    in backticks as a Python caller writes it: `lr`, `read.max_broken`, `precision='float32'`. The command line prints the
    option in its place, after `beitkit: `, and exits with code 2; Python callers catch the error as a `ValueError`.
    """


class NumericalError(RuntimeError):
    """Training produced a loss or gradient that is not finite several steps in a row."""


class NotSaved(RuntimeError):  # noqa: N818 - what happened
    """A run is done, but something that it should have saved is not there."""


class ProcessLost(RuntimeError):  # noqa: N818 - what happened, not what is wrong here
    """Another process of a run ended, so this one cannot go on; the other one says why."""


CONTINUES = "the same command continues"
"""The end of a message after which the command line writes the command."""


class Interrupted(Exception):  # noqa: N818 - not an error: the user asked for it, and the work is saved
    """The run stopped on a signal, by default after saving; `exit_code` is what a shell expects."""

    def __init__(
        self,
        step: int,
        steps: int,
        signal_number: int,
        what_now: str = f"everything is saved, {CONTINUES}",
        unit: str = "step",
    ) -> None:
        super().__init__(f"stopped after {unit} {step} of {steps}; {what_now}")
        self.step, self.steps, self.signal_number = step, steps, signal_number
        self.exit_code = 128 + signal_number


def few(names: Sequence[object], most: int, between: str = ", ") -> str:
    """The first of many names for a message, and how many more there are."""
    return between.join(map(str, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")


@contextmanager
def writing_to(out: Path) -> Iterator[None]:
    """A folder or file that cannot be made or written in the block is a mistake in `out`."""
    try:
        yield
    except (NotADirectoryError, IsADirectoryError, FileExistsError, PermissionError) as error:
        raise UserError(f"`out` {out} cannot be written ({error.strerror}); choose another `out`") from None


GIVEN = "<python: "
"""How the description begins that stands for an object in place of a path: what a caller of the Python functions gave."""


def refuse_given(path: object) -> None:
    """Raise a `UserError` for a description that stands for a Python object, which a file or a command line cannot give."""
    if path is not None and str(path).startswith(GIVEN):
        raise UserError(
            f"{path} is an object that a Python program gave, and cannot be read from here; continue or repeat the run in Python "
            "with the same object, or give a path"
        )
