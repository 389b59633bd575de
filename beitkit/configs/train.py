"""Configs of training: length, optimizer, loop and machine."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import replace
from typing import Annotated, Literal, TypeVar, get_args

from tyro.constructors import PrimitiveConstructorSpec

from beitkit.configs.bounds import (
    Bounds,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    PositiveShare,
    Seed,
    ShareBelowOne,
    config,
)
from beitkit.configs.codec import later
from beitkit.errors import UserError

Value = TypeVar("Value")
DeviceKind = Literal["cuda", "mps", "cpu"]
Sharding = Literal["auto", "none", "full"]
SinkName = Literal["tensorboard", "wandb", "trackio", "mlflow"]
Form = Literal["off", "blocks", "objective"]
"""What of a training step is compiled."""


@config()
class TrainConfig:
    """What most people change: how long, how much at once, how fast."""

    epochs: PositiveFloat | None = None
    """Passes over the images; None takes what the verb says."""
    steps: PositiveInt | None = None
    """Optimizer steps, instead of `epochs`."""
    batch_size: PositiveInt | None = 64
    """Images per forward pass."""
    lr: PositiveFloat | None = 1.5e-3
    """Peak learning rate at a batch of `optim.lr_batch` images, scaled to yours."""
    seed: Seed = 0
    """Fixes first weights, order, crops and masks."""

    def __post_init__(self) -> None:
        if self.epochs is not None and self.steps is not None:
            raise UserError(f"give `epochs` or `steps`, not both (got {self.epochs:g} epochs and {self.steps} steps)")


@config("optim")
class OptimConfig:
    """AdamW and its schedule: linear warm-up, then a half cosine or a straight line down, every step."""

    schedule: Literal["cosine", "linear"] = "cosine"
    """How the rate falls after the warm-up: half a cosine, or linearly over the whole run (segmentation: "poly" of power 1)."""

    lr_batch: PositiveInt = 2048
    """Images per optimizer step that `lr` is stated for."""
    lr_scaling: Literal["linear", "sqrt", "none"] = "sqrt"
    """How the peak follows the batch: lr * (batch / lr_batch), times the root of that ratio, or not at all."""
    min_lr: NonNegativeFloat = 1e-5
    """Learning rate at the end, before scaling."""
    warmup_epochs: NonNegativeFloat | None = 10.0
    """Linear warm-up from 0, in epochs."""
    warmup_limit: Annotated[float, Bounds(gt=0, lt=1)] = 0.1
    """Largest share of the run that a warm-up stated in epochs takes: 10 of 800 epochs is a warm-up, 10 of 20 is not."""
    warmup_steps: NonNegativeInt | None = None
    """Linear warm-up in steps, instead of epochs."""
    weight_decay: NonNegativeFloat = 0.05
    """Decay of matrices; vectors have none."""
    betas: tuple[ShareBelowOne, ShareBelowOne] = (0.9, 0.999)
    """Decay of AdamW's first and second moments."""
    eps: PositiveFloat = 1e-8
    """AdamW's guard against division by zero."""
    layer_decay: PositiveShare | None = None
    """Each block below the top learns this much slower than the one above it; None takes what the verb says."""
    clip: PositiveFloat | None = 3.0
    """Largest total gradient norm; None does not clip."""

    def scale(self, batch: int) -> float:
        """Factor on lr and min_lr for a batch of this many images per optimizer step."""
        share = batch / self.lr_batch
        return {"linear": share, "sqrt": share**0.5, "none": 1.0}[self.lr_scaling]


@config("loop")
class LoopConfig:
    """What the loop does besides stepping: accumulate, average, log, evaluate, save."""

    accumulate: PositiveInt | None = None
    """Forward passes per optimizer step, of all processes together; None takes one of each process."""
    ema: ShareBelowOne | None = None
    """Decay of a moving average of the weights, which is then the finished model; 0 keeps none."""
    log_every: NonNegativeInt = 20
    """Steps between log lines."""
    evaluate_every: NonNegativeInt = 0
    """Steps between evaluations; 0 evaluates at the end only."""
    save_every: NonNegativeInt = 500
    """Steps between checkpoints; 0 saves at the end only."""
    max_bad_steps: PositiveInt = 3
    """Steps whose loss or gradient is not finite are not applied. After this many in a row a run goes back to the last checkpoint
    before them, and on with the images after theirs. Those for which only float16's scale was too large do not count."""
    max_setbacks: NonNegativeInt = later(2)
    """How often it goes back so before it stops."""
    check_contents: Literal["sizes", "digests", "off"] = later("sizes")
    """What is compared of the image files where a run is continued: their sizes and times, digests of all their bytes, or
    nothing."""

    def shared_by(self, processes: int) -> LoopConfig:
        """The same with `accumulate` as a number that this many processes share evenly.

        Raises:
            UserError: if they cannot.
        """
        accumulation_steps = processes if self.accumulate is None else self.accumulate
        if accumulation_steps % processes:
            nearest = max(1, round(accumulation_steps / processes)) * processes
            raise UserError(
                f"`loop.accumulate={accumulation_steps}` cannot be shared evenly by {processes} processes; nearest: {nearest} "
                "(it counts the forward passes of all processes together)"
            )
        return replace(self, accumulate=accumulation_steps)


