"""`beitkit demo`: the whole workflow on bundled images, and how much accuracy pre-training adds.

It does for you what you would type for your own images, with sizes chosen so that two CPU cores need minutes. Every step
is an ordinary run in a folder of its own; the same command again continues where it was cut. What the settings were chosen by
is decision 012: training images that were held out, never the images that are reported.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from PIL import Image
from rich.console import Console

from beitkit.command.following import command, unused
from beitkit.configs.data import NO_AUGMENT, AugmentConfig, MaskConfig, ViewConfig
from beitkit.configs.model import SIZES
from beitkit.configs.parts import NetworkConfig
from beitkit.configs.tokenizer import KMeansConfig
from beitkit.configs.train import LoopConfig, OptimConfig, TrainConfig
from beitkit.data.sources.split import train_and_val
from beitkit.report.sections import TrainingReport
from beitkit.report.table import plain
from beitkit.runs.demo.config import DemoRun
from beitkit.runs.demo.fashion_mnist import load_fashion_mnist
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
from beitkit.runs.verdict.report import Verdict, add_verdict, as_json, print_sentences, table
from beitkit.train.folder import RunFolder
from beitkit.train.journal import duration

LABELS = (100, 1000)
SEEDS = (0, 1, 2)
IMAGE_SIZE, PATCH = 28, 4
VIEW = ViewConfig(shift=2, color_jitter=0.0)
"""Gray images of clothes in the middle, all alike in light and size: moved a little, and mirrored."""


def run(config: DemoRun) -> Verdict:
    """Run or continue the demo; returns its verdict."""
    out = config.out
    folder = RunFolder(out, "demo", config)
    say = Console(stderr=True, highlight=False, soft_wrap=True).print
    say("unpacking images of clothes (Fashion-MNIST, Zalando Research, MIT license)")
    images = unpack(out / "pictures")
    say(f"\n[bold]1 of 4[/] make a tokenizer: one visual token for each {PATCH}x{PATCH} patch")
    tokenizer.run(tokenizer_run(config, images))
    say("\n[bold]2 of 4[/] pre-train without labels: predict the tokens of hidden patches")
    pretrain.run(pretrain_run(config, images))
    say("\n[bold]3 of 4[/] judge the frozen features of every block")
    probed = probe.run(
        ProbeRun(images / "labelled", model=out / "pretrain", out=out / "probe", limit=2000, machine=config.machine)
    )
    counts = " and ".join(map(str, LABELS))
    say(f"\n[bold]4 of 4[/] fine-tune with {counts} labels, from scratch and pre-trained, {len(SEEDS)} seeds each")
    train, val = train_and_val(images / "labelled", None, SEEDS[0])
    contests = classifier_contests(
        LabeledImages(train, val, config.machine),
        named_starts((SCRATCH, out / "pretrain")),
        LABELS,
        SEEDS,
        lambda start, labels, seed: finetune_run(config, images, start, labels, seed),
        Kept(out, len(val)),
    )
    verdict = Verdict("top-1", "labels", SEEDS, len(val), contests)
    folder.write_json("verdict.json", plain(as_json(verdict)))
    # Since the images were unpacked, whatever starts it took; pauses between starts count.
    seconds = (out / "verdict.json").stat().st_mtime - (images / "complete").stat().st_mtime
    _report(config, images, verdict, probed, seconds)
    _print(out, verdict, seconds)
    return verdict


def answer(config: DemoRun, verdict: Verdict) -> dict[str, Any]:
    """What `--json` prints."""
    return {"out": config.out} | as_json(verdict)


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
    """k-means of patches and the pixels around them; seconds."""
    return TokenizerRun(
        images / "unlabelled",
        out=config.out / "tokenizer",
        kind="kmeans",
        image_size=IMAGE_SIZE,
        machine=config.machine,
        kmeans=KMeansConfig(vocabulary=256, stride=PATCH, margin=2, patches=100_000, channels=1),
        view=VIEW,
    )


def pretrain_run(config: DemoRun, images: Path) -> PretrainRun:
    """BEiT's recipe on a small network with few tokens; a few minutes."""
    return PretrainRun(
        images / "unlabelled",
        tokenizer=config.out / "tokenizer",
        out=config.out / "pretrain",
        size="micro",
        image_size=IMAGE_SIZE,
        patch=PATCH,
        train=TrainConfig(steps=2000, batch_size=64, lr=6e-3),
        machine=config.machine,
        network=NetworkConfig(positions="none", drop_path=0.0, normalization="inception"),
        mask=MaskConfig(kind="random"),
        view=VIEW,
        optim=OptimConfig(lr_batch=64, warmup_steps=200, betas=(0.9, 0.98)),
        loop=LoopConfig(log_every=250),
    )


