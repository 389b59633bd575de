"""Floating-point operations of the work that is timed: two for each multiplication with its addition in a matrix product.

Everything else (norms, softmax, GELU, the optimizer) counts as nothing, so a share of the matrix-product rate says how much of
the time matrix products at full rate would take.
"""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from beitkit.configs.model import BackboneConfig, DVAEConfig, Pair
from beitkit.tokenizers.geometries import build_parts


def forward_flops(backbone: BackboneConfig, outputs: int, predicted: int) -> int:
    """Of one picture through the network, with `outputs` numbers predicted at `predicted` positions."""
    patches = backbone.grid[0] * backbone.grid[1]
    tokens, width = patches + 1, backbone.width
    linear = 4 * width * width + 2 * width * backbone.hidden  # query, key, value, projection; both layers of the MLP
    block = 2 * tokens * linear + 2 * (2 * tokens * tokens * width)  # scores, and the weighted values
    return _embedding(backbone) + backbone.depth * block + 2 * predicted * width * outputs


def step_flops(backbone: BackboneConfig, outputs: int, predicted: int) -> int:
    """Of one picture in an optimizer step: forward, and twice that backward, without the gradient of the pixels."""
    return 3 * forward_flops(backbone, outputs, predicted) - _embedding(backbone)


def tokenizer_flops(config: DVAEConfig, size: Pair) -> int:
    """Of one picture of (height, width) pixels through the encoder of a discrete VAE; counted by PyTorch, nothing is computed."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        build_parts(config).encoder(torch.empty(1, config.channels, *size))
    return counter.get_total_flops()


def _embedding(backbone: BackboneConfig) -> int:
    patches = backbone.grid[0] * backbone.grid[1]
    return 2 * patches * backbone.channels * backbone.patch[0] * backbone.patch[1] * backbone.width
