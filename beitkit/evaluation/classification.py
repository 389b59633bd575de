"""Metrics of classifiers that count images, and those that rank them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from beitkit.contracts import WHOLE, Batch, Share
from beitkit.nn.prediction import check_outputs


@dataclass
class ClassifierQuality:
    """Accuracy (as a share), or the mean average precision where images have several labels, and the loss over one pass."""

    predict: Callable[[Tensor], Tensor]
    """Normalized images (b, c, h, w) to logits (b, classes)."""
    batches: Callable[[Share], Iterator[Batch]]
    """A share of a fresh ordered pass; batches hold images, labels (targets where there are several) and broken."""
    is_multilabel: bool = False
    name: str = "val"

    def run(self, share: Share = WHOLE) -> Iterator[tuple[str, float]]:
        """Yield top1, top5 (where there are more than five classes) and loss; of several labels map and loss."""
        answers = self.answers(share)
        if answers is None:
            return
        logits, labels = answers
        if self.is_multilabel:
            yield "map", mean_average_precision(logits, labels)
            yield "loss", F.binary_cross_entropy_with_logits(logits, labels.float()).item()
            return
        yield "top1", top_k(logits, labels, 1)
        if logits.shape[1] > 5:
            yield "top5", top_k(logits, labels, 5)
        yield "loss", F.cross_entropy(logits, labels).item()

    def answers(
        self, share: Share = WHOLE
    ) -> tuple[Float[Tensor, "n classes"], Int[Tensor, " n"] | Bool[Tensor, "n classes"]] | None:
        """Logits of every readable image, and its label or which classes it shows, on the CPU of rank 0; None elsewhere."""
        key = "targets" if self.is_multilabel else "labels"
        collected = share.together(_answered([self.predict], batch, key) for batch in self.batches(share))
        if collected is None:
            return None
        (logits,), labels = _put_together(collected, 1)
        return logits, labels > 0.5 if self.is_multilabel else labels


def collect_answers(
    predicts: Sequence[Callable[[Tensor], Tensor]], batches: Iterator[Batch], key: str, names: Sequence[str] | None = None
) -> tuple[list[Float[Tensor, "n classes"]], Tensor]:
    """The logits of every network on the images that can be read, and what the batches hold of these. All on the CPU.

    Args:
        predicts: per network normalized images (b, c, h, w) to logits (b, classes).
        batches: an ordered pass; batches hold images, broken and `key`.
        key: labels, targets or index.
        names: of the networks, for the error.

    Raises:
        UserError: if the logits of a network are not finite.
    """
    return _put_together([_answered(predicts, batch, key) for batch in batches], len(predicts), names)


@torch.no_grad()
def _answered(predicts: Sequence[Callable[[Tensor], Tensor]], batch: Batch, key: str) -> tuple[list[Tensor], Tensor]:
    """The logits of every network on a batch, and its values of `key`."""
    readable = batch["broken"] < 0
    return [predict(batch["images"]).float()[readable].cpu() for predict in predicts], batch[key][readable].cpu()


def _put_together(
    collected: list[tuple[list[Tensor], Tensor]], networks: int, names: Sequence[str] | None = None
) -> tuple[list[Tensor], Tensor]:
    answers = [torch.cat([logits[network] for logits, _ in collected]) for network in range(networks)]
    for name, answer in zip(names or ["the network"] * networks, answers, strict=True):
        check_outputs(answer, name)
    return answers, torch.cat([values for _, values in collected])


def top_k(logits: Float[Tensor, "n classes"], labels: Int[Tensor, " n"], k: int) -> float:
    """Share of images whose label is among the k largest logits; of equal ones the first class counts as larger.

    That is `argmax`'s rule, so top-1 agrees with `confusion`; `topk` has another, and logits of half precision are often equal.
    """
    own = logits.gather(1, labels[:, None])
    is_before = torch.arange(logits.shape[1]) < labels[:, None]
    rank = ((logits > own) | ((logits == own) & is_before)).sum(1)
    return (rank < k).float().mean().item()


def confusion(logits: Float[Tensor, "n classes"], labels: Int[Tensor, " n"]) -> Int[Tensor, "classes classes"]:
    """Confusion matrix: images of each true class (row) by predicted class (column)."""
    classes = logits.shape[1]
    return torch.bincount(labels * classes + logits.argmax(1), minlength=classes * classes).view(classes, classes)


def per_class(logits: Float[Tensor, "n classes"], labels: Int[Tensor, " n"]) -> list[tuple[int, float]]:
    """Number of images and accuracy (NaN without images) of each class."""
    counts = confusion(logits, labels)
    totals = counts.sum(1)
    shares = counts.diagonal() / totals  # 0 / 0 is NaN
    return list(zip(totals.tolist(), shares.tolist(), strict=True))


def balanced_accuracy(classes: Sequence[tuple[int, float]]) -> float:
    """Mean accuracy over the classes that have images, from the result of `per_class`."""
    shares = [share for count, share in classes if count]
    return sum(shares) / len(shares)


class Decisions(NamedTuple):
    """How the decisions on a class came out, of every class; 0 / 0 is NaN, as in scikit-learn with `zero_division=nan`."""

    precision: Float[Tensor, " classes"]
    """Share of the images named so that are of the class; NaN if no image is named so."""
    recall: Float[Tensor, " classes"]
    """Share of the images of the class that are named so; NaN without images."""
    f1: Float[Tensor, " classes"]
    """Harmonic mean of the two; NaN if the class is neither a label nor named."""

    @classmethod
    def of(cls, hits: Tensor, shown: Tensor, named: Tensor) -> Decisions:
        """From numbers of images by class: rightly named, of the class, and named so."""
        right = hits.double()
        return cls(right / named, right / shown, 2 * right / (shown + named))


class Ranking(NamedTuple):
    """How well a score puts the images of a class before all others."""

    auroc: float
    """Area under the ROC curve: of an image of the class and one of another, how often the first scores higher (of equal scores,
    half); NaN unless there are images of both kinds."""
    average_precision: float
    """Sum of precision times the rise in recall, by falling score, step by step as scikit-learn does; NaN where there are no
    images of the class."""

    @classmethod
    def of(cls, scores: Float[Tensor, " n"], hits: Bool[Tensor, " n"]) -> Ranking:
        """Of the images `hits` by `scores`, which must be finite; images of equal score are taken together."""
        _, found, taken = distinct_scores(scores, hits)
        rise, wrong = (steps.diff(prepend=steps.new_zeros(1)) for steps in (found, taken - found))
        area = (wrong * (found - rise / 2)).sum() / (found[-1] * (taken - found)[-1])  # 0 / 0 is NaN
        return cls(area.item(), (found / taken * rise / found[-1]).sum().item())


def distinct_scores(
    scores: Float[Tensor, " n"], hits: Bool[Tensor, " n"]
) -> tuple[Float[Tensor, " m"], Float[Tensor, " m"], Float[Tensor, " m"]]:
    """The different scores, largest first, and how many hits, and images at all, have at least each of them (float64)."""
    ordered, order = scores.sort(descending=True)
    is_last = torch.cat((ordered[1:] != ordered[:-1], ordered.new_ones(1, dtype=torch.bool)))  # of its equal scores
    return ordered[is_last], hits[order].double().cumsum(0)[is_last], is_last.nonzero().squeeze(1).double() + 1


def rankings(scores: Float[Tensor, "n classes"], targets: Bool[Tensor, "n classes"]) -> list[Ranking]:
    """`Ranking` of every class, against all others."""
    return [Ranking.of(*column) for column in zip(scores.T, targets.T, strict=True)]


def nan_mean(values: Sequence[float]) -> float:
    """Mean of the values that are not NaN; NaN if there are none."""
    return torch.tensor(values, dtype=torch.float64).nanmean().item()


def mean_average_precision(logits: Float[Tensor, "n classes"], targets: Bool[Tensor, "n classes"]) -> float:
    """Mean of the average precisions over the classes that have images."""
    return nan_mean([one.average_precision for one in rankings(logits, targets)])