class Course(NamedTuple):
    """Steps, learning rate, first head and augmentation of a fine-tuning."""

    steps: int
    lr: float
    head_init: Literal["zero", "probe"]
    augment: AugmentConfig = NO_AUGMENT


COURSES = {
    ("scratch", 100): Course(200, 5e-4, "probe"),
    ("scratch", 1000): Course(1000, 3e-3, "zero"),
    ("pretrained", 100): Course(500, 1e-3, "probe", replace(NO_AUGMENT, operations=2, magnitude=9.0)),
    ("pretrained", 1000): Course(600, 2e-3, "probe"),
}
"""What suits each start best on held-out training images; longer still helps two of them (decision 012)."""


def finetune_run(config: DemoRun, images: Path, start: NamedStart, labels: int, seed: int) -> FinetuneRun:
    """The same network, labels, views and pooling for both starts, each at the length, rate and augmentation that suit it."""
    is_scratch = start.path is None
    course = COURSES["scratch" if is_scratch else "pretrained", labels]
    return FinetuneRun(
        images / "labelled",
        model=config.out / "pretrain",
        out=config.out / "finetune" / f"{start.slug}-{labels}-{seed}",
        scratch=is_scratch,
        labels=labels,
        pooling="grid",
        pool_cells=IMAGE_SIZE // PATCH,
        head_init=course.head_init,
        drop_path=0.1,
        train=TrainConfig(steps=course.steps, batch_size=32, lr=course.lr, seed=seed),
        machine=config.machine,
        view=VIEW,
        augment=course.augment,
        optim=OptimConfig(
            lr_batch=32, min_lr=1e-6, warmup_steps=course.steps // 10, layer_decay=1.0 if is_scratch else 0.8, clip=3.0
        ),
        loop=LoopConfig(log_every=100, ema=0.0),
    )


def _print(out: Path, verdict: Verdict, seconds: float) -> None:
    table(verdict).print()
    print_sentences(verdict)
    print(
        f"{duration(seconds)}. Open {out / 'report.html'}. Next: {command('tokenizer', 'IMAGES', out=unused(Path('runs/tok')))}"
    )


def _report(config: DemoRun, images: Path, verdict: Verdict, probed: probe.Probe, seconds: float) -> None:
    pretraining = pretrain_run(config, images)
    subtitle = "beitkit demo: 14,000 images of clothes, a few labels"
    report = TrainingReport("What did pre-training buy?", pretraining.out, subtitle)
    size = SIZES["micro"]
    report.facts(
        [
            ("Images", "Fashion-MNIST, 28x28, 14,000 without labels"),
            ("Network", f"micro/{PATCH}: width {size.width}, {size.depth} blocks, {(IMAGE_SIZE // PATCH) ** 2} patches"),
            ("Pre-training", f"{pretraining.train.steps:,} steps of {pretraining.train.batch_size}"),
            ("Time", duration(seconds)),
        ]
    )
    add_verdict(report, verdict)
    report.figure(probe.chart(probed), "Frozen features of the pre-trained network, no fine-tuning.")
    report.section(
        "What the network learned to fill in",
        "It sees the second column and names a visual token for each hidden patch; a code is drawn as the mean of its patches.",
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
