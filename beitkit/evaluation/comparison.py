"""Several networks on the same images: what each answers, which is significantly better, and what a seed changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from jaxtyping import Bool
from torch import Tensor

from beitkit.configs.codec import NOT_PART_OF_A_RUN, flat
from beitkit.errors import UserError
from beitkit.evaluation.scores import ClassScores, ClassShare, MultilabelScores, Scores
from beitkit.evaluation.sheets.scenes import SceneScores
from beitkit.evaluation.statistics import LUCK, Spread, mcnemar, spread

Kind = TypeVar("Kind")
AnyScores = Scores | MultilabelScores | SceneScores
SEEDS = ("seed", "train.seed")
"""What a run calls its seed."""


class ModelResult(NamedTuple):
    """One network's scores."""

    name: str
    """What tells it apart: the last part of its path, or all of it."""
    path: Path
    scores: AnyScores

    @property
    def headline(self) -> float:
        """The one number to compare: top-1; with several labels an image the mean average precision; of label maps mIoU."""
        return self.scores.measures[0].value


class ModelPair(NamedTuple):
    """Two networks on the same images."""

    first: str
    second: str
    only_first: int
    """Images that only the first has right (with several labels an image: all of its labels)."""
    only_second: int
    p_value: float
    """p-value of McNemar's exact test: probability of a split at least as uneven if both were equally good."""

    @property
    def sentence(self) -> str:
        """The result in words."""
        counts = (
            f"{self.first} has {self.only_first:,} right that {self.second} has wrong, and {self.only_second:,} the other way"
        )
        if self.p_value >= LUCK:
            return f"{counts} (exact McNemar p = {self.p_value:.2g}): the difference can be luck."
        better = self.first if self.only_first > self.only_second else self.second
        return f"{counts} (exact McNemar p = {self.p_value:.2g}): {better} is significantly better."


class SeedGroup(NamedTuple):
    """Runs whose configs differ only in their seed."""

    models: tuple[str, ...]
    seeds: tuple[int, ...]
    spread: Spread
    """Of the headline number over the seeds."""

    def sentence(self, headline: str) -> str:
        """The result in words; `headline` is what the number is called."""
        listed = ", ".join(map(str, self.seeds))
        deviation = f"standard deviation {100 * self.spread.deviation:.2f} points, n = {self.spread.repetitions}"
        what = f"{', '.join(self.models)} differ in nothing but their seed ({listed})"
        return f"{what}: {headline} {self.spread.mean:.1%} on average, {deviation}."


class Evaluation(NamedTuple):
    """What was measured, of one network or of several on the same images.

    Of a single network `top1`, `top5`, `loss` and `classes` can be asked for directly, of a single segmenter `mean_iou`.
    """

    where: str
    """What the images are, in words."""
    images: int
    broken: int
    """Images that could not be read and do not count."""
    models: tuple[ModelResult, ...]
    pairs: tuple[ModelPair, ...]
    """Every pair of classifiers, in their order."""
    seeds: tuple[SeedGroup, ...]

    @property
    def top1(self) -> float:
        """Share named right."""
        return self._single(Scores).top1

    @property
    def top5(self) -> float | None:
        """Share whose label is among the five most probable; None with five classes or fewer."""
        return self._single(Scores).top5

    @property
    def loss(self) -> float:
        """Mean cross-entropy, of several labels an image the binary one."""
        return self._single(Scores, MultilabelScores).loss

    @property
    def classes(self) -> Mapping[str, ClassShare | ClassScores]:
        """Scores by the name of the class."""
        return self._single(Scores, MultilabelScores).classes

    @property
    def mean_iou(self) -> float:
        """Mean intersection over union."""
        return self._single(SceneScores).scores.mean_iou

    @property
    def single(self) -> AnyScores:
        """The scores, where there is one network."""
        (*others, last) = self.models
        if others:
            raise UserError(f"{len(self.models)} models were evaluated; ask models[0].scores, models[1].scores and so on")
        return last.scores

    def _single(self, *kinds: type[Kind]) -> Kind:
        scores = self.single
        if not isinstance(scores, kinds):
            measured = ", ".join(one.name for one in scores.measures)
            raise UserError(f"such a network is not measured by this, but by {measured}; ask for single")
        return scores


def compared(names: Sequence[str], right: Sequence[Bool[Tensor, " n"]]) -> tuple[ModelPair, ...]:
    """Every pair of networks, from which images each of them has right."""
    pairs = []
    for (first, a), (second, b) in combinations(zip(names, right, strict=True), 2):
        only_first, only_second = int((a & ~b).sum()), int((b & ~a).sum())
        pairs.append(ModelPair(first, second, only_first, only_second, mcnemar(only_first, only_second)))
    return tuple(pairs)


def seed_groups(models: Sequence[ModelResult], configs: Sequence[Mapping[str, Any] | None]) -> tuple[SeedGroup, ...]:
    """Networks whose runs were given the same options but for the seed, with the spread of their headline numbers.

    `configs` holds the content of each run's config.json, or None for what is not a run; options that do not change what comes
    out (`NOT_PART_OF_A_RUN`) are not compared.
    """
    set_ups: dict[str, list[tuple[int, ModelResult]]] = {}
    for model, config in zip(models, configs, strict=True):
        values = {} if config is None else flat(dict(config))
        seed = next((values[key] for key in SEEDS if key in values), None)
        if isinstance(seed, int):
            rest = {key: value for key, value in values.items() if key not in (*SEEDS, *NOT_PART_OF_A_RUN)}
            set_ups.setdefault(repr(sorted(rest.items())), []).append((seed, model))
    groups = []
    for runs in set_ups.values():
        seeds = tuple(seed for seed, _ in runs)
        if len(set(seeds)) == len(seeds) > 1:  # a copy of a run says nothing about the spread
            values = spread([model.headline for _, model in runs])
            groups.append(SeedGroup(tuple(model.name for _, model in runs), seeds, values))
    return tuple(groups)
