"""Semantic segmentation: pixel-wise cross-entropy."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from beitkit.configs.segmentation import SegmentationLossConfig
from beitkit.contracts import IGNORED, Batch, Loss
from beitkit.nn.segmentation.heads import map_size, resize
from beitkit.nn.segmentation.segmenter import SegmentationLogits, Segmenter


class Segment(nn.Module):
    """Cross-entropy of the decoder at every pixel with a label, plus a share of the auxiliary head's (method 7.2)."""

    def __init__(self, model: Segmenter, config: SegmentationLossConfig) -> None:
        super().__init__()
        self.model = model
        self.config = config

    def forward(self, batch: Batch, progress: float) -> Loss:
        """Loss of `images` (normalized) and `label_map` uint8 (b, h, w); `progress` is not used."""
        return segmentation_loss(self.model.training_logits(batch["images"]), batch["label_map"], self.config)


def segmentation_loss(
    logits: SegmentationLogits, label_map: UInt8[Tensor, "b h w"], config: SegmentationLossConfig = SegmentationLossConfig()
) -> Loss:
    """Weighted cross-entropy of both heads, whose logits are first upsampled to the label map.

    A batch without any labeled pixel has loss 0 and zero gradients: every rank still runs backward through every layer, which
    synchronized batch norm relies on.

    Args:
        logits: of the decoder and the auxiliary head, each at its own resolution.
        label_map: class ids, or 255 for pixels that do not count; any other id must be a class.
        config: the weights, and what the mean is over.

    Returns:
        The loss; its parts are `main`, `auxiliary` (where there is one, before its weight), and `accuracy`, the share of
        pixels that the decoder gets right, among those that the loss is a mean over.
    """
    labels = label_map.long()
    is_labeled = labels != IGNORED
    counted = is_labeled if config.average == "valid" else torch.ones_like(is_labeled)
    pixels = counted.sum().clamp(min=1)
    main = resize(logits.main.float(), map_size(label_map))
    total = _cross_entropy(main, labels, pixels)
    accuracy = ((main.argmax(1) == labels) & is_labeled).sum() / pixels
    parts = {"main": total.detach(), "accuracy": accuracy}
    if logits.auxiliary is not None:
        auxiliary = _cross_entropy(resize(logits.auxiliary.float(), map_size(label_map)), labels, pixels)
        total = total + config.auxiliary_weight * auxiliary
        parts["auxiliary"] = auxiliary.detach()
    return Loss(total, parts)


def _cross_entropy(logits: Float[Tensor, "b classes h w"], labels: Tensor, pixels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum") / pixels
