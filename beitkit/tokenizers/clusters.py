"""Whitening and k-means of many points, on any device.

Draws come from the generator alone, so a seed gives the same centers again (on GPUs but for the order in which sums are added).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from beitkit.tokenizers.codebook import gather_by_code

MAX_SCORES = 2**22
"""Scores held at a time (16 MiB), so that choosing the best finds them in a cache."""
RARE_SHARE = 0.05
"""A center is rare when it is nearest to fewer points than this share of the average."""
REDRAWN_SHARE = 2 / 3
"""Share of the rounds in which rare centers are drawn again; in the rest they settle, and only empty ones are."""
WHITENED_AT_A_TIME = 2**13


class Whitening(NamedTuple):
    """The map x -> (x - mean) matrix, after which all axes vary alike (ZCA: the matrix is symmetric)."""

    mean: Float[Tensor, " d"]
    matrix: Float[Tensor, "d d"]

    def apply_(self, points: Float[Tensor, "n d"]) -> None:
        """Whiten points in place."""
        for part in points.split(WHITENED_AT_A_TIME):
            part.copy_((part - self.mean) @ self.matrix)


class KMeansRound(NamedTuple):
    """What one round of k-means found, before it moved the centers."""

    number: int
    """From 1."""
    distance: float
    """Mean squared distance of a point to its center."""
    moved: float
    """Share of the points whose center is another one than in the round before."""
    redrawn: int
    """Centers that are drawn again, because they are rare or have no point at all."""


def whitening_of(points: Float[Tensor, "n d"], eps: float) -> Whitening:
    """ZCA whitening of these points: V (D + eps)^(-1/2) V', for their covariance V D V' (Coates, Lee and Ng 2011)."""
    mean = points.mean(0)
    covariance = torch.zeros(points.shape[1], points.shape[1], dtype=torch.float64)
    for part in points.split(WHITENED_AT_A_TIME):
        centered = part - mean
        covariance += (centered.T @ centered).cpu()
    values, axes = torch.linalg.eigh(covariance / len(points))
    matrix = (axes * (values.clamp(min=0) + eps).rsqrt()) @ axes.T
    return Whitening(mean, matrix.to(points))


def kmeans(
    points: Float[Tensor, "n d"],
    num_centers: int,
    iterations: int,
    generator: torch.Generator,
    watch: Callable[[KMeansRound], None] = lambda _: None,
) -> tuple[Float[Tensor, "v d"], Int[Tensor, " n"]]:
    """Lloyd's algorithm from points drawn at random: the centers, and for every point the index of its nearest one.

    Centers that are nearest to hardly any points are put onto other points. Starting at random and doing so left fewer centers
    unused and all nearer to held-out patches than k-means++, which puts many centers onto outliers (method 3.4).
    """
    norms = points.square().sum(1)
    centers = points[torch.randperm(len(points), generator=generator)[:num_centers].to(points.device)]
    before: Tensor | None = None
    for number in range(1, iterations + 1):
        scores, ids = best_scores(points, *center_scores(centers))
        counts, sums = gather_by_code(points, ids, num_centers)
        least = RARE_SHARE * len(points) / num_centers if number < REDRAWN_SHARE * iterations else 0
        rare = (counts < max(1, least)).nonzero().flatten()
        moved = 1.0 if before is None else (ids != before).float().mean().item()
        watch(KMeansRound(number, (norms - 2 * scores).mean().item(), moved, len(rare)))
        if not moved and not len(rare):
            break
        before, centers = ids, sums / counts.clamp(min=1)[:, None]
        centers[rare] = points[torch.randint(len(points), (len(rare),), generator=generator).to(points.device)]
    return centers, best_scores(points, *center_scores(centers))[1]


def center_scores(centers: Float[Tensor, "v d"]) -> tuple[Float[Tensor, "v d"], Float[Tensor, " v"]]:
    """Filters c and offsets -|c|^2 / 2: a point x then has its largest score, (|x|^2 - |x - c|^2) / 2, for the nearest center."""
    return centers, centers.square().sum(1) / -2


def best_scores(
    points: Float[Tensor, "n d"], filters: Float[Tensor, "v d"], offsets: Float[Tensor, " v"]
) -> tuple[Float[Tensor, " n"], Int[Tensor, " n"]]:
    """For every point the largest score and the filter that has it, of equal ones the first; in bounded memory."""
    parts = [torch.addmm(offsets, part, filters.T).max(1) for part in points.split(max(1, MAX_SCORES // len(filters)))]
    return torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts])
