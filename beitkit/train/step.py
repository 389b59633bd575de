"""The three parts of an optimizer step: forward and backward passes, gradient clipping, update of weights and EMA.

Nothing here synchronizes with the device. Whether loss and gradients are finite is checked on the device, which skips the update
if not; the host reads the result of a step from a `StepResult` later. In float16 the loss is scaled, and a step whose gradients
overflow because of that is skipped in the same way, counted apart, and the scale is halved (`LossScale`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from beitkit.configs.train import OptimConfig
from beitkit.contracts import Batch, Loss
from beitkit.train.checkpoints.manifest import Piece
from beitkit.train.machine.runtime import SIGNALS, Runtime, StopRequest, rounding_once
from beitkit.train.optim import Group, make_optimizer
from beitkit.train.parallel import Parallel, parallel
from beitkit.train.schedule import Schedule

SEED_STRIDE = 0x9E3779B97F4A7C15
"""Keeps the random streams of neighboring seeds apart."""


class WeightAverage:
    """Exponential moving average (EMA) of parameters, or of this rank's rows of them."""

    def __init__(self, parameters: Mapping[str, Tensor], decay: float) -> None:
        self.parameters = parameters
        self.decay = decay
        self.averages = {name: parameter.detach().clone() for name, parameter in parameters.items()}

    @torch.no_grad()
    def update(self, share: float | Tensor = 1.0) -> None:
        """Move each average toward its parameter by 1 - decay, or by `share` of that (0 leaves it as it is)."""
        for name, parameter in self.parameters.items():
            self.averages[name].lerp_(parameter, (1 - self.decay) * share)


class LossScale:
    """The factor on the loss by which gradients fit into float16 (6e-8 to 65504), by the rule of `torch.amp.GradScaler`.

    Its constants are GradScaler's defaults. It is not used itself because what it looks at is each process's own gradients: where
    those are rows of sharded weights, the processes have to decide together, as they do by the norm of all.
    """

    FIRST = 2.0**16
    LEAST = 1.0
    """Gradients that overflow even below this are no fault of the scale."""
    GROWS_AFTER = 2000
    """Steps in a row that fit, after which it is doubled."""

    def __init__(self, device: torch.device) -> None:
        self.value = torch.full((), self.FIRST, device=device)
        """The scale, shape (); it stays on the device."""
        self.fitting = torch.zeros((), device=device)
        """Steps in a row that fit."""

    @torch.no_grad()
    def update(self, loss: Tensor, norm: Tensor) -> None:
        """Halve it after gradients that overflow though the loss does not, double it after many that do not overflow."""
        fits = norm.isfinite()
        overflows = loss.isfinite() & ~fits & (self.value >= self.LEAST)
        self.fitting.copy_(torch.where(overflows, 0.0, self.fitting + (fits & loss.isfinite())))
        grows = self.fitting >= self.GROWS_AFTER
        changed = torch.where(overflows, 0.5 * self.value, torch.where(grows, 2 * self.value, self.value))
        self.value.copy_(torch.where(changed.isfinite(), changed, self.value))
        self.fitting.copy_(torch.where(grows, 0.0, self.fitting))

    def state(self) -> dict[str, float]:
        """The numbers that a checkpoint keeps; waits for the device."""
        return {"loss_scale": self.value.item(), "loss_scale_fitting": self.fitting.item()}

    def restore(self, numbers: Mapping[str, float]) -> None:
        """Take those of a checkpoint; one of a run that scaled nothing has none, and changes nothing."""
        self.value.fill_(numbers.get("loss_scale", self.value.item()))
        self.fitting.fill_(numbers.get("loss_scale_fitting", self.fitting.item()))


class StepNumbers(NamedTuple):
    """Result of a step, on the host, equal on all ranks."""

    number: int
    """The step, counted from 1."""
    loss: float
    """Mean over the step's forward passes."""
    grad_norm: float
    """Total norm of the gradients before clipping."""
    signal_number: int | None
    """A signal to stop that has arrived on some rank."""
    scale: float = math.nan
    """By which the loss was multiplied for its gradients; NaN where it was not."""

    @property
    def is_applied(self) -> bool:
        """Whether loss and gradients were finite; else the step was skipped."""
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)

    @property
    def is_refused(self) -> bool:
        """Whether it was skipped because the scaled gradients were too large for float16, which says nothing against the step."""
        return math.isfinite(self.loss) and not math.isfinite(self.grad_norm) and self.scale >= LossScale.LEAST


