"""The rules of `beitkit run`: what a stage is made of, and how long it is, by images, speed and the time that is left.

Small images follow decision 012 (k-means tokens, small patches, scattered masks, shifts instead of crops); for larger ones the
plain recipe of pre-training is cut to what the machine can do. What fine-tuning leaves open is chosen by its own rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from beitkit.configs.choices import narrowness
from beitkit.configs.data import NO_AUGMENT, ColumnsConfig, ImageColumnConfig, MaskConfig, ViewConfig
from beitkit.configs.model import SIZES, BackboneConfig, ImageSize, Pair, SizeName, as_pair
from beitkit.configs.parts import NetworkConfig
from beitkit.configs.tokenizer import KMeansConfig
from beitkit.configs.train import DeviceKind, LoopConfig, OptimConfig, TrainConfig
from beitkit.errors import UserError
from beitkit.runs.finetune.choose import SMALL_IMAGES
from beitkit.runs.pipeline.config import PipelineRun
from beitkit.runs.pretrain.config import PretrainRun
from beitkit.runs.tokenizer.config import TokenizerRun
from beitkit.runs.verdict.config import SCRATCH, VerdictRun


class PipelineStage(Enum):
    """The stages in their order: share of the budget, and what they do."""

    AUDIT = 0.04, "what is in the images: broken, odd, twice there"
    TOKENIZER = 0.05, "a visual token for each patch"
    PRETRAIN = 0.48, "predict the tokens of hidden patches, without labels"
    PROBE = 0.03, "what frozen features of each block know of the classes"
    VERDICT = 0.26, "the same fine-tuning from each start, and simple methods beside"
    FINETUNE = 0.10, "the best start with all labels"
    EXPORT = 0.04, "a program that runs without beitkit"


SHARES = {stage.name.lower(): stage.value[0] for stage in PipelineStage}
"""Of the budget. A stage gets its share of the time that is left, by its part of the shares that are left, so what one stage
spares or takes too much is spread over the others."""
WORDS = {stage.name.lower(): stage.value[1] for stage in PipelineStage}
UNLABELED = tuple(SHARES)[:3]
"""The stages without labels."""
CELLS = 8
"""Patches along a side: of small images, and of larger ones on a CPU."""
PATCH = 16
LARGEST = {"cpu": 128, "mps": 224, "cuda": 224}
"""Side that larger images are shown with in pre-training."""
CANDIDATES: tuple[SizeName, ...] = ("micro", "tiny", "small", "base", "large")
"""Sizes of networks, the smallest first."""
LEAST_DEPTH = 4
"""Blocks of a network that becomes a segmenter, which reads the maps of four: nano has them, micro has not."""
ENOUGH_PASSES, ENOUGH_STEPS = 20, 2_000
"""A larger network is taken only if it still sees all images this often, and makes so many steps."""
BATCH = 64
FAST_RATE = 6e-3
"""For 64 images, of networks up to `micro` (decision 012); larger ones take the plain rate by their width."""
LEAST_STEPS = 20
"""Fewer steps than this are no training, whatever the budget."""
LABELS_PER_SECOND = 2.0
"""Labeled images of the verdict, and images to compare on, by second of the budget: about 10 ms each and seed are what the floors
take (docs/guide/verdict.md), which is then a fourteenth of the time."""
SCENES_PER_SECOND = 0.2
FLOOR_SECONDS, SCENE_SECONDS = 0.012, 0.15
"""What a labeled image, or a scene, costs the floors for each seed, where they are not timed."""
AUDITED_PER_SECOND, LEAST_AUDITED = 300, 200
"""Images that are audited, by second of that stage's time; of more a sample."""
PATCHES_PER_SECOND = 200
"""Patches that the tokenizer is made from, by second of the budget."""
WINDOW_BYTES = 2**28
"""Most memory that they may take."""
SEEDS = 3
SHORT_STEPS = 100
"""Fewer steps than this for each training of the verdict: then it has fewer seeds."""
LONG_STEPS, LONG_PASSES = 2_000, 60
"""More steps than both are not taken in fine-tuning, whatever the budget."""


class Shape(NamedTuple):
    """How images are shown to tokenizer and network."""

    image_size: ImageSize
    patch: int
    is_small: bool
    reason: str

    @property
    def cells(self) -> Pair:
        """Patches per column and row."""
        height, width = as_pair(self.image_size)
        return height // self.patch, width // self.patch


