"""All that one pass over labeled images says about a classifier: of one label an image, or of several."""

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
"""A class counts as named where its probability is larger, in networks for several labels an image."""


class ClassShare(NamedTuple):
    """One class among those of which an image shows exactly one."""

    images: int
    top1: float
    """Share of them named right; NaN without images."""

    @property
    def text(self) -> str:
        """The share with its interval."""
        return f"{self.top1:.1%} {wilson(round(self.top1 * self.images), self.images)}" if self.images else "-"


class Scores(NamedTuple):
    """A classifier with one label an image; accuracies are shares."""

    images: int
    top1: float
    top1_interval: Interval
    top5: float | None
    """None with five classes or fewer."""
    top5_interval: Interval | None
    balanced: float
    """Mean over the classes that have images of the share named right: every class counts the same."""
    loss: float
    """Mean cross-entropy, in nats."""
    calibration_error: float
    bins: list[Bin]
    """What the calibration error is made of, for a reliability diagram."""
    classes: dict[str, ClassShare]
    confusion: list[list[int]]
    """How many images of each class (row) were given each name (column)."""

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
    """One cell beside the diagonal of the confusion matrix."""

    label: str
    named: str
    images: int
    share: float
    """Of the images with this label."""


class ClassScores(NamedTuple):
    """One class among several labels an image."""

    images: int
    """Images that show it."""
    average_precision: float
    """NaN where there are none."""
    f1: float
    """Of the yes or no at a probability of 0.5; NaN where the class is neither shown nor named."""


class MultilabelScores(NamedTuple):
    """A classifier with several labels an image; shares in [0, 1]."""

    images: int
    mean_average_precision: float
    """Mean over the classes that have images."""
    micro_f1: float
    """F1 of all (image, class) decisions together."""
    macro_f1: float
    """Mean F1 over the classes that are shown or named at least once."""
    subset_accuracy: float
    """Share of images whose labels are all right, and no other class named."""
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
    """Scores of logits against one label an image."""
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
    """The commonest mistakes, most images first, those of equal number in the order of the classes."""
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
    """Scores of logits, each a yes or no of its own (sigmoid), against any number of labels an image."""
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
