"""What a tokenizer can take: images that divide into its cells, ids of its codes."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

from beitkit.contracts import Tokenizer
from beitkit.errors import UserError


def check_images(tokenizer: Tokenizer, images: Float[Tensor, "b c h w"]) -> None:
    """Raise a `UserError` for images of other channels, or that are not a whole number of cells high and wide."""
    _, channels, height, width = images.shape
    stride = tokenizer.stride
    if channels != tokenizer.channels:
        raise UserError(
            f"the images have {channels} channels, the tokenizer was made for {tokenizer.channels}; choose another `tokenizer`"
        )
    if height % stride or width % stride or min(height, width) < stride:
        nearest = [max(1, round(side / stride)) * stride for side in (height, width)]
        raise UserError(
            f"images of {height}x{width} pixels do not divide into the tokenizer's cells of {stride}x{stride}; "
            f"the nearest `image_size` that does: {nearest[0]}x{nearest[1]}"
        )


def check_ids(tokenizer: Tokenizer, ids: Int[Tensor, "b gh gw"]) -> None:
    """Raise a `UserError` for ids that are not those of a code."""
    if ids.numel() and not (int(ids.min()) >= 0 and int(ids.max()) < tokenizer.vocabulary):
        raise UserError(
            f"token ids reach from {int(ids.min())} to {int(ids.max())}, the tokenizer has codes 0 to {tokenizer.vocabulary - 1}"
        )
