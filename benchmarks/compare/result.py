"""Result of a benchmark, as stored in `bench.json`: dataclasses whose field names are the keys."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.compare.matrix import Product, best_rates, rates
from benchmarks.compare.races import FlopsByPrecision, Race

VERSION = 1
"""Of the schema; it grows when a key changes its meaning or goes."""


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


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One candidate of a job."""

    name: str
    about: str
    seconds: tuple[float, ...]
    """Of a step, in each round."""
    summary: Summary
    images_per_second: float
    """From the median."""
    flops_per_image: dict[str, int]
    """Of matrix products, by precision."""
    share: float | None
    """How much of the time the matrix products alone would take at the rates measured in the same rounds; None without any."""
    peak_bytes: int | None
    """Most memory above what the imports take; None where it was not measured."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How many times as fast the first of two candidates is."""

    first: str
    second: str
    ratio: Ratio


@dataclass(frozen=True, kw_only=True)
class JobResult:
    """One job with one network."""

    job: str
    size: str
    image_size: int
    patch: int
    batch_size: int
    """Images of a step."""
    parity: dict[str, float]
    """By rival: largest difference of its float32 outputs from ours, as a share of our largest."""
    contestants: tuple[Measured, ...]
    """The candidates, by the name that readers of `bench.json` know."""
    comparisons: tuple[Comparison, ...]
    products: dict[str, float]
    """FLOP/s of the matrix products that took turns with the rest; the best of each precision is what shares refer to."""

    def named(self, name: str) -> Measured:
        """One of the candidates."""
        return next(one for one in self.contestants if one.name == name)


@dataclass(frozen=True, kw_only=True)
class BenchResult:
    """A whole bench."""

    version: int
    device: str
    """The device, its precision and threads, in words."""
    software: dict[str, str]
    """Versions of Python, beitkit, PyTorch, and the rivals."""
    settings: dict[str, Any]
    """The options of the command."""
    matrix_rate: dict[str, float]
    """FLOP/s of the best matrix product, by precision."""
    share: dict[str, float]
    """Share of the matrix rate by job (pretraining, tokenizer, finetuning, inference), ours, of the first size."""
    jobs: tuple[JobResult, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain dictionaries and lists."""
        return asdict(self)


def job_result(
    race: Race,
    taken: Mapping[str, Sequence[float]],
    products: Sequence[Product],
    *,
    size: str,
    image_size: int,
    patch: int,
    parity: Mapping[str, float],
    peaks: Mapping[str, int],
) -> JobResult:
    """What came of a race, from the seconds that everybody took for a step in each round."""
    best = best_rates(products, taken)
    measured = []
    for candidate in race.candidates:
        seconds = taken[candidate.name]
        summary, flops = summarized(seconds), race.flops.get(candidate.name, {})
        measured.append(
            Measured(
                name=candidate.name,
                about=candidate.about,
                seconds=tuple(seconds),
                summary=summary,
                images_per_second=race.images / summary.median,
                flops_per_image=dict(flops),
                share=share(flops, race.images, best, summary.median),
                peak_bytes=peaks.get(candidate.name),
            )
        )
    return JobResult(
        job=race.job,
        size=size,
        image_size=image_size,
        patch=patch,
        batch_size=race.images,
        parity=dict(parity),
        contestants=tuple(measured),
        comparisons=tuple(
            Comparison(first=first, second=second, ratio=compared(taken[first], taken[second]))
            for first, second in race.comparisons
        ),
        products=rates(products, taken),
    )


def share(flops: FlopsByPrecision, images: int, rate: Mapping[str, float], seconds: float) -> float | None:
    """How much of a step's seconds its matrix products would take at these rates (FLOP/s by precision); None without any."""
    if not flops:
        return None
    return sum(images * count / rate[precision] for precision, count in flops.items()) / seconds


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
