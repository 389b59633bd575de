"""The parts of a BEiT Transformer block: attention with position bias, MLP, LayerScale, stochastic depth."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from beitkit.configs.model import Pair
from beitkit.nn.position import gather_bias, relative_position_index, table_rows

NORM_EPS = 1e-6  # official code, not PyTorch's 1e-5; it is not stored in checkpoints


class DropPath(nn.Module):
    """Stochastic depth: in training, drops a sample's whole branch with probability `rate` and rescales the rest."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        """The branch, kept or zeroed per sample; the expectation stays the same."""
        if not self.training or self.rate == 0:
            return x
        keep = 1 - self.rate
        kept = torch.rand(len(x), 1, 1, device=x.device).add_(keep).floor_()
        return x * (kept / keep).to(x.dtype)


class Attention(nn.Module):
    """Multi-head self-attention with query and value biases, no key bias, and an additive position bias.

    A key bias would add the same amount to all scores of a query and cancel in the softmax, so there is none.
    """

    relative_position_index: Tensor

    def __init__(self, width: int, heads: int, grid: Pair | None) -> None:
        """`grid` is the patch grid of a per-block position table, or None for no table of its own."""
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)
        if grid is None:
            self.relative_position_bias_table = None
        else:
            self.relative_position_bias_table = nn.Parameter(torch.zeros(table_rows(grid), heads))
            self.register_buffer("relative_position_index", relative_position_index(grid), persistent=False)

    def forward(self, x: Float[Tensor, "b t d"], shared_bias: Float[Tensor, "1 k t t"] | None) -> Float[Tensor, "b t d"]:
        """Attend over all tokens; the block's own bias and the shared one are both added to the scaled scores."""
        qkv_bias = torch.cat((self.q_bias, torch.zeros_like(self.v_bias), self.v_bias))
        qkv = F.linear(x, self.qkv.weight, qkv_bias)
        query, key, value = qkv.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each (b, k, t, d / k)
        bias = shared_bias
        if self.relative_position_bias_table is not None:
            own = gather_bias(self.relative_position_bias_table, self.relative_position_index)
            bias = own if bias is None else bias + own
        if bias is not None:
            bias = bias.to(query.dtype)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        return self.proj(mixed.transpose(1, 2).flatten(2))  # (b, t, d)


class Mlp(nn.Module):
    """Two linear layers with the exact (erf) GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        """The transformed tokens."""
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm Transformer block: x + scale * attention(norm(x)), then x + scale * mlp(norm(x))."""

    def __init__(
        self, *, width: int, heads: int, hidden: int, layer_scale: float | None, drop_path: float, grid: Pair | None
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = Attention(width, heads, grid)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = Mlp(width, hidden)
        self.drop_path = DropPath(drop_path)
        if layer_scale is None:
            self.gamma_1 = self.gamma_2 = None
        else:
            self.gamma_1 = nn.Parameter(torch.full((width,), layer_scale))
            self.gamma_2 = nn.Parameter(torch.full((width,), layer_scale))

    def forward(self, x: Float[Tensor, "b t d"], shared_bias: Float[Tensor, "1 k t t"] | None) -> Float[Tensor, "b t d"]:
        """The tokens after both residual branches."""
        branch = self.attn(self.norm1(x), shared_bias)
        x = x + self.drop_path(branch if self.gamma_1 is None else self.gamma_1 * branch)
        branch = self.mlp(self.norm2(x))
        return x + self.drop_path(branch if self.gamma_2 is None else self.gamma_2 * branch)
