"""Classification loss: single-label, multi-label, or soft targets of mixed images."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from beitkit.contracts import Batch, Loss
from beitkit.nn.models import Classifier


class Classify(nn.Module):
    """Cross-entropy with label smoothing: (1 - e) on the label, e spread evenly over all classes.

    Multi-label: binary cross-entropy, mean over classes, where smoothing moves every target toward 1/2: (1 - e) on yes or no,
    e spread evenly over both.
    """

    def __init__(self, model: Classifier, label_smoothing: float) -> None:
        super().__init__()
        self.model = model
        self.label_smoothing = label_smoothing

    def forward(self, batch: Batch, progress: float) -> Loss:
        """Loss of `images` (normalized) and `targets` (b, classes) or else `labels` (b,); `progress` is not used.

        The logged accuracy is the share of images whose top-1 class is a label; of a mixed image, the one with the largest share.
        """
        logits = self.model(batch["images"]).float()
        if "targets" not in batch:
            labels = batch["labels"]
            accuracy = (logits.argmax(-1) == labels).float().mean()
            return Loss(F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing), {"accuracy": accuracy})
        targets = batch["targets"]
        if self.model.config.multilabel:
            smoothed = targets * (1 - self.label_smoothing) + self.label_smoothing / 2
            total = F.binary_cross_entropy_with_logits(logits, smoothed)
        else:
            total = F.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)
        return Loss(total, {"accuracy": _first_is_right(logits, targets)})


def _first_is_right(logits: Float[Tensor, "b classes"], targets: Float[Tensor, "b classes"]) -> Float[Tensor, ""]:
    """Share of the images with any label whose largest logit is at a class with their largest target."""
    largest = targets.amax(1)
    is_right = (targets.gather(1, logits.argmax(1, keepdim=True))[:, 0] == largest) & (largest > 0)
    return is_right.sum() / (largest > 0).sum().clamp(min=1)
