"""Which start is best: several networks and floors, each trained with several seeds, compared on the same images.

The rule: a start is clearly better than another if its mean over seeds is ahead by more than the larger of the two standard
deviations, and the images say so too (a paired test with p < 0.05). A winner is clearly better than every other start; with one
seed there is no deviation, and none is named.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist, mean, stdev
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from beitkit.evaluation.longer import Gain
from beitkit.evaluation.statistics import CONFIDENCE, LUCK, mcnemar

RULE = (
    "The rule: clearly better means a difference of the means larger than the larger standard deviation over seeds, and p < "
    f"{LUCK:g} in the paired test. The test looks at each image once: do more seeds of the one or of the other name it right "
    "(exact sign test over the images that differ; with one seed McNemar's)? A winner is clearly better than every other start."
)

HARDLY = 5e-4
"""A class with an IoU below this, 0.0% in a table, is not found."""
EQUAL = 1e-9
"""Means over seeds closer than this are equal, but for rounding."""


class Entrant(NamedTuple):
    """What one start, or one floor, reaches with some labels."""

    name: str
    is_floor: bool
    scores: tuple[float, ...]
    """One for each seed, a share."""
    images: Float[Tensor, "seeds n"]
    """Score of each seed on each image (1 where it is named right, else 0; of label maps the image's own mIoU); NaN where there
    is none."""
    seconds: tuple[float, ...]
    """Of each seed: time to train."""
    probe: tuple[float, ...] | None = None
    """Of each seed: linear probe of the frozen start on the same labels; None where there is none."""
    pixel_accuracy: tuple[float, ...] | None = None
    """Of each seed: share of the pixels named right; None for classifiers."""
    class_iou: tuple[tuple[float, ...], ...] | None = None
    """Of each seed: IoU of every class, NaN for one that is nowhere; None for classifiers."""
    twice: Gain | None = None
    """What twice the steps would bring, mean over seeds; None where that cannot be said, and of floors."""

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return mean(self.scores)

    @property
    def mean_class_iou(self) -> tuple[float, ...]:
        """Mean over seeds of each class, of those seeds in which it has one; empty for classifiers."""
        return () if self.class_iou is None else tuple(torch.tensor(self.class_iou, dtype=torch.float64).nanmean(0).tolist())

    @property
    def deviation(self) -> float | None:
        """Standard deviation over seeds (divided by n - 1); None with one seed."""
        return stdev(self.scores) if len(self.scores) > 1 else None


class Paired(NamedTuple):
    """One entry, which has the larger mean or comes first, against another on the same images."""

    first: str
    second: str
    difference: float
    """Of the means."""
    deviation: float | None
    """The larger of the two standard deviations; None with one seed."""
    ahead: int
    """Images on which the first is better, over its seeds."""
    behind: int
    """Images on which the second is."""
    p_value: float
    """Exact two-sided sign test over these images."""
    seeds_ahead: int
    """Seeds (same labels, same order) with which the first has the larger score."""
    seeds: int
    image_interval: tuple[float, float]
    """95% confidence interval of the mean difference of the images' scores, for other images of the same kind; what other seeds
    would change is not in it."""

    @property
    def is_clear(self) -> bool:
        """Whether the first is better by the rule."""
        return (
            self.deviation is not None and self.difference > self.deviation and self.ahead > self.behind and self.p_value < LUCK
        )

    @property
    def numbers(self) -> str:
        """The difference in words, for a sentence."""
        spread = "one seed, so no spread" if self.deviation is None else f"spread {100 * self.deviation:.1f}"
        return f"{100 * self.difference:+z.1f} points, {spread}, p {probability(self.p_value)}"


class Contest(NamedTuple):
    """All entries with one number of labels."""

    labels: int
    starts: tuple[Entrant, ...]
    """Best first."""
    floors: tuple[Entrant, ...]
    """Best first; none where they were left out."""
    pairs: tuple[Paired, ...]
    """The best start against every other start, in their order."""
    floor: Paired | None
    """The better of the best start and the best floor, against the other."""

    @property
    def best(self) -> Entrant:
        """The start with the largest mean."""
        return self.starts[0]

    @property
    def winner(self) -> str | None:
        """The start that is clearly best; None if there is none, or only one start."""
        return self.best.name if self.pairs and all(pair.is_clear for pair in self.pairs) else None

    @property
    def floor_is_above(self) -> bool:
        """Whether a floor has a larger mean than every start."""
        return self.floor is not None and self.floor.first != self.best.name

    def against(self, name: str) -> Paired | None:
        """The best start's comparison with another start."""
        return next((pair for pair in self.pairs if pair.second == name), None)

    @property
    def sentence(self) -> str:
        """Which start is best."""
        best = self.best
        if not self.pairs:
            return f"{best.name} reaches {best.mean:.1%}; there is no other start to compare it with."
        if self.winner is not None:
            second = self.pairs[0]
            return f"{best.name} is the best start: {best.mean:.1%}, {second.numbers} against {second.second}."
        unclear = next(pair for pair in self.pairs if not pair.is_clear)
        why = " (one seed has no spread, so no winner is named)" if unclear.deviation is None else ""
        return f"No start is clearly best: {best.name} {best.mean:.1%} against {unclear.second} ({unclear.numbers}){why}."

    @property
    def probe_sentences(self) -> list[str]:
        """Which starts are better frozen than fine-tuned."""
        better = [(one, mean(one.probe)) for one in self.starts if one.probe is not None and mean(one.probe) > one.mean]
        return [
            f"A probe of the frozen {one.name} has {probed:.1%}, more than its fine-tuning ({one.mean:.1%}): that is too "
            "short, or its rate does not suit it."
            for one, probed in better
        ]

    @property
    def unfound(self) -> list[int]:
        """Classes that no start finds, by number; none for classifiers."""
        found = zip(*(start.mean_class_iou for start in self.starts), strict=True)
        return [number for number, ious in enumerate(found) if all(iou < HARDLY for iou in ious)]

    @property
    def floor_sentence(self) -> str | None:
        """What the floors say; None without any."""
        if self.floor is None:
            return None
        floor, best = self.floors[0], self.best
        numbers = f"{floor.mean:.1%}, the best start ({best.name}) {best.mean:.1%} ({self.floor.numbers})"
        if self.floor_is_above:
            if self.floor.is_clear:
                return f"A floor wins: {floor.name} reaches {numbers}. No network here is worth its time yet."
            return f"A floor is ahead, though not clearly: {floor.name} reaches {numbers}."
        if self.floor.is_clear:
            return f"The best start is above the floors: {floor.name} reaches {numbers}."
        return f"The best start is not clearly above the floors: {floor.name} reaches {numbers}."


def probability(p_value: float) -> str:
    """A p-value after the letter p."""
    return "< 0.0001" if p_value < 1e-4 else f"= {p_value:.2g}"


def paired(first: Entrant, second: Entrant) -> Paired:
    """Two entries on the same images and with the same seeds."""
    per_image = first.images.double().mean(0) - second.images.double().mean(0)
    per_image = per_image[~per_image.isnan()]
    ahead, behind = int((per_image > EQUAL).sum()), int((per_image < -EQUAL).sum())
    center = float(per_image.mean())
    error = float(per_image.std()) / math.sqrt(len(per_image)) if len(per_image) > 1 else math.nan
    reach = NormalDist().inv_cdf((1 + CONFIDENCE) / 2) * error
    deviations = [one.deviation for one in (first, second) if one.deviation is not None]
    return Paired(
        first=first.name,
        second=second.name,
        difference=first.mean - second.mean,
        deviation=max(deviations, default=None),
        ahead=ahead,
        behind=behind,
        p_value=mcnemar(ahead, behind),
        seeds_ahead=sum(a > b for a, b in zip(first.scores, second.scores, strict=True)),
        seeds=len(first.scores),
        image_interval=(center - reach, center + reach),
    )


def contest(labels: int, entries: Sequence[Entrant]) -> Contest:
    """Order the entries and compare the best start with all others, and with the best floor."""
    ordered = sorted(entries, key=lambda entry: -entry.mean)
    starts = tuple(entry for entry in ordered if not entry.is_floor)
    floors = tuple(entry for entry in ordered if entry.is_floor)
    best, *others = starts
    floor = None
    if floors:
        floor = paired(floors[0], best) if floors[0].mean > best.mean else paired(best, floors[0])
    return Contest(labels, starts, floors, tuple(paired(best, other) for other in others), floor)


class Claim(NamedTuple):
    """The verdict in a sentence."""

    text: str
    is_good: bool | None
    """True: one start is clearly best, and above the floors, everywhere. False: a floor wins somewhere. None: not decided."""
    best: str | None
    """The start that is clearly best with every number of labels."""


def claim(contests: Sequence[Contest]) -> Claim:
    """What all contests say together; a start is named only if it is clearly best in each of them."""
    winners = {one.winner for one in contests}
    best = winners.pop() if len(winners) == 1 else None
    if best is not None:
        text = f"The best start is {best}"
    elif not contests[0].pairs:
        text = f"{contests[0].best.name} was the only start"
    elif any(one.winner is not None for one in contests):
        parts = [f"{one.winner or 'none clearly'} at {one.labels:,}" for one in contests]
        text = f"The best start depends on the labels: {', '.join(parts)}"
    else:
        text = "No start is clearly best"
    above = [one for one in contests if one.floor_is_above]
    lost = [one for one in above if one.floor is not None and one.floor.is_clear]
    if above:
        verb = "wins" if len(lost) == len(above) else "is ahead"
        places: dict[str, list[str]] = {}
        for one in above:
            places.setdefault(one.floors[0].name, []).append(f"{one.labels:,}")
        where = "; ".join(f"{name} at {' and '.join(counts)}" for name, counts in places.items())
        text += f", but a floor {verb}: {where}"
    is_above_floors = all(one.floor is None or (one.floor.is_clear and not one.floor_is_above) for one in contests)
    return Claim(text, False if lost else True if best is not None and is_above_floors else None, best)
