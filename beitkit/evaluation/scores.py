"""Classification metrics of one evaluation pass, single- or multi-label."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from beitkit.evaluation.calibration import Bin, as_decided, calibration_error, loss_of, reliability
from beitkit.evaluation.classification import Decisions, balanced_accuracy, confusion, nan_mean, per_class, rankings, top_k
from beitkit.evaluation.statistics import Interval, Measure, wilson
from beitkit.nn.prediction import check_outputs
from beitkit.report.table import Column, Table, percent, thousands

nats = "{:.4f}".format
"""A loss as people read it."""
INTERVALS = "Intervals are Wilson's score intervals at 95%."
OF_A_CLASS = (
    "Recall is the share of a class's images that are named so, precision the share of the images named so that are of it, F1 "
    "their harmonic mean. AUROC and average precision order all images by the probability of the class."
)
FITTED = "Temperature and thresholds were fitted on the run's validation images; on these they are flattered."
"""On numbers that depend on them."""


class ClassShare(NamedTuple):
    """Scores of one class, single-label; the last four against all other classes."""

    images: int
    """Images with this label (support)."""
    top1: float
    """Accuracy, which is the recall of the class; NaN without images."""
    precision: float
    """NaN if no image is named so."""
    f1: float
    """NaN if the class is neither a label nor named."""
    auroc: float
    """NaN unless there are images of this class and of others."""
    average_precision: float
    """NaN without images."""

    @property
    def text(self) -> str:
        """The recall with its interval."""
        return f"{self.top1:.1%} {wilson(round(self.top1 * self.images), self.images)}" if self.images else "-"


class Calibration(NamedTuple):
    """What the scores would be without the network's temperature."""

    temperature: float
    """What logits are divided by; 1 changes nothing."""
    loss: float
    error: float
    """Calibration error."""

    def words(self, loss: float, error: float) -> str:
        """Beside the scores with it; empty where there is none."""
        if self.temperature == 1:
            return ""
        return (
            f"temperature {self.temperature:.4g}: calibration error {percent(self.error)} before, {percent(error)} after; "
            f"loss {nats(self.loss)} before, {nats(loss)} after"
        )


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
    macro_f1: float
    """Macro F1: mean over the classes that are a label or predicted at least once."""
    auroc: float
    """Mean over the classes of the area under the ROC curve, one class against the rest; NaN if all images are of one class."""
    average_precision: float
    """Mean of the average precisions, over classes that have images."""
    loss: float
    """Mean cross-entropy, in nats."""
    calibration: Calibration
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
            Measure("macro F1", self.macro_f1),
            Measure("AUROC", self.auroc),
            Measure("average precision", self.average_precision),
            Measure("loss", self.loss, text=nats),
            Measure("calibration error", self.calibration_error),
        ]

    @property
    def calibrated(self) -> str:
        """What the temperature changed, in words; empty without one."""
        return self.calibration.words(self.loss, self.calibration_error)

    @property
    def class_table(self) -> Table:
        """One row per class."""
        shares = [Column(name, percent) for name in ("precision", "F1", "AUROC", "average precision")]
        rows = [[name, one.images, one.text, *one[2:]] for name, one in self.classes.items()]
        return Table(["class", Column("images", thousands), "recall", *shares], rows, f"{OF_A_CLASS} {INTERVALS}")


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
    """Images with this label (support)."""
    average_precision: float
    """NaN where there are none."""
    f1: float
    """F1 of the decisions; NaN if the class is neither a label nor predicted."""
    precision: float
    """Of the decisions; NaN if the class is never predicted."""
    recall: float
    """Of the decisions; NaN where there are no images."""
    auroc: float
    """NaN unless there are images with and without this label."""
    threshold: float
    """Probability from which it is predicted."""


class MultilabelScores(NamedTuple):
    """Scores of a multi-label classifier, in [0, 1]."""

    images: int
    mean_average_precision: float
    """Mean over the classes that have images."""
    micro_f1: float
    """Micro F1: over all (image, class) decisions."""
    macro_f1: float
    """Macro F1: mean over the classes that are a label or predicted at least once."""
    auroc: float
    """Mean of the areas under the ROC curves, over classes that have images with and without them."""
    subset_accuracy: float
    """Subset accuracy: share of images whose predicted classes are exactly their labels."""
    subset_interval: Interval
    loss: float
    """Mean binary cross-entropy over images and classes, in nats."""
    calibration: Calibration
    calibration_error: float
    """Of all (image, class) probabilities, against whether the image shows the class."""
    classes: dict[str, ClassScores]

    @property
    def measures(self) -> list[Measure]:
        """The numbers over all images; the first is the one to compare."""
        return [
            Measure("mAP", self.mean_average_precision),
            Measure("micro F1", self.micro_f1),
            Measure("macro F1", self.macro_f1),
            Measure("AUROC", self.auroc),
            Measure("all labels right", self.subset_accuracy, self.subset_interval),
            Measure("loss", self.loss, text=nats),
            Measure("calibration error", self.calibration_error),
        ]

    @property
    def calibrated(self) -> str:
        """What the temperature changed, in words; empty without one."""
        return self.calibration.words(self.loss, self.calibration_error)

    @property
    def class_table(self) -> Table:
        """One row per class."""
        names = ("threshold", "recall", "precision", "F1", "AUROC", "average precision")
        columns = ["class", Column("images", thousands), *(Column(name, percent) for name in names)]
        rows = [
            [name, one.images, one.threshold, one.recall, one.precision, one.f1, one.auroc, one.average_precision]
            for name, one in self.classes.items()
        ]
        return Table(columns, rows, f"{OF_A_CLASS} A class counts as named from its threshold on. {FITTED}")


