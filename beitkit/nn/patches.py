"""Images to patches and back, and selecting some patches of a batch."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor

from beitkit.configs.model import Pair

Positions = Bool[Tensor, "b n"] | Int64[Tensor, " m"]
"""Which patches of a batch: a bool mask, or ascending indices into the flattened batch. Indices avoid a device sync to learn
their number."""


def take_patches(values: Shaped[Tensor, "b n ..."], at: Positions) -> Shaped[Tensor, "m ..."]:
    """The values at these positions, in row-major order over batch, then position."""
    return values[at] if at.dtype == torch.bool else values.flatten(0, 1).index_select(0, at)


def to_patches(images: Float[Tensor, "b c h w"], patch: Pair) -> Float[Tensor, "b n p"]:
    """The pixels of every patch, patches in raster order; within one by channel, then row, then column (as in Conv2d)."""
    rows = images.unflatten(2, (-1, patch[0])).unflatten(4, (-1, patch[1]))  # (b, c, gh, patch height, gw, patch width)
    return rows.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def from_patches(patches: Float[Tensor, "b n p"], grid: Pair, patch: Pair) -> Float[Tensor, "b c h w"]:
    """The inverse of `to_patches`."""
    cells = patches.unflatten(2, (-1, *patch)).unflatten(1, grid)  # (b, gh, gw, c, patch height, patch width)
    return cells.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)
