"""Linear probes on frozen features, of every block at once."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from beitkit.contracts import Batch, Loss

INIT_STD = 0.01


class LinearProbes(nn.Module):
    """One linear layer per block, trained independently: their cross-entropies are summed, no parameter is shared (method 6.2).

    There are two sets. The first is trained on every training image and is reported; the second never sees the held-out
    ones, so that these can choose the block.
    """

    def __init__(self, blocks: int, features: int, classes: int) -> None:
        """Both sets start from a normal with std 0.01, biases 0."""
        super().__init__()
        self.weight = nn.Parameter(torch.empty(2, blocks, classes, features))
        self.bias = nn.Parameter(torch.zeros(2, blocks, classes))
        nn.init.normal_(self.weight, std=INIT_STD)

    def logits(self, features: Float[Tensor, "blocks b f"]) -> Float[Tensor, "2 blocks b classes"]:
        """Logits of both sets, in float32 even under autocast."""
        with torch.autocast(features.device.type, enabled=False):
            return torch.einsum("lbf,slcf->slbc", features, self.weight) + self.bias.unsqueeze(2)

    def forward(self, batch: Batch, progress: float) -> Loss:
        """Loss of `features` (blocks, b, f), `labels` (b,) and `held_out` (b,) bool; `progress` is not used."""
        logits, labels = self.logits(batch["features"]), batch["labels"]
        everyone, choosing = (
            F.cross_entropy(one.permute(1, 2, 0), labels.unsqueeze(1).expand(-1, len(one)), reduction="none")  # (b, blocks)
            for one in logits
        )
        kept = (~batch["held_out"]).float()
        chosen = (choosing * kept.unsqueeze(1)).sum(0) / kept.sum().clamp_min(1)  # a batch may hold no other images
        reported = everyone.mean(0).sum()
        return Loss(reported + chosen.sum(), {"loss_per_block": reported.detach() / len(logits[0])})
