"""Accuracy or error of masked-patch prediction, on images with fixed views and masks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from beitkit.configs.model import Pair
from beitkit.contracts import Batch
from beitkit.data.views.masking import predicted_patches
from beitkit.nn.patches import to_patches
from beitkit.tokenizers.health import CodeUsage, UsageStatistics

Predict = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Normalized images (b, c, h, w), masks (b, n) and positions (b, n) to predictions at the positions (m, outputs)."""


@dataclass
class MaskedAccuracy:
    """Token accuracy and cross-entropy on masked patches (or on all), over one pass."""

    predict: Predict
    batches: Callable[[], Iterator[Batch]]
    """A fresh pass; batches hold images, mask, tokens and broken."""
    recover_all: bool = False
    """Whether visible patches are evaluated as well."""
    name: str = "fixed"

    @torch.no_grad()
    def run(self) -> Iterator[tuple[str, float]]:
        """Yield accuracy and loss, means over the evaluated patches of readable images."""
        right = loss = 0.0
        count = 0
        for batch, at in _readable(self.batches(), self.recover_all):
            logits, targets = self.predict(batch["images"], batch["mask"], at).float(), batch["tokens"][at]
            right += (logits.argmax(-1) == targets).sum().item()
            loss += F.cross_entropy(logits, targets, reduction="sum").item()
            count += len(targets)
        yield "accuracy", right / count
        yield "loss", loss / count


@dataclass
class MaskedError:
    """Mean squared error of the pixels of masked patches (or of all), and how much of their variance that explains."""

    predict: Predict
    batches: Callable[[], Iterator[Batch]]
    """A fresh pass; batches hold images, mask and broken."""
    patch: Pair
    recover_all: bool = False
    """Whether visible patches are evaluated as well."""
    name: str = "fixed"

    @torch.no_grad()
    def run(self) -> Iterator[tuple[str, float]]:
        """Yield explained (a share, 1 - loss / variance), loss and variance (the loss of always predicting the mean patch)."""
        loss = count = 0.0
        total = squares = torch.zeros(())
        for batch, at in _readable(self.batches(), self.recover_all):
            targets = to_patches(batch["images"], self.patch)[at]
            predicted = self.predict(batch["images"], batch["mask"], at).float()
            loss += F.mse_loss(predicted, targets, reduction="sum").item()
            count += len(targets)
            exact = targets.cpu().double()
            total, squares = total + exact.sum(0), squares + exact.square().sum(0)  # (pixels,)
        variance = (squares / count - (total / count).square()).mean().item()
        loss /= count * total.numel()
        yield "explained", 1 - loss / max(variance, torch.finfo(torch.float32).eps)
        yield "loss", loss
        yield "variance", variance


def token_usage(batches: Iterator[Batch], vocabulary: int, recover_all: bool = False) -> UsageStatistics:
    """How often each token occurs among the evaluated patches of one pass of `MaskedAccuracy`."""
    usage = CodeUsage(vocabulary)
    for batch, at in _readable(batches, recover_all):
        usage.update(batch["tokens"][at])
    return usage.statistics()


def _readable(batches: Iterator[Batch], recover_all: bool) -> Iterator[tuple[Batch, Tensor]]:
    """Batches without unreadable images, and the positions that are evaluated."""
    for batch in batches:
        readable = batch["broken"] < 0
        if readable.any():
            batch = {key: value[readable] for key, value in batch.items() if key != "positions"}
            yield batch, predicted_patches(batch["mask"], recover_all)
