"""How well the tokens of masked patches are predicted, on pictures whose views and masks stay the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from beitkit.contracts import Batch


@dataclass
class MaskedAccuracy:
    """Share of masked patches whose token is predicted exactly, and the cross-entropy, over one pass."""

    predict: Callable[[Tensor, Tensor], Tensor]
    """Normalized pictures (b, c, h, w) and masks (b, n) to logits of the masked patches (m, vocabulary)."""
    batches: Callable[[], Iterator[Batch]]
    """A fresh pass; batches hold images, mask, tokens and broken."""
    name: str = "fixed"

    @torch.no_grad()
    def run(self) -> Iterator[tuple[str, float]]:
        """Yield accuracy (a share) and loss, both means over masked patches of readable pictures."""
        right = loss = 0.0
        count = 0
        for batch in self.batches():
            readable = batch["broken"] < 0
            if not readable.any():
                continue
            images, mask, tokens = (batch[key][readable] for key in ("images", "mask", "tokens"))
            logits, targets = self.predict(images, mask).float(), tokens[mask]
            right += (logits.argmax(-1) == targets).sum().item()
            loss += F.cross_entropy(logits, targets, reduction="sum").item()
            count += len(targets)
        yield "accuracy", right / count
        yield "loss", loss / count
