"""How far a measured share can be trusted, and whether two networks differ significantly."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist, mean, stdev
from typing import NamedTuple

from beitkit.report.table import percent

CONFIDENCE = 0.95
"""Confidence level of the intervals."""
NORMAL_QUANTILE = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
"""Standard deviations on either side of the mean that hold this share of a normal distribution."""
LUCK = 0.05
"""A difference with a p-value of at least this is not significant."""


class Interval(NamedTuple):
    """Ends of a confidence interval, both in [0, 1]."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"({100 * self.low:.1f} to {100 * self.high:.1f})"


class Measure(NamedTuple):
    """A number that was measured, with its name and how it is written."""

    name: str
    value: float
    interval: Interval | None = None
    text: Callable[[float], str] = percent

    @property
    def with_interval(self) -> str:
        """The number, and how far it can be trusted where that is known."""
        return self.short if self.interval is None else f"{self.short} {self.interval}"

    @property
    def short(self) -> str:
        """The number alone."""
        return self.text(self.value)


class Spread(NamedTuple):
    """Mean and standard deviation over repetitions."""

    mean: float
    deviation: float
    """Sample standard deviation (divided by n - 1)."""
    repetitions: int


def wilson(right: int, total: int) -> Interval:
    """Wilson's score interval (95%) of a share that was measured as `right` of `total` (E. B. Wilson, JASA 22, 1927).

    It stays inside [0, 1] and has a width at 0 and 1, unlike the normal approximation.
    """
    assert 0 <= right <= total, f"{right} of {total} is no share"
    assert total, "an interval needs at least one image"
    z = NORMAL_QUANTILE
    share = right / total
    center = share + z * z / (2 * total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    low, high = (center - half) / scale, (center + half) / scale
    return Interval(0.0 if right == 0 else low, 1.0 if right == total else high)  # exact there, but for rounding


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided p-value of McNemar's test (Q. McNemar, Psychometrika 12, 1947).

    Of the images that exactly one of two networks names right, each network is the right one with probability one half if
    they are equally good; returned is the binomial probability of a split at least as uneven.
    """
    total, fewer = only_first + only_second, min(only_first, only_second)
    ways = term = 1
    for count in range(fewer):
        term = term * (total - count) // (count + 1)
        ways += term
    return min(1.0, 2 * ways / (1 << total))


def spread(values: Sequence[float]) -> Spread:
    """Mean and deviation of at least two repetitions."""
    assert len(values) > 1, "one value has no spread"
    return Spread(mean(values), stdev(values), len(values))
