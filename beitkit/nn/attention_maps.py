"""Which tokens a token attends to, head by head: the probabilities that the fused kernels of `nn.blocks` never write down.

They are computed again, from a block's own weights and its input, so that looking at attention costs training nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from beitkit.errors import UserError
from beitkit.nn.backbone import Backbone
from beitkit.nn.blocks import Block
from beitkit.nn.lora import linear
from beitkit.nn.position import gather_bias


@torch.no_grad()
def attention_maps(
    backbone: Backbone,
    images: Float[Tensor, "b c h w"],
    blocks: Sequence[int],
    queries: Int[Tensor, " q"] | None = None,
    mask: Bool[Tensor, "b n"] | None = None,
) -> list[Float[Tensor, "b k q t"]]:
    """The attention of some tokens to all, in each head of the given blocks (arXiv 2106.08254, section 2.2 and figure 2).

    Args:
        backbone: in eval mode.
        images: normalized, of the configured size.
        blocks: 0-based and ascending; the result has an entry for each.
        queries: tokens whose attention is wanted, 0 the class token and 1 + i patch i in raster order; None takes all.
        mask: True where a patch is replaced by the mask token.

    Returns:
        float32; the last axis is over the class token, then the patches, and sums to 1.

    Raises:
        UserError: if a block is not there.
    """
    if list(blocks) != sorted(set(blocks) & set(range(backbone.depth))):
        raise UserError(f"blocks are numbered 0 to {backbone.depth - 1} and ascend, got {list(blocks)}")
    x, bias = backbone.embed(images, mask)
    maps, done = [], 0
    for index in blocks:
        x = backbone.run_blocks(x, bias, range(done, index))
        done = index
        maps.append(attention_probabilities(backbone.each_block()[index], x, bias, queries))
    return maps


def attention_probabilities(
    block: Block,
    x: Float[Tensor, "b t d"],
    shared_bias: Float[Tensor, "1 k t t"] | None,
    queries: Int[Tensor, " q"] | None = None,
) -> Float[Tensor, "b k q t"]:
    """softmax(query key^T / sqrt(d / k) + bias) of a block, given its input; see `attention_maps`."""
    attn = block.attn
    bias = attn.qkv.bias
    if attn.q_bias is not None and attn.v_bias is not None:
        bias = torch.cat((attn.q_bias, torch.zeros_like(attn.v_bias), attn.v_bias))
    qkv = linear(attn.qkv, block.norm1(x), bias)
    query, key, _ = qkv.unflatten(2, (3, attn.heads, -1)).permute(2, 0, 3, 1, 4).float()  # each (b, k, t, d / k)
    positions = shared_bias
    if attn.relative_position_bias_table is not None:
        own = gather_bias(attn.relative_position_bias_table, attn.relative_position_index)
        positions = own if positions is None else positions + own
    wanted = slice(None) if queries is None else queries
    scores = query[:, :, wanted] @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
    return (scores if positions is None else scores + positions[:, :, wanted].float()).softmax(dim=-1)
