"""BEiT Transformer block: attention with position bias, MLP, LayerScale, stochastic depth."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.utils.checkpoint import checkpoint

from beitkit.configs.model import NORM_EPS, Pair
from beitkit.contracts import ShardingUnit
from beitkit.nn.lora import linear
from beitkit.nn.position import gather_bias, relative_position_index, table_rows


def kept_branches(rate: float, batch: int, device: torch.device) -> Float[Tensor, "b 1 1"]:
    """Stochastic-depth factors: 0 with probability `rate`, which drops a sample's whole branch, else 1 / (1 - rate).

    This keeps the expectation unchanged.
    """
    keep = 1 - rate
    return torch.rand(batch, 1, 1, device=device).add_(keep).floor_() / keep


class Attention(nn.Module):
    """Multi-head self-attention with query and value biases, no key bias, and an additive position bias.

    A key bias would add the same amount to all scores of a query and cancel in the softmax, so there is none. Plain ViTs have one
    nevertheless, in one vector with the others: `key_bias` gives it a place, so that their files load and are saved as they are.
    """

    relative_position_index: Tensor

    def __init__(
        self, width: int, heads: int, grid: Pair | None, *, key_bias: bool = False, sub_norm_eps: float | None = None
    ) -> None:
        """`grid` is the patch grid of a per-block position table, or None for no table of its own.

        `sub_norm_eps` is that of a LayerNorm before `proj`, or None for no such norm.
        """
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=key_bias)
        self.q_bias = None if key_bias else nn.Parameter(torch.zeros(width))
        self.v_bias = None if key_bias else nn.Parameter(torch.zeros(width))
        self.norm = None if sub_norm_eps is None else nn.LayerNorm(width, eps=sub_norm_eps)
        self.proj = nn.Linear(width, width)
        if grid is None:
            self.relative_position_bias_table = None
        else:
            self.relative_position_bias_table = nn.Parameter(torch.zeros(table_rows(grid), heads))
            self.register_buffer("relative_position_index", relative_position_index(grid), persistent=False)

    def forward(self, x: Float[Tensor, "b t d"], shared_bias: Float[Tensor, "1 k t t"] | None) -> Float[Tensor, "b t d"]:
        """Attend over all tokens; the block's own bias and the shared one are both added to the scaled scores."""
        if self.q_bias is None or self.v_bias is None:
            qkv = self.qkv(x)
        else:
            qkv = linear(self.qkv, x, torch.cat((self.q_bias, torch.zeros_like(self.v_bias), self.v_bias)))
        bias = shared_bias
        if self.relative_position_bias_table is not None:
            own = gather_bias(self.relative_position_bias_table, self.relative_position_index)
            bias = own if bias is None else bias + own
        if bias is not None:
            # Here and not where the bias is made: gradients of all blocks are then added up in its own precision.
            bias = bias.to(qkv.dtype)
        mixed = _attended(qkv.unflatten(2, (3, self.heads, -1)), bias).flatten(2)  # (b, t, d)
        return self.proj(mixed if self.norm is None else self.norm(mixed))


def _attended(packed: Float[Tensor, "b t 3 k c"], bias: Float[Tensor, "#b k t t"] | None) -> Float[Tensor, "b t k c"]:
    """softmax(query key^T / sqrt(c) + bias) value of queries, keys and values, by the fastest available kernel."""
    has_gradient = bias is not None and bias.requires_grad
    if packed.device.type == "cpu" and (packed.dtype == torch.bfloat16 or has_gradient):
        # PyTorch's fused kernel for CPUs has no gradient for the bias, and what it falls back to is slower than this; in bfloat16
        # the kernel itself is (docs/performance.md).
        mixed = _PlainAttention.apply(packed, bias)
        assert isinstance(mixed, Tensor)
        return mixed
    # Taken apart along the third axis, and not moved to the front before: their gradients are then put together where the
    # gradient of `packed` needs them, without a copy.
    query, key, value = (part.transpose(1, 2) for part in packed.unbind(2))  # (b, k, t, c)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias).transpose(1, 2)


