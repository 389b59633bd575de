"""Weights, gradients and moments whole on every rank (DDP)."""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from beitkit.contracts import RewritesParameters
from beitkit.train.checkpoints.manifest import Piece
from beitkit.train.machine.runtime import Runtime


class Replicas:
    """Every rank holds all weights; gradients are averaged over ranks by DDP, if there are several."""

    is_whole_everywhere = True
    """Whether every rank has the whole objective, to evaluate it for instance."""

    def __init__(self, objective: nn.Module, runtime: Runtime) -> None:
        """Move the objective to the device; DDP broadcasts weights and buffers of rank 0 once, here."""
        self.objective = objective.to(runtime.device)
        self.module: nn.Module = objective
        """The module that computes the loss."""
        if runtime.world_size > 1:
            # A 1x1 convolution's gradient may have other strides than its bucket view, which is harmless.
            warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides", category=UserWarning)
            # PyTorch's own advice is to keep the argument until there is another one that does not send buffers at the start.
            warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
            # Forward passes leave buffers equal on all ranks by themselves (sums over ranks, where they depend on images), and
            # index tables never change: nothing has to be broadcast before each of them.
            self.module = DistributedDataParallel(objective, broadcast_buffers=False, gradient_as_bucket_view=True)
        self.parameters: dict[str, nn.Parameter] = dict(objective.named_parameters())
        """The optimizer's parameters, by name."""

    @property
    def buffers(self) -> dict[str, Tensor]:
        """Persistent buffers, by name; equal on all ranks."""
        return kept_buffers(self.objective)

    @property
    def rewritten(self) -> list[Tensor]:
        """Parameters that forward passes write (see `RewritesParameters`)."""
        modules = self.objective.modules()
        return [tensor for module in modules if isinstance(module, RewritesParameters) for tensor in module.rewritten()]

    def no_sync(self, *, is_last: bool) -> AbstractContextManager[None]:
        """Gradient accumulation without all-reduce, except in the last pass of a step."""
        return self.module.no_sync() if isinstance(self.module, DistributedDataParallel) and not is_last else nullcontext()

    def take_gradients(self) -> None:
        """No-op: under DDP the gradients are already on `parameters`."""

    def norm(self, gradients: list[Tensor]) -> Tensor:
        """Total norm of the gradients, shape ()."""
        return nn.utils.get_total_norm(gradients, foreach=True)

    def sum(self, number: Tensor) -> Tensor:
        """The number (or numbers) unchanged: every rank counted all weights."""
        return number

    def shard_of(self, name: str, tensor: Tensor) -> Piece:
        """This rank's piece of a tensor that belongs to the named parameter."""
        return Piece(tensor, tuple(tensor.shape))

    @torch.no_grad()
    def gather_weights(self, weights: dict[str, Tensor]) -> None:
        """Swap the parameters with `weights` in place."""
        for name, parameter in self.parameters.items():
            if weights[name] is not parameter:
                kept = parameter.clone()
                parameter.copy_(weights[name])
                weights[name].copy_(kept)

    def release_weights(self, weights: dict[str, Tensor]) -> None:
        """Undo `gather_weights`."""
        self.gather_weights(weights)


def kept_buffers(module: nn.Module) -> dict[str, Tensor]:
    """The persistent buffers of a module, by name."""
    kept = module.state_dict(keep_vars=True)
    return {name: buffer for name, buffer in module.named_buffers() if name in kept}