@dataclass(frozen=True, kw_only=True)
class PipelineFacts:
    """What the choices depend on."""

    images: int
    """To pre-train on."""
    side: int
    """Median of their shorter sides, in pixels."""
    device: DeviceKind
    is_dense: bool = False
    """Whether the labels are masks."""
    init: BackboneConfig | None = None


class Pace(NamedTuple):
    """Measured seconds of a training on real images."""

    first: float
    """Of a step while images are seen for the first time."""
    later: float
    """Of a step once small ones are held in memory."""
    overhead: float
    """Of everything but the steps: finding images, evaluation, report."""
    batch: int
    """Images of a step."""

    def steps(self, seconds: float, per_pass: float) -> int:
        """How many steps fit, of which the first `per_pass` are a first pass."""
        left = seconds - self.overhead
        if left <= per_pass * self.first:
            return max(LEAST_STEPS, int(left / self.first))
        return max(LEAST_STEPS, int(per_pass + (left - per_pass * self.first) / self.later))


class Rounds(NamedTuple):
    """How the trainings of a verdict share their time."""

    seeds: int
    steps: int


def share_of(stage: str, stages: Sequence[str], left: float) -> float:
    """Seconds for a stage of those that are left, with `stages` still to come."""
    rest = stages[stages.index(stage) :]
    return max(0.0, left) * SHARES[stage] / sum(SHARES[one] for one in rest)


def shape_of(found: PipelineFacts) -> Shape:
    """Image size and patch."""
    if found.init is not None:
        height, width = found.init.image_size
        size = height if height == width else (height, width)
        return Shape(size, max(found.init.patch), max(height, width) <= SMALL_IMAGES, "as the network that it goes on from")
    if found.side <= SMALL_IMAGES:
        patch = max(2, round(found.side / CELLS))
        cells = max(2, round(found.side / patch))
        return Shape(cells * patch, patch, is_small=True, reason=f"images of {found.side} pixels, {cells} patches a row")
    patch = PATCH // 2 if found.is_dense else PATCH
    largest = LARGEST[found.device]
    size = min(found.side, largest) // PATCH * PATCH
    what = "masks name pixels" if found.is_dense else f"at most {largest} on {found.device}"
    return Shape(size, patch, is_small=False, reason=f"images of {found.side} pixels, {what}")


