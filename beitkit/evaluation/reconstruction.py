"""Images reconstructed from predictions: predicted tokens decoded by the tokenizer, or predicted pixels."""

from __future__ import annotations

import contextlib

import torch
from jaxtyping import Float
from torch import Tensor

from beitkit.contracts import Batch, Tokenizer, pixel_statistics
from beitkit.data.views.masking import predicted_patches
from beitkit.errors import UserError
from beitkit.nn.models import MaskedImageModel
from beitkit.nn.patches import from_patches, to_patches
from beitkit.report.images import masked_image


@torch.no_grad()
def filled_in(
    model: MaskedImageModel, tokenizer: Tokenizer | None, batch: Batch, limit: int, *, recover_all: bool
) -> tuple[dict[str, Float[Tensor, "r c h w"]], str]:
    """Columns for a report, each in [0, 1], and a sentence on what they are: original, masked, and what the network predicts.

    A tokenizer's columns are the images decoded from all true tokens, and with the predicted ones in their place; one that
    cannot decode to pixels (VQ-KD) has none. Predicted are hidden patches or, with `recover_all`, all.

    Args:
        model: the network.
        tokenizer: of the tokens that it predicts; None where it predicts pixels.
        batch: normalized `images`, `mask` and, with a tokenizer, `tokens`.
        limit: how many of its images are shown.
        recover_all: whether visible patches are predicted as well.
    """
    images, mask, backbone = batch["images"][:limit], batch["mask"][:limit], model.config.backbone
    at = predicted_patches(mask, recover_all)
    predicted = model.predict(images, mask, at)
    originals = _unnormalized(model, images).cpu()
    masked = [masked_image(*pair, backbone.grid) for pair in zip(originals, mask.cpu(), strict=True)]
    columns = {"original": originals, "masked": torch.stack(masked)}
    if tokenizer is None:
        patches = to_patches(images, backbone.patch).clone()
        patches[at] = predicted.to(patches.dtype)
        columns["from predicted pixels"] = _unnormalized(model, from_patches(patches, backbone.grid, backbone.patch)).cpu()
        return columns, "Original, what the network sees, and the original with the predicted patches in place of their own."
    tokens = batch["tokens"][:limit]
    filled = tokens.clone()
    filled[at] = predicted.argmax(-1)
    with contextlib.suppress(UserError):
        for name, ids in (("tokenizer", tokens), ("from predicted tokens", filled)):
            columns[name] = tokenizer.decode(ids.unflatten(1, backbone.grid)).cpu()
    return columns, (
        "Original, what the network sees, the tokenizer's reconstruction, and the reconstruction from the predicted tokens."
    )


def _unnormalized(model: MaskedImageModel, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    preprocessing = model.config.preprocessing
    mean, std = pixel_statistics(preprocessing.mean, preprocessing.std, images.shape[1], images)
    return (images * std + mean).clamp(0, 1)
