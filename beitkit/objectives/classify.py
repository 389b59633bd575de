"""Classification with one label a picture."""

from __future__ import annotations

import torch.nn.functional as F
from torch import nn

from beitkit.contracts import Batch, Loss
from beitkit.nn.models import Classifier


class Classify(nn.Module):
    """Cross-entropy with label smoothing: (1 - e) on the label, e spread evenly over all classes."""

    def __init__(self, model: Classifier, label_smoothing: float) -> None:
        super().__init__()
        self.model = model
        self.label_smoothing = label_smoothing

    def forward(self, batch: Batch, progress: float) -> Loss:
        """Loss of `images` (normalized) and `labels` (b,); `progress` is not used."""
        logits = self.model(batch["images"]).float()
        labels = batch["labels"]
        accuracy = (logits.argmax(-1) == labels).float().mean()
        return Loss(F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing), {"accuracy": accuracy})
