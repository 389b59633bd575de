"""BEiT v2's patch aggregation: a second prediction through the class token.

The branch gets the patches of an early block and the class token of the last one. To predict well, the class token has to
carry what the late blocks know about the whole image, which makes it a good summary. The branch is used in pre-training only
(arXiv 2208.06366, section 2.3.1).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from beitkit.configs.model import MaskedImageModelConfig
from beitkit.nn.backbone import INIT_STD, truncated_normal_
from beitkit.nn.blocks import Block


class ClsBranch(nn.Module):
    """A few blocks over the late class token and the early patches; parameter names are the official ones.

    Initialization (method 2.3): linear layers of the blocks keep PyTorch's default, with attention `proj` and `fc2` of block j
    divided by sqrt(2 (early_layer + j + 1)); a head of its own starts like the main one.
    """

    def __init__(self, config: MaskedImageModelConfig) -> None:
        super().__init__()
        assert config.cls_branch is not None
        backbone, branch = config.backbone, config.cls_branch
        # Stochastic depth continues the backbone's line from block early_layer on.
        last_step = max(1, max(backbone.depth, branch.early_layer + branch.head_layers) - 1)
        blocks = [
            Block(
                width=backbone.width,
                heads=backbone.heads,
                hidden=backbone.hidden,
                layer_scale=backbone.layer_scale,
                drop_path=backbone.drop_path * (branch.early_layer + index) / last_step,
                grid=None,
                key_bias=backbone.key_bias,
                sub_norm=backbone.sub_norm,
                norm_eps=backbone.norm_eps,
            )
            for index in range(branch.head_layers)
        ]
        with torch.no_grad():
            for index, block in enumerate(blocks):
                shrink = math.sqrt(2 * (branch.early_layer + index + 1))
                block.attn.proj.weight.div_(shrink)
                block.mlp.fc2.weight.div_(shrink)
        self.cls_pt_layers = nn.ModuleList(blocks)
        if branch.shared_head:
            self.cls_pt_norm = self.cls_pt_lm_head = None
        else:
            self.cls_pt_norm = nn.LayerNorm(backbone.width, eps=backbone.norm_eps)
            self.cls_pt_lm_head = nn.Linear(backbone.width, config.outputs)
            truncated_normal_(self.cls_pt_lm_head.weight, INIT_STD)
            nn.init.zeros_(self.cls_pt_lm_head.bias)

    def forward(
        self, late: Float[Tensor, "b t d"], early: Float[Tensor, "b t d"], shared_bias: Float[Tensor, "1 k t t"] | None
    ) -> Float[Tensor, "b t d"]:
        """Tokens after the branch's blocks, before any norm; only their patches are predicted from."""
        x = torch.cat((late[:, :1], early[:, 1:]), dim=1)
        for block in self.cls_pt_layers:
            x = block(x, shared_bias)
        return x
