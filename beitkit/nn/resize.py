"""Resize relative position tables and absolute positions to another patch grid, as the official code does.

A relative table has one row per offset between two patches. Stretching it like an image would blur the offsets that matter
most, the short ones, and costs much accuracy in segmentation. So the old offsets are laid out at distances that grow
geometrically outwards (1, 1 + q, 1 + q + q^2, ...) until they reach the edge of the new table: near the center nothing
changes, and what has to be stretched is far away. A cubic spline then gives the values at the whole-numbered new offsets
(method 1.4). Each axis has its own q, so rectangular grids work too.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from beitkit.configs.model import Pair
from beitkit.nn.position import table_rows

CLASS_ROWS = 3  # class token to patch, patch to class token, class token to itself: offsets without a distance
DEGREE = 3


def resize_relative_positions(table: Float[Tensor, "rows k"], old: Pair, new: Pair) -> Float[Tensor, "new_rows k"]:
    """A relative position table for the patch grid `new`, from one for `old`; both are (height, width).

    An axis whose length does not change is copied. A shorter axis keeps the near offsets and loses the far ones.
    """
    if len(table) != table_rows(old):
        raise ValueError(f"a grid of {old[0]}x{old[1]} has {table_rows(old)} offsets, the table has {len(table)} rows")
    sides = 2 * old[0] - 1, 2 * old[1] - 1
    down, across = (offset_resampling(*grids).to(table.device) for grids in zip(old, new, strict=True))
    offsets = table[:-CLASS_ROWS].double().unflatten(0, sides)  # (2 gh - 1, 2 gw - 1, k)
    resized = torch.einsum("ai,bj,ijk->abk", down, across, offsets).flatten(0, 1).to(table.dtype)
    return torch.cat((resized, table[-CLASS_ROWS:]))


def resize_absolute_positions(positions: Float[Tensor, "1 t d"], old: Pair, new: Pair) -> Float[Tensor, "1 new_t d"]:
    """Absolute positions, the class token's first, for the patch grid `new`: bicubic, corners not aligned, no antialiasing."""
    grid = positions[:, 1:].transpose(1, 2).unflatten(2, old)  # (1, d, gh, gw)
    resized = F.interpolate(grid, size=new, mode="bicubic", align_corners=False)
    return torch.cat((positions[:, :1], resized.flatten(2).transpose(1, 2)), dim=1)


def offset_resampling(old: int, new: int) -> Float[Tensor, "new_offsets old_offsets"]:
    """The linear map from values at the 2 `old` - 1 offsets along an axis to values at 2 `new` - 1 offsets, in float64."""
    if old == new:
        return torch.eye(2 * old - 1, dtype=torch.float64)
    ratio = progression_ratio(2 * old - 1, 2 * new - 1)
    steps = ratio ** torch.arange(old - 1, dtype=torch.float64)
    right = steps.cumsum(0)
    sources = torch.cat((-right.flip(0), torch.zeros(1, dtype=torch.float64), right))
    targets = torch.arange(-(new - 1), new, dtype=torch.float64)
    return spline_interpolation(sources, targets)


def progression_ratio(old_offsets: int, new_offsets: int) -> float:
    """q for which 1 + q + q^2 + ..., as many terms as there are old offsets on a side, reaches the new table's edge.

    By the official bisection, step for step, because its last digits enter the result: 1.01 <= q <= 1.5 to 1e-6, and the last
    tried value. For a smaller table it ends at the lower bound.
    """
    terms, edge = old_offsets // 2, new_offsets // 2
    low, high = 1.01, 1.5
    ratio = low
    while high - low > 1e-6:
        ratio = (low + high) / 2
        if (1 - ratio**terms) / (1 - ratio) > edge:
            high = ratio
        else:
            low = ratio
    return ratio


def spline_interpolation(sources: Float[Tensor, " n"], targets: Float[Tensor, " m"]) -> Float[Tensor, "m n"]:
    """The linear map from values at `sources` to those of the interpolating cubic spline at `targets`.

    The spline is the one of FITPACK with no smoothing ("not-a-knot": no knot at the second and the last but one point), and
    constant outside the sources. Fewer than four points get the polynomial through them.
    """
    degree = min(DEGREE, len(sources) - 1)
    inner = sources[2:-2] if degree == DEGREE else sources[:0]
    knots = torch.cat((sources[:1].expand(degree + 1), inner, sources[-1:].expand(degree + 1)))
    at_sources = _b_splines(sources, knots, degree)
    at_targets = _b_splines(targets.clamp(sources[0], sources[-1]), knots, degree)
    return torch.linalg.solve(at_sources, at_targets, left=False)


def _b_splines(x: Float[Tensor, " m"], knots: Float[Tensor, " t"], degree: int) -> Float[Tensor, "m n"]:
    """Values of all B-splines on `knots` at `x`, by the Cox-de Boor recursion; the last interval is closed on the right."""
    last = len(knots) - degree - 2
    interval = (torch.searchsorted(knots, x, right=True) - 1).clamp(degree, last)
    values = F.one_hot(interval, len(knots) - 1).to(x.dtype)  # degree 0
    x = x[:, None]
    for order in range(1, degree + 1):
        count = len(knots) - 1 - order
        rising, falling = knots[order : order + count] - knots[:count], knots[order + 1 :][:count] - knots[1 : 1 + count]
        # Knots that coincide span nothing: their share is 0, not 0 / 0.
        left = torch.where(rising > 0, (x - knots[:count]) / rising.where(rising > 0, torch.ones_like(rising)), 0)
        right = torch.where(
            falling > 0, (knots[order + 1 :][:count] - x) / falling.where(falling > 0, torch.ones_like(falling)), 0
        )
        values = left * values[:, :count] + right * values[:, 1 : count + 1]
    return values
