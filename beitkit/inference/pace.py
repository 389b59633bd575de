"""How a long command on a CPU computes fastest, found out on its first images.

Images are read in batches of 64. In how many forward passes a batch is computed, and by how many threads, candidates show in
turns; then, where the process reads by itself and that takes a good part of the time, whether other processes should. What a
trial computes is what was asked for, so it costs what the slower candidates lose. Results differ by rounding at most.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeVar

from beitkit.configs.train import MachineConfig
from beitkit.data.workers import default_workers

Result = TypeVar("Result")

READ = 64
"""Images of a batch that is read, and of a forward pass where nothing else is said or found out."""
SIZES = READ, 32, 16, 8
"""Images of a forward pass that are tried."""
TRIED_FROM = 4096
"""Images from which on a command tries; its first thousand or two are those of the trial."""
TURNS = 3
"""Batches that each candidate computes."""
GAIN = 1.03
"""How many times as fast another way must be: less is noise."""
READING = 0.1
"""Share of the time that reading must take for other processes to be tried."""
STARTING, WATCHED = 4, 12
"""Batches while the processes that read get going, and those after them that are timed."""


class Way(NamedTuple):
    """How a batch is computed."""

    batch_size: int
    """Images of a forward pass."""
    threads: int


class Spent(NamedTuple):
    """Seconds an image."""

    reading: float
    """Waited for it."""
    computing: float


Batches = Callable[[int, Iterable[Way], int], Iterator[tuple[Result, Spent]]]
"""Computes consecutive batches of images: from this batch on a result for each way, as long as there are both; so many processes
read."""


class Pacing:
    """What is chosen for a command, and what was given."""

    def __init__(self, machine: MachineConfig, batch_size: int | None, *, say: Callable[[str], None] = lambda line: None) -> None:
        """Of a command.

        Args:
            machine: its threads (but 0) and workers (but -1) are obeyed.
            batch_size: images of a forward pass; None leaves that open.
            say: is told in words what is found out.
        """
        self._machine = machine
        self._is_open = batch_size is None
        self.read = batch_size or READ
        """Images of a batch that is read, which are computed in one forward pass or in several."""
        self._say = say
        self._known: Way | None = None
        self._keep: Callable[[Way], None] = lambda way: None

    def remember(self, known: Way | None, keep: Callable[[Way], None]) -> None:
        """Take what was found out before the command was stopped, if anything; else `keep` is given what is found out."""
        self._known, self._keep = known, keep

    def results(self, batches: Batches[Result], images: int, cores: int, *, is_tried: bool) -> Iterator[Result]:
        """The results of all images.

        Args:
            batches: computes them.
            images: how many there are.
            cores: threads where nothing else is given or found out.
            is_tried: whether trying is of any use on the device.
        """
        way = Way(self.read, cores) if self._known is None else Way(self._known.batch_size, min(self._known.threads, cores))
        workers = default_workers() if self._machine.workers == -1 else self._machine.workers
        done = 0
        if is_tried and (images >= TRIED_FROM or self._known is not None):
            order = [way, *self._candidates(way) * TURNS]
            taken: dict[Way, list[Spent]] = {}
            for one, (result, spent) in zip(order, batches(0, order, workers), strict=False):
                done += 1
                if done > 1:  # the first one makes what all need
                    taken.setdefault(one, []).append(spent)
                if done == len(order):  # before the result is written: a stopped command goes on in this way
                    way = self._chosen(way, taken)
                yield result
            reading, computing = (statistics.median(times) for times in zip(*taken[way], strict=True)) if way in taken else (0, 1)
            if workers == 0 and self._machine.workers == -1 and reading > READING * (reading + computing):
                spent_beside: list[float] = []
                ways = self._while_faster(way, reading + computing, spent_beside, cores)
                for result, spent in batches(done, ways, cores):
                    done += 1
                    spent_beside.append(spent.reading + spent.computing)
                    yield result
        for result, _ in batches(done, itertools.repeat(way), workers):
            yield result

    def _candidates(self, way: Way) -> list[Way]:
        """What takes turns, what would be taken without a trial first."""
        if self._known is not None:
            return [way]
        sizes = SIZES if self._is_open else (way.batch_size,)
        threads = (way.threads, way.threads // 2) if self._machine.threads == 0 and way.threads > 2 else (way.threads,)
        return [Way(size, count) for count in threads for size in sizes]

    def _chosen(self, begun: Way, taken: dict[Way, list[Spent]]) -> Way:
        """The fastest, if it is clearly faster than what there was."""
        if self._known is not None:
            return begun
        medians = {way: statistics.median(spent.computing for spent in turns) for way, turns in taken.items()}
        best = min(medians, key=lambda way: medians[way])
        ratio = medians[begun] / medians[best]
        found = best if ratio >= GAIN else begun
        if len(medians) > 1:
            why = (
                f"{ratio:.2f} times as fast as {_words(begun)}"
                if found != begun
                else f"{len(medians) - 1} others were not faster"
            )
            self._say(f"computing {_words(found)} ({why}, tried on the first images)")
        self._keep(found)
        return found

    def _while_faster(self, way: Way, before: float, spent: list[float], count: int) -> Iterator[Way]:
        """The same way for as long as it is worth it that so many processes read; `spent` is what each batch takes."""
        yield from itertools.repeat(way, STARTING + WATCHED)
        ratio = before / statistics.mean(spent[STARTING:])
        if ratio < GAIN:
            self._say(f"reading and computing by turns (beside {count} processes that read: {ratio:.2f} times as fast)")
            return
        self._say(f"{count} processes read meanwhile ({ratio:.2f} times as fast)")
        yield from itertools.repeat(way)


def _words(way: Way) -> str:
    return f"{way.batch_size} images at a time by {way.threads} thread{'' if way.threads == 1 else 's'}"