def tokenizer_run(config: PipelineRun, shape: Shape) -> TokenizerRun:
    """k-means of patches, a token for each patch."""
    margin = 2 if shape.is_small else shape.patch // 4
    window = (shape.patch + 2 * margin) ** 2 * 3 * 4
    patches = min(200_000, WINDOW_BYTES // window, max(10_000, int(PATCHES_PER_SECOND * config.seconds)))
    return TokenizerRun(
        config.images,
        out=config.out / "tokenizer",
        kind="kmeans",
        image_size=shape.image_size,
        train=replace(TokenizerRun.train, seed=config.seed),
        machine=config.machine,
        kmeans=KMeansConfig(vocabulary=256 if shape.is_small else 512, stride=shape.patch, margin=margin, patches=patches),
        view=view_of(shape) if shape.is_small else TokenizerRun.view,
        read=config.read,
        columns=ImageColumnConfig(image=config.columns.image),
    )


def view_of(shape: Shape) -> ViewConfig:
    """Small images are moved a little; of larger ones crops are shown."""
    return ViewConfig(shift=max(1, shape.patch // 2), color_jitter=0.0) if shape.is_small else ViewConfig()


def pretrain_run(config: PipelineRun, shape: Shape, size: SizeName | None, batch: int, steps: int) -> PretrainRun:
    """BEiT's objective, as long as it is told; without `init` by decision 012 or the plain recipe, with it by its own rules."""
    common = PretrainRun(
        config.images,
        tokenizer=config.out / "tokenizer",
        out=config.out / "pretrain",
        init=config.init,
        train=TrainConfig(steps=steps, batch_size=batch, lr=None, seed=config.seed),
        machine=config.machine,
        view=view_of(shape),
        mask=MaskConfig(kind="random") if shape.is_small else MaskConfig(),
        loop=LoopConfig(log_every=max(1, min(250, steps // 20)), save_every=max(1, min(500, steps // 4))),
        read=config.read,
        columns=ImageColumnConfig(image=config.columns.image),
    )
    if config.init is not None or size is None:
        return common
    rate, betas = pretrain_rate(size), (0.9, 0.98 if shape.is_small else 0.999)
    return replace(
        common,
        size=size,
        image_size=shape.image_size,
        patch=shape.patch,
        train=replace(common.train, lr=rate),
        network=NetworkConfig(
            positions="none" if shape.is_small else "shared",
            drop_path=0.0 if SIZES[size].depth < 12 else 0.1,
            normalization="inception",
        ),
        optim=OptimConfig(lr_batch=BATCH, warmup_steps=max(1, steps // 10), betas=betas),
    )


def candidates(found: PipelineFacts) -> tuple[SizeName, ...]:
    """Sizes to choose from, the smallest first."""
    return ("nano", *CANDIDATES[1:]) if found.is_dense else CANDIDATES


def check_depth(depth: int, field: str) -> None:
    """Raise a `UserError` for a network that is too shallow for segmentation, which would be seen after pre-training only."""
    if depth < LEAST_DEPTH:
        raise UserError(f"a segmenter needs a network of at least {LEAST_DEPTH} blocks, and that of `{field}` has {depth}")


def pretrain_rate(size: SizeName) -> float:
    """Peak learning rate for 64 images."""
    width = SIZES[size].width
    if width <= SIZES["micro"].width:
        return FAST_RATE
    return 1.5e-3 * (BATCH / 2048) ** 0.5 * narrowness(width)


def batch_of(images: int) -> int:
    """Images of a step: 64, or the largest power of two that there are."""
    batch = BATCH
    while batch > images:
        batch //= 2
    return batch


def is_enough(found: PipelineFacts, shown: float) -> bool:
    """Whether so many images shown are enough for a network that is not the smallest."""
    return shown >= max(ENOUGH_PASSES * found.images, ENOUGH_STEPS * BATCH)


def most_labels(seconds: float, total: int, classes: int, *, is_dense: bool) -> int:
    """Labeled images, or images to compare on, of the verdict."""
    wanted = max(4 * classes, 20 if is_dense else 100, int(seconds * (SCENES_PER_SECOND if is_dense else LABELS_PER_SECOND)))
    return min(total, wanted)


def floor_seconds(labels: int, compared: int, seeds: int, timed: float | None, *, is_dense: bool) -> float:
    """What floors and probes take, by estimate, or as one seed was timed; what all seeds share is about two fifths of it."""
    if timed is not None:
        return timed * (0.4 + 0.6 * seeds)
    return seeds * (labels + compared / 4) * (SCENE_SECONDS if is_dense else FLOOR_SECONDS)


def rounds_of(seconds: float, pace: Pace, starts: int, floors: Sequence[float], per_pass: float) -> Rounds:
    """As many seeds as leave each training `SHORT_STEPS`, and its length; `floors` are seconds of floors by number of seeds."""
    most = longest(per_pass)
    for seeds in range(SEEDS, 0, -1):
        steps = pace.steps((seconds - floors[seeds - 1]) / (starts * seeds), per_pass)
        if steps >= SHORT_STEPS or seeds == 1:
            return Rounds(seeds, min(most, steps))
    raise AssertionError


def longest(per_pass: float) -> int:
    """Steps of a fine-tuning beyond which nothing is gained."""
    return max(LONG_STEPS, int(LONG_PASSES * per_pass))


def verdict_run(
    config: PipelineRun, shape: Shape, images: Path, labels: int | None, rounds: Rounds, *, is_dense: bool
) -> VerdictRun:
    """The same fine-tuning from scratch, from the pre-trained network and, where there is one, from `init`."""
    starts = (SCRATCH, *(() if config.init is None else (config.init,)), config.out / "pretrain")
    is_table = images != config.labels
    return VerdictRun(
        images,
        starts=starts,
        labels=None if labels is None else (labels,),
        seeds=tuple(range(config.seed, config.seed + rounds.seeds)),
        task="segment" if is_dense else "classify",
        out=config.out / "verdict",
        val=None if is_table else config.val,
        steps=rounds.steps,
        machine=config.machine,
        augment=NO_AUGMENT if shape.is_small and not is_dense else VerdictRun.augment,
        view=view_of(shape) if shape.is_small and not is_dense else VerdictRun.view,
        loop=LoopConfig(log_every=max(1, min(100, rounds.steps // 10))),
        read=config.read,
        columns=ColumnsConfig() if is_table else config.columns,
    )
