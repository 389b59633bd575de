"""AdamW with BEiT's parameter groups: no decay on vectors, and a learning rate that falls with depth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypedDict, runtime_checkable

import torch
from torch import nn

from beitkit.configs.train import OptimConfig


class Group(TypedDict):
    """Parameters that share a factor on the learning rate and a weight decay."""

    params: list[nn.Parameter]
    lr_scale: float
    weight_decay: float


@runtime_checkable
class Layered(Protocol):
    """A module that knows which layer each of its parameters is in."""

    def layer_of(self, name: str) -> int:
        """0 for the embeddings, i + 1 for block i, depth + 1 above."""
        ...

    def no_decay(self, name: str) -> bool:
        """Whether a parameter is free of weight decay by name."""
        ...


def parameter_groups(model: nn.Module, weight_decay: float) -> list[Group]:
    """Two groups: matrices decay, vectors (biases, norms) do not."""
    return _grouped(model, weight_decay, lambda name: 1.0, lambda name: False)


def layered_groups(model: nn.Module, layers: Layered, optim: OptimConfig) -> list[Group]:
    """Groups by layer and decay (method 4.1, 4.2): layer j of L + 2 learns at layer_decay ** (L + 1 - j) of the rate."""
    top = max(layers.layer_of(name) for name, _ in model.named_parameters())
    decay = 1.0 if optim.layer_decay is None else optim.layer_decay
    return _grouped(model, optim.weight_decay, lambda name: decay ** (top - layers.layer_of(name)), layers.no_decay)


def _grouped(
    model: nn.Module, weight_decay: float, lr_scale_of: Callable[[str], float], no_decay: Callable[[str], bool]
) -> list[Group]:
    groups: dict[tuple[float, float], Group] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decay = 0.0 if parameter.ndim <= 1 or no_decay(name) else weight_decay
        scale = lr_scale_of(name)
        group = groups.setdefault((scale, decay), Group(params=[], lr_scale=scale, weight_decay=decay))
        group["params"].append(parameter)
    return list(groups.values())


def make_optimizer(groups: list[Group], optim: OptimConfig) -> torch.optim.AdamW:
    """AdamW over the groups, fused into one pass over the parameters."""
    return torch.optim.AdamW([dict(group) for group in groups], betas=optim.betas, eps=optim.eps, fused=True)
