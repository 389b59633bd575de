"""Masked image modeling: predict masked patches, as visual tokens or as pixels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from beitkit.contracts import Batch, Loss
from beitkit.data.views.masking import predicted_patches
from beitkit.nn.models import MaskedImageModel
from beitkit.nn.patches import Positions, take_patches, to_patches


class MaskedTokens(nn.Module):
    """Mean cross-entropy over the masked patches of a batch (arXiv 2106.08254, equation 2), or over all patches.

    A network with BEiT v2's class-token branch adds the cross-entropy of the branch (arXiv 2208.06366, section 2.3.1; method
    2.3); the two are then logged as `main_loss` and `branch_loss`, beside the accuracy of the main prediction.
    """

    def __init__(self, model: MaskedImageModel, *, recover_all: bool = False) -> None:
        """An objective for `model`; `recover_all` predicts the visible patches as well (BEiT's ablation)."""
        super().__init__()
        assert not (recover_all and model.cls_branch), "the configs refuse this"
        self.model = model
        self.recover_all = recover_all

    def forward(self, batch: Batch, progress: float) -> Loss:
        """Loss of `images` (normalized), `mask` (b, n) and `tokens` (b, n); `progress` is not used."""
        images, mask = batch["images"], batch["mask"]
        at = _predicted(batch, self.recover_all)
        targets = take_patches(batch["tokens"], at)  # (m,), in the order of the logits
        if self.model.cls_branch is None:
            logits = self.model.predict(images, mask, at).float()
            return Loss(F.cross_entropy(logits, targets), {"accuracy": _accuracy(logits, targets)})
        logits, branch_logits = (logits.float() for logits in self.model.both_logits(images, mask, at))
        main, branch = F.cross_entropy(logits, targets), F.cross_entropy(branch_logits, targets)
        parts = {"accuracy": _accuracy(logits, targets), "main_loss": main.detach(), "branch_loss": branch.detach()}
        return Loss(main + branch, parts)


class MaskedPixels(nn.Module):
    """Mean squared error of the pixels of masked patches, or of all patches: BEiT's ablation without visual tokens.

    The paper does not say how its pixels were scaled (method 9.2). Here the targets are the very pixels that the network is given
    for visible patches: normalized per channel by the input statistics, not per patch.
    """

    def __init__(self, model: MaskedImageModel, *, recover_all: bool = False) -> None:
        """An objective for `model`; `recover_all` predicts the visible patches as well (BEiT's ablation)."""
        super().__init__()
        self.model = model
        self.recover_all = recover_all

    def forward(self, batch: Batch, progress: float) -> Loss:
        """Loss of `images` (normalized) and `mask` (b, n); `explained` is the share of the targets' variance it saves."""
        images, mask = batch["images"], batch["mask"]
        at = _predicted(batch, self.recover_all)
        targets = take_patches(to_patches(images, self.model.config.backbone.patch), at)  # (m, pixels)
        loss = F.mse_loss(self.model.predict(images, mask, at).float(), targets)
        spread = targets.var(0, correction=0).mean()  # the loss of always predicting the batch's mean patch
        return Loss(loss, {"explained": 1 - loss.detach() / spread.clamp_min(torch.finfo(spread.dtype).eps)})


def _predicted(batch: Batch, recover_all: bool) -> Positions:
    """The predicted positions: from `data.views.masking.with_positions`, if the stream used it, else from the mask."""
    return batch["positions"] if "positions" in batch else predicted_patches(batch["mask"], recover_all)


def _accuracy(logits: Tensor, targets: Tensor) -> Tensor:
    return (logits.argmax(-1) == targets).float().mean()
