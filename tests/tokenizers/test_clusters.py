"""Whitening and k-means, against numpy and planted clusters."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.cluster.vq import kmeans2

from beitkit.tokenizers import clusters
from beitkit.tokenizers.clusters import KMeansRound, best_scores, center_scores, kmeans, whitening_of


def drawn(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def planted(num: int = 12, each: int = 50, dim: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """Points around far centers, in random order, and which center each belongs to."""
    centers = 10 * torch.randn(num, dim, generator=drawn(1))
    order = torch.randperm(num * each, generator=drawn(2))
    labels = torch.arange(num).repeat_interleave(each)[order]
    return centers[labels] + 0.1 * torch.randn(num * each, dim, generator=drawn(3)), labels


def test_planted_clusters_are_found() -> None:
    points, labels = planted()
    centers, ids = kmeans(points, 60, 20, drawn())  # 60 for 12, so that a random start misses none
    for center in ids.unique():
        assert len(labels[ids == center].unique()) == 1
        assert torch.allclose(centers[center], points[ids == center].mean(0), atol=1e-4)


def test_a_round_is_lloyds(monkeypatch: pytest.MonkeyPatch) -> None:
    points = torch.randn(300, 4, generator=drawn())
    start = points[torch.randperm(300, generator=drawn(5))[:7]]
    monkeypatch.setattr(clusters, "MAX_SCORES", 7 * 64)  # in several parts
    centers, ids = kmeans(points, 7, 15, drawn(5))
    expected, labels = kmeans2(points.double().numpy(), start.double().numpy(), iter=15, minit="matrix")
    assert np.allclose(centers.numpy(), expected, atol=1e-5)
    distances = (points.numpy()[:, None] - centers.numpy()).__pow__(2).sum(-1)
    assert np.array_equal(ids.numpy(), distances.argmin(1))
    assert len(labels) == 300


def test_rounds_are_watched_and_the_same_seed_gives_the_same_centers() -> None:
    points = torch.randn(400, 3, generator=drawn())
    seen: list[KMeansRound] = []
    first, _ = kmeans(points, 9, 200, drawn(4), seen.append)
    assert [found.number for found in seen] == list(range(1, len(seen) + 1))
    assert len(seen) < 200
    assert seen[-1].moved == 0
    distances = [found.distance for found in seen]
    assert distances == sorted(distances, reverse=True)
    nearest = (points[:, None] - first).square().sum(-1).min(1).values
    assert distances[-1] == pytest.approx(nearest.mean().item(), rel=1e-5)
    assert torch.equal(first, kmeans(points, 9, 200, drawn(4))[0])
    assert not torch.equal(first, kmeans(points, 9, 200, drawn(5))[0])


def test_centers_without_points_are_drawn_again() -> None:
    points = torch.cat([torch.zeros(600, 3), torch.randn(400, 3, generator=drawn())])
    seen: list[KMeansRound] = []
    _, ids = kmeans(points, 30, 30, drawn(), seen.append)
    assert seen[0].redrawn > 10  # started on zeros, of which the first gets all points
    assert seen[-1].redrawn == 0
    assert len(ids.unique()) == 30


def test_centers_with_hardly_any_points_are_drawn_again() -> None:
    points = torch.cat([torch.randn(995, 3, generator=drawn()), torch.full((5, 3), 1e3) + torch.arange(5)[:, None] * 1e3])
    seen: list[KMeansRound] = []
    _, ids = kmeans(points, 5, 3, torch.Generator().manual_seed(outlier_seed(1000, 5)), seen.append)
    assert seen[0].redrawn >= 1
    assert len(ids.unique()) == 5


def outlier_seed(count: int, num: int) -> int:
    """A seed whose random start has one of the last five points."""
    return next(seed for seed in range(1000) if (torch.randperm(count, generator=drawn(seed))[:num] >= count - 5).any())


def test_points_that_are_all_alike_are_no_error() -> None:
    centers, ids = kmeans(torch.ones(20, 3), 4, 5, drawn())
    assert torch.equal(centers[ids], torch.ones(20, 3))


def test_whitening_is_zca() -> None:
    mixed = torch.randn(3000, 5, generator=drawn()) @ torch.randn(5, 5, generator=drawn(1)) + 3
    covariance = np.cov(mixed.double().numpy().T, bias=True)
    exact = whitening_of(mixed, 1e-9)
    white = mixed.clone()
    exact.apply_(white)
    assert np.allclose(np.cov(white.numpy().T, bias=True), np.eye(5), atol=1e-3)
    assert torch.allclose(white.mean(0), torch.zeros(5), atol=1e-4)
    values, axes = np.linalg.eigh(covariance)
    expected = axes @ np.diag(1 / np.sqrt(values + 0.1)) @ axes.T
    assert np.allclose(whitening_of(mixed, 0.1).matrix.numpy(), expected, atol=1e-4)


def test_of_equal_scores_the_first_counts() -> None:
    scores, ids = best_scores(torch.ones(3, 2), *center_scores(torch.tensor([[5.0, 5], [1, 1], [1, 1]])))
    assert ids.tolist() == [1, 1, 1]
    assert scores.tolist() == [1, 1, 1]
