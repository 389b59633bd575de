"""Low-rank adapters of linear layers (LoRA, arXiv 2106.09685, section 4.1; method 4.4)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from beitkit.errors import UserError


class LoRALinear(nn.Linear):
    """W x + b + scale B A x, of which A and B learn; W and b are those of a given layer, and stay as they are.

    B starts at zero, so the layer starts as the given one. A is drawn as in the official code (and PEFT): uniform, with the bound
    1 / sqrt(inputs).
    """

    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        """`rank` is the number of rows of A, `alpha` / `rank` the scale.

        Raises:
            UserError: if the layer has fewer inputs or outputs than `rank`.
        """
        nn.Module.__init__(self)  # a linear layer's own would draw weights
        self.in_features, self.out_features = base.in_features, base.out_features
        if rank > min(self.in_features, self.out_features):
            raise UserError(
                f"`lora_rank` must be at most {min(self.in_features, self.out_features)}, as a layer of this network has "
                f"{self.in_features} inputs and {self.out_features} outputs; got {rank}"
            )
        self.weight, self.bias = base.weight.requires_grad_(False), base.bias
        if self.bias is not None:
            self.bias.requires_grad_(False)
        self.lora_A = nn.Parameter(base.weight.new_empty(rank, self.in_features))
        self.lora_B = nn.Parameter(base.weight.new_zeros(self.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        self.scale = alpha / rank

    def forward(self, input: Float[Tensor, "*n inputs"]) -> Float[Tensor, "*n outputs"]:
        """The layer's outputs."""
        return linear(self, input, self.bias)

    @torch.no_grad()
    def merged(self) -> Float[Tensor, "outputs inputs"]:
        """Weight of the plain layer that computes the same: W + scale B A."""
        return self.weight + self.scale * (self.lora_B @ self.lora_A)


def linear(
    layer: nn.Linear, x: Float[Tensor, "*n inputs"], bias: Float[Tensor, " outputs"] | None
) -> Float[Tensor, "*n outputs"]:
    """A layer's outputs with this bias in place of its own, adapters included."""
    outputs = F.linear(x, layer.weight, bias)
    if isinstance(layer, LoRALinear):
        outputs = outputs + layer.scale * F.linear(F.linear(x, layer.lora_A), layer.lora_B)
    return outputs


def add_adapters(module: nn.Module, rank: int, alpha: float) -> None:
    """Put a `LoRALinear` in the place of every linear layer inside `module`, in the order of their names.

    Raises:
        UserError: if `rank` is more than a layer's inputs or outputs.
    """
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, LoRALinear(child, rank, alpha))


def merged_state(model: nn.Module) -> dict[str, Tensor]:
    """A network's `state_dict` without adapters: they are added to the weights, whose names are the ordinary ones."""
    state = model.state_dict()
    for name, layer in model.named_modules():
        if isinstance(layer, LoRALinear):
            del state[f"{name}.lora_A"], state[f"{name}.lora_B"]
            state[f"{name}.weight"] = layer.merged()
    return state
