"""Resized positions against the official golden values, scipy's FITPACK, and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.interpolate import RectBivariateSpline
from torch.nn import functional as F

from beitkit.nn.position import table_rows
from beitkit.nn.resize import (
    offset_resampling,
    progression_ratio,
    resize_absolute_positions,
    resize_relative_positions,
    spline_interpolation,
)

Pair = tuple[int, int]


def random_table(grid: Pair, heads: int = 2) -> torch.Tensor:
    return torch.randn(table_rows(grid), heads, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def brute_force(table: torch.Tensor, old: Pair, new: Pair) -> torch.Tensor:
    """Method 1.4 in plain numpy and scipy, each axis with its own ratio; an axis that stays has offsets at distance 1."""

    def source_offsets(before: int, after: int) -> np.ndarray:
        if before == after:
            return np.arange(-(before - 1), before, dtype=float)
        left, right, q = 1.01, 1.5, 0.0
        while right - left > 1e-6:
            q = (left + right) / 2
            if sum(q**i for i in range(before - 1)) > after - 1:
                right = q
            else:
                left = q
        positive, place = [], 0.0
        for i in range(before - 1):
            place += q**i
            positive.append(place)
        return np.array([-p for p in reversed(positive)] + [0.0] + positive)

    sources = [source_offsets(*sides) for sides in zip(old, new, strict=True)]
    targets = [np.arange(-(side - 1), side, dtype=float) for side in new]
    columns = []
    for head in range(table.shape[1]):
        values = table[:-3, head].numpy().reshape(len(sources[0]), len(sources[1]))
        spline = RectBivariateSpline(sources[0], sources[1], values, kx=3, ky=3, s=0)
        columns.append(spline(targets[0], targets[1]).reshape(-1))
    return torch.cat((torch.from_numpy(np.stack(columns, axis=1)), table[-3:]))


@pytest.mark.parametrize(
    ("old", "new", "ratio"),
    [
        (27, 29, 1.012253323),
        (27, 47, 1.090307446),
        (27, 59, 1.125055904),
        (27, 63, 1.134917812),
        (27, 79, 1.168503628),
        (47, 63, 1.026143360),
        (63, 27, 1.010000935),
    ],
)
def test_official_ratios(old: int, new: int, ratio: float) -> None:
    assert progression_ratio(old, new) == pytest.approx(ratio, abs=1e-9)


def test_official_golden_values() -> None:
    image = (torch.arange(27 * 27) % 7).float()
    rows = torch.cat((image, torch.tensor([10.0, 20.0, 30.0])))[:, None]
    resized = resize_relative_positions(rows, (14, 14), (24, 24))
    assert resized.dtype == torch.float32
    assert resized[-3:, 0].tolist() == [10, 20, 30]
    values = resized[:-3, 0].double().view(47, 47)
    assert float(values.sum()) == pytest.approx(6591.726489889919, rel=1e-6)
    np.testing.assert_allclose(values[0, :5], [0, 0.334126099, 0.692352659, 1.06763521, 1.45295036], atol=1e-6)
    np.testing.assert_allclose(values[23, 20:27], [4.10132822, 5.20995023, 6.0, 0, 1.0, 1.95595128, 2.73239521], atol=1e-6)
    assert float(values[-1, -1]) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ((14, 14), (24, 24)),
        ((14, 14), (40, 40)),
        ((24, 24), (14, 14)),
        ((14, 14), (24, 40)),
        ((14, 10), (24, 7)),
        ((5, 9), (5, 14)),
        ((3, 4), (6, 11)),
    ],
)
def test_agrees_with_scipy(old: Pair, new: Pair) -> None:
    table = random_table(old)
    torch.testing.assert_close(resize_relative_positions(table, old, new), brute_force(table, old, new), rtol=0, atol=1e-10)


def test_the_same_grid_changes_nothing() -> None:
    table = random_table((6, 9)).float()
    assert torch.equal(resize_relative_positions(table, (6, 9), (6, 9)), table)


def test_axes_are_not_mixed_up() -> None:
    table = random_table((4, 7))
    flipped = torch.cat((table[:-3].unflatten(0, (7, 13)).transpose(0, 1).flatten(0, 1), table[-3:]))
    tall, wide = resize_relative_positions(table, (4, 7), (6, 11)), resize_relative_positions(flipped, (7, 4), (11, 6))
    torch.testing.assert_close(tall[:-3].unflatten(0, (11, 21)), wide[:-3].unflatten(0, (21, 11)).transpose(0, 1))


def test_near_offsets_hardly_change() -> None:
    """The progression starts with distance 1: the nearest offsets stay where they are, for any source."""
    rows = offset_resampling(14, 24)
    expected = torch.zeros(3, 27, dtype=torch.float64)
    expected[torch.arange(3), torch.arange(12, 15)] = 1
    torch.testing.assert_close(rows[22:25], expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("count", [1, 3, 4, 5, 9])
def test_splines_reproduce_cubics(count: int) -> None:
    """Through n points the spline is exact for polynomials of degree min(3, n - 1), and constant beyond the ends."""
    sources = torch.linspace(-2, 3, count, dtype=torch.float64) ** 3 if count > 1 else torch.zeros(1, dtype=torch.float64)
    targets = torch.linspace(float(sources[0]), float(sources[-1]), 17, dtype=torch.float64)
    matrix = spline_interpolation(sources, targets)
    for degree in range(min(3, count - 1) + 1):
        torch.testing.assert_close(matrix @ sources**degree, targets**degree, rtol=1e-7, atol=1e-7)
    beyond = spline_interpolation(sources, torch.tensor([-100.0, 100.0], dtype=torch.float64)) @ sources
    torch.testing.assert_close(beyond, torch.stack((sources[0], sources[-1])))


def test_one_patch_becomes_many() -> None:
    """A 1x1 grid has one offset; resized, it is that value everywhere."""
    resized = resize_relative_positions(torch.tensor([[5.0], [1.0], [2.0], [3.0]]), (1, 1), (2, 3))
    assert resized[:, 0].tolist() == [5.0] * 15 + [1.0, 2.0, 3.0]


def test_a_table_of_another_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="10x14 has 516 offsets"):
        resize_relative_positions(random_table((14, 14)), (10, 14), (24, 24))


def cubic(x: float) -> float:
    """Keys' kernel with a = -0.75, as PyTorch's bicubic."""
    x, a = abs(x), -0.75
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


@pytest.mark.parametrize(("old", "new"), [((4, 4), (6, 6)), ((3, 5), (7, 4)), ((6, 6), (4, 3))])
def test_absolute_positions_by_hand(old: Pair, new: Pair) -> None:
    positions = torch.randn(1, old[0] * old[1] + 1, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    grid = positions[0, 1:].view(*old, 2)
    expected = torch.zeros(*new, 2, dtype=torch.float64)
    for y in range(new[0]):
        for x in range(new[1]):
            center = (y + 0.5) * old[0] / new[0] - 0.5, (x + 0.5) * old[1] / new[1] - 0.5
            for i in range(int(np.floor(center[0])) - 1, int(np.floor(center[0])) + 3):
                for j in range(int(np.floor(center[1])) - 1, int(np.floor(center[1])) + 3):
                    weight = cubic(center[0] - i) * cubic(center[1] - j)
                    expected[y, x] += weight * grid[min(max(i, 0), old[0] - 1), min(max(j, 0), old[1] - 1)]
    resized = resize_absolute_positions(positions, old, new)
    assert torch.equal(resized[:, 0], positions[:, 0])
    torch.testing.assert_close(resized[0, 1:], expected.flatten(0, 1))


def test_absolute_positions_of_a_square_as_officially() -> None:
    positions = torch.randn(1, 197, 8, generator=torch.Generator().manual_seed(0))
    square = positions[:, 1:].reshape(1, 14, 14, 8).permute(0, 3, 1, 2)
    expected = F.interpolate(square, size=(24, 24), mode="bicubic", align_corners=False).permute(0, 2, 3, 1).flatten(1, 2)
    assert torch.equal(resize_absolute_positions(positions, (14, 14), (24, 24))[:, 1:], expected)
