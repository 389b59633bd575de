"""Defaults of segmentation, chosen from the images, the initial weights and the device.

The official recipes are for ADE20K's 20,000 images and 160,000 steps (method 7.4). Their values are used if they fit;
for fewer images, smaller networks or CPUs, length, size and learning rate are scaled.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from beitkit.configs.choices import Choices, Facts, evaluate_every, narrowness
from beitkit.configs.train import resolved
from beitkit.runs.segment.config import SegmentRun

Origin = Literal["scratch", "pre-trained", "fine-tuned"]
PASSES = 80
"""Passes over the images that a run gets, within the limits in steps."""
STEPS = {"cpu": (300, 3_000), "mps": (1_000, 20_000), "cuda": (1_000, 160_000)}
"""Fewest and most steps that are chosen, by device; 160,000 are the official runs'."""
BATCH = {"cpu": 8, "mps": 16, "cuda": 16}
GRID = {"cpu": 16, "mps": 32, "cuda": 32}
"""Most patches along a side of a crop: 512 pixels with patches of 16 on a GPU, as in the official runs."""
RATES = {"scratch": 1e-3, "pre-trained": 7e-4, "fine-tuned": 3e-5}
"""For 16 images at the base size: the paper's SETR run, and the released configs for the other two starts."""
FROZEN_RATE = 1e-3
"""For 16 images where only the head learns (as DINOv2's linear evaluation)."""
FULL_DEPTH = 12
"""Networks of fewer blocks than the base size are too shallow for the official layer decay and drop path."""
WARMUP = 1_500


@dataclass(frozen=True, kw_only=True)
class SegmentFacts(Facts):
    """What the choices depend on."""

    start: Origin
    """Fresh weights, a masked-image model, or a network that was fine-tuned before."""


def choose_scenes(run: SegmentRun, found: SegmentFacts) -> tuple[SegmentRun, tuple[str, ...]]:
    """`run` with every open value decided by the facts alone, and a line for each with its option and its reason."""
    choices = Choices()
    image_size = choices.pick(None, "--image-size", _image_size(found)) if run.image_size is None else run.image_size
    batch_size = choices.pick(run.train.batch_size, "--batch-size", (min(BATCH[found.device], found.images), found.device))
    per_epoch = found.images / (batch_size * (run.loop.accumulate or 1))
    steps = run.train.steps
    if steps is None and run.train.epochs is None:
        steps = choices.pick(None, "--steps", _steps(found, per_epoch))
    length = steps if steps is not None else round(resolved(run.train.epochs) * per_epoch)
    train = replace(
        run.train,
        batch_size=batch_size,
        steps=steps,
        lr=choices.pick(run.train.lr, "--lr", _rate(found, is_frozen=run.freeze is True)),
    )
    optim = replace(
        run.optim,
        layer_decay=choices.pick(run.optim.layer_decay, "--optim.layer-decay", _layer_decay(found, is_frozen=run.freeze is True)),
    )
    if optim.warmup_epochs is None and optim.warmup_steps is None:
        warmup = min(WARMUP, length // 10), f"{WARMUP:,}, at most a tenth of the run"
        optim = replace(optim, warmup_steps=choices.pick(None, "--optim.warmup-steps", warmup))
    drop_path = choices.pick(run.drop_path, "--drop-path", _drop_path(found, is_frozen=run.freeze is True))
    loop = run.loop
    if run.patience is not None:
        every = choices.pick(loop.evaluate_every or None, "--loop.evaluate-every", evaluate_every(length))
        loop = replace(loop, evaluate_every=every)
    config = replace(run, image_size=image_size, train=train, optim=optim, drop_path=drop_path, loop=loop)
    return config, tuple(choices.lines)


def _image_size(found: SegmentFacts) -> tuple[int, str]:
    """The images' short side in whole pairs of patches (the pyramid halves the grid), within what the device can bear."""
    pair, most = 2 * found.patch, GRID[found.device] * found.patch
    side = max(2 * pair, min(found.side, most) // pair * pair)
    limit = f", at most {most} on {found.device}" if found.side > most else ""
    return side, f"images of {found.side} pixels, patches of {found.patch}{limit}"


def _steps(found: SegmentFacts, per_epoch: float) -> tuple[int, str]:
    least, most = STEPS[found.device]
    steps = min(max(round(PASSES * per_epoch), least), most)
    return steps, f"{PASSES} passes over {found.images} images, between {least} and {most} on {found.device}"


def _rate(found: SegmentFacts, *, is_frozen: bool) -> tuple[float, str]:
    """Narrow networks bear more; a head alone has nothing to spoil."""
    if is_frozen:
        return FROZEN_RATE, "frozen features, the head alone"
    rate = float(f"{RATES[found.start] * narrowness(found.width):.2g}")
    return rate, f"{found.start}, width {found.width}"


def _layer_decay(found: SegmentFacts, *, is_frozen: bool) -> tuple[float, str]:
    """Layer decay spares what is already good; fresh weights have nothing to spare."""
    if is_frozen or found.start == "scratch":
        return 1.0, "frozen features" if is_frozen else "from scratch"
    decay = 0.8 if found.depth < FULL_DEPTH else 0.65 if found.start == "pre-trained" else 0.9
    return decay, f"{found.start}, {found.depth} blocks"


def _drop_path(found: SegmentFacts, *, is_frozen: bool) -> tuple[float, str]:
    if is_frozen:
        return 0.0, "frozen features"
    return (0.0 if found.depth < FULL_DEPTH else 0.1 if found.depth == FULL_DEPTH else 0.2), f"{found.depth} blocks"
