"""How long, how fast, on what: the loop, the optimizer and the device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from beitkit.errors import UserError


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW and its schedules (facts: per-step cosine with linear warm-up)."""

    lr: float = 1.5e-3
    """Peak learning rate at a batch of --lr-batch pictures."""
    lr_batch: int = 2048
    """Batch that --lr is stated for."""
    lr_scaling: Literal["linear", "sqrt", "none"] = "sqrt"
    """How the peak follows the batch: lr * (batch / lr_batch), its square root, or not at all."""
    min_lr: float = 1e-5
    """Learning rate at the end, before scaling."""
    warmup_epochs: float = 10
    """Linear warm-up from 0, in epochs; at most a tenth of a short run unless --warmup-steps is given."""
    warmup_steps: int | None = None
    """Linear warm-up in steps; overrides --warmup-epochs."""
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    layer_decay: float = 1.0
    """Each block below the top learns this much slower than the one above it (fine-tuning)."""
    clip: float | None = 3.0
    """Largest total gradient norm; None does not clip."""

    def __post_init__(self) -> None:
        if self.lr <= 0 or self.min_lr < 0 or self.min_lr > self.lr:
            raise UserError(f"learning rates must satisfy 0 <= min_lr <= lr and lr > 0, got lr {self.lr}, min_lr {self.min_lr}")
        if self.warmup_epochs < 0 or (self.warmup_steps or 0) < 0:
            raise UserError(f"warm-up must not be negative, got {self.warmup_epochs} epochs, {self.warmup_steps} steps")
        if not 0 < self.layer_decay <= 1:
            raise UserError(f"layer_decay must lie in (0, 1], got {self.layer_decay}")
        if self.clip is not None and self.clip <= 0:
            raise UserError(f"clip must be positive, or None, got {self.clip}")
        if self.lr_batch < 1:
            raise UserError(f"lr_batch must be at least 1, got {self.lr_batch}")

    def scale(self, batch: int) -> float:
        """Factor on lr and min_lr for a batch of this many pictures per optimizer step."""
        share = batch / self.lr_batch
        return {"linear": share, "sqrt": share**0.5, "none": 1.0}[self.lr_scaling]


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How long to train, and how often to log, evaluate and save."""

    epochs: float | None = None
    """Length of the run in passes over the pictures."""
    steps: int | None = None
    """Length of the run in optimizer steps; instead of --epochs."""
    batch_size: int = 64
    """Pictures per forward pass."""
    accumulate: int = 1
    """Forward passes per optimizer step."""
    seed: int = 0
    ema: float | None = None
    """Decay of an exponential moving average of the weights, which is then the finished model; None keeps none."""
    log_every: int = 20
    """Steps between log lines."""
    evaluate_every: int = 0
    """Steps between evaluations; 0 evaluates at the end only."""
    save_every: int = 500
    """Steps between checkpoints; 0 saves at the end only."""
    max_bad_steps: int = 3
    """Stop after this many steps in a row whose loss or gradient is not finite; such steps are not applied."""

    def __post_init__(self) -> None:
        if self.epochs is not None and self.steps is not None:
            raise UserError(f"give --epochs or --steps, not both (got {self.epochs} epochs and {self.steps} steps)")
        if (self.epochs is not None and self.epochs <= 0) or (self.steps is not None and self.steps < 1):
            raise UserError(f"a run needs a positive length, got {self.epochs} epochs, {self.steps} steps")
        for name in ("batch_size", "accumulate", "max_bad_steps"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}")
        for name in ("log_every", "evaluate_every", "save_every", "seed"):
            if getattr(self, name) < 0:
                raise UserError(f"--{name.replace('_', '-')} must not be negative, got {getattr(self, name)}")
        if self.ema is not None and not 0 < self.ema < 1:
            raise UserError(f"--ema must lie between 0 and 1, got {self.ema}")


@dataclass(frozen=True, kw_only=True)
class DeviceConfig:
    """Where the arithmetic happens."""

    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"
    """auto takes CUDA, then MPS, then the CPU."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto takes bfloat16 autocast where the hardware multiplies in it."""
    threads: int = 0
    """CPU threads; 0 takes the cores this process may use."""

    def __post_init__(self) -> None:
        if self.threads < 0:
            raise UserError(f"--threads must be 0 or more, got {self.threads}")
