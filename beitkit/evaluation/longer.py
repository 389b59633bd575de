"""What twice the steps would bring, from the validation curve of a run.

The rule: from `SINCE` of a run on, its error (one minus the score) fell by some factor; twice the steps, with a schedule of their
own, divide it by about that factor to the power of `POWER`, and once more by `FLOOR`. The interval is as wide as the fitted pairs
of runs scatter about that, and as two scores on so many validation images do. Fitted to and checked on pairs of runs, one
twice as long as the other (decision 015; `benchmarks/longer.py` makes them).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist, fmean
from typing import NamedTuple

from beitkit.report.journal import Event, Points, series

SINCE = 0.2
"""Share of the run from which on the curve counts: the rate is then past its peak, and an evaluation says something."""
POWER, FLOOR, SPREAD, REST = 0.251, 0.053, 0.282, 0.013
"""Fitted by likelihood (decision 015): the expected logarithm of the factor is POWER times that of the run's own, plus FLOOR; its
standard deviation is SPREAD times that of the run's own, and REST, besides the images'."""
ALIKE = 0.6
"""Correlation of what two networks of one kind name right: their scores on the same images differ by less than chance."""
CONFIDENCE = 0.9
FEWEST = 4
"""Evaluations that are a curve."""
FALLEN = 3.0
"""Standard deviations below its best evaluation from which on a run counts as past its best."""
STOPPED = "stopped after step"
"""How the journal's note of a run that patience ended begins."""
NOTHING = "nothing, or less"


class Gain(NamedTuple):
    """Difference of scores, as shares, with an interval of 90%."""

    expected: float
    low: float
    high: float

    def __str__(self) -> str:
        if self.high <= 0:
            return NOTHING
        return f"{100 * self.expected:+z.1f} points ({100 * self.low:.1f} to {100 * self.high:.1f})"


class Outlook(NamedTuple):
    """What twice the steps would bring, or why that cannot be said."""

    gain: Gain | None
    """Zeros for a run that is past its best."""
    sentence: str


def outlook(events: Sequence[Event], metric: str, images: int) -> Outlook:
    """What a finished run's journal says of one of twice its length.

    Args:
        events: of the whole run.
        metric: a share that is better when larger, as evaluations name it (val/top1).
        images: how many it is measured on.
    """
    found = [(step, value) for step, value in zip(*series(events, metric, "evaluate"), strict=True) if math.isfinite(value)]
    points = Points([step for step, _ in found], [value for _, value in found])
    if any(event.kind == "note" and event.texts.get("text", "").startswith(STOPPED) for event in events):
        return Outlook(
            Gain(0.0, 0.0, 0.0), f"Twice the steps would bring {NOTHING}: patience ended the run before its last step."
        )
    if len(points.steps) < FEWEST:
        count = len(points.steps)
        why = f"it takes {FEWEST} evaluations, and the run had {count} (`loop.evaluate_every`)"
        return Outlook(None, f"What twice the steps would bring is not said: {why}.")
    last, best = points.values[-1], max(points.values)
    if best - last > FALLEN * math.sqrt(_noise(best, images)):
        fell = f"it has fallen from {best:.1%} to {last:.1%}"
        return Outlook(Gain(0.0, 0.0, 0.0), f"Twice the steps would bring {NOTHING}: the score is past its best, {fell}.")
    gain = gain_of(points, images)
    return Outlook(gain, f"Twice the steps would bring about {gain}.")


def twice_facts(found: Outlook | None) -> list[tuple[str, str]]:
    """For the header of a report."""
    return [] if found is None or found.gain is None else [("Twice the steps", str(found.gain))]


def gain_of(points: Points, images: int) -> Gain:
    """The rule, for the scores of a curve's evaluations at steps that end with the run."""
    since = SINCE * points.steps[-1]
    before, last = _at(points, since), points.values[-1]
    error = max(1 - last, 1 / (2 * images))  # a network without an error has one that is too small to be seen
    fell = max(0.0, math.log(max(1 - before, error) / error))
    center = POWER * fell + FLOOR
    reach = NormalDist().inv_cdf((1 + CONFIDENCE) / 2) * math.sqrt(
        (SPREAD * fell) ** 2 + REST**2 + _noise(last, images) / error**2
    )
    expected, low, high = (error * (1 - math.exp(-factor)) for factor in (center, center - reach, center + reach))
    return Gain(min(expected, 1 - last), max(low, -last), min(high, 1 - last))


def mean_gain(gains: Sequence[Gain]) -> Gain:
    """Of several seeds; its interval is the mean of theirs, since what twice the steps bring is alike for all of them."""
    return Gain(*(fmean(column) for column in zip(*gains, strict=True)))


def _at(points: Points, step: float) -> float:
    """The curve at a step, on straight lines between evaluations; before the first of them its value."""
    after = next(index for index, at in enumerate(points.steps) if at >= step)
    if after == 0 or points.steps[after] == step:
        return points.values[after]
    (left, right), (low, high) = points.steps[after - 1 : after + 1], points.values[after - 1 : after + 1]
    return low + (high - low) * (step - left) / (right - left)


def _noise(score: float, images: int) -> float:
    """Variance of the difference of two scores on the same images."""
    return 2 * (1 - ALIKE) * max(score * (1 - score), 1 / (4 * images)) / images
