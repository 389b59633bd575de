"""Semantic segmentation: pixel-wise cross-entropy, and a dice loss for rare classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from beitkit.configs.segmentation import SegmentationLossConfig
from beitkit.contracts import IGNORED, Batch, Loss
from beitkit.nn.segmentation.heads import map_size, resize
from beitkit.nn.segmentation.segmenter import SegmentationLogits, Segmenter


class Segment(nn.Module):
    """Cross-entropy of the decoder at every pixel with a label, plus a share of the auxiliary head's (method 7.2)."""

    def __init__(self, model: Segmenter, config: SegmentationLossConfig, class_pixels: Sequence[int] = ()) -> None:
        """The objective of a network.

        Args:
            model: the network.
            config: what the loss is.
            class_pixels: pixels of each class in the training masks, which balanced weights are made of; empty gives all classes
                the same.
        """
        super().__init__()
        self.model = model
        self.config = config
        counts = torch.tensor(class_pixels or [1] * len(model.config.classes))
        weights = balanced_weights(counts) if config.class_weights == "balanced" else None
        self.register_buffer("class_weights", weights, persistent=False)
        self.class_weights: Tensor | None

    def forward(self, batch: Batch, progress: float) -> Loss:
        """Loss of `images` (normalized) and `label_map` uint8 (b, h, w); `progress` is not used."""
        logits = self.model.training_logits(batch["images"])
        return segmentation_loss(logits, batch["label_map"], self.config, self.class_weights)


def balanced_weights(class_pixels: Int[Tensor, " classes"]) -> Float[Tensor, " classes"]:
    """All pixels / (classes that occur * pixels of the class), scikit-learn's "balanced"; 1 for a class that does not occur."""
    does_occur = class_pixels > 0
    balanced = class_pixels.sum() / (does_occur.sum() * class_pixels.clamp(min=1))
    return torch.where(does_occur, balanced, 1.0).float()


def segmentation_loss(
    logits: SegmentationLogits,
    label_map: UInt8[Tensor, "b h w"],
    config: SegmentationLossConfig = SegmentationLossConfig(),
    class_weights: Float[Tensor, " classes"] | None = None,
) -> Loss:
    """Weighted cross-entropy of both heads, whose logits are first upsampled to the label map.

    A batch without any labeled pixel has loss 0 and zero gradients: every rank still runs backward through every layer, which
    synchronized batch norm relies on.

    Args:
        logits: of the decoder and the auxiliary head, each at its own resolution.
        label_map: class ids, or 255 for pixels that do not count; any other id must be a class.
        config: the weights, and what the mean is over.
        class_weights: weight of each class in both cross-entropies, and in the mean over the pixels with a label.

    Returns:
        The loss; its parts are `main`, `auxiliary` and `dice` (where there is one, before its weight), and `accuracy`, the share
        of pixels that the decoder gets right, among those that the loss is a mean over.
    """
    labels = label_map.long()
    is_labeled = labels != IGNORED
    counted = is_labeled if config.average == "valid" else torch.ones_like(is_labeled)
    pixels = counted.sum().clamp(min=1)
    main = resize(logits.main.float(), map_size(label_map))
    weighed = pixels
    if class_weights is not None and config.average == "valid":
        weighed = class_weights[labels.clamp(max=len(class_weights) - 1)].mul(is_labeled).sum()
        weighed = torch.where(weighed > 0, weighed, 1.0)
    total = _cross_entropy(main, labels, weighed, class_weights)
    accuracy = ((main.argmax(1) == labels) & is_labeled).sum() / pixels
    parts = {"main": total.detach(), "accuracy": accuracy}
    if logits.auxiliary is not None:
        auxiliary = _cross_entropy(resize(logits.auxiliary.float(), map_size(label_map)), labels, weighed, class_weights)
        total = total + config.auxiliary_weight * auxiliary
        parts["auxiliary"] = auxiliary.detach()
    if config.dice_weight:
        dice = dice_loss(main, labels)
        total = total + config.dice_weight * dice
        parts["dice"] = dice.detach()
    return Loss(total, parts)


def dice_loss(logits: Float[Tensor, "b classes h w"], labels: Int[Tensor, "b h w"]) -> Float[Tensor, ""]:
    """1 - the mean, over the classes that the batch shows, of 2 |p g| / (|p| + |g|) (Milletari et al. 2016, section 3, without
    squares): p is the probability of the class at each pixel with a label, g whether it is the pixel's, |.| the sum over pixels.

    A batch without any labeled pixel has loss 0 and zero gradients.
    """
    classes = logits.shape[1]
    is_labeled = labels != IGNORED
    probabilities = logits.softmax(1) * is_labeled[:, None]
    own = probabilities.gather(1, labels.clamp(max=classes - 1)[:, None])[:, 0]
    place = labels.clamp(max=classes).flatten()  # what is ignored comes after the classes
    nothing = torch.zeros(classes + 1, device=logits.device)
    overlap = nothing.index_add(0, place, own.flatten())[:classes]
    truth = nothing.index_add(0, place, is_labeled.flatten().float())[:classes]
    does_show = truth > 0
    dice = 2 * overlap / torch.where(does_show, probabilities.sum((0, 2, 3)) + truth, 1.0)
    return ((1 - dice) * does_show).sum() / does_show.sum().clamp(min=1)


def _cross_entropy(
    logits: Float[Tensor, "b classes h w"], labels: Tensor, weighed: Tensor, class_weights: Tensor | None
) -> Tensor:
    return F.cross_entropy(logits, labels, weight=class_weights, ignore_index=IGNORED, reduction="sum") / weighed
