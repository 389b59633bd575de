"""Accuracy or error of masked-patch prediction, on images with fixed views and masks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from beitkit.configs.model import Pair
from beitkit.contracts import WHOLE, Batch, Share
from beitkit.data.views.masking import predicted_patches
from beitkit.nn.patches import to_patches
from beitkit.tokenizers.health import CodeUsage, UsageStatistics

Predict = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Normalized images (b, c, h, w), masks (b, n) and positions (b, n) to predictions at the positions (m, outputs)."""


@dataclass
class MaskedAccuracy:
    """Token accuracy and cross-entropy on masked patches (or on all), over one pass."""

    predict: Predict
    batches: Callable[[Share], Iterator[Batch]]
    """A share of a fresh pass; batches hold images, mask, tokens and broken."""
    recover_all: bool = False
    """Whether visible patches are evaluated as well."""
    name: str = "fixed"

    def run(self, share: Share = WHOLE) -> Iterator[tuple[str, float]]:
        """Yield accuracy and loss, means over the evaluated patches of readable images."""
        parts = share.together(self._judged(batch) for batch in self.batches(share))
        if parts is None:
            return
        right, loss, count = (sum(column) for column in zip(*parts, strict=True))
        yield "accuracy", right / count
        yield "loss", loss / count

    @torch.no_grad()
    def _judged(self, batch: Batch) -> tuple[int, float, int]:
        """Right answers, summed loss and number of the patches of a batch."""
        if (readable := _readable(batch, self.recover_all)) is None:
            return 0, 0.0, 0
        batch, at = readable
        logits, targets = self.predict(batch["images"], batch["mask"], at).float(), batch["tokens"][at]
        right = int((logits.argmax(-1) == targets).sum())
        return right, F.cross_entropy(logits, targets, reduction="sum").item(), len(targets)


@dataclass
class MaskedError:
    """Mean squared error of the pixels of masked patches (or of all), and how much of their variance that explains."""

    predict: Predict
    batches: Callable[[Share], Iterator[Batch]]
    """A share of a fresh pass; batches hold images, mask and broken."""
    patch: Pair
    recover_all: bool = False
    """Whether visible patches are evaluated as well."""
    name: str = "fixed"

    def run(self, share: Share = WHOLE) -> Iterator[tuple[str, float]]:
        """Yield explained (a share, 1 - loss / variance), loss and variance (the loss of always predicting the mean patch)."""
        parts = share.together(self._judged(batch) for batch in self.batches(share))
        if parts is None:
            return
        loss, count, total, squares = (sum(column) for column in zip(*parts, strict=True))
        assert isinstance(total, Tensor)  # not a number, as some batch could be read
        variance = torch.as_tensor(squares / count - (total / count) ** 2).mean().item()
        loss /= count * total.numel()
        yield "explained", 1 - loss / max(variance, torch.finfo(torch.float32).eps)
        yield "loss", loss
        yield "variance", variance

    @torch.no_grad()
    def _judged(self, batch: Batch) -> tuple[float, int, Tensor | float, Tensor | float]:
        """Summed loss and number of the patches of a batch, and the sums of their pixels and of the pixels' squares (pixels,)."""
        if (readable := _readable(batch, self.recover_all)) is None:
            return 0.0, 0, 0.0, 0.0
        batch, at = readable
        targets = to_patches(batch["images"], self.patch)[at]
        predicted = self.predict(batch["images"], batch["mask"], at).float()
        exact = targets.cpu().double()
        return F.mse_loss(predicted, targets, reduction="sum").item(), len(targets), exact.sum(0), exact.square().sum(0)


def token_usage(batches: Iterator[Batch], vocabulary: int, recover_all: bool = False) -> UsageStatistics:
    """How often each token occurs among the evaluated patches of one pass of `MaskedAccuracy`."""
    usage = CodeUsage(vocabulary)
    for batch in batches:
        if (readable := _readable(batch, recover_all)) is not None:
            usage.update(readable[0]["tokens"][readable[1]])
    return usage.statistics()


def _readable(batch: Batch, recover_all: bool) -> tuple[Batch, Tensor] | None:
    """A batch without unreadable images, and the positions that are evaluated; None where no image can be read."""
    readable = batch["broken"] < 0
    if not readable.any():
        return None
    batch = {key: value[readable] for key, value in batch.items() if key != "positions"}
    return batch, predicted_patches(batch["mask"], recover_all)
