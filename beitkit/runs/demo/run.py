"""`beitkit demo`: the whole workflow on bundled images, and how much accuracy pre-training adds.

It does for you what you would type for your own images, with sizes chosen so that two CPU cores need minutes. Every step
is an ordinary run in a folder of its own; the same command again continues where it was cut.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from rich.console import Console

from beitkit.configs.data import NO_AUGMENT, ViewConfig
from beitkit.configs.model import SIZES
from beitkit.configs.parts import NetworkConfig
from beitkit.configs.tokenizer import DVAEConfig
from beitkit.configs.train import LoopConfig, OptimConfig, TrainConfig
from beitkit.report.charts import Dots, dot_chart
from beitkit.report.sections import TrainingReport
from beitkit.report.table import Column, Table, thousands
from beitkit.runs.demo.config import DemoRun
from beitkit.runs.demo.fashion_mnist import load_fashion_mnist
from beitkit.runs.finetune import run as finetune
from beitkit.runs.finetune.config import FinetuneRun
from beitkit.runs.pretrain import run as pretrain
from beitkit.runs.pretrain.config import PretrainRun
from beitkit.runs.probe import run as probe
from beitkit.runs.probe.config import ProbeRun
from beitkit.runs.tokenizer import run as tokenizer
from beitkit.runs.tokenizer.config import TokenizerRun
from beitkit.train.folder import RunFolder
from beitkit.train.journal import duration

LABELS = (100, 1000)
SEEDS = (0, 1, 2)
IMAGE_SIZE, PATCH = 28, 4
VIEW = ViewConfig(crop_scale=(0.4, 1.0), color_jitter=0.0)
"""Gray images of clothes, all alike in light and size: mild crops and no jitter."""


class Score(NamedTuple):
    """Accuracies (shares) at one number of labels, a value per seed."""

    scratch: list[float]
    pretrained: list[float]

    @property
    def gain(self) -> float:
        """Difference of the means."""
        return statistics.mean(self.pretrained) - statistics.mean(self.scratch)

    @property
    def spread(self) -> float:
        """The larger of the two standard deviations over seeds."""
        return max(statistics.stdev(self.scratch), statistics.stdev(self.pretrained))


def run(config: DemoRun) -> dict[int, Score]:
    """Run or continue the demo; returns the scores by number of labels."""
    out = config.out
    folder = RunFolder(out, "demo", config)
    say = Console(stderr=True, highlight=False, soft_wrap=True).print
    say("unpacking images of clothes (Fashion-MNIST, Zalando Research, MIT license)")
    images = unpack(out / "pictures")
    say(f"\n[bold]1 of 4[/] train a tokenizer: one visual token for each {PATCH}x{PATCH} patch")
    tokenizer.run(tokenizer_run(config, images))
    say("\n[bold]2 of 4[/] pre-train without labels: predict the tokens of hidden patches")
    pretrain.run(pretrain_run(config, images))
    say("\n[bold]3 of 4[/] judge the frozen features of every block")
    probed = probe.run(
        ProbeRun(images / "labelled", model=out / "pretrain", out=out / "probe", limit=2000, machine=config.machine)
    )
    counts = " and ".join(map(str, LABELS))
    say(f"\n[bold]4 of 4[/] fine-tune with {counts} labels, from scratch and pre-trained, {len(SEEDS)} seeds each")
    scores = {
        labels: Score(
            *(
                [finetune.run(finetune_run(config, images, labels, seed, scratch=scratch)).accuracy for seed in SEEDS]
                for scratch in (True, False)
            )
        )
        for labels in LABELS
    }
    folder.write_json("verdict.json", {str(labels): score._asdict() for labels, score in scores.items()})
    # Since the images were unpacked, whatever starts it took; pauses between starts count.
    seconds = (out / "verdict.json").stat().st_mtime - (images / "complete").stat().st_mtime
    _report(config, images, scores, probed, seconds)
    _print(out, scores, seconds)
    return scores


def unpack(folder: Path) -> Path:
    """Write the bundled images as PNG files: unlabelled/, labelled/train/<class>/ and labelled/val/<class>/."""
    done = folder / "complete"
    if done.exists():
        return folder
    data = load_fashion_mnist()
    for part, images, labels in (("train", data.train_images, data.train_labels), ("val", data.test_images, data.test_labels)):
        for name in data.class_names:
            (folder / "labelled" / part / name).mkdir(parents=True, exist_ok=True)
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            Image.fromarray(image).save(folder / "labelled" / part / data.class_names[label] / f"{index:05d}.png")
    unlabeled = folder / "unlabelled"
    unlabeled.mkdir(exist_ok=True)
    for index, image in enumerate(data.train_images):
        Image.fromarray(image).save(unlabeled / f"{index:05d}.png")
    done.touch()
    return folder


def tokenizer_run(config: DemoRun, images: Path) -> TokenizerRun:
    """A light tokenizer with few codes; under a minute."""
    return TokenizerRun(
        images / "unlabelled",
        out=config.out / "tokenizer",
        image_size=IMAGE_SIZE,
        train=TrainConfig(steps=800, batch_size=64, lr=5e-3),
        machine=config.machine,
        dvae=DVAEConfig(vocabulary=128, stride=PATCH, channels=1, hidden=64, codebook_dim=64),
        view=VIEW,
        loop=LoopConfig(log_every=100),
    )


def pretrain_run(config: DemoRun, images: Path) -> PretrainRun:
    """BEiT's recipe on a nano network; a few minutes."""
    return PretrainRun(
        images / "unlabelled",
        tokenizer=config.out / "tokenizer",
        out=config.out / "pretrain",
        size="nano",
        image_size=IMAGE_SIZE,
        patch=PATCH,
        train=TrainConfig(steps=2400, batch_size=32, lr=4e-3),
        machine=config.machine,
        network=NetworkConfig(drop_path=0.0, normalization="inception"),
        view=VIEW,
        optim=OptimConfig(lr_batch=32, warmup_steps=200),
        loop=LoopConfig(log_every=100),
    )