def single_label_scores(
    logits: Float[Tensor, "n classes"], labels: Int[Tensor, " n"], names: tuple[str, ...], temperature: float = 1.0
) -> Scores:
    """Single-label scores of logits, whose probabilities are the softmax of them over the temperature.

    Raises:
        UserError: logits that are not finite.
    """
    check_outputs(logits)
    total, right = len(labels), logits.argmax(1) == labels
    has_top5 = logits.shape[1] > 5
    top5 = top_k(logits, labels, 5) if has_top5 else None
    classes, counts = per_class(logits, labels), confusion(logits, labels)
    decisions = Decisions.of(counts.diagonal(), counts.sum(1), counts.sum(0))
    scaled = logits.double() / temperature
    probabilities = scaled.softmax(1)
    ranked = rankings(probabilities, F.one_hot(labels, logits.shape[1]).bool())
    bins = reliability(probabilities.amax(1), right)
    rows = zip(names, classes, decisions.precision.tolist(), decisions.f1.tolist(), ranked, strict=True)
    return Scores(
        images=total,
        top1=top_k(logits, labels, 1),
        top1_interval=wilson(int(right.sum()), total),
        top5=top5,
        top5_interval=None if top5 is None else wilson(round(top5 * total), total),
        balanced=balanced_accuracy(classes),
        macro_f1=decisions.f1.nanmean().item(),
        auroc=nan_mean([one.auroc for one in ranked]),
        average_precision=nan_mean([one.average_precision for one in ranked]),
        loss=loss_of(scaled, labels),
        calibration=Calibration(
            temperature,
            loss_of(logits.double(), labels),
            calibration_error(reliability(logits.double().softmax(1).amax(1), right)),
        ),
        calibration_error=calibration_error(bins),
        bins=bins,
        classes={name: ClassShare(*share, precision, f1, *ranking) for name, share, precision, f1, ranking in rows},
        confusion=counts.tolist(),
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
    logits: Float[Tensor, "n classes"],
    targets: Bool[Tensor, "n classes"],
    names: tuple[str, ...],
    temperature: float = 1.0,
    thresholds: Sequence[float] | None = None,
) -> MultilabelScores:
    """Multi-label scores of logits: over the temperature, a sigmoid per class, which is predicted from its threshold on (0.5).

    Raises:
        UserError: logits that are not finite.
    """
    check_outputs(logits)
    scaled = logits / temperature
    decided = thresholds or [0.5] * len(names)
    named = as_decided(scaled.sigmoid(), decided)
    hits, shown, said = (table.sum(0) for table in (named & targets, targets, named))
    decisions, ranked = Decisions.of(hits, shown, said), rankings(logits, targets)
    right = (named == targets).all(1)
    precisions = [one.average_precision for one in ranked]
    aurocs = [one.auroc for one in ranked]
    columns = (precisions, *(one.tolist() for one in (decisions.f1, decisions.precision, decisions.recall)), aurocs)
    rows = zip(shown.tolist(), *columns, decided, strict=True)

    def error(one: Tensor) -> float:
        return calibration_error(reliability(one.sigmoid().flatten(), targets.flatten()))

    return MultilabelScores(
        images=len(targets),
        mean_average_precision=nan_mean(precisions),
        micro_f1=Decisions.of(hits.sum(), shown.sum(), said.sum()).f1.item(),
        macro_f1=decisions.f1.nanmean().item(),
        auroc=nan_mean(aurocs),
        subset_accuracy=right.double().mean().item(),
        subset_interval=wilson(int(right.sum()), len(targets)),
        loss=loss_of(scaled, targets),
        calibration=Calibration(temperature, loss_of(logits, targets), error(logits)),
        calibration_error=error(scaled),
        classes={name: ClassScores(*row) for name, row in zip(names, rows, strict=True)},
    )
