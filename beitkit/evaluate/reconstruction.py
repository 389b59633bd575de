"""What a pre-trained network fills in: its predicted tokens, turned back into pixels by the tokenizer's decoder."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from beitkit.contracts import Batch, Tokenizer
from beitkit.errors import UserError
from beitkit.nn.models import MaskedImageModel
from beitkit.report.pictures import masked_picture

EXPLANATION = "Original, what the network sees, the tokenizer's reconstruction, and the reconstruction from the predicted tokens."


@torch.no_grad()
def reconstruction_columns(
    model: MaskedImageModel, tokenizer: Tokenizer, batch: Batch, limit: int
) -> dict[str, Float[Tensor, "r c h w"]]:
    """Columns for a report, each in [0, 1]: original, masked, decoded from all true tokens, decoded with predicted ones.

    `batch` holds normalized `images`, `mask` and `tokens`; its first `limit` pictures are shown. A tokenizer that cannot decode
    to pixels (VQ-KD) leaves the last two columns out.
    """
    images, mask, tokens = (batch[key][:limit] for key in ("images", "mask", "tokens"))
    predicted = tokens.clone()
    predicted[mask] = model(images, mask).argmax(-1)
    grid = model.config.backbone.grid
    originals = _unnormalized(model, images).cpu()
    masked = [masked_picture(*pair, grid) for pair in zip(originals, mask.cpu(), strict=True)]
    columns = {"original": originals, "masked": torch.stack(masked)}
    try:
        columns["tokenizer"] = tokenizer.decode(tokens.unflatten(1, grid)).cpu()
    except UserError:
        return columns
    return columns | {"from predicted tokens": tokenizer.decode(predicted.unflatten(1, grid)).cpu()}


def _unnormalized(model: MaskedImageModel, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    statistics = torch.tensor([model.config.preprocessing.mean, model.config.preprocessing.std], device=images.device)
    if images.shape[1] == 1:  # grey pictures are normalized by the average over channels
        statistics = statistics.mean(1, keepdim=True)
    mean, std = statistics.unsqueeze(-1).unsqueeze(-1)  # each (c, 1, 1)
    return (images * std + mean).clamp(0, 1)
