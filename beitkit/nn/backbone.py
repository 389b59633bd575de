"""BEiT vision Transformer: one class for v1 and v2, in pre-training and fine-tuning form.

Parameter names are the official ones (`blocks.0.attn.q_bias`, `rel_pos_bias.relative_position_bias_table`, ...), so that
official checkpoints need no renaming.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from beitkit.configs.model import BackboneConfig, Pair
from beitkit.errors import UserError
from beitkit.nn.blocks import Block
from beitkit.nn.position import SharedPositionBias

INIT_STD = 0.02


class Features(NamedTuple):
    """What a backbone returns: the class token (b, d), the patches (b, n, d) in raster order, and their grid (gh, gw)."""

    cls: Float[Tensor, "b d"]
    patches: Float[Tensor, "b n d"]
    grid: Pair


class PatchEmbedding(nn.Module):
    """Cuts images into patches and maps each linearly to a token (a convolution whose stride is its kernel)."""

    def __init__(self, channels: int, width: int, patch: Pair) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, stride=patch)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """One token per patch, raster order."""
        return self.proj(images).flatten(2).transpose(1, 2)  # (b, n, d)


class Backbone(nn.Module):
    """Images to patch features (arXiv 2106.08254, section 2.3 and the released code)."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        width, grid = config.width, config.grid
        self.patch_embed = PatchEmbedding(config.channels, width, config.patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width)) if config.mask_token else None
        tokens = grid[0] * grid[1] + 1
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, width)) if config.absolute_positions else None
        self.rel_pos_bias = SharedPositionBias(grid, config.heads) if config.relative_positions == "shared" else None
        self.blocks = nn.ModuleList(
            Block(
                width=width,
                heads=config.heads,
                hidden=config.hidden,
                layer_scale=config.layer_scale,
                drop_path=config.drop_path * index / max(1, config.depth - 1),
                grid=grid if config.relative_positions == "per_block" else None,
                key_bias=config.key_bias,
                sub_norm=config.sub_norm,
                norm_eps=config.norm_eps,
            )
            for index in range(config.depth)
        )
        self.norm = nn.LayerNorm(width, eps=config.norm_eps) if config.final_norm else None
        self.init_weights()

    def init_weights(self) -> None:
        """Draw all parameters (method 1.3; official code).

        | parameter | fine-tuning form | pre-training form |
        |---|---|---|
        | linear weights, class token, positions, mask token | normal 0.02, cut at +-2 | normal 0.02, cut at +-0.02 |
        | patch projection | PyTorch's convolution default | normal 0.02, cut at +-0.02, bias 0 |
        | biases, relative position tables | 0 | 0 |
        | LayerNorm | weight 1, bias 0 | same |
        | LayerScale | `layer_scale` | same |
        | attention `proj` and `fc2` of block i = 0, 1, ... | then divided by sqrt(2 (i + 1)) | same |
        """
        cut = INIT_STD if self.config.pretrain_init else 2.0
        for module in self.modules():
            if isinstance(module, nn.Linear):
                truncated_normal_(module.weight, cut)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for token in (self.cls_token, self.mask_token, self.pos_embed):
            if token is not None:
                truncated_normal_(token, cut)
        if self.config.pretrain_init:
            truncated_normal_(self.patch_embed.proj.weight, cut)
            assert self.patch_embed.proj.bias is not None
            nn.init.zeros_(self.patch_embed.proj.bias)
        with torch.no_grad():
            for index, block in enumerate(self.each_block()):
                block.attn.proj.weight.div_(math.sqrt(2 * (index + 1)))
                block.mlp.fc2.weight.div_(math.sqrt(2 * (index + 1)))

    @property
    def width(self) -> int:
        """Features per token."""
        return self.config.width

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return self.config.depth

    def forward(self, images: Float[Tensor, "b c h w"], mask: Bool[Tensor, "b n"] | None = None) -> Features:
        """Features after the last block, and after the final norm if there is one.

        Args:
            images: normalized, of the configured size.
            mask: True where a patch is replaced by the mask token.

        Raises:
            UserError: if the images have another size or number of channels, or the network has no mask token.
        """
        x, bias = self.embed(images, mask)
        return self.finish(self.run_blocks(x, bias, range(self.depth)))

    def intermediates(self, images: Float[Tensor, "b c h w"], layers: Sequence[int]) -> list[Features]:
        """Raw outputs of the given blocks (0-based, ascending), without the final norm."""
        wanted = sorted(set(layers))
        if not set(wanted) <= set(range(self.depth)):
            raise UserError(f"blocks are numbered 0 to {self.depth - 1}, got {wanted}")
        x, bias = self.embed(images, None)
        taken, done = [], 0
        for layer in wanted:
            x = self.run_blocks(x, bias, range(done, layer + 1))
            done = layer + 1
            taken.append(self.split(x))
        return taken

    def embed(
        self, images: Float[Tensor, "b c h w"], mask: Bool[Tensor, "b n"] | None
    ) -> tuple[Float[Tensor, "b t d"], Float[Tensor, "1 k t t"] | None]:
        """Tokens before the first block, class token first, and the position bias shared by all blocks."""
        if tuple(images.shape[1:]) != (self.config.channels, *self.config.image_size):
            channels, (height, width) = self.config.channels, self.config.image_size
            raise UserError(
                f"this network takes images of shape ({channels}, {height}, {width}), got {tuple(images.shape[1:])}; "
                "load it with image_size=(height, width) for another size"
            )
        x = self.patch_embed(images)
        if mask is not None:
            if self.mask_token is None:
                raise UserError("a mask was given to a network without a mask token; only pre-training networks have one")
            # Replaced before positions are added: a masked patch still knows where it is.
            x = torch.where(mask.unsqueeze(-1), self.mask_token, x)
        # The learned tokens keep their precision and lift the patches to it: under autocast the residual stream is float32 from
        # here on, as in the official code. shape[0] and not len(), which would fix the batch size of an exported program.
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1)
        if self.pos_embed is not None:
            x = x + self.pos_embed
        return x, None if self.rel_pos_bias is None else self.rel_pos_bias()

    def run_blocks(
        self, x: Float[Tensor, "b t d"], bias: Float[Tensor, "1 k t t"] | None, indices: range
    ) -> Float[Tensor, "b t d"]:
        """Tokens after the blocks of these indices, given the tokens before them and the bias from `embed`."""
        for index in indices:
            x = self.blocks[index](x, bias)
        return x

    def finish(self, x: Float[Tensor, "b t d"]) -> Features:
        """Features from the tokens after the last block."""
        return self.split(x if self.norm is None else self.norm(x))

    def split(self, x: Float[Tensor, "b t d"]) -> Features:
        """Split into class token and patches."""
        return Features(x[:, 0], x[:, 1:], self.config.grid)

    def each_block(self) -> list[Block]:
        """The blocks, typed."""
        return [block for block in self.blocks if isinstance(block, Block)]

    def layer_of(self, name: str) -> int:
        """Layer of a parameter for layer-wise learning rates: embeddings 0, block i is i + 1, all else depth + 1."""
        if name.startswith("blocks."):
            return int(name.split(".")[1]) + 1
        return 0 if name in ("cls_token", "mask_token", "pos_embed") or name.startswith("patch_embed.") else self.depth + 1

    def no_decay(self, name: str) -> bool:
        """Whether a parameter is exempt from weight decay by name (one-dimensional ones always are, method 4.1)."""
        return name in ("cls_token", "pos_embed")


def truncated_normal_(tensor: Tensor, cut: float) -> None:
    """Fill from a normal with mean 0 and std 0.02, truncated at +-`cut` (an absolute bound).

    By the inverse of the distribution function: one draw a number, where rejection, as in PyTorch, needs many at a cut of one
    standard deviation.
    """
    share = math.erf(cut / (INIT_STD * math.sqrt(2)))
    with torch.no_grad():
        if share == 1:  # so far out that nothing is cut, and the inverse of the ends would be infinite
            tensor.normal_(std=INIT_STD)
        else:
            tensor.uniform_(-share, share).erfinv_().mul_(INIT_STD * math.sqrt(2)).clamp_(-cut, cut)
