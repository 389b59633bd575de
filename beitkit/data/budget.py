"""How much a process may hold of decoded images.

A verb sets the limit for as long as it runs, to its `read.cache` (`beitkit.verbs`), so this imports no torch.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager

from beitkit.configs.data import ReadConfig

MIB = 2**20
DEFAULT = ReadConfig().cache
"""MiB where nothing else is said."""


class Budget:
    """Bytes that may be held."""

    def __init__(self, total: int) -> None:
        self.total = self.left = total

    def taken(self, number: int, each: int, owner: object) -> int:
        """How many of `number` things of `each` bytes fit; they count until `owner` is gone."""
        number = max(0, min(number, self.left // each))
        self.left -= number * each
        weakref.finalize(owner, self._give_back, number * each).atexit = False
        return number

    def _give_back(self, count: int) -> None:
        self.left += count


_budget = Budget(int(DEFAULT * MIB))


@contextmanager
def memory_up_to(mib: float) -> Iterator[None]:
    """This many MiB may be held inside the block."""
    global _budget
    before, _budget = _budget, Budget(int(mib * MIB))
    try:
        yield
    finally:
        _budget = before


def budget() -> Budget:
    """What this process may hold."""
    return _budget
