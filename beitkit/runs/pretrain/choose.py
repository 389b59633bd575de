"""What a pre-training run leaves open: plain values, or with `init` milder ones, which spare what the file has learned.

Plain are those of the published code for a million images (method 2.4). A network that is already good has more to lose than to
learn: users who continued at a fresh run's rate ruined their features within an epoch, and found short runs better than long ones
(dinov2 issue 204: nearest neighbors from 80% to 10%; dino issue 284: 3 epochs better than 300). So there the rate is lower, least
in the lower blocks, the run shorter, and it is evaluated often, because the best evaluation becomes the finished model.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from beitkit.configs.choices import Choices
from beitkit.configs.model import SIZES, BackboneConfig, ImageSize, SizeName
from beitkit.configs.parts import DEFAULT_PATCH
from beitkit.configs.train import resolved
from beitkit.runs.pretrain.config import PretrainRun

DEFAULT_EPOCHS = 300
"""Length of the paper's ablations; its main runs took 800 epochs of 1.28 million images."""
PLAIN_SIZE: SizeName = "base"
PLAIN_IMAGE_SIZE = 224
PLAIN_LR, PLAIN_WARMUP = 1.5e-3, 10.0

CONTINUED_EPOCHS = DEFAULT_EPOCHS / 10
LR_SHARE = 1 / 3
WARMUP_SHARE = 0.1
"""Of the run: AdamW begins without moments, which the file does not hold."""
EVALUATIONS = 10
DEEP = 12
"""More blocks than this are spread over a flatter layer decay, as in fine-tuning."""
HEAD_SHARE, HEAD_LIMIT = 0.1, 1_000
"""A fresh head learns alone for this share of the run, at most this many steps."""


class OwnRate(NamedTuple):
    """How fast the run that made a network learned."""

    peak: float
    """Its highest learning rate, scaled to its batch."""
    batch: int
    """Images per optimizer step."""
    was_continued: bool
    """Whether it went on from another network itself, at a rate that spared it."""


@dataclass(frozen=True, kw_only=True)
class ContinuedFacts:
    """What the choices for a run with `init` depend on."""

    images: int
    backbone: BackboneConfig
    """Of the file, before it is resized."""
    own: OwnRate | None = None
    """Of the run that made it; None where that is not known."""

    @property
    def size(self) -> SizeName | None:
        """The name of the file's size, if it has one."""
        return next((name for name, size in SIZES.items() if is_of_size(self.backbone, name)), None)  # type: ignore[misc]


def is_of_size(backbone: BackboneConfig, name: str) -> bool:
    """Whether a backbone is as wide and deep as the size of this name says."""
    size = SIZES[name]
    return (backbone.width, backbone.depth, backbone.heads, backbone.hidden) == (size.width, size.depth, size.heads, size.hidden)


def choose(run: PretrainRun, found: ContinuedFacts | None) -> tuple[PretrainRun, tuple[str, ...]]:
    """`run` with every open value decided, and a line for each that has a reason; `found` is None without `init`."""
    if found is None:
        return _plain(run), ()
    choices = Choices()
    per_epoch = found.images / (resolved(run.train.batch_size) * (run.loop.accumulate or 1))
    epochs = run.train.epochs
    if run.train.steps is None:
        epochs = choices.pick(epochs, "--epochs", (CONTINUED_EPOCHS, f"a tenth of a fresh run's {DEFAULT_EPOCHS}"))
    steps = run.train.steps if run.train.steps is not None else max(1, round(resolved(epochs) * per_epoch))
    lr = choices.pick(run.train.lr, "--lr", _lr(run, found.own))
    warmup = run.optim.warmup_epochs
    if run.optim.warmup_steps is None:
        reason = "a tenth of the run, because AdamW begins without moments"
        warmup = choices.pick(warmup, "--optim.warmup-epochs", (WARMUP_SHARE * steps / per_epoch, reason))
    every = run.loop.evaluate_every or choices.pick(
        None,
        "--loop.evaluate-every",
        (max(1, round(steps / EVALUATIONS)), "a tenth of the run; the best evaluation, step 0 included, is kept"),
    )
    config = replace(
        run,
        size=run.size or found.size,
        patch=run.patch or found.backbone.patch[0],
        image_size=run.image_size or _side(found.backbone),
        train=replace(run.train, epochs=epochs, lr=lr),
        optim=replace(
            run.optim,
            warmup_epochs=PLAIN_WARMUP if warmup is None else warmup,
            layer_decay=choices.pick(run.optim.layer_decay, "--optim.layer-decay", _layer_decay(found.backbone.depth)),
        ),
        loop=replace(run.loop, evaluate_every=every),
    )
    return config, tuple(choices.lines)


def head_steps(run: PretrainRun, steps: int) -> tuple[int, str]:
    """For how many of a run's steps a fresh head learns alone, and why."""
    if run.head_steps is not None:
        return run.head_steps, "as given"
    return min(HEAD_LIMIT, round(HEAD_SHARE * steps)), f"a tenth of the run, at most {HEAD_LIMIT:,}"


def _plain(run: PretrainRun) -> PretrainRun:
    """The values of a run from fresh weights."""
    optim = run.optim if run.optim.warmup_epochs is not None else replace(run.optim, warmup_epochs=PLAIN_WARMUP)
    return replace(
        run,
        size=run.size or PLAIN_SIZE,
        patch=run.patch or DEFAULT_PATCH,
        image_size=run.image_size or PLAIN_IMAGE_SIZE,
        train=run.train if run.train.lr is not None else replace(run.train, lr=PLAIN_LR),
        optim=optim,
    )


def _side(backbone: BackboneConfig) -> ImageSize:
    height, width = backbone.image_size
    return height if height == width else (height, width)


def _lr(run: PretrainRun, own: OwnRate | None) -> tuple[float, str]:
    """A third of the rate that made the network, stated for the batch of `optim.lr_batch`."""
    if own is None:
        return PLAIN_LR * LR_SHARE, f"a third of a fresh run's {PLAIN_LR:g}, which would undo the start"
    stated = own.peak / run.optim.scale(own.batch)
    if own.was_continued:
        return stated, f"as its own run, which was continued itself ({own.peak:.3g} at {own.batch})"
    return stated * LR_SHARE, f"a third of its own run's, which would undo it ({own.peak:.3g} at {own.batch})"


def _layer_decay(depth: int) -> tuple[float, str]:
    """Milder than fine-tuning's, because the task stays the same."""
    return (0.9 if depth <= DEEP else 0.95), f"{depth} blocks; the lower ones, which suit most images, change least"
