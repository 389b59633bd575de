"""What a tokenizer can take: images that divide into its cells, ids of its codes."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

from beitkit.errors import UserError


def check_images(images: Float[Tensor, "b c h w"], channels: int, stride: int) -> None:
    """Raise a `UserError` for images of other channels, or that are not a whole number of cells high and wide."""
    _, found, height, width = images.shape
    if found != channels:
        raise UserError(f"the images have {found} channels, the tokenizer was made for {channels}; choose another `tokenizer`")
    if height % stride or width % stride or min(height, width) < stride:
        nearest = [max(1, round(side / stride)) * stride for side in (height, width)]
        raise UserError(
            f"images of {height}x{width} pixels do not divide into the tokenizer's cells of {stride}x{stride}; "
            f"the nearest `image_size` that does: {nearest[0]}x{nearest[1]}"
        )


def check_ids(ids: Int[Tensor, "b gh gw"], vocabulary: int) -> None:
    """Raise a `UserError` for ids that are not those of a code."""
    if ids.numel() and not (int(ids.min()) >= 0 and int(ids.max()) < vocabulary):
        raise UserError(
            f"token ids reach from {int(ids.min())} to {int(ids.max())}, the tokenizer has codes 0 to {vocabulary - 1}"
        )
