"""Pairs of fine-tunings, one twice as long as the other: what `evaluation.longer` was fitted to, and is checked by.

    python -m benchmarks.longer CIFAR10_FOLDER --out runs/longer [--part fitted]
    python -m benchmarks.longer CIFAR10_FOLDER --out runs/longer --score

Fine-tunes small networks on the demo's images and on CIFAR-10 (training images only, of which 2,000 judge), from fresh weights
and from a short pre-training, with several numbers of labels, each at several lengths with a cosine of its own. The same command
goes on where it was cut. With `--score`: fits the rules that were tried to the part called fitted, prints what share of the other
part they cover, and writes the numbers that the tests keep to `longer_cases.csv`.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

import beitkit
from beitkit.configs.data import NO_AUGMENT, AugmentConfig, MaskConfig, ViewConfig
from beitkit.configs.parts import NetworkConfig
from beitkit.configs.tokenizer import KMeansConfig
from beitkit.configs.train import LoopConfig, OptimConfig
from beitkit.evaluation.longer import ALIKE, CONFIDENCE, gain_of
from beitkit.report.journal import Points, read_journal, series
from beitkit.runs.demo.fashion_mnist import CLASS_NAMES
from beitkit.runs.demo.run import unpack

EVALUATIONS = 5
LENGTHS = (50, 100, 200, 400, 800)
TRAIN_IMAGES, VAL_IMAGES = 5_000, 2_000
SIDE, PATCH = {"fashion": 28, "cifar": 32}, {"fashion": 7, "cifar": 8}


class Course(NamedTuple):
    """Fine-tunings that differ in their length alone."""

    part: str
    images: str
    labels: int
    seed: int
    width: int
    depth: int
    lr: float
    is_pretrained: bool = False
    is_augmented: bool = False

    @property
    def name(self) -> str:
        """Of its folders."""
        start = "pretrained" if self.is_pretrained else "scratch"
        return f"{self.images}-{self.width}x{self.depth}-{start}-{self.labels}-{self.seed}"


PRETRAINED = {"fitted": (96, 3), "checked": (128, 2)}
"""Width and depth of the networks that are pre-trained."""
COURSES = (
    Course("fitted", "fashion", 100, 0, 96, 3, 1e-3),
    Course("fitted", "fashion", 1000, 1, 64, 2, 3e-3),
    Course("fitted", "fashion", 3000, 2, 128, 3, 2e-3),
    Course("fitted", "cifar", 1000, 3, 96, 3, 2e-3),
    Course("fitted", "cifar", 5000, 4, 96, 3, 2e-3, is_augmented=True),
    Course("fitted", "fashion", 1000, 5, 96, 3, 1e-3, is_pretrained=True),
    Course("fitted", "cifar", 2000, 6, 96, 3, 1e-3, is_pretrained=True),
    Course("checked", "fashion", 300, 10, 96, 2, 2e-3),
    Course("checked", "fashion", 2000, 11, 128, 2, 1e-3),
    Course("checked", "fashion", 5000, 12, 64, 3, 3e-3, is_augmented=True),
    Course("checked", "cifar", 500, 13, 64, 3, 2e-3),
    Course("checked", "cifar", 3000, 14, 128, 2, 1e-3),
    Course("checked", "fashion", 500, 15, 128, 2, 1e-3, is_pretrained=True),
    Course("checked", "cifar", 5000, 16, 128, 2, 2e-3, is_pretrained=True),
)


class Case(NamedTuple):
    """A run, and what one of twice its length reached."""

    part: str
    run: str
    steps: tuple[int, ...]
    """Of its evaluations."""
    scores: tuple[float, ...]
    """Top-1 at each of them."""
    longer: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cifar10", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--part", choices=("fitted", "checked"))
    parser.add_argument("--score", action="store_true")
    arguments = parser.parse_args()
    out: Path = arguments.out
    courses = [course for course in COURSES if arguments.part in (None, course.part)]
    if arguments.score:
        score([case for course in courses for case in cases(out, course)], out)
        return
    lists = image_lists(arguments.cifar10, out)
    for length in LENGTHS:  # shortest first, so that a part of the cases comes early
        for course in courses:
            finetune(lists[course.images], out, course, length)


def image_lists(cifar10: Path, out: Path) -> dict[str, Path]:
    """Training images of both, whose classes take turns; the last of them judge."""
    unpack(out / "images")
    count = (TRAIN_IMAGES + VAL_IMAGES) // len(CLASS_NAMES)
    folders = {
        "fashion": [out / "images" / "labelled" / "train" / name for name in CLASS_NAMES],
        "cifar": sorted(path for path in (cifar10 / "train").iterdir() if path.is_dir()),
    }
    for name, classes in folders.items():
        columns = [sorted(path.iterdir())[:count] for path in classes]
        files = [path for row in zip(*columns, strict=True) for path in row]
        rows = [
            f"{path.resolve()},{path.parent.name},{'train' if index < TRAIN_IMAGES else 'val'}\n"
            for index, path in enumerate(files)
        ]
        (out / f"{name}.csv").write_text("path,label,split\n" + "".join(rows))
    return {name: out / f"{name}.csv" for name in folders}


MACHINE = {"device": "cpu", "threads": 1, "workers": 0}
VIEW = ViewConfig(shift=2, color_jitter=0.0)


def pretrain(images: Path, out: Path, course: Course) -> Path:
    """A short pre-training of the course's network."""
    width, depth = PRETRAINED[course.part]
    name, side, patch = course.images, SIDE[course.images], PATCH[course.images]
    folder = out / f"{name}-{width}x{depth}"
    beitkit.tokenizer(
        images, out=out / f"{name}-tok", kind="kmeans", image_size=side, view=VIEW, **MACHINE,
        kmeans=KMeansConfig(vocabulary=256, stride=patch, patches=50_000, channels=1 if name == "fashion" else 3),
    )  # fmt: skip
    beitkit.pretrain(
        images, tokenizer=out / f"{name}-tok", out=folder, size="micro", image_size=side, patch=patch, steps=600, batch_size=64,
        lr=4e-3, network=NetworkConfig(positions="none", drop_path=0.0, width=width, depth=depth, heads=width // 32), view=VIEW,
        mask=MaskConfig(kind="random"), optim=OptimConfig(lr_batch=64, warmup_steps=60, betas=(0.9, 0.98)), **MACHINE,
    )  # fmt: skip
    return folder


def finetune(images: Path, out: Path, course: Course, steps: int) -> None:
    """One run; one that is finished stays as it is."""
    start = {"model": pretrain(images, out, course)} if course.is_pretrained else {
        "scratch": True, "size": "micro", "patch": PATCH[course.images], "image_size": SIDE[course.images],
        "network": NetworkConfig(positions="none", width=course.width, depth=course.depth, heads=course.width // 32),
    }  # fmt: skip
    beitkit.finetune(
        images, out=out / "runs" / f"{course.name}-{steps}", **start, labels=course.labels, seed=course.seed, steps=steps,
        batch_size=32, lr=course.lr, drop_path=0.1, pooling="grid", head_init="zero", view=VIEW, **MACHINE,
        augment=AugmentConfig(mixup=0.0, cutmix=0.0) if course.is_augmented else NO_AUGMENT,
        optim=OptimConfig(
            lr_batch=32, min_lr=1e-6, warmup_steps=steps // 10, layer_decay=0.8 if course.is_pretrained else 1.0, clip=3.0
        ),
        loop=LoopConfig(log_every=steps // EVALUATIONS, evaluate_every=steps // EVALUATIONS, save_every=0, ema=0.0),
    )  # fmt: skip


def cases(out: Path, course: Course) -> list[Case]:
    """The pairs of a course whose runs are both finished."""
    curves: dict[int, Points] = {}
    for steps in LENGTHS:
        folder = out / "runs" / f"{course.name}-{steps}"
        if (folder / "result.json").exists():
            curves[steps] = series(read_journal(folder / "journal.jsonl"), "val/top1", "evaluate")
    return [
        Case(
            course.part, f"{course.name}-{steps}", tuple(map(int, curve.steps)), tuple(curve.values), curves[2 * steps].values[-1]
        )
        for steps, curve in curves.items()
        if 2 * steps in curves
    ]  # fmt: skip


def score(found: Sequence[Case], out: Path) -> None:
    """Fit the rules to the fitted cases, and print what they cover and how wide they are (in points) on each part."""
    with (out / "longer_cases.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("part", "run", "steps", "scores", "longer"))
        for case in found:
            scores = " ".join(f"{value:.4f}" for value in case.scores)
            table.writerow((case.part, case.run, " ".join(map(str, case.steps)), scores, f"{case.longer:.4f}"))
    fitted = [case for case in found if case.part == "fitted"]
    edge = (1 - CONFIDENCE) / 2
    low, high = np.quantile([case.longer - case.scores[-1] for case in fitted], [edge, 1 - edge])
    rules: dict[str, Callable[[Case], tuple[float, float]]] = {"the same gain for all": lambda case: (low, high)}
    for since in (0.2, 0.4, 0.6):
        constants = fit(fitted, since)
        print(f"from {since:g} of the run on: " + ", ".join(f"{value:.3f}" for value in constants))
        rules[f"own curve from {since:g} on"] = lambda case, since=since, constants=constants: promised(case, since, constants)
    constants = fit(fitted, None)
    print("the same factor for all: " + ", ".join(f"{value:.3f}" for value in constants))
    rules["the same factor for all"] = lambda case: promised(case, None, constants)
    rules["evaluation.longer"] = lambda case: gain_of(Points(list(case.steps), list(case.scores)), VAL_IMAGES)[1:]
    for part in dict.fromkeys(case.part for case in found):
        some = [case for case in found if case.part == part]
        for name, rule in rules.items():
            ends = [rule(case) for case in some]
            covered = sum(a <= case.longer - case.scores[-1] <= b for (a, b), case in zip(ends, some, strict=True))
            print(f"{part:8} {name:24} {covered} of {len(some)}, width {100 * np.mean([b - a for a, b in ends]):.1f} points")


def described(case: Case, since: float | None) -> tuple[float, float, float]:
    """By what the error fell since then, in logarithms, what twice the steps brought, and the variance that the images make."""
    last = case.scores[-1]
    before = last if since is None else np.interp(since * case.steps[-1], case.steps, case.scores)
    noise = 2 * (1 - ALIKE) * last * (1 - last) / VAL_IMAGES
    return max(0.0, np.log((1 - before) / (1 - last))), np.log((1 - last) / (1 - case.longer)), noise / (1 - last) ** 2


def fit(some: Sequence[Case], since: float | None) -> list[float]:
    """POWER, FLOOR, SPREAD and REST of `evaluation.longer`, by likelihood."""
    fell, gain, noise = (torch.tensor(column) for column in zip(*(described(case, since) for case in some), strict=True))
    constants = torch.tensor([0.5, 0.02, 0.3, 0.03], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([constants], lr=0.003)
    for _ in range(3000):
        power, floor, spread, rest = constants.abs()
        variance = (spread * fell) ** 2 + rest**2 + noise
        loss = ((gain - power * fell - floor) ** 2 / variance + variance.log()).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return constants.detach().abs().tolist()


def promised(case: Case, since: float | None, constants: Sequence[float]) -> tuple[float, float]:
    """Ends of the interval of a rule with these constants."""
    (fell, _, noise), (power, floor, spread, rest), error = described(case, since), constants, 1 - case.scores[-1]
    center, reach = power * fell + floor, 1.645 * ((spread * fell) ** 2 + rest**2 + noise) ** 0.5
    return error * (1 - np.exp(reach - center)), error * (1 - np.exp(-center - reach))


if __name__ == "__main__":
    main()
