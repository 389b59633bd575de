"""Calibration of a classifier: of all predictions with a confidence of 80%, 80% should be right.

What is fitted on validation images is stored with a network: a temperature (Guo et al., arXiv 1706.04599, section 4.2), and where
images have several labels the probability from which each class is predicted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from beitkit.evaluation.classification import distinct_scores
from beitkit.evaluation.statistics import NORMAL_QUANTILE
from beitkit.nn.prediction import check_outputs

NUM_BINS = 15
"""As in Guo et al., "On calibration of modern neural networks" (arXiv 1706.04599)."""

MOST = 20.0
"""Temperatures are looked for between its inverse and this."""
HALVINGS = 48
"""Of the range of temperatures, on a logarithmic scale: to 1e-13."""
FEWEST = 5
"""Images of a class from which its threshold is chosen."""


class Temperature(NamedTuple):
    """What logits are divided by, and the reason."""

    value: float
    reason: str


class Bin(NamedTuple):
    """Images whose confidence, the probability of the predicted class, lies in (low, high]."""

    low: float
    high: float
    images: int
    certainty: float
    """Mean confidence; NaN without images."""
    accuracy: float
    """Accuracy; NaN without images."""


def reliability(certainty: Float[Tensor, " n"], right: Bool[Tensor, " n"], bins: int = NUM_BINS) -> list[Bin]:
    """Bins of equal width over (0, 1], each with mean confidence and accuracy."""
    place = (certainty.double() * bins).ceil().long().sub(1).clamp(0, bins - 1)
    counts = torch.bincount(place, minlength=bins)
    certainties = torch.bincount(place, weights=certainty.double(), minlength=bins) / counts  # 0 / 0 is NaN
    accuracies = torch.bincount(place, weights=right.double(), minlength=bins) / counts
    return [
        Bin(index / bins, (index + 1) / bins, *values)
        for index, values in enumerate(zip(counts.tolist(), certainties.tolist(), accuracies.tolist(), strict=True))
    ]


def calibration_error(bins: list[Bin]) -> float:
    """Expected calibration error: |accuracy - confidence| of each bin, averaged over the images (arXiv 1706.04599, eq. 3)."""
    total = sum(one.images for one in bins)
    return sum(one.images * abs(one.accuracy - one.certainty) for one in bins if one.images) / total


def loss_of(logits: Float[Tensor, "n classes"], labels: Int[Tensor, " n"] | Bool[Tensor, "n classes"]) -> float:
    """Mean cross-entropy in nats; of several labels (bool) the binary one, over images and classes."""
    if labels.dtype == torch.bool:
        return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype)).item()
    return F.cross_entropy(logits, labels).item()


def fitted_temperature(logits: Float[Tensor, "n classes"], labels: Int[Tensor, " n"] | Bool[Tensor, "n classes"]) -> Temperature:
    """The temperature with the smallest loss on these images (arXiv 1706.04599, section 4.2), if it can be told from chance.

    The loss is convex in the inverse temperature, so where its slope is 0 it is smallest. The temperature stays 1 where the slope
    is 0 nowhere between `1 / MOST` and `MOST` (all images are named right, or fewer than by chance), and where the likelihood
    ratio test finds no difference to 1 (95%).

    Raises:
        UserError: logits that are not finite.
    """
    check_outputs(logits)
    scores, images = logits.double(), len(logits)

    def slope(inverse: float) -> float:
        if labels.dtype == torch.bool:
            return (((scores * inverse).sigmoid() - labels.double()) * scores).sum().item()
        own = scores.gather(1, labels[:, None]).squeeze(1)
        return (((scores * inverse).softmax(1) * scores).sum(1) - own).sum().item()

    low, high = -math.log(MOST), math.log(MOST)
    if not slope(math.exp(low)) < 0 < slope(math.exp(high)):
        return Temperature(1.0, f"none between {1 / MOST:g} and {MOST:g} fits {images:,} validation images best")
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(math.exp(middle)) < 0 else (low, middle)
    value = math.exp(-(low + high) / 2)
    terms = labels.numel()  # that the loss is a mean of
    before, after = (loss_of(scores / one, labels) for one in (1.0, value))
    if 2 * terms * (before - after) < NORMAL_QUANTILE**2:
        return Temperature(1.0, f"on {images:,} validation images no other is significantly better")
    return Temperature(value, f"on {images:,} validation images, whose loss it brings from {before:.4f} to {after:.4f}")


def chosen_thresholds(
    probabilities: Float[Tensor, "n classes"], targets: Bool[Tensor, "n classes"], usual: float = 0.5
) -> tuple[float, ...]:
    """For each class the probability from which it is predicted that gives the largest F1 on these images.

    It lies halfway between two probabilities that occur. A class keeps the usual one where that is as good, and where it has
    fewer than `FEWEST` images.
    """
    return tuple(
        _chosen_threshold(column, hits, usual) if int(hits.sum()) >= FEWEST else usual
        for column, hits in zip(probabilities.double().T, targets.T, strict=True)
    )


def as_decided(probabilities: Float[Tensor, "n classes"], thresholds: Sequence[float]) -> Bool[Tensor, "n classes"]:
    """Which classes are predicted: those with at least their threshold."""
    return probabilities.double() >= torch.tensor(thresholds, dtype=torch.float64)


def _chosen_threshold(probabilities: Float[Tensor, " n"], hits: Bool[Tensor, " n"], usual: float) -> float:
    values, found, taken = distinct_scores(probabilities, hits)
    f1 = 2 * found / (taken + found[-1])
    best = int(f1.argmax())
    is_usual = int((values >= usual).sum()) - 1  # the last value that the usual threshold takes
    if is_usual >= 0 and f1[is_usual] == f1[best]:
        return usual
    below = values[best + 1].item() if best + 1 < len(values) else 0.0
    return (values[best].item() + below) / 2