class StepResult:
    """Result of a step, still on the device; reading it does not wait for later steps."""

    def __init__(self, number: int, losses: Sequence[Loss], values: Tensor) -> None:
        """`values`, of shape (3 + signals,), are the mean loss, the gradient norm, the scale, and how often each of `SIGNALS` had
        arrived."""
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

    def read(self) -> StepNumbers:
        """Copy to the host; waits until the step is done."""
        if self._copied is not None:
            self._copied.synchronize()
        loss, grad_norm, scale, *counts = self._values.tolist()
        numbers = [number for number, count in zip(SIGNALS, counts, strict=True) if count]
        return StepNumbers(self.number, loss, grad_norm, numbers[0] if numbers else None, scale)


class Trainer:
    """An objective with its optimizer, schedule and EMA."""

    def __init__(
        self,
        objective: nn.Module,
        groups: list[Group],
        *,
        schedule: Schedule,
        optim: OptimConfig,
        runtime: Runtime,
        accumulation_steps: int,
        ema: float | None = None,
    ) -> None:
        """A trainer of `objective`, from `groups` of its parameters, which is moved to the device; see `loop.fit` for both.

        `accumulation_steps`: forward passes per step, over all ranks; `ema`: decay of the EMA of the weights, 0 or None: no EMA.
        """
        name_of = {id(parameter): name for name, parameter in objective.named_parameters()}
        names = [[name_of[id(parameter)] for parameter in group["params"]] for group in groups]
        self.objective = objective
        self.parallel: Parallel = parallel(objective, runtime)
        held = self.parallel.parameters
        self.optimizer: Optimizer = make_optimizer(
            [{**group, "params": [held[name] for name in chosen]} for group, chosen in zip(groups, names, strict=True)], optim
        )
        self.average = WeightAverage(held, ema) if ema else None
        self.scale = LossScale(runtime.device) if runtime.is_scaled else None
        """In float16."""
        self.accumulation_steps = accumulation_steps
        self.own_accumulation_steps = accumulation_steps // runtime.world_size
        """Forward passes per step on this rank."""
        self.learning = {name: held[name] for chosen in names for name in chosen}
        """The optimizer's parameters, by name."""
        self._changed_by_forward = [*self.parallel.buffers.values(), *self.parallel.rewritten]
        self._before = [tensor.detach().clone() for tensor in self._changed_by_forward]
        # Weights that a forward pass writes have to be rounded again for the next one.
        self._passes_alike = 1 if self.parallel.rewritten else self.own_accumulation_steps
        self._limit = math.inf if optim.clip is None else optim.clip
        self._schedule, self._runtime = schedule, runtime

    def forward_backward(self, stream: Iterator[Batch], done: int) -> list[Loss]:
        """Forward and backward passes of this rank on the next batches, after `done` steps; gradients are on the parameters.

        What forward passes change (statistics of batch norm, codes and their counts) is kept until `update`.
        """
        processes, losses = self._runtime.processes, []
        for before, tensor in zip(self._before, self._changed_by_forward, strict=True):
            before.copy_(tensor.detach())
        with rounding_once(self._runtime.device.type, self._passes_alike):
            for own in range(self.own_accumulation_steps):
                batch = next(stream)
                number = done * self.accumulation_steps + own * processes.world_size + processes.rank
                # Random draws of a forward pass (drop path, Gumbel noise) depend on the seed and its number only.
                torch.manual_seed((self._schedule.seed * SEED_STRIDE + number) % 2**63)
                with self.parallel.no_sync(is_last=own == self.own_accumulation_steps - 1):
                    with self._runtime.precision():
                        loss = self.parallel.module(batch, done / self._schedule.steps)
                    # Gradients are averaged over ranks afterward, so each rank divides by its own number of passes.
                    total = loss.total / self.own_accumulation_steps
                    (total if self.scale is None else total * self.scale.value).backward()
                losses.append(loss)
        self.parallel.take_gradients()
        for group in self.optimizer.param_groups:
            if done < group.get("from_step", 0):  # without a gradient neither the clipping nor AdamW knows the parameter
                for parameter in group["params"]:
                    parameter.grad = None
        return losses

    def clip(self) -> Tensor:
        """Divide the gradients by the scale, if there is one, and have `update` clip them by total norm, which it returns."""
        gradients = [parameter.grad for parameter in self.learning.values() if parameter.grad is not None]
        if self.scale is not None:
            torch._foreach_mul_(gradients, self.scale.value.reciprocal())  # pyright: ignore[reportPrivateImportUsage] - exact, as a scale is a power of 2
        norm = self.parallel.norm(gradients)
        if self._limit < math.inf:
            # Fused AdamW divides by this where it reads the gradients; a pass over them less.
            self.optimizer.grad_scale = (norm / self._limit).clamp(min=1)  # type: ignore[attr-defined]
        return norm

    def update(self, losses: Sequence[Loss], norm: Tensor, done: int, stop: StopRequest) -> StepResult:
        """Update weights (AdamW) and EMA; if loss or gradients are not finite on any rank, all tensors stay as before the step.

        `losses` are those of `forward_backward`, `norm` is that of `clip`; a signal in `stop` is sent to all ranks.
        """
        loss = torch.stack([loss.total.detach().to(norm) for loss in losses]).sum()
        # Filled on the device: a tensor made of Python numbers would be copied from memory that the copy has to wait for.
        signals = norm.new_zeros(len(SIGNALS))
        for place, number in enumerate(SIGNALS):
            if number == stop.signal_number:
                signals[place].fill_(1)
        together = self._runtime.processes.all_reduce(torch.cat([loss[None], signals]))
        mean = together[:1] / self.accumulation_steps
        scale = norm.new_full((), math.nan) if self.scale is None else self.scale.value
        result = StepResult(done + 1, losses, torch.cat([mean, norm[None], scale[None], together[1:]]))
        if self.scale is not None:
            self.scale.update(mean[0], norm)
        for group in self.optimizer.param_groups:
            share = self._schedule.share_at(done, group.get("from_step", 0))
            group["lr"] = self._schedule.lr_at(done) * group["lr_scale"] * share
        # Fused AdamW skips parameters, moments and its step count if this is 1.
        self.optimizer.found_inf = (~result.is_finite).float()  # type: ignore[attr-defined]
        self.optimizer.step()
        self._undo_forward_unless(result.is_finite)
        if self.average is not None:
            self.average.update(result.is_finite.float())
        self.optimizer.zero_grad(set_to_none=True)
        return result

    @torch.no_grad()
    def abandon(self) -> None:
        """Leave everything as before a step whose `forward_backward` has failed."""
        for before, tensor in zip(self._before, self._changed_by_forward, strict=True):
            tensor.copy_(before)
        self.optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def _undo_forward_unless(self, is_finite: Tensor) -> None:
        """Put back what the forward passes changed if the step is skipped; decided on the device."""
        for before, tensor in zip(self._before, self._changed_by_forward, strict=True):
            tensor.copy_(torch.where(is_finite, tensor, before))

    @contextmanager
    def full_weights(self) -> Iterator[None]:
        """Inside, the objective of rank 0 has the weights that the run would end with here (the EMA, if any); collective.

        With sharded weights the objectives of other ranks stay empty.
        """
        self.finish()
        try:
            yield
        finally:  # a save after a failure must store the training weights, not their EMA
            self.parallel.release_weights(self._result)

    def finish(self) -> None:
        """Leave the final weights, the EMA if there is one, in the objective of rank 0."""
        self.parallel.gather_weights(self._result)

    def not_finite(self) -> list[str]:
        """Names of the final weights and buffers with numbers that are not finite; collective."""
        tensors = {**self._result, **self.parallel.buffers}
        bad = self.parallel.sum(torch.stack([(~tensor.isfinite()).sum().float() for tensor in tensors.values()]))
        return [name for name, count in zip(tensors, bad.tolist(), strict=True) if count]

    @property
    def _result(self) -> dict[str, Tensor]:
        return {**self.parallel.parameters} if self.average is None else self.average.averages

    def state(self) -> dict[str, Piece]:
        """The training state by name: this rank's piece of every tensor, not copied."""
        pieces = {f"buffer.{name}": Piece(buffer, tuple(buffer.shape)) for name, buffer in self.parallel.buffers.items()}
        for name, parameter in self.parallel.parameters.items():
            pieces[f"parameter.{name}"] = self.parallel.shard_of(name, parameter.detach())
            if self.average is not None:
                pieces[f"average.{name}"] = self.parallel.shard_of(name, self.average.averages[name])
        for name, parameter in self.learning.items():
            for part, tensor in self._moments(parameter).items():
                pieces[f"{part}.{name}"] = self.parallel.shard_of(name, tensor)
        return pieces

    def _moments(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """AdamW's state of a parameter; before the first step, its initial state."""
        state = self.optimizer.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        return state
