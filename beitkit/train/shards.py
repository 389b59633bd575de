"""Weights, gradients and moments shared out over the ranks (FSDP2)."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from beitkit.contracts import sharding_units
from beitkit.train.checkpoints.manifest import Piece
from beitkit.train.machine.runtime import Runtime
from beitkit.train.replicas import kept_buffers


class Shards:
    """Every rank holds its rows of each weight, gradient and moment (FSDP2, arXiv 2304.11277).

    A sharded twin of the objective computes: each `ShardingUnit`, and the rest as one more unit, is gathered shortly before use
    and freed after it in the forward pass. Matrices of units are gathered in the run's precision: autocast would round them to it
    anyway, so every number is that of whole weights, with half the bytes to send. What else units have (norms, biases,
    LayerScale, position tables: 0.3% of the weights) is used in float32, and whole on every rank; its gradients are averaged once
    a step. Gradients are added up over passes and ranks in float32.

    The objective itself is empty, except between `gather_weights` and `release_weights`, when that of rank 0 holds all weights
    and can be evaluated and saved as usual.
    """

    is_whole_everywhere = False

    def __init__(self, objective: nn.Module, runtime: Runtime) -> None:
        """Shard an objective that is on the CPU and equal on all ranks; its weights move to the device unit by unit."""
        self.objective = objective
        self._processes = runtime.processes
        # The twin shares the objective's memory until its unit is sharded; no rank ever has two copies.
        memo: dict[int, object] = {
            id(parameter): nn.Parameter(parameter.detach(), parameter.requires_grad) for parameter in objective.parameters()
        }
        twin = copy.deepcopy(objective, memo)
        mesh = init_device_mesh(runtime.device.type, (runtime.world_size,))
        policy = MixedPrecisionPolicy(runtime.autocast, torch.float32, cast_forward_inputs=False)
        for unit in sharding_units(twin):
            matrices = {id(layer.weight) for layer in unit.modules() if isinstance(layer, nn.Linear)}
            small = {parameter for parameter in unit.parameters() if id(parameter) not in matrices}
            for parameter in small:  # FSDP2 leaves them where they are
                parameter.data = parameter.data.to(runtime.device)
            fully_shard(unit, mesh=mesh, mp_policy=policy, ignored_params=small)
        fully_shard(twin, mesh=mesh)
        self.module: nn.Module = twin
        """The module that computes the loss."""
        of_twin = dict(twin.named_parameters())
        self._sharded = {name: parameter for name, parameter in of_twin.items() if isinstance(parameter, DTensor)}
        assert list(of_twin) == [name for name, _ in objective.named_parameters()], "a parameter is shared between units"
        self.parameters: dict[str, nn.Parameter] = {
            name: nn.Parameter(parameter.to_local().detach(), parameter.requires_grad)
            if isinstance(parameter, DTensor)
            else parameter
            for name, parameter in of_twin.items()
        }
        """The optimizer's parameters, by name: this rank's rows of each, and the small ones of units whole."""
        self._empty()
        objective.to(runtime.device)

    @property
    def buffers(self) -> dict[str, Tensor]:
        """Persistent buffers, by name; equal on all ranks."""
        return kept_buffers(self.module)

    @property
    def rewritten(self) -> list[Tensor]:
        """No parameters: a forward pass sees gathered copies of the rows, so nothing that it writes there would stay."""
        return []

    def no_sync(self, *, is_last: bool) -> AbstractContextManager[None]:
        """Gradient accumulation without reduce-scatter, except in the last pass of a step."""
        assert isinstance(self.module, FSDPModule)
        self.module.set_requires_gradient_sync(is_last)
        self.module.set_is_last_backward(is_last)
        return nullcontext()

    def take_gradients(self) -> None:
        """Put the gradients of the step on `parameters`; those that are whole on every rank are averaged over ranks."""
        for name, parameter in self._sharded.items():
            if isinstance(parameter.grad, DTensor):
                self.parameters[name].grad = parameter.grad.to_local()
                parameter.grad = None
        if whole := self._whole_gradients():
            together = torch.cat([gradient.flatten() for gradient in whole])
            together = self._processes.all_reduce(together) / self._processes.world_size
            parts = [part.view_as(own) for part, own in zip(_split_as(together, whole), whole, strict=True)]
            torch._foreach_copy_(whole, parts)  # pyright: ignore[reportPrivateImportUsage] - one kernel for all

    def norm(self, gradients: list[Tensor]) -> Tensor:
        """Total norm of the gradients, shape (); what is whole everywhere counts once."""
        whole = {id(gradient) for gradient in self._whole_gradients()}
        own = [gradient for gradient in gradients if id(gradient) not in whole or self._processes.is_main]
        return self._processes.all_reduce(nn.utils.get_total_norm(own, foreach=True).square()).sqrt()

    def sum(self, number: Tensor) -> Tensor:
        """The sum over ranks, elementwise; each of them counted what it holds."""
        return self._processes.all_reduce(number)

    def shard_of(self, name: str, tensor: Tensor) -> Piece:
        """This rank's piece of a tensor that belongs to the named parameter."""
        if name not in self._sharded:
            return Piece(tensor, tuple(tensor.shape))
        whole = tuple(self._sharded[name].shape)
        if tensor.ndim != len(whole):  # AdamW's count of steps
            return Piece(tensor, tuple(tensor.shape))
        rows = -(-whole[0] // self._processes.world_size)  # as `fully_shard` deals them out
        return Piece(tensor, whole, min(self._processes.rank * rows, whole[0]))

    @torch.no_grad()
    def gather_weights(self, weights: dict[str, Tensor]) -> None:
        """Gather `weights` (rows of every parameter) into the objective of rank 0; collective.

        Tensors are gathered one at a time, so that only rank 0 ever holds more than one of them whole.
        """
        for name, parameter in self.objective.named_parameters():
            if name not in self._sharded:
                if self._processes.is_main:
                    parameter.data = weights[name].detach().clone()
                continue
            like = self._sharded[name]
            rows = DTensor.from_local(
                weights[name].detach(), like.device_mesh, like.placements, shape=like.shape, stride=like.stride()
            )
            gathered = rows.full_tensor()
            if self._processes.is_main:
                parameter.data = gathered
        for name, buffer in self.objective.named_buffers():
            buffer.copy_(self.module.get_buffer(name))

    def release_weights(self, weights: dict[str, Tensor]) -> None:
        """Free the gathered weights."""
        self._empty()

    def _whole_gradients(self) -> list[Tensor]:
        """Gradients of what every rank holds whole."""
        held = (parameter.grad for name, parameter in self.parameters.items() if name not in self._sharded)
        return [gradient for gradient in held if gradient is not None]

    def _empty(self) -> None:
        for parameter in self.objective.parameters():
            parameter.data = parameter.new_empty(0)


def _split_as(together: Tensor, parts: list[Tensor]) -> tuple[Tensor, ...]:
    return together.split([part.numel() for part in parts])
