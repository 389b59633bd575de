"""Calibration of a classifier: of all predictions with a confidence of 80%, 80% should be right."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

NUM_BINS = 15
"""As in Guo et al., "On calibration of modern neural networks" (arXiv 1706.04599)."""


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
