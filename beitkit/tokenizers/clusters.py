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
START_ROUNDS = 32
"""The first centers are drawn in this many rounds at most."""
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
    empty: int
    """Centers without a point, which are drawn again."""


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
    """Lloyd's algorithm: the centers, and for every point the index of its nearest one.

    A center without a point is drawn again, as the first ones are (`first_centers`).
    """
    norms = points.square().sum(1)
    centers = first_centers(points, num_centers, generator)
    before: Tensor | None = None
    for number in range(1, iterations + 1):
        scores, ids = best_scores(points, *center_scores(centers))
        distances = norms - 2 * scores
        counts, sums = gather_by_code(points, ids, num_centers)
        empty = (counts == 0).nonzero().flatten()
        moved = 1.0 if before is None else (ids != before).float().mean().item()
        watch(KMeansRound(number, distances.mean().item(), moved, len(empty)))
        if not moved:
            break
        before, centers = ids, sums / counts.clamp(min=1)[:, None]
        centers[empty] = points[_drawn(distances, len(empty), generator)]
    return centers, best_scores(points, *center_scores(centers))[1]


def first_centers(points: Float[Tensor, "n d"], num_centers: int, generator: torch.Generator) -> Float[Tensor, "v d"]:
    """Points drawn in rounds, each with a probability proportional to its squared distance to the nearest one drawn before.

    With one point a round this is k-means++ (Arthur and Vassilvitskii 2007); several a round, as in k-means|| (Bahmani et al.
    2012), cost one pass over the points for all of them.
    """
    norms = points.square().sum(1)
    chosen = torch.randint(len(points), (1,), generator=generator).to(points.device)
    distances = norms.new_full((len(points),), torch.inf)
    latest = chosen
    while len(chosen) < num_centers:
        scores, _ = best_scores(points, *center_scores(points[latest]))
        distances = torch.minimum(distances, norms - 2 * scores)
        distances[latest] = 0
        latest = _drawn(distances, min(-(-num_centers // START_ROUNDS), num_centers - len(chosen)), generator)
        chosen = torch.cat([chosen, latest])
    return points[chosen]


def center_scores(centers: Float[Tensor, "v d"]) -> tuple[Float[Tensor, "v d"], Float[Tensor, " v"]]:
    """Filters c and offsets -|c|^2 / 2: a point x then has its largest score, (|x|^2 - |x - c|^2) / 2, for the nearest center."""
    return centers, centers.square().sum(1) / -2


def best_scores(
    points: Float[Tensor, "n d"], filters: Float[Tensor, "v d"], offsets: Float[Tensor, " v"]
) -> tuple[Float[Tensor, " n"], Int[Tensor, " n"]]:
    """For every point the largest score and the filter that has it, of equal ones the first; in bounded memory."""
    parts = [torch.addmm(offsets, part, filters.T).max(1) for part in points.split(max(1, MAX_SCORES // len(filters)))]
    return torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts])


def _drawn(distances: Float[Tensor, " n"], count: int, generator: torch.Generator) -> Int[Tensor, " k"]:
    """Different points, each with a probability proportional to its squared distance."""
    if not count:
        return torch.empty(0, dtype=torch.int64, device=distances.device)
    # Where all points lie on centers any of them will do.
    weights = distances.cpu().clamp(min=torch.finfo(torch.float32).tiny)
    return torch.multinomial(weights, count, generator=generator).to(distances.device)
