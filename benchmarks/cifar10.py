"""The CIFAR-10 runs of docs/results.md, and the tables.

    python -m benchmarks.cifar10 CIFAR10_FOLDER --out runs/cifar10 [--labels 500 5000 50000] [--threads 1]

CIFAR10_FOLDER holds train/<class>/ and test/<class>/. What the settings were chosen by is decision 016: training images that
were held out. The test images are measured once a run. Every step is an ordinary run folder, and the same command goes on
where it was cut; what was measured is kept, so that the numbers of labels can be run one after the other.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

from beitkit.configs.data import NO_AUGMENT, AugmentConfig, MaskConfig, ViewConfig
from beitkit.configs.parts import NetworkConfig
from beitkit.configs.segmentation import InferenceConfig
from beitkit.configs.tokenizer import KMeansConfig
from beitkit.configs.train import LoopConfig, MachineConfig, OptimConfig, TrainConfig
from beitkit.data.sources.split import train_and_val
from beitkit.evaluation.verdict import Contest, probability
from beitkit.runs.finetune.config import FinetuneRun
from beitkit.runs.pretrain import run as pretrain
from beitkit.runs.pretrain.config import PretrainRun
from beitkit.runs.probe import run as probe
from beitkit.runs.probe.config import ProbeRun
from beitkit.runs.tokenizer import run as tokenizer
from beitkit.runs.tokenizer.config import TokenizerRun
from beitkit.runs.verdict.classifiers import LabeledImages, classifier_contests
from beitkit.runs.verdict.config import SCRATCH
from beitkit.runs.verdict.measured import Kept, NamedStart, named_starts
from beitkit.train.journal import duration

LENGTHS = (1, 4, 16)
"""Of pre-training, in units of `UNIT` steps of `BATCH` images."""
ProbePooling = Literal["mean", "grid"]
POOLINGS: tuple[ProbePooling, ...] = ("mean", "grid")
UNIT, BATCH = 1250, 64
IMAGE_SIZE, PATCH, DEPTH = 32, 4, 4
VIEW = ViewConfig(shift=3, color_jitter=0.0)
SEEDS = {500: (0, 1, 2), 5000: (0, 1, 2), 50000: (0, 1)}
"""Of fine-tuning (labels, fresh weights, order), by number of labels."""
AUGMENTED = replace(NO_AUGMENT, operations=2, magnitude=5.0)
MIXED = replace(AUGMENTED, mixup=0.8, cutmix=1.0)
VIEWS = InferenceConfig(flip=True, shift=2)
"""Of a test image: ten, whose logits every fine-tuned network averages."""


class Course(NamedTuple):
    """How long, how fast and how a start is fine-tuned."""

    steps: int
    lr: float
    head_init: Literal["zero", "probe"] = "zero"
    augment: AugmentConfig = NO_AUGMENT


COURSES = {
    ("pretrained", 500): Course(1500, 1e-3, "probe", MIXED),
    ("scratch", 500): Course(1500, 1e-3, augment=AUGMENTED),
    ("pretrained", 5000): Course(8000, 2e-3, augment=MIXED),
    ("scratch", 5000): Course(8000, 1e-3, augment=AUGMENTED),
    ("pretrained", 50000): Course(10000, 2e-3),
    ("scratch", 50000): Course(10000, 1e-3),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--labels", type=int, nargs="+", default=list(SEEDS), choices=list(SEEDS))
    parser.add_argument("--threads", type=int, default=0)
    arguments = parser.parse_args()
    images, out, machine = arguments.images, arguments.out, MachineConfig(threads=arguments.threads)

    tokenizer.run(
        TokenizerRun(
            images / "train", out=out / "tok", kind="kmeans", image_size=IMAGE_SIZE, machine=machine,
            view=ViewConfig(crop_scale=(0.3, 1.0), shift=3, color_jitter=0.0),
            kmeans=KMeansConfig(vocabulary=512, stride=PATCH, patches=100_000),
        )
    )  # fmt: skip
    for length in LENGTHS:
        pretrain.run(
            PretrainRun(
                images / "train", tokenizer=out / "tok", out=pretrained(out, length), size="micro",
                image_size=IMAGE_SIZE, patch=PATCH,
                train=TrainConfig(steps=length * UNIT, batch_size=BATCH, lr=4e-3), machine=machine,
                network=NetworkConfig(positions="none", drop_path=0.0, depth=DEPTH, width=192, heads=3),
                mask=MaskConfig(kind="random"), view=VIEW,
                optim=OptimConfig(lr_batch=BATCH, betas=(0.9, 0.98), warmup_steps=200), loop=LoopConfig(log_every=200),
            )
        )  # fmt: skip
    probes: dict[tuple[int, ProbePooling], probe.Probe] = {
        (length, pooling): probe.run(
            ProbeRun(
                images, model=pretrained(out, length), out=out / f"probe-{length}-{pooling}", pooling=pooling, machine=machine
            )
        )
        for length in LENGTHS
        for pooling in POOLINGS
    }

    train, val = train_and_val(images, None, 0)
    kept, longest = Kept(out, len(val)), pretrained(out, LENGTHS[-1])
    contests: list[Contest] = []
    for labels in arguments.labels:
        lengths = [pretrained(out, length) for length in LENGTHS] if labels == min(SEEDS) else [longest]
        contests += classifier_contests(
            LabeledImages(train, val, machine, inference=VIEWS),
            named_starts((SCRATCH, *lengths)),
            (labels,),
            SEEDS[labels],
            lambda start, labels, seed: finetuning(images, out, machine, start, labels, seed),
            kept,
        )
    show(contests, probes)


def pretrained(out: Path, length: int) -> Path:
    """The pre-training of this length."""
    return out / f"pretrained-{length}"


def finetuning(images: Path, out: Path, machine: MachineConfig, start: NamedStart, labels: int, seed: int) -> FinetuneRun:
    """The same network, labels and pooling for every start, at the length and rate that suit fresh or pre-trained weights."""
    is_scratch = start.path is None
    course = COURSES["scratch" if is_scratch else "pretrained", labels]
    return FinetuneRun(
        images, model=start.path or pretrained(out, LENGTHS[-1]), out=out / "finetune" / f"{start.slug}-{labels}-{seed}",
        scratch=is_scratch, labels=labels, pooling="grid", pool_cells=2, head_init=course.head_init, drop_path=0.1,
        train=TrainConfig(steps=course.steps, batch_size=BATCH, lr=course.lr, seed=seed), machine=machine, view=VIEW,
        augment=course.augment, loop=LoopConfig(log_every=100, ema=0.0),
        optim=OptimConfig(
            lr_batch=BATCH, min_lr=1e-6, warmup_steps=course.steps // 10, layer_decay=1.0 if is_scratch else 0.8, clip=3.0
        ),
    )  # fmt: skip


def show(contests: list[Contest], probes: dict[tuple[int, ProbePooling], probe.Probe]) -> None:
    """Print the tables of docs/results.md as Markdown."""
    heads = ("labels", "start or floor", "top-1", "by seed", "spread", "probe", "p to the best start", "time")
    print(f"| {' | '.join(heads)} |\n|{len(heads) * '---|'}")
    for contest in contests:
        for one in (*contest.starts, *contest.floors):
            against = contest.floor if one.is_floor and one is contest.floors[0] else contest.against(one.name)
            print(
                f"| {contest.labels:,} | {one.name} | {one.mean:.1%} | {' '.join(f'{100 * score:.1f}' for score in one.scores)} "
                f"| {'' if one.deviation is None else f'{100 * one.deviation:.1f}'} "
                f"| {'' if one.probe is None else f'{statistics.mean(one.probe):.1%}'} "
                f"| {'' if against is None else probability(against.p_value).removeprefix('= ')} "
                f"| {duration(statistics.mean(one.seconds))} |"
            )
    blocks = range(1, DEPTH + 1)
    print(f"\n| images seen in pre-training | linear probe of | {' | '.join(f'block {block}' for block in blocks)} |")
    print(f"|{(2 + DEPTH) * '---|'}")
    for (length, pooling), found in probes.items():
        chosen, what = found.linear.chosen, {"mean": "means", "grid": "a grid of 2x2"}[pooling]
        cells = [f"{share:.1%}{' (chosen)' if place == chosen else ''}" for place, share in enumerate(found.linear.test)]
        print(f"| {length * UNIT * BATCH:,} | {what} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
