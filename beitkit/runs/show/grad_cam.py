"""Grad-CAM: which patches speak for a class (arXiv 1610.02391, equations 1 and 2), of a Transformer's patches."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from beitkit.nn.models import Classifier


def explained_block(model: Classifier) -> int:
    """The block, counted from 1, whose patches are the last that the class depends on.

    Where the head sees the class token alone, the last block's patches are no longer looked at, and it is the one before.
    """
    depth = model.backbone.depth
    return depth - 1 if model.config.pooling == "cls" and depth > 1 else depth


def grad_cam(
    model: Classifier, images: Float[Tensor, "b c h w"], classes: Int64[Tensor, " b"] | None, block: int
) -> tuple[Float[Tensor, "b gh gw"], Float[Tensor, "b classes"]]:
    """For every patch max(0, sum over k of weight_k feature_k), and the logits.

    weight_k is the mean over the patches of the gradient of the class's logit by feature k of the block's output.

    Args:
        model: in eval mode.
        images: normalized.
        classes: the class explained for each image; None takes that of the largest logit.
        block: counted from 1.
    """
    outputs: list[Any] = []
    hook = model.backbone.each_block()[block - 1].register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    try:
        with torch.enable_grad():
            # So that there is a gradient through networks whose weights are frozen, too.
            logits = model(images.detach().requires_grad_())
            chosen = logits.argmax(1) if classes is None else classes
            (gradient,) = torch.autograd.grad(logits.gather(1, chosen.unsqueeze(1)).sum(), outputs[0])
    finally:
        hook.remove()
    patches, weights = outputs[0].detach()[:, 1:].float(), gradient[:, 1:].float().mean(1, keepdim=True)
    return (patches * weights).sum(2).clamp(min=0).unflatten(1, model.backbone.config.grid), logits.detach().float()
