"""Classification metrics of one evaluation pass, single- or multi-label."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from beitkit.evaluation.calibration import Bin, calibration_error, reliability
from beitkit.evaluation.classification import balanced_accuracy, class_precisions, confusion, per_class, top_k
from beitkit.evaluation.statistics import Interval, Measure, wilson
from beitkit.report.table import Column, Table, percent, thousands

nats = "{:.4f}".format
"""A loss as people read it."""
INTERVALS = "Intervals are Wilson's score intervals at 95%."
THRESHOLD = 0.5
"""Multi-label: a class is predicted if its probability is larger."""


class ClassShare(NamedTuple):
    """Scores of one class, single-label."""

    images: int
    top1: float
    """Accuracy; NaN without images."""

    @property
    def text(self) -> str:
        """The share with its interval."""
        return f"{self.top1:.1%} {wilson(round(self.top1 * self.images), self.images)}" if self.images else "-"


class Scores(NamedTuple):
    """Scores of a single-label classifier; accuracies are in [0, 1]."""

    images: int
    top1: float
    top1_interval: Interval
    top5: float | None
    """None with five classes or fewer."""
    top5_interval: Interval | None
    balanced: float
    """Balanced accuracy: mean of the class accuracies, over classes that have images."""
    loss: float
    """Mean cross-entropy, in nats."""
    calibration_error: float
    bins: list[Bin]
    """Bins of the calibration error, for a reliability diagram."""
    classes: dict[str, ClassShare]
    confusion: list[list[int]]
    """Confusion matrix: images of each true class (row) by predicted class (column)."""

    @property
    def measures(self) -> list[Measure]:
        """The numbers over all images; the first is the one to compare."""
        top5 = [] if self.top5 is None else [Measure("top-5", self.top5, self.top5_interval)]
        return [
            Measure("top-1", self.top1, self.top1_interval),
            *top5,
            Measure("balanced accuracy", self.balanced),
            Measure("loss", self.loss, text=nats),
            Measure("calibration error", self.calibration_error),
        ]

    @property
    def class_table(self) -> Table:
        """One row per class."""
        rows = [[name, one.images, one.text] for name, one in self.classes.items()]
        return Table(["class", Column("images", thousands), "named right"], rows, INTERVALS)


class Mistake(NamedTuple):
    """One off-diagonal cell of the confusion matrix."""

    label: str
    named: str
    images: int
    share: float
    """Of the images with this label."""


class ClassScores(NamedTuple):
    """Scores of one class, multi-label."""

    images: int
    """Images with this label."""
    average_precision: float
    """NaN where there are none."""
    f1: float
    """F1 at a probability of 0.5; NaN if the class is neither a label nor predicted."""


class MultilabelScores(NamedTuple):
    """Scores of a multi-label classifier, in [0, 1]."""

    images: int
    mean_average_precision: float
    """Mean over the classes that have images."""
    micro_f1: float
    """Micro F1: over all (image, class) decisions."""
    macro_f1: float
    """Macro F1: mean over the classes that are a label or predicted at least once."""
    subset_accuracy: float
    """Subset accuracy: share of images whose predicted classes are exactly their labels."""
    subset_interval: Interval
    loss: float
    """Mean binary cross-entropy over images and classes, in nats."""
    classes: dict[str, ClassScores]

    @property
    def measures(self) -> list[Measure]:
        """The numbers over all images; the first is the one to compare."""
        return [
            Measure("mAP", self.mean_average_precision),
            Measure("micro F1", self.micro_f1),
            Measure("macro F1", self.macro_f1),
            Measure("all labels right", self.subset_accuracy, self.subset_interval),
            Measure("loss", self.loss, text=nats),
        ]

    @property
    def class_table(self) -> Table:
        """One row per class."""
        columns = ["class", Column("images", thousands), Column("average precision", percent), Column("F1", percent)]
        rows = [[name, *one] for name, one in self.classes.items()]
        return Table(columns, rows, f"F1 counts a class as named above a probability of {THRESHOLD:g}.")


def single_label_scores(logits: Float[Tensor, "n classes"], labels: Int[Tensor, " n"], names: tuple[str, ...]) -> Scores:
    """Single-label scores of logits."""
    total, right = len(labels), logits.argmax(1) == labels
    has_top5 = logits.shape[1] > 5
    top5 = top_k(logits, labels, 5) if has_top5 else None
    classes = per_class(logits, labels)
    bins = reliability(logits.softmax(1).amax(1), right)
    return Scores(
        images=total,
        top1=top_k(logits, labels, 1),
        top1_interval=wilson(int(right.sum()), total),
        top5=top5,
        top5_interval=None if top5 is None else wilson(round(top5 * total), total),
        balanced=balanced_accuracy(classes),
        loss=F.cross_entropy(logits, labels).item(),
        calibration_error=calibration_error(bins),
        bins=bins,
        classes={name: ClassShare(*one) for name, one in zip(names, classes, strict=True)},
        confusion=confusion(logits, labels).tolist(),
    )


def largest_confusions(scores: Scores, limit: int) -> list[Mistake]:
    """The most frequent confusions, most images first, ties in the order of the classes."""
    names = list(scores.classes)
    mistakes = [
        Mistake(names[label], names[named], count, count / sum(row))
        for label, row in enumerate(scores.confusion)
        for named, count in enumerate(row)
        if count and named != label
    ]
    return sorted(mistakes, key=lambda mistake: -mistake.images)[:limit]


def multilabel_scores(
    logits: Float[Tensor, "n classes"], targets: Bool[Tensor, "n classes"], names: tuple[str, ...]
) -> MultilabelScores:
    """Multi-label scores of logits (a sigmoid per class)."""
    named = logits.sigmoid() > THRESHOLD
    hits, shown, said = (table.sum(0).double() for table in (named & targets, targets, named))
    f1 = 2 * hits / (shown + said)  # 0 / 0 is NaN
    precisions = torch.tensor(class_precisions(logits, targets), dtype=torch.float64)
    decisions = (shown + said).sum()
    right = (named == targets).all(1)
    rows = zip(shown.int().tolist(), precisions.tolist(), f1.tolist(), strict=True)
    return MultilabelScores(
        images=len(targets),
        mean_average_precision=precisions.nanmean().item(),
        micro_f1=(2 * hits.sum() / decisions).item(),
        macro_f1=f1.nanmean().item(),
        subset_accuracy=right.double().mean().item(),
        subset_interval=wilson(int(right.sum()), len(targets)),
        loss=F.binary_cross_entropy_with_logits(logits, targets.float()).item(),
        classes={name: ClassScores(*row) for name, row in zip(names, rows, strict=True)},
    )
