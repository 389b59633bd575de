"""Relative position bias and its index table.

A bias table has (2 gh - 1)(2 gw - 1) + 3 rows and one column per head: one row for every offset between two patches, and
three for the class token (to a patch, from a patch, to itself). The index table says which row each pair of tokens uses.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from beitkit.configs.model import Pair


def table_rows(grid: Pair) -> int:
    """Rows of a bias table for a patch grid (gh, gw): 732 for 14x14."""
    return (2 * grid[0] - 1) * (2 * grid[1] - 1) + 3


@lru_cache(maxsize=16)
def relative_position_index(grid: Pair) -> Int[Tensor, "tokens tokens"]:
    """Row of the bias table for every (query, key) pair of tokens, the class token first; shape (n + 1, n + 1)."""
    height, width = grid
    # Device and mode are fixed because the cached tensor outlives a `torch.device("meta")` or inference block around the call.
    with torch.inference_mode(False):
        rows = torch.arange(height, device="cpu").repeat_interleave(width)
        columns = torch.arange(width, device="cpu").repeat(height)
        offset_down = rows[:, None] - rows[None, :] + height - 1
        offset_right = columns[:, None] - columns[None, :] + width - 1
        index = torch.empty(height * width + 1, height * width + 1, dtype=torch.int64, device="cpu")
    index[1:, 1:] = offset_down * (2 * width - 1) + offset_right
    last = table_rows(grid) - 1
    index[0, 1:] = last - 2  # query: class token, key: patch
    index[1:, 0] = last - 1  # query: patch, key: class token
    index[0, 0] = last
    return index


def gather_bias(table: Float[Tensor, "rows k"], index: Int[Tensor, "t t"]) -> Float[Tensor, "1 k t t"]:
    """The additive attention bias of every head, laid out for attention over (b, k, t, t) scores."""
    tokens = len(index)
    return table[index.flatten()].view(1, tokens, tokens, -1).permute(0, 3, 1, 2).contiguous()


class SharedPositionBias(nn.Module):
    """One relative position table for all blocks (pre-training form, method 1.2)."""

    relative_position_index: Tensor

    def __init__(self, grid: Pair, heads: int) -> None:
        super().__init__()
        self.relative_position_bias_table = nn.Parameter(torch.zeros(table_rows(grid), heads))
        self.register_buffer("relative_position_index", relative_position_index(grid), persistent=False)

    def forward(self) -> Float[Tensor, "1 k t t"]:
        """The bias for one forward pass; every block adds the same one."""
        return gather_bias(self.relative_position_bias_table, self.relative_position_index)
