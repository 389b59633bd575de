"""AdamW with BEiT's parameter groups: no weight decay on vectors, layer-wise learning-rate decay."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import NotRequired, Protocol, TypedDict, runtime_checkable

import torch
from torch import nn

from beitkit.configs.train import OptimConfig


class Group(TypedDict):
    """Parameters with the same learning-rate factor and weight decay."""

    params: list[nn.Parameter]
    lr_scale: float
    weight_decay: float
    from_step: NotRequired[int]
    """Steps before its first: until then nothing of it changes, by gradients or by weight decay; then it has a warm-up of its
    own, as long as the run's. Without it the group learns from the start."""


@runtime_checkable
class Layered(Protocol):
    """A module that assigns a layer to each of its parameters."""

    def layer_of(self, name: str) -> int:
        """0 for the embeddings, i + 1 for block i, depth + 1 above."""
        ...

    def no_decay(self, name: str) -> bool:
        """Whether a parameter is exempt from weight decay by name."""
        ...


def parameter_groups(model: nn.Module, weight_decay: float) -> list[Group]:
    """Two groups: weight decay on matrices, none on vectors (biases, norms)."""
    return _grouped(model, weight_decay, lambda name: 1.0, lambda name: False)


def layered_groups(model: nn.Module, layers: Layered, optim: OptimConfig) -> list[Group]:
    """Groups by layer and weight decay (method 4.1, 4.2): layer j of L + 2 has lr_scale = layer_decay ** (L + 1 - j)."""
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


def delayed(groups: list[Group], model: nn.Module, at_once: Collection[str], steps: int) -> list[Group]:
    """The same groups, with all parameters of `model` but those named `at_once` kept still for the first `steps` steps."""
    if steps == 0:
        return groups
    learning = {id(parameter) for name, parameter in model.named_parameters() if name in at_once}
    parts: list[Group] = []
    for group in groups:
        scale, decay = group["lr_scale"], group["weight_decay"]
        first = [parameter for parameter in group["params"] if id(parameter) in learning]
        later = [parameter for parameter in group["params"] if id(parameter) not in learning]
        if first:
            parts.append(Group(params=first, lr_scale=scale, weight_decay=decay))
        if later:
            parts.append(Group(params=later, lr_scale=scale, weight_decay=decay, from_step=steps))
    return parts


def make_optimizer(groups: list[Group], optim: OptimConfig) -> torch.optim.AdamW:
    """Fused AdamW over the groups."""
    return torch.optim.AdamW([dict(group) for group in groups], betas=optim.betas, eps=optim.eps, fused=True)
