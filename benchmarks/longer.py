"""Pairs of runs, one twice as long as the other: what `evaluation.longer` was fitted to, and is checked by.

    python -m benchmarks.longer CIFAR10_FOLDER --out runs/longer [--product]
    python -m benchmarks.longer CIFAR10_FOLDER --out runs/longer --score

Trains small ViTs on the demo's images and on CIFAR-10 (training images only, of which 2,000 judge), from fresh weights and from a
short pre-training on masked patches, with several numbers of labels, each at several lengths with a cosine of its own. Runs that
differ in labels and seed alone are computed side by side, as one stack of plain pre-norm ViTs. With `--product` come runs of
`beitkit finetune` besides. `cases.jsonl` gets a line for each pair; the same command goes on where it was cut.

With `--score`: fits the rules that were tried to the stacks called fitted, prints what share of the others they cover, and writes
the numbers that the tests keep to `longer_cases.csv`.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import beitkit
from beitkit.configs.data import NO_AUGMENT, AugmentConfig, ViewConfig
from beitkit.configs.parts import NetworkConfig
from beitkit.configs.train import LoopConfig, OptimConfig
from beitkit.evaluation.longer import ALIKE, gain_of
from beitkit.report.journal import Points, read_journal, series
from beitkit.runs.demo.fashion_mnist import CLASS_NAMES, load_fashion_mnist
from beitkit.runs.demo.run import unpack
from beitkit.train.schedule import cosine

EVALUATIONS, LOGGED = 5, 25
STEPS = [0.2, 0.4, 0.6, 0.8, 1.0]
"""Where in a run its evaluations are."""
TRAIN_IMAGES, VAL_IMAGES = 5_000, 2_000
SIDE = {"fashion": 28, "cifar": 32}
CLASSES, GRID, SMOOTHING, CLIP = 10, 4, 0.1, 3.0
PRETRAINING, PRETRAINED_LR = 200, 3e-3
LENGTHS = (50, 100, 200, 400, 800)


class Stack(NamedTuple):
    """Runs side by side that differ in their labels and seeds alone."""

    name: str
    is_fitted: bool
    images: str
    labels: Sequence[int]
    seed: int
    width: int
    depth: int
    lr: float
    batch: int
    is_pretrained: bool = False
    has_grid: bool = True
    """Whether the head sees all patches side by side, not their mean."""


STACKS = (
    Stack("a", True, "fashion", (100, 300, 1000, 3000), 0, 32, 2, 3e-3, 16),
    Stack("b", False, "fashion", (200, 500, 2000, 5000), 10, 32, 3, 1.5e-3, 16, has_grid=False),
    Stack("c", True, "cifar", (300, 1000, 5000), 1, 32, 2, 2e-3, 16),
    Stack("d", False, "cifar", (500, 2000, 5000), 11, 48, 2, 4e-3, 16),
    Stack("e", True, "fashion", (100, 1000, 5000), 2, 32, 2, 1.5e-3, 16, is_pretrained=True),
    Stack("f", False, "fashion", (200, 500, 2000), 12, 48, 2, 3e-3, 16, is_pretrained=True),
)


class Course(NamedTuple):
    """A run of `beitkit finetune`."""

    images: str
    labels: int
    seed: int
    width: int
    depth: int
    patch: int
    lr: float
    lengths: Sequence[int] = (50, 100, 200, 400)
    is_augmented: bool = False

    @property
    def name(self) -> str:
        """Of its folders."""
        return f"{self.images}-{self.width}x{self.depth}-{self.patch}-scratch-{self.labels}-{self.seed}"


PRODUCT = (
    Course("fashion", 300, 11, 96, 3, 7, 3e-3),
    Course("cifar", 3000, 11, 96, 2, 8, 2e-3),
    Course("fashion", 1000, 16, 64, 2, 7, 3e-3, is_augmented=True),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cifar10", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--product", action="store_true")
    parser.add_argument("--score", action="store_true")
    arguments = parser.parse_args()
    out: Path = arguments.out
    (out / "runs").mkdir(parents=True, exist_ok=True)
    if arguments.score:
        score(out)
        return
    torch.set_num_threads(1)
    data = {"fashion": _fashion(), "cifar": _cifar10(arguments.cifar10)}
    for steps in LENGTHS:  # shortest first, so that a part of the cases comes early
        for stack in STACKS:
            found = kept(out, f"stack-{stack.name}-{steps}", lambda at=(stack, steps): trained(data[at[0].images], *at))
            if steps > LENGTHS[0]:
                shorter = json.loads((out / "runs" / f"stack-{stack.name}-{steps // 2}.json").read_text())
                for labels, one, twice in zip(stack.labels, shorter, found, strict=True):
                    part = "fitted" if stack.is_fitted else "checked"
                    name = f"{stack.images} {'pre-trained' if stack.is_pretrained else 'scratch'} {stack.name}"
                    store(out, part, f"{name} {labels} {steps // 2}", one, twice)
    if arguments.product:
        lists = product_lists(arguments.cifar10, out)
        for course in PRODUCT:
            shorter = None
            for steps in course.lengths:
                one = kept(out, f"{course.name}-{steps}", lambda at=(course, steps): finetuned(lists, out, *at))
                if shorter is not None:
                    store(out, "product", f"{course.name}-{steps // 2}", shorter, one)
                shorter = one


def score(out: Path) -> None:
    """Fit the rules to the fitted cases, and print what they cover and how wide they are (in points) on each part."""
    cases = [json.loads(line) for line in (out / "cases.jsonl").read_text().splitlines()]
    with (out / "longer_cases.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("set", "run", "images", "scores", "longer"))
        for case in cases:
            scores = " ".join(f"{value:.4f}" for value in case["top1"])
            table.writerow((case["set"], case["run"], case["images"], scores, f"{case['longer']:.4f}"))
    fitted = [case for case in cases if case["set"] == "fitted"]
    gains = np.array([case["longer"] - case["top1"][-1] for case in fitted])
    low, high = np.quantile(gains, [0.05, 0.95])
    rules: dict[str, Callable[[dict[str, Any]], tuple[float, float]]] = {"the same for all": lambda case: (low, high)}
    for since in (0.2, 0.4, 0.6):
        constants = fit(fitted, since)
        print(f"from {since:g} of the run on: " + ", ".join(f"{value:.3f}" for value in constants))
        rules[f"own curve from {since:g} on"] = lambda case, since=since, constants=constants: promised(case, since, constants)
    rules["evaluation.longer"] = lambda case: gain_of(Points(STEPS, case["top1"]), case["images"])[1:]
    for part in dict.fromkeys(case["set"] for case in cases):
        some = [case for case in cases if case["set"] == part]
        for name, rule in rules.items():
            ends = [rule(case) for case in some]
            covered = sum(a <= case["longer"] - case["top1"][-1] <= b for (a, b), case in zip(ends, some, strict=True))
            print(f"{part:8} {name:24} {covered} of {len(some)}, width {100 * np.mean([b - a for a, b in ends]):.1f} points")


def described(case: Mapping[str, Any], since: float) -> tuple[float, float, float]:
    """By what the error fell, in logarithms, what twice the steps brought, and the variance that the images make of that."""
    before, last, longer = np.interp(since, STEPS, case["top1"]), case["top1"][-1], case["longer"]
    noise = 2 * (1 - ALIKE) * last * (1 - last) / case["images"]
    return max(0.0, np.log((1 - before) / (1 - last))), np.log((1 - last) / (1 - longer)), noise / (1 - last) ** 2


def fit(cases: Sequence[Mapping[str, Any]], since: float) -> list[float]:
    """POWER, FLOOR, SPREAD and REST of `evaluation.longer`, by likelihood."""
    fell, gain, noise = (torch.tensor(column) for column in zip(*(described(case, since) for case in cases), strict=True))
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


def promised(case: Mapping[str, Any], since: float, constants: Sequence[float]) -> tuple[float, float]:
    """Ends of the interval of a rule with these constants."""
    (fell, _, noise), (power, floor, spread, rest), error = described(case, since), constants, 1 - case["top1"][-1]
    center, reach = power * fell + floor, 1.645 * ((spread * fell) ** 2 + rest**2 + noise) ** 0.5
    return error * (1 - np.exp(reach - center)), error * (1 - np.exp(-center - reach))


def kept(out: Path, name: str, run: Any) -> Any:
    """What a run found out, now or before."""
    path = out / "runs" / f"{name}.json"
    if not path.exists():
        path.write_text(json.dumps(run()))
        print(name, flush=True)
    return json.loads(path.read_text())


def store(out: Path, part: str, name: str, shorter: Mapping[str, Any], longer: Mapping[str, Any]) -> None:
    """Add a case, unless it is there."""
    path = out / "cases.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    if name not in {json.loads(line)["run"] for line in lines}:
        case = {"run": name, "set": part, "images": VAL_IMAGES, **shorter, "longer": longer["top1"][-1]}
        path.write_text("\n".join([*lines, json.dumps(case)]) + "\n")


class Data(NamedTuple):
    """Images in [-1, 1] and labels; the training images in an order in which every beginning is balanced."""

    train: Tensor
    train_labels: Tensor
    val: Tensor
    val_labels: Tensor


def _fashion() -> Data:
    found = load_fashion_mnist()
    images = torch.from_numpy(found.train_images.copy())[:, None].float() / 127.5 - 1
    return _split(images, torch.from_numpy(found.train_labels))


def _cifar10(folder: Path) -> Data:
    files = cifar10_files(folder)
    images = torch.from_numpy(np.stack([np.asarray(Image.open(path).convert("RGB")) for path, _ in files]))
    return _split(images.permute(0, 3, 1, 2).float() / 127.5 - 1, torch.arange(len(files)) % CLASSES)


def _split(images: Tensor, labels: Tensor) -> Data:
    first, end = TRAIN_IMAGES, TRAIN_IMAGES + VAL_IMAGES
    return Data(images[:first], labels[:first], images[first:end], labels[first:end])


def cifar10_files(folder: Path) -> list[tuple[Path, str]]:
    """Training images and their classes, which take turns."""
    classes = sorted(path for path in (folder / "train").iterdir() if path.is_dir())
    columns = [sorted(path.iterdir())[: (TRAIN_IMAGES + VAL_IMAGES) // CLASSES] for path in classes]
    return [(path, path.parent.name) for row in zip(*columns, strict=True) for path in row]


class ViTs:
    """Plain pre-norm ViTs side by side: every weight has the number of the run as its first dimension."""

    def __init__(self, stack: Stack, pixels: int) -> None:
        runs, width, tokens = len(stack.labels), stack.width, GRID * GRID
        self.heads, self.depth, self.has_grid = width // 16, stack.depth, stack.has_grid
        torch.manual_seed(stack.seed)

        def matrix(*shape: int) -> Tensor:
            return torch.nn.init.trunc_normal_(torch.empty(runs, *shape), std=0.02).requires_grad_()

        def vector(size: int, value: float = 0.0) -> Tensor:
            return torch.full((runs, 1, size), value).requires_grad_()

        self.weights = {"embed": matrix(pixels, width), "positions": matrix(tokens, width), "mask": vector(width)}
        for block in range(stack.depth):
            self.weights |= {
                f"{block}.qkv": matrix(width, 3 * width), f"{block}.out": matrix(width, width),
                f"{block}.up": matrix(width, 4 * width), f"{block}.down": matrix(4 * width, width),
                f"{block}.up_bias": vector(4 * width), f"{block}.norm1": vector(width, 1.0), f"{block}.norm2": vector(width, 1.0),
            }  # fmt: skip
        self.weights |= {"norm": vector(width, 1.0), "pixels": matrix(width, pixels)}
        self.weights["head"] = matrix(width * (tokens if stack.has_grid else 1), CLASSES)

    def tokens(self, images: Tensor, hidden: Tensor | None = None) -> Tensor:
        """Images (runs, b, c, h, w), of which some patches (runs, b, n) are hidden, to tokens (runs, b * n, width)."""
        at, (runs, count) = self.weights, images.shape[:2]
        x = torch.bmm(patches(images).flatten(1, 2), at["embed"]).unflatten(1, (count, -1))
        if hidden is not None:
            x = torch.where(hidden[..., None], at["mask"][:, None], x)
        x = (x + at["positions"][:, None]).flatten(1, 2)
        for block in range(self.depth):
            y = torch.bmm(F.layer_norm(x, x.shape[-1:]) * at[f"{block}.norm1"], at[f"{block}.qkv"])
            y = y.view(runs * count, -1, 3, self.heads, x.shape[-1] // self.heads).permute(2, 0, 3, 1, 4)
            y = F.scaled_dot_product_attention(y[0], y[1], y[2]).transpose(1, 2).reshape(x.shape)
            x = x + torch.bmm(y, at[f"{block}.out"])
            y = torch.bmm(F.layer_norm(x, x.shape[-1:]) * at[f"{block}.norm2"], at[f"{block}.up"]) + at[f"{block}.up_bias"]
            x = x + torch.bmm(F.gelu(y), at[f"{block}.down"])
        return F.layer_norm(x, x.shape[-1:]) * at["norm"]

    def __call__(self, images: Tensor) -> Tensor:
        """Logits (runs, b, classes)."""
        x = self.tokens(images).unflatten(1, (images.shape[1], -1))
        return torch.bmm(x.flatten(2) if self.has_grid else x.mean(2), self.weights["head"])


def patches(images: Tensor) -> Tensor:
    """Images (runs, b, c, h, w) to patches (runs, b, n, pixels)."""
    side = images.shape[-1] // GRID
    return images.unflatten(-2, (GRID, side)).unflatten(-1, (GRID, side)).permute(0, 1, 3, 5, 2, 4, 6).flatten(4).flatten(2, 3)


class Steps:
    """AdamW over a stack, a warm-up of a tenth and a cosine; each run's gradient is clipped by itself."""

    def __init__(self, network: ViTs, lr: float, steps: int) -> None:
        self.weights, self.lr, self.steps, self.done = network.weights, lr, steps, 0
        decayed = [weight for weight in self.weights.values() if weight.shape[1] > 1]
        others = [weight for weight in self.weights.values() if weight.shape[1] == 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}], foreach=True
        )

    def take(self, loss: Tensor) -> None:
        """One step for the sum of the runs' losses."""
        loss.backward()
        found = [weight for weight in self.weights.values() if weight.grad is not None]
        norms = torch.stack([weight.grad.flatten(1).square().sum(1) for weight in found]).sum(0).sqrt()
        factors = (CLIP / (norms + 1e-6)).clamp(max=1.0)[:, None, None]
        for weight in found:
            weight.grad.mul_(factors)
        for group in self.optimizer.param_groups:
            group["lr"] = cosine(self.done, self.steps, self.steps // 10, self.lr, 1e-6)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.done += 1


_pretrained: dict[str, dict[str, Tensor]] = {}


def trained(data: Data, stack: Stack, steps: int) -> list[dict[str, Any]]:
    """Train a stack; returns for each run what its journal would hold."""
    network = ViTs(stack, data.train[0].numel() // GRID**2)
    random = torch.Generator().manual_seed(1000 * stack.seed + steps)
    if stack.is_pretrained:
        if stack.name not in _pretrained:
            pretrain(network, data, stack)
            _pretrained[stack.name] = {name: weight.detach().clone() for name, weight in network.weights.items()}
        network.weights = {name: weight.clone().requires_grad_() for name, weight in _pretrained[stack.name].items()}
    course = Steps(network, stack.lr, steps)
    drawn = [torch.randperm(TRAIN_IMAGES // CLASSES, generator=torch.Generator().manual_seed(stack.seed)) for _ in stack.labels]
    chosen = [
        (CLASSES * order[: labels // CLASSES, None] + torch.arange(CLASSES)).flatten()
        for order, labels in zip(drawn, stack.labels, strict=True)
    ]
    orders = [epochs(rows, steps * stack.batch, random).view(steps, stack.batch) for rows in chosen]
    found: list[dict[str, list[float]]] = [{"top1": [], "val_loss": [], "loss": [], "accuracy": []} for _ in stack.labels]
    window = []
    for step in range(steps):
        rows = torch.stack([order[step] for order in orders])
        logits, labels = network(moved(data.train[rows], random)), data.train_labels[rows]
        losses = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), label_smoothing=SMOOTHING, reduction="none").view_as(
            rows
        )
        course.take(losses.mean(1).sum())
        window.append((losses.detach().mean(1), (logits.argmax(2) == labels).float().mean(1)))
        if (step + 1) % (steps // LOGGED) == 0:
            for name, values in zip(("loss", "accuracy"), zip(*window, strict=True), strict=True):
                for run, value in zip(found, torch.stack(values).mean(0).tolist(), strict=True):
                    run[name].append(value)
            window = []
        if (step + 1) % (steps // EVALUATIONS) == 0:
            with torch.no_grad():
                every = data.val.expand(len(found), *data.val.shape)
                logits = torch.cat([network(part) for part in every.split(200, 1)], 1)
            for run, answers in zip(found, logits, strict=True):
                run["top1"].append(float((answers.argmax(1) == data.val_labels).float().mean()))
                run["val_loss"].append(float(F.cross_entropy(answers, data.val_labels)))
    return found


def epochs(rows: Tensor, count: int, random: torch.Generator) -> Tensor:
    """So many of these rows, pass after pass in another order."""
    passes = -(-count // len(rows))
    return torch.cat([rows[torch.randperm(len(rows), generator=random)] for _ in range(passes)])[:count]


def moved(images: Tensor, random: torch.Generator) -> Tensor:
    """Images (runs, b, c, h, w) shifted by up to 2 pixels, and half of them mirrored."""
    side, flat = images.shape[-1], images.flatten(0, 1)
    rows, columns = (torch.arange(side) + torch.randint(-2, 3, (2, len(flat), 1), generator=random)).clamp(0, side - 1)
    columns = torch.where(torch.rand(len(flat), 1, generator=random) < 0.5, columns.flip(1), columns)
    picked = flat[torch.arange(len(flat))[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2).reshape(images.shape)


def pretrain(network: ViTs, data: Data, stack: Stack) -> None:
    """A short pre-training of all runs: the pixels of hidden patches, on all training images."""
    random = torch.Generator().manual_seed(stack.seed)
    course = Steps(network, PRETRAINED_LR, PRETRAINING)
    for _ in range(PRETRAINING):
        rows = torch.randint(0, TRAIN_IMAGES, (len(stack.labels), stack.batch), generator=random)
        images = moved(data.train[rows], random)
        hidden = torch.rand(*rows.shape, GRID * GRID, generator=random) < 0.4
        predicted = torch.bmm(network.tokens(images, hidden), network.weights["pixels"]).unflatten(1, (stack.batch, -1))
        missed = (predicted - patches(images)).square().mean(-1) * hidden
        course.take((missed.sum((1, 2)) / hidden.sum((1, 2))).sum())


def product_lists(cifar10: Path, out: Path) -> dict[str, Path]:
    """The same images as lists of files."""
    unpack(out / "pictures")
    clothes = [
        (f"pictures/labelled/train/{CLASS_NAMES[index % CLASSES]}/{index:05d}.png", CLASS_NAMES[index % CLASSES])
        for index in range(TRAIN_IMAGES + VAL_IMAGES)
    ]
    files = {"fashion": clothes, "cifar": [(str(path.resolve()), label) for path, label in cifar10_files(cifar10)]}
    for name, images in files.items():
        rows = [f"{path},{label},{'train' if index < TRAIN_IMAGES else 'val'}\n" for index, (path, label) in enumerate(images)]
        (out / f"{name}.csv").write_text("path,label,split\n" + "".join(rows))
    return {name: out / f"{name}.csv" for name in files}


def finetuned(lists: Mapping[str, Path], out: Path, course: Course, steps: int) -> dict[str, Any]:
    """A run of the product, and its journal."""
    folder = out / "runs" / f"{course.name}-{steps}"
    beitkit.finetune(
        lists[course.images], out=folder, scratch=True, size="micro", patch=course.patch, image_size=SIDE[course.images],
        network=NetworkConfig(width=course.width, depth=course.depth, heads=course.width // 32),
        labels=course.labels, seed=course.seed, steps=steps, batch_size=32, lr=course.lr, drop_path=0.1, pooling="grid",
        head_init="zero", view=ViewConfig(shift=2, color_jitter=0.0), device="cpu", threads=1, workers=0,
        augment=AugmentConfig(mixup=0.0, cutmix=0.0) if course.is_augmented else NO_AUGMENT,
        optim=OptimConfig(lr_batch=32, min_lr=1e-6, warmup_steps=steps // 10, layer_decay=1.0, clip=CLIP),
        loop=LoopConfig(log_every=max(1, steps // LOGGED), evaluate_every=steps // EVALUATIONS, save_every=0, ema=0.0),
    )  # fmt: skip
    events = read_journal(folder / "journal.jsonl")
    evaluated = {name: series(events, f"val/{key}", "evaluate").values for name, key in (("top1", "top1"), ("val_loss", "loss"))}
    return evaluated | {name: series(events, name).values for name in ("loss", "accuracy")}


if __name__ == "__main__":
    main()
