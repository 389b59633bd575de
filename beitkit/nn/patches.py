"""Pictures cut into patches and put together again: what a network that predicts pixels has for targets."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from beitkit.configs.model import Pair


def to_patches(images: Float[Tensor, "b c h w"], patch: Pair) -> Float[Tensor, "b n p"]:
    """The pixels of every patch, patches in raster order; within one by channel, then row, then column (as in Conv2d)."""
    rows = images.unflatten(2, (-1, patch[0])).unflatten(4, (-1, patch[1]))  # (b, c, gh, patch height, gw, patch width)
    return rows.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def from_patches(patches: Float[Tensor, "b n p"], grid: Pair, patch: Pair) -> Float[Tensor, "b c h w"]:
    """The pictures that `to_patches` cut up."""
    cells = patches.unflatten(2, (-1, *patch)).unflatten(1, grid)  # (b, gh, gw, c, patch height, patch width)
    return cells.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)
