"""Synchronized batch norm that also runs on CPUs.

Segmentation fits few images on a device, often two, so batch norm has to use the statistics of all ranks. PyTorch's
SyncBatchNorm runs on GPUs only; this one needs nothing but a process group.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from beitkit.errors import UserError
from beitkit.nn.collectives import all_reduce_, is_distributed


class BatchNorm2d(nn.BatchNorm2d):
    """Batch norm over the batches of all ranks (arXiv 1502.03167); with one rank it is `nn.BatchNorm2d`.

    Local batches may differ in size: every value has the same weight. All ranks must run forward and backward through the
    layer equally often, or they deadlock.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels)

    def forward(self, input: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """The map normalized per channel, in the type of the input.

        Raises:
            UserError: in training, if a channel has a single value, which has no variance.
        """
        if self.training and is_distributed():
            return self._synchronized(input)
        if self.training and input.shape[0] * input.shape[2] * input.shape[3] == 1:
            raise UserError(
                "batch norm cannot be trained on one image where its map has one pixel; use a `batch_size` of 2 or more"
            )
        return super().forward(input)

    def _synchronized(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        # Sums in float64, because mean square minus squared mean cancels.
        count = torch.full((1,), x.shape[0] * x.shape[2] * x.shape[3], dtype=torch.float64, device=x.device)
        values = x.to(torch.promote_types(x.dtype, torch.float32))
        sums = (values.sum((0, 2, 3), dtype=torch.float64), values.square().sum((0, 2, 3), dtype=torch.float64))
        total = _AllReduceSum.apply(torch.cat((count, *sums)))
        mean, mean_square = (total[1:] / total[0].detach()).chunk(2)
        variance = (mean_square - mean.square()).clamp(min=0)
        self._follow(total[0].detach(), mean.detach(), variance.detach())
        scale = self.weight * (variance + self.eps).rsqrt()  # float64, (c)
        shift = self.bias - mean * scale
        return (values * scale.to(values.dtype)[:, None, None] + shift.to(values.dtype)[:, None, None]).to(x.dtype)

    @torch.no_grad()
    def _follow(self, count: Tensor, mean: Float[Tensor, " c"], variance: Float[Tensor, " c"]) -> None:
        """Update the running statistics, with the unbiased variance, as PyTorch does."""
        assert self.momentum is not None
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_((variance * count / (count - 1)).to(self.running_var.dtype), self.momentum)
        self.num_batches_tracked += 1


class _AllReduceSum(torch.autograd.Function):
    """All-reduce sum; its gradient is the sum over all ranks, because every rank uses the result."""

    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:
        total = local.clone()
        all_reduce_(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        all_reduce_(total)
        return total
