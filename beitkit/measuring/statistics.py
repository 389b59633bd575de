"""What rounds of measurements say: a typical value, how far it spreads, and who was faster by how much."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Summary:
    """Of the seconds that a step took in each round."""

    median: float
    lower_quartile: float
    upper_quartile: float
    least: float
    most: float


@dataclass(frozen=True)
class Ratio:
    """How many times as fast the first of two is as the second."""

    of_medians: float
    median_by_round: float
    """The median of the ratios within each round: what slowed a whole round down cancels."""
    least: float
    """The lowest of the ratios within a round."""
    most: float
    """The highest."""


def summarized(seconds: Sequence[float]) -> Summary:
    """Median, quartiles (linear between neighbors, as NumPy's) and extremes of at least one measurement."""
    if len(seconds) == 1:
        return Summary(*[seconds[0]] * 5)
    lower, middle, upper = statistics.quantiles(seconds, n=4, method="inclusive")
    return Summary(middle, lower, upper, min(seconds), max(seconds))


def compared(first: Sequence[float], second: Sequence[float]) -> Ratio:
    """How many times as fast the first is, from the seconds of both in the same rounds."""
    ratios = [slow / fast for fast, slow in zip(first, second, strict=True)]
    of_medians = statistics.median(second) / statistics.median(first)
    return Ratio(of_medians, statistics.median(ratios), min(ratios), max(ratios))
