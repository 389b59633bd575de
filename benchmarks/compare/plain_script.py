"""Plain training loop for other libraries' networks: autocast and PyTorch's AdamW with its defaults."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from beitkit.configs.train import OptimConfig
from beitkit.train.machine.runtime import Runtime
from benchmarks.compare.turns import Step
from benchmarks.compare.workload import LEARNING_RATE


def trained(model: nn.Module, loss_of: Callable[[], Tensor], runtime: Runtime, clip: float | None) -> Step:
    """An optimizer step: forward in the run's precision, backward, gradients clipped to `clip` if not None, AdamW."""
    optim = OptimConfig()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, betas=optim.betas, eps=optim.eps, weight_decay=optim.weight_decay
    )

    def step() -> None:
        with runtime.precision():
            loss = loss_of()
        loss.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad()

    return step


def probabilities(logits_of: Callable[[], Tensor], precision: Callable[[], AbstractContextManager[None]]) -> Step:
    """The softmax of a network's logits, without gradients."""

    def step() -> Tensor:
        with torch.no_grad(), precision():
            return logits_of().float().softmax(dim=1)

    return step
