"""Masked image modelling: predict the visual tokens of the patches that the network cannot see."""

from __future__ import annotations

import torch.nn.functional as F
from torch import nn

from beitkit.contracts import Batch, Loss
from beitkit.nn.models import MaskedImageModel


class MaskedTokens(nn.Module):
    """Mean cross-entropy over the masked patches of a batch (arXiv 2106.08254, equation 2)."""

    def __init__(self, model: MaskedImageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, progress: float) -> Loss:
        """Loss of `images` (normalized), `mask` (b, n) and `tokens` (b, n); `progress` is not used."""
        targets = batch["tokens"][batch["mask"]]  # (m,), in the order of the logits
        logits = self.model(batch["images"], batch["mask"]).float()
        accuracy = (logits.argmax(-1) == targets).float().mean()
        return Loss(F.cross_entropy(logits, targets), {"accuracy": accuracy})