@config()
class MachineConfig:
    """Where the arithmetic happens, and who reads the images."""

    device: Literal["auto"] | DeviceKind = "auto"
    """auto takes CUDA, then MPS, then the CPU."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto takes bfloat16 where the hardware multiplies in it, float16 on older NVIDIA GPUs, else float32. In float16 the loss is
    scaled for its gradients."""
    threads: NonNegativeInt = 0
    """CPU threads; 0 takes the cores this process may use."""
    workers: Annotated[int, Bounds(ge=-1)] = -1
    """Processes that read images; -1 chooses by the cores, 0 reads in the main process."""


@config("speed")
class SpeedConfig:
    """How training computes the blocks of the network; none of it changes what is computed, but for rounding."""

    compile: Literal["auto", "on", "off"] = "auto"
    """Let PyTorch compile the training step, which takes a minute or more at the start: on one GPU as a whole, else its blocks.
    auto compiles long runs on GPUs, and tries on CPUs, in a minute at the start of long runs, whether it is faster."""
    recompute: bool = False
    """Keep only what goes into each block, and compute the rest a second time for the gradients (activation checkpointing):
    a third more work, far less memory."""
    sharding: Sharding = "auto"
    """Where there are several processes: full shares weights, gradients and moments out over them (FSDP2), none gives each all
    of them (DDP); auto takes full for networks of 300 million parameters or more."""


Part = Literal["patch_embed", "positions", "tokens", "blocks", "attn", "mlp", "norms"]
"""Of a backbone: the patch projection; absolute positions and position biases; class and mask token; the blocks, or of each its
attention, its MLP or its LayerNorms (the names are timm's)."""
Freeze = Annotated[
    bool | tuple[Part, ...],
    Bounds(is_distinct=True),
    PrimitiveConstructorSpec(
        nargs="*",
        metavar="[" + "|".join(get_args(Part)) + " ...]",
        instance_from_str=lambda names: tuple(names) or True,  # type: ignore[arg-type] - choices are checked before
        is_instance=lambda value: isinstance(value, bool | tuple),
        str_from_instance=lambda value: list(value) if isinstance(value, tuple) else [str(value)],
        choices=get_args(Part),
    ),
]
"""Parts that do not learn; True is the whole backbone, for which the command line takes the option without a value."""


@config()
class LightConfig:
    """Which weights learn, where a network goes on from given ones."""

    train_blocks: str | None = None
    """Train the last blocks only, and what is above them: last:4 is four. None trains all."""
    lora_rank: PositiveInt | None = None
    """Train low-rank adapters of this rank (LoRA) in place of the weights of the blocks; saved models have them merged."""
    lora_alpha: PositiveFloat | None = None
    """Adapters count `lora_alpha` / `lora_rank` times; None takes the rank itself."""

    def __post_init__(self) -> None:
        if self.train_blocks is not None and not re.fullmatch("last:[1-9][0-9]{0,3}", self.train_blocks):
            raise UserError(
                f"`train_blocks` must be last:N, such as last:4 for the last four blocks, got {self.train_blocks!r}; for the "
                "head alone give `freeze`"
            )
        if self.lora_alpha is not None and self.lora_rank is None:
            raise UserError("`lora_alpha` scales low-rank adapters; give `lora_rank` with it, or leave it out")

    @property
    def last(self) -> int | None:
        """How many of the last blocks learn; None: all."""
        return None if self.train_blocks is None else int(self.train_blocks.removeprefix("last:"))


def check_light(light: LightConfig, freeze: Freeze) -> None:
    """Raise a `UserError` where what is to learn is said to be frozen as well."""
    whole = freeze is True or (isinstance(freeze, tuple) and "blocks" in freeze)
    if light.train_blocks is not None and whole:
        raise UserError("`freeze` keeps all blocks as they are, `train_blocks` trains some; leave one out")
    if light.lora_rank is not None and freeze is not False:
        raise UserError("`lora_rank` keeps all of the network but its head as it is, beside the adapters; leave `freeze` out")


def check_scratch(light: LightConfig, freeze: Freeze) -> None:
    """Raise a `UserError` for a run from scratch in which weights are to stay as they are."""
    for name, given in (("freeze", freeze), ("train_blocks", light.train_blocks), ("lora_rank", light.lora_rank)):
        if given:
            raise UserError(f"`{name}` keeps the features of `model`; with `scratch` there are none worth keeping")


def resolved(value: Value | None) -> Value:
    """The value of an option that is given, or was chosen by `runs.finetune.choose`, before anything reads it."""
    assert value is not None
    return value


def check_given(train: TrainConfig, optim: OptimConfig, chosen: Collection[str] = ()) -> None:
    """Raise a `UserError` for what is left open, but for what the verb chooses."""
    undecided = {"batch_size": train.batch_size, "lr": train.lr, "optim.warmup_epochs": optim.warmup_epochs}
    for name, value in undecided.items():
        if value is None and name not in chosen:
            raise UserError(f"`{name}=None` has no meaning here, only beitkit.finetune chooses; give a number")
