"""Length of a run and learning rate of each step."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

from beitkit.configs.train import LoopConfig, OptimConfig, TrainConfig, resolved
from beitkit.errors import UserError

WARMUP_START = 1e-6
"""Factor on the learning rate at the first step of the linear schedule's warm-up (official segmentation configs)."""


class Schedule(NamedTuple):
    """A run's length, learning rates and seed, with everything turned into optimizer steps."""

    steps: int
    warmup: int
    images_per_step: int
    steps_per_epoch: float
    lr: float
    min_lr: float
    seed: int
    shape: Literal["cosine", "linear"] = "cosine"
    epochs_held: int | None = None
    """If set, the rate changes once per epoch (no warm-up); the value is the number of epochs."""

    def lr_at(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        if self.epochs_held is not None:
            epoch = step * self.images_per_step // round(self.steps_per_epoch * self.images_per_step)
            return cosine(epoch, self.epochs_held, 0, self.lr, self.min_lr)
        shape = cosine if self.shape == "cosine" else linear
        return shape(step, self.steps, self.warmup, self.lr, self.min_lr)

    def share_at(self, step: int, first: int) -> float:
        """Share of the learning rate at a step, counted from 0, for what learns from step `first` on: 0, then a warm-up."""
        if first == 0:
            return 1.0
        return min(1.0, max(0.0, (step - first + 1) / max(1, self.warmup)))


def make_schedule(train: TrainConfig, loop: LoopConfig, optim: OptimConfig, images: int, *, default_epochs: int) -> Schedule:
    """Convert epochs to steps and scale the learning rate to the batch size."""
    batch_size, lr = resolved(train.batch_size), resolved(train.lr)
    if batch_size > images:
        raise UserError(f"`batch_size` {batch_size} is more than there are images; give at most {images}")
    per_step = batch_size * (loop.accumulate or 1)
    steps_per_epoch = images / per_step
    epochs = default_epochs if train.epochs is None else train.epochs
    steps = train.steps if train.steps is not None else max(1, round(epochs * steps_per_epoch))
    if optim.warmup_steps is not None:
        warmup = optim.warmup_steps
        if warmup >= steps:
            raise UserError(f"a warm-up of {warmup} steps does not fit into a run of {steps}; give fewer `optim.warmup_steps`")
    else:
        warmup = min(round(resolved(optim.warmup_epochs) * steps_per_epoch), int(steps * optim.warmup_limit))
    scale = optim.scale(per_step)
    if optim.min_lr > lr:
        raise UserError(f"`optim.min_lr` {optim.min_lr:g} is above `lr` {lr:g}; lower it")
    return Schedule(steps, warmup, per_step, steps_per_epoch, lr * scale, optim.min_lr * scale, train.seed, optim.schedule)


def cosine(step: int, steps: int, warmup: int, base: float, final: float) -> float:
    """Linear warm-up from 0 to `base` (both reached), then a half cosine that ends just above `final` (method 4.3)."""
    if step < warmup:
        return base * step / max(1, warmup - 1)
    phase = (step - warmup) / (steps - warmup)
    return final + 0.5 * (base - final) * (1 + math.cos(math.pi * phase))


def linear(step: int, steps: int, warmup: int, base: float, final: float) -> float:
    """Linear from `base` at step 0 to `final` after the last one, times a linear warm-up from 1e-6 to 1.

    mmsegmentation's "poly" policy of power 1 with its linear warm-up (method 7.4): unlike with `cosine`, the decay starts at
    the first step, during the warm-up.
    """
    rate = final + (base - final) * (1 - step / steps)
    return rate if step >= warmup else rate * (1 - (1 - step / warmup) * (1 - WARMUP_START))


def is_due(done: int, every: int, steps: int) -> bool:
    """True after every `every`-th step and after the last; `every` = 0 means only after the last."""
    return done == steps or (every > 0 and done % every == 0)