class _PlainAttention(torch.autograd.Function):
    """Attention as matrix products, with a gradient written down: each of queries, keys and values is copied once, into the
    layout of these products, and their scale is part of a product wherever it comes."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, packed: Float[Tensor, "b t 3 k c"], bias: Float[Tensor, "#b k t t"] | None
    ) -> Float[Tensor, "b t k c"]:
        batch, tokens, _, heads, channels = packed.shape
        parts = packed.permute(2, 0, 3, 1, 4).reshape(3, batch * heads, tokens, channels)
        query, key, value = parts.unbind()
        scores = _scaled_product(query, key.transpose(1, 2), channels).view(batch, heads, tokens, tokens)
        if bias is not None:
            scores += bias
        weights = scores.softmax(dim=-1).to(packed.dtype).flatten(0, 1)
        ctx.save_for_backward(parts, weights)
        ctx.bias_shape = None if bias is None else bias.shape  # type: ignore[attr-defined]
        return (weights @ value).view(batch, heads, tokens, channels).transpose(1, 2)

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] - one gradient, as there is one output
        ctx: Any, gradient: Float[Tensor, "b t k c"]
    ) -> tuple[Tensor, Tensor | None]:
        parts, weights = ctx.saved_tensors
        query, key, value = parts.unbind()
        batch, _, heads, channels = gradient.shape
        gradient = gradient.transpose(1, 2).flatten(0, 1)
        of_value = weights.transpose(1, 2) @ gradient
        of_scores = torch.ops.aten._softmax_backward_data(gradient @ value.transpose(1, 2), weights, -1, weights.dtype)
        of_query = _scaled_product(of_scores, key, channels)
        of_key = _scaled_product(of_scores.transpose(1, 2), query, channels)
        packed = torch.stack([part.unflatten(0, (batch, heads)).transpose(1, 2) for part in (of_query, of_key, of_value)], dim=2)
        if not ctx.needs_input_grad[1]:
            return packed, None
        return packed, of_scores.unflatten(0, (batch, heads)).sum_to_size(ctx.bias_shape)


def _scaled_product(first: Float[Tensor, "n i j"], second: Float[Tensor, "n j l"], channels: int) -> Float[Tensor, "n i l"]:
    """first second / sqrt(channels)."""
    return torch.baddbmm(first.new_empty(1, 1, 1), first, second, beta=0, alpha=channels**-0.5)


class Mlp(nn.Module):
    """Two linear layers with the exact (erf) GELU between them, and a LayerNorm after it unless `sub_norm_eps` is None."""

    def __init__(self, width: int, hidden: int, *, sub_norm_eps: float | None = None) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.norm = None if sub_norm_eps is None else nn.LayerNorm(hidden, eps=sub_norm_eps)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        """The transformed tokens."""
        x = F.gelu(self.fc1(x))
        return self.fc2(x if self.norm is None else self.norm(x))


class Block(ShardingUnit):
    """Pre-norm Transformer block: x + scale * attention(norm(x)), then x + scale * mlp(norm(x))."""

    recompute = False
    """Activation checkpointing: keep only the input of the block and recompute the rest in the backward pass."""
    takes_factors = False
    """Whether it is given stochastic-depth factors though it drops nothing."""
    compiled: Callable[..., Tensor] | None = None
    """`branches` as `torch.compile` made it, for training; see `compile_training`."""

    def __init__(
        self,
        *,
        width: int,
        heads: int,
        hidden: int,
        layer_scale: float | None,
        drop_path: float,
        grid: Pair | None,
        key_bias: bool = False,
        sub_norm: bool = False,
        norm_eps: float = NORM_EPS,
    ) -> None:
        super().__init__()
        sub_norm_eps = norm_eps if sub_norm else None
        self.norm1 = nn.LayerNorm(width, eps=norm_eps)
        self.attn = Attention(width, heads, grid, key_bias=key_bias, sub_norm_eps=sub_norm_eps)
        self.norm2 = nn.LayerNorm(width, eps=norm_eps)
        self.mlp = Mlp(width, hidden, sub_norm_eps=sub_norm_eps)
        self.drop_path = drop_path
        if layer_scale is None:
            self.gamma_1 = self.gamma_2 = None
        else:
            self.gamma_1 = nn.Parameter(torch.full((width,), layer_scale))
            self.gamma_2 = nn.Parameter(torch.full((width,), layer_scale))

    def forward(self, x: Float[Tensor, "b t d"], shared_bias: Float[Tensor, "1 k t t"] | None) -> Float[Tensor, "b t d"]:
        """The tokens after both residual branches; in training each is dropped with probability `drop_path`."""
        if not self.training:
            return self.branches(x, shared_bias, None, None)
        kept = [None, None]
        if self.drop_path:
            # Drawn outside the compiled and recomputed part, so that recomputation sees the same draws.
            kept = [kept_branches(self.drop_path, len(x), x.device).to(x.dtype) for _ in range(2)]
        elif self.takes_factors:
            kept = [x.new_ones(len(x), 1, 1) for _ in range(2)]  # not one twice, for which there would be another graph
        branches = self.branches if self.compiled is None else partial(self.compiled, self)
        if self.recompute:
            return checkpoint(branches, x, shared_bias, *kept, use_reentrant=False, preserve_rng_state=False)
        return branches(x, shared_bias, *kept)

    def compile_training(self, *, takes_factors: bool) -> None:
        """Compile the training forward, once for blocks of the same shape; evaluation stays eager, as its shapes vary.

        `takes_factors`: whether some of these blocks drop branches; one that drops none gets factors of 1, and shares the graph.
        """
        # Not bound to this block, so that a copy of it (of which weights are sharded) computes with its own weights.
        self.compiled = torch.compile(Block.branches, dynamic=False)
        self.takes_factors = takes_factors

    def branches(
        self,
        x: Float[Tensor, "b t d"],
        shared_bias: Float[Tensor, "1 k t t"] | None,
        attention_kept: Float[Tensor, "b 1 1"] | None,
        mlp_kept: Float[Tensor, "b 1 1"] | None,
    ) -> Float[Tensor, "b t d"]:
        """The tokens after both branches, each scaled by its stochastic-depth factors, if any."""
        x = _added(x, self.attn(self.norm1(x), shared_bias), self.gamma_1, attention_kept)
        return _added(x, self.mlp(self.norm2(x)), self.gamma_2, mlp_kept)


def set_recompute(network: nn.Module, recompute: bool) -> None:
    """Turn activation checkpointing on or off in every block."""
    for module in network.modules():
        if isinstance(module, Block):
            module.recompute = recompute


def _added(x: Tensor, branch: Tensor, gamma: Tensor | None, kept: Tensor | None) -> Tensor:
    """x + branch * gamma * kept; without `kept`, as in evaluation, to the bits of the official code."""
    if gamma is None and kept is None:
        return x + branch
    added = _Residual.apply(x, branch, gamma, kept)
    assert isinstance(added, Tensor)
    return added


class _Residual(torch.autograd.Function):
    """A residual branch with its factors.

    What `gamma` learns from, branch times gradient, is computed in the precision of the branch and summed in float32: as exact
    as the gradients of weights are, at half the bytes.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, branch: Tensor, gamma: Tensor | None, kept: Tensor | None) -> Tensor:
        ctx.save_for_backward(branch, gamma, kept)  # type: ignore[arg-type] - None is kept as well
        if kept is None:
            assert gamma is not None
            return x + gamma * branch
        # The two factors first, as they are small; then in one pass.
        return torch.addcmul(x, branch, _factor(gamma, kept))

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] - one gradient, as there is one output
        ctx: Any, gradient: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None, None]:
        branch, gamma, kept = ctx.saved_tensors
        of_branch = (gradient * _factor(gamma, kept)).to(branch.dtype)
        if not ctx.needs_input_grad[2]:
            return gradient, of_branch, None, None
        products = (gradient.to(branch.dtype) * branch).sum(1).to(gamma.dtype)  # (b, d); sums are made in float32 and rounded
        return gradient, of_branch, (products if kept is None else products * kept[:, 0]).sum(0), None


def _factor(gamma: Tensor | None, kept: Tensor | None) -> Tensor:
    """gamma * kept, of which one may be left out."""
    if gamma is None or kept is None:
        factor = kept if gamma is None else gamma
        assert factor is not None
        return factor
    return gamma * kept
