"""Candidates that take turns: A, B, C, A, B, C, ... in one process, so that other load on the machine slows all alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from beitkit.system import keep_heap

Step = Callable[[], object]
"""One step of the work that is timed; what it returns is thrown away."""
WARM_UP_STEPS = 3
"""Untimed steps of each candidate: compiling and the optimizer's moments come with the first ones, and the last one says how
many steps make a turn."""


class Candidate(NamedTuple):
    """One candidate of a benchmark."""

    name: str
    """Short and unique in its race: the key in the result."""
    about: str
    """What it does, for people."""
    prepare: Callable[[], Step]
    """Makes everything that is not timed: networks, optimizers, inputs."""
    is_ours: bool = False
    """Whether it is beitkit: the C library then keeps freed memory, as in our runs; for others it does what it does by itself."""


def synchronizer(device: torch.device) -> Callable[[], None]:
    """What waits until the device has done everything it was given."""
    if device.type == "cuda":
        return lambda: torch.cuda.synchronize(device)
    return torch.mps.synchronize if device.type == "mps" else lambda: None


def interleaved(
    candidates: Sequence[Candidate],
    rounds: int,
    *,
    turn: float = 0.0,
    wait: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, list[float]]:
    """Seconds a step of every candidate, one number for each round.

    Args:
        candidates: prepared and warmed up one after the other, before any is timed.
        rounds: in each, every candidate has one turn, always in the given order.
        turn: seconds that a turn takes at least; as many steps as that needs, by the last step of the warm-up.
        wait: returns when the device is done.
        clock: seconds.
        say: hears who warms up, and which round it is.
    """
    steps, counts = [], []
    for candidate in candidates:
        say(f"warming up: {candidate.name}")
        keep_heap(candidate.is_ours)
        step = candidate.prepare()
        seconds = [_timed(step, 1, wait, clock) for _ in range(WARM_UP_STEPS)][-1]
        steps.append(step)
        counts.append(max(1, math.ceil(turn / seconds)) if seconds > 0 else 1)
    taken: dict[str, list[float]] = {candidate.name: [] for candidate in candidates}
    assert len(taken) == len(candidates), "names are keys"
    for done in range(rounds):
        say(f"round {done + 1} of {rounds}")
        for candidate, step, count in zip(candidates, steps, counts, strict=True):
            keep_heap(candidate.is_ours)
            step()  # untimed: the one before it may have left memory in the other way
            taken[candidate.name].append(_timed(step, count, wait, clock) / count)
    return taken


def _timed(step: Step, count: int, wait: Callable[[], None], clock: Callable[[], float]) -> float:
    wait()
    start = clock()
    for _ in range(count):
        step()
    wait()
    return clock() - start