def finetune_run(config: DemoRun, images: Path, labels: int, seed: int, *, scratch: bool) -> FinetuneRun:
    """The same set-up for both starts; only the first weights differ."""
    start = "scratch" if scratch else "pretrained"
    return FinetuneRun(
        images / "labelled",
        model=config.out / "pretrain",
        out=config.out / "finetune" / f"{labels}-{start}-{seed}",
        scratch=scratch,
        labels=labels,
        drop_path=0.1,
        train=TrainConfig(steps=300, batch_size=32, lr=4e-3, seed=seed),
        machine=config.machine,
        view=VIEW,
        augment=NO_AUGMENT,
        optim=OptimConfig(lr_batch=32, min_lr=1e-6, warmup_steps=30, layer_decay=0.8, clip=3.0),
        loop=LoopConfig(log_every=150, ema=0.0),
    )


def _claim(scores: dict[int, Score]) -> tuple[str, bool]:
    is_clear = all(score.gain > score.spread for score in scores.values())
    gains = " and ".join(f"{100 * score.gain:+.1f} points with {labels} labels" for labels, score in scores.items())
    return (f"Pre-training bought {gains}" if is_clear else f"Pre-training did not clearly pay: {gains}"), is_clear


def _table(scores: dict[int, Score]) -> Table:
    rows = []
    for labels, score in scores.items():
        starts = [f"{statistics.mean(values):.1%} ({', '.join(f'{value:.1%}' for value in values)})" for values in score]
        rows.append([labels, *starts, 100 * score.gain, 100 * score.spread])
    columns = [Column("labels", thousands), "from scratch", "pre-trained"]
    columns += [Column("gain", "{:+.1f}".format), Column("spread", "{:.1f}".format)]
    caption = "Means over seeds (and each seed); gain and spread (the larger standard deviation) in percentage points."
    return Table(columns, rows, caption)


def _print(out: Path, scores: dict[int, Score], seconds: float) -> None:
    _table(scores).print()
    print(f"{_claim(scores)[0]} (mean of {len(SEEDS)} seeds; spread: standard deviation over seeds, in points).")
    print(f"{duration(seconds)}. Open {out / 'report.html'}. Next: beitkit tokenizer YOUR_IMAGES --out runs/tok")


def _report(config: DemoRun, images: Path, scores: dict[int, Score], probed: probe.Probe, seconds: float) -> None:
    pretraining = pretrain_run(config, images)
    subtitle = "beitkit demo: 14,000 images of clothes, a few labels"
    report = TrainingReport("What did pre-training buy?", pretraining.out, subtitle)
    report.facts(
        [
            ("Images", "Fashion-MNIST, 28x28, 14,000 without labels"),
            ("Network", f"nano/{PATCH}: width {SIZES['nano'].width}, {SIZES['nano'].depth} blocks, 49 patches"),
            ("Pre-training", f"{pretraining.train.steps:,} steps of {pretraining.train.batch_size}"),
            ("Time", duration(seconds)),
        ]
    )
    claim, is_clear = _claim(scores)
    report.verdict(
        claim,
        is_clear,
        f"Mean of {len(SEEDS)} seeds on 2,000 test images; both starts share network, labels, steps and augmentation.",
    )
    report.figure(
        dot_chart(
            [
                Dots("from scratch", [score.scratch for score in scores.values()]),
                Dots("pre-trained", [score.pretrained for score in scores.values()]),
            ],
            [f"{labels} labels" for labels in scores],
            title="Accuracy after fine-tuning",
            x_label="labeled images",
            y_label="top-1",
        ),
        "Each dot is one seed: other labels, other first weights of the head, other order.",
    )
    report.figure(probe.chart(probed), "Frozen features of the pre-trained network, no fine-tuning.")
    report.table(_table(scores))
    report.section(
        "What the network learned to fill in",
        "It sees the second column and names a visual token for each hidden patch; the tokenizer's decoder draws them.",
    )
    report.images(*pretrain.previewed(pretraining))
    report.curves({"loss": "loss"}, "Masked patches.", title="Pre-training loss", y_label="cross-entropy")
    report.curves({"accuracy": "accuracy"}, "Masked patches.", title="Token accuracy", y_label="share", unit="percent")
    report.section("The same on your images")
    report.command(
        "beitkit tokenizer photos/ --out runs/tok\n"
        "beitkit pretrain photos/ --tokenizer runs/tok --out runs/pre\n"
        "beitkit finetune labeled/ --model runs/pre --out runs/cls\n"
        "beitkit finetune labeled/ --model runs/pre --scratch --out runs/scratch"
    )
    report.paragraph(
        "Every step above left a report of its own: tokenizer/report.html, pretrain/report.html, probe/report.html and one "
        "in each folder of finetune/."
    )
    report.write(config.out / "report.html")
