"""One optimizer step after the other: forward passes, their gradients, clipping, the update, the average of the weights.

Nothing here waits for the device. Whether a step's loss and gradient are finite is decided there, and the update left out
there; the host reads what became of a step from an `Outcome` when it likes.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from beitkit.configs.train import OptimConfig
from beitkit.contracts import Batch, Loss
from beitkit.train.optim import Group, make_optimizer
from beitkit.train.runtime import SIGNALS, Runtime, StopRequest
from beitkit.train.schedule import Plan

SEED_STRIDE = 0x9E3779B97F4A7C15
"""Sets the random numbers of runs with neighboring seeds far apart."""


class WeightAverage:
    """Exponential moving average of a module's parameters (its buffers are not averaged)."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module = module
        self.decay = decay
        self.averages = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}

    @torch.no_grad()
    def update(self, share: float | Tensor = 1.0) -> None:
        """Move each average towards its parameter by 1 - decay, or by `share` of that (0 leaves it as it is)."""
        for name, parameter in self.module.named_parameters():
            self.averages[name].lerp_(parameter, (1 - self.decay) * share)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the averages and the module's parameters; a second call puts them back."""
        for name, parameter in self.module.named_parameters():
            kept = parameter.clone()
            parameter.copy_(self.averages[name])
            self.averages[name].copy_(kept)


class Reading(NamedTuple):
    """What became of a step, on the host, the same in all processes."""

    number: int
    """The step, counted from 1."""
    loss: float
    """Mean over the step's forward passes."""
    grad_norm: float
    """Total norm of the gradients before clipping."""
    signal_number: int | None
    """A signal that asks to stop and had arrived in some process."""

    @property
    def is_applied(self) -> bool:
        """Whether loss and gradient were finite; else the step changed nothing."""
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


class Outcome:
    """What became of a step, still on the device; reading it does not wait for steps that were begun later."""

    def __init__(self, number: int, losses: Sequence[Loss], values: Tensor) -> None:
        """`values` are the mean loss, the gradient norm, and how often each of `SIGNALS` had arrived; shape (2 + signals,)."""
        self.number = number
        self.losses = losses
        self.is_finite = values[:2].isfinite().all()
        """Whether the step was applied, as a bool tensor of shape ()."""
        self._copied = None
        if values.device.type == "cuda":
            values = torch.empty_like(values, device="cpu", pin_memory=True).copy_(values, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()
        self._values = values

    def read(self) -> Reading:
        """The numbers; waits until the step is done."""
        if self._copied is not None:
            self._copied.synchronize()
        loss, grad_norm, *counts = self._values.tolist()
        numbers = [number for number, count in zip(SIGNALS, counts, strict=True) if count]
        return Reading(self.number, loss, grad_norm, numbers[0] if numbers else None)


class Trainer:
    """An objective and what trains it."""

    def __init__(
        self,
        objective: nn.Module,
        groups: list[Group],
        *,
        plan: Plan,
        optim: OptimConfig,
        runtime: Runtime,
        passes: int,
        ema: float | None = None,
    ) -> None:
        """A trainer of `objective`, from `groups` of its parameters.

        Args:
            objective: module whose forward takes (batch, progress in [0, 1]) and returns a `Loss`.
            groups: parameters with their learning-rate factors and weight decay.
            plan: learning rates by step, the length of the run, and the seed.
            optim: the optimizer's constants.
            runtime: device, precision and processes.
            passes: forward passes of a step, of all processes together.
            ema: decay of the average of the weights; none is kept for 0 or None.
        """
        self.objective = objective
        self.optimizer: Optimizer = make_optimizer(groups, optim)
        self.average = WeightAverage(objective, ema) if ema else None
        self.passes = passes
        self.own_passes = passes // runtime.world
        """Forward passes of a step in this process."""
        self._parameters = [parameter for group in groups for parameter in group["params"]]
        self._limit = math.inf if optim.clip is None else optim.clip
        self._plan, self._runtime = plan, runtime
        self._trained = _averaging(objective, runtime.world)

    def step(self, stream: Iterator[Batch], done: int, stop: StopRequest) -> Outcome:
        """The step after `done` others; it changes nothing where its loss or gradient is not finite.

        Args:
            stream: this process's batches, from those of this step on.
            done: steps before this one.
            stop: what asks this process to stop, to be heard by all.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self._plan.lr_at(done) * group["lr_scale"]
        losses = self._forward_and_backward(stream, done)
        norm = nn.utils.clip_grad_norm_(self._parameters, self._limit, foreach=True)
        loss = torch.stack([loss.total.detach().to(norm) for loss in losses]).sum()
        signals = norm.new_tensor([float(stop.signal_number == number) for number in SIGNALS])
        together = self._runtime.processes.add_up(torch.cat([loss[None], signals]))
        outcome = Outcome(done + 1, losses, torch.cat([together[:1] / self.passes, norm[None], together[1:]]))
        # Fused AdamW leaves parameters, moments and its own count of steps as they are where this is 1.
        self.optimizer.found_inf = (~outcome.is_finite).float()  # type: ignore[attr-defined]
        self.optimizer.step()
        if self.average is not None:
            self.average.update(outcome.is_finite.float())
        self.optimizer.zero_grad(set_to_none=True)
        return outcome

    def _forward_and_backward(self, stream: Iterator[Batch], done: int) -> list[Loss]:
        """The losses of this process's forward passes, whose gradients are added up."""
        processes, losses = self._runtime.processes, []
        for own in range(self.own_passes):
            batch = next(stream)
            number = done * self.passes + own * processes.world + processes.rank
            # What a forward pass draws (drop path, Gumbel noise) depends on the seed and its number alone.
            torch.manual_seed((self._plan.seed * SEED_STRIDE + number) % 2**63)
            with _added_up(self._trained, is_last=own == self.own_passes - 1):
                with self._runtime.precision():
                    loss = self._trained(batch, done / self._plan.steps)
                # Gradients are then averaged over processes, so each scales by its own share of the passes.
                (loss.total / self.own_passes).backward()
            losses.append(loss)
        return losses


def _averaging(objective: nn.Module, world: int) -> nn.Module:
    """The objective, with gradients that are averaged over processes where there are several.

    Buffers are those of process 0, so an objective that counts must add up what all processes counted.
    """
    if world == 1:
        return objective
    # A 1x1 convolution's gradient may come with the strides of a matrix: the same numbers, nothing a user could do about it.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides", category=UserWarning)
    return DistributedDataParallel(objective)


def _added_up(trained: nn.Module, *, is_last: bool) -> AbstractContextManager[None]:
    """Where gradients of a pass are only added up, until those of a step's last pass are averaged over processes too."""
    return trained.no_sync() if isinstance(trained, DistributedDataParallel) and not is_last else nullcontext()
