"""What a bench found out, as `bench.json` holds it: dataclasses whose field names are the keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from beitkit.measuring.matrix import Product, best_rates, rates
from beitkit.measuring.race import Flops, Race
from beitkit.measuring.statistics import Ratio, Summary, compared, summarized

VERSION = 1
"""Of the schema; it grows when a key changes its meaning or goes."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One contestant of a job."""

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
    """How many times as fast the first of two contestants is."""

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
    """Pictures of a step."""
    parity: dict[str, float]
    """By rival: largest difference of its float32 outputs from ours, as a share of our largest."""
    contestants: tuple[Measured, ...]
    comparisons: tuple[Comparison, ...]
    products: dict[str, float]
    """FLOP/s of the matrix products that took turns with the rest; the best of each precision is what shares refer to."""

    def named(self, name: str) -> Measured:
        """One of the contestants."""
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
    for contestant in race.contestants:
        seconds = taken[contestant.name]
        summary, flops = summarized(seconds), race.flops.get(contestant.name, {})
        measured.append(
            Measured(
                name=contestant.name,
                about=contestant.about,
                seconds=tuple(seconds),
                summary=summary,
                images_per_second=race.pictures / summary.median,
                flops_per_image=dict(flops),
                share=share(flops, race.pictures, best, summary.median),
                peak_bytes=peaks.get(contestant.name),
            )
        )
    return JobResult(
        job=race.job,
        size=size,
        image_size=image_size,
        patch=patch,
        batch_size=race.pictures,
        parity=dict(parity),
        contestants=tuple(measured),
        comparisons=tuple(
            Comparison(first=first, second=second, ratio=compared(taken[first], taken[second]))
            for first, second in race.comparisons
        ),
        products=rates(products, taken),
    )


def share(flops: Flops, pictures: int, rate: Mapping[str, float], seconds: float) -> float | None:
    """How much of a step's seconds its matrix products would take at these rates (FLOP/s by precision); None without any."""
    if not flops:
        return None
    return sum(pictures * count / rate[precision] for precision, count in flops.items()) / seconds
