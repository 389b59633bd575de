"""Images reconstructed from predictions: predicted tokens decoded by the tokenizer, or predicted pixels."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from beitkit.contracts import Batch, Tokenizer, pixel_statistics
from beitkit.data.views.masking import predicted_patches
from beitkit.errors import UserError
from beitkit.nn.models import MaskedImageModel
from beitkit.nn.patches import from_patches, to_patches
from beitkit.report.images import masked_image

EXPLANATION = "Original, what the network sees, the tokenizer's reconstruction, and the reconstruction from the predicted tokens."

PIXEL_EXPLANATION = "Original, what the network sees, and the original with the predicted patches in place of their own."


@torch.no_grad()
def reconstruction_columns(
    model: MaskedImageModel, tokenizer: Tokenizer, batch: Batch, limit: int, *, recover_all: bool = False
) -> dict[str, Float[Tensor, "r c h w"]]:
    """Columns for a report, each in [0, 1]: original, masked, decoded from all true tokens, decoded with predicted ones.

    Predicted are the tokens of hidden patches or, with `recover_all`, of all. `batch` holds normalized `images`, `mask` and
    `tokens`; its first `limit` images are shown. A tokenizer that cannot decode to pixels (VQ-KD) leaves the last two columns
    out.
    """
    images, mask, tokens = (batch[key][:limit] for key in ("images", "mask", "tokens"))
    predicted = tokens.clone()
    at = predicted_patches(mask, recover_all)
    predicted[at] = model.predict(images, mask, at).argmax(-1)
    grid = model.config.backbone.grid
    columns = _given(model, images, mask)
    try:
        columns["tokenizer"] = tokenizer.decode(tokens.unflatten(1, grid)).cpu()
    except UserError:
        return columns
    return columns | {"from predicted tokens": tokenizer.decode(predicted.unflatten(1, grid)).cpu()}


@torch.no_grad()
def pixel_columns(
    model: MaskedImageModel, batch: Batch, limit: int, *, recover_all: bool = False
) -> dict[str, Float[Tensor, "r c h w"]]:
    """Columns for a report of a network that predicts pixels, each in [0, 1]: original, masked, filled in.

    `batch` holds normalized `images` and `mask`; its first `limit` images are shown.
    """
    images, mask = batch["images"][:limit], batch["mask"][:limit]
    backbone, at = model.config.backbone, predicted_patches(mask, recover_all)
    patches = to_patches(images, backbone.patch).clone()
    patches[at] = model.predict(images, mask, at).to(patches.dtype)
    filled = _unnormalized(model, from_patches(patches, backbone.grid, backbone.patch)).cpu()
    return _given(model, images, mask) | {"from predicted pixels": filled}


def _given(model: MaskedImageModel, images: Float[Tensor, "b c h w"], mask: Bool[Tensor, "b n"]) -> dict[str, Tensor]:
    """The input columns: original and masked image."""
    originals = _unnormalized(model, images).cpu()
    masked = [masked_image(*pair, model.config.backbone.grid) for pair in zip(originals, mask.cpu(), strict=True)]
    return {"original": originals, "masked": torch.stack(masked)}


def _unnormalized(model: MaskedImageModel, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    preprocessing = model.config.preprocessing
    mean, std = pixel_statistics(preprocessing.mean, preprocessing.std, images.shape[1], images)
    return (images * std + mean).clamp(0, 1)
