"""How long a batch is waited for before the processes that read are taken to hang.

A verb sets it for as long as it runs, to its `read.timeout` (`beitkit.verbs`), so this imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from beitkit.configs.data import ReadConfig

_seconds = ReadConfig().timeout


@contextmanager
def patient_for(seconds: float) -> Iterator[None]:
    """A batch is waited for this long inside the block; 0 is for ever."""
    global _seconds
    before, _seconds = _seconds, seconds
    try:
        yield
    finally:
        _seconds = before


def patience() -> float:
    """Seconds that a batch is waited for; 0 is for ever."""
    return _seconds
