"""What a prediction target is worth when its tokenizer's training counts: the table of docs/results.md.

    python -m benchmarks.targets CIFAR10_FOLDER --out runs/targets [--minutes 8] [--seeds 0 1 2] [--threads 1]

CIFAR10_FOLDER holds train/<class>/ and test/<class>/. For each target (tokens of k-means, tokens of a discrete VAE, pixels) and
seed, a tokenizer is trained on the training images, if there is one, and a network pre-trained for what is left of the minutes;
then a linear probe and a fine-tuning with 5,000 labels are measured on the test images. How many steps that is, is
computed from rates that are measured first, all targets in turns, so that a busy minute takes from none alone. Prints the table
as Markdown; the same command continues a run that was cut.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

import beitkit
from beitkit.configs.data import NO_AUGMENT, MaskConfig, ViewConfig
from beitkit.configs.parts import NetworkConfig
from beitkit.configs.tokenizer import DVAEConfig, KMeansConfig
from beitkit.configs.train import LoopConfig, OptimConfig
from beitkit.report.journal import read_journal
from beitkit.system import write_atomically

TARGETS = {"kmeans": "tokens, k-means", "dvae": "tokens, discrete VAE", "pixels": "pixels"}
BATCH, PATCH, SIDE = 64, 4, 32
ROUNDS, TRIED = 3, 100
"""Turns that the rates are measured in, and the steps of each."""
LABELS, FINETUNE_STEPS = 5_000, 500
VIEW = ViewConfig(shift=3, color_jitter=0.0)
TOKENIZERS: dict[str, dict[str, Any]] = {
    "kmeans": {"view": VIEW, "kmeans": KMeansConfig(vocabulary=512, stride=PATCH, patches=100_000)},
    "dvae": {
        "steps": 1_500,
        "batch_size": 64,
        "view": ViewConfig(crop_scale=(0.3, 1.0), color_jitter=0.0),
        "dvae": DVAEConfig(vocabulary=512, stride=PATCH, hidden=64, codebook_dim=64),
    },
}


class Found(NamedTuple):
    """What one pre-training reached."""

    steps: int
    tokenizer: float
    """Seconds of its training."""
    probe: float
    tuned: float


class Race:
    """All runs of a folder, with one number of minutes for each pre-training and its tokenizer."""

    def __init__(self, images: Path, out: Path, seconds: float, threads: int) -> None:
        self.images, self.out, self.seconds, self.threads = images, out, seconds, threads

    def tokenizer(self, target: str, seed: int) -> float:
        """Train the target's tokenizer if it has one; returns how long that took, in seconds."""
        if target == "pixels":
            return 0.0
        kept = self.out / f"tok-{target}-{seed}.json"
        if not kept.exists():
            began = time.perf_counter()
            beitkit.tokenizer(
                self.images / "train", kind=target, out=self._tokenizer(target, seed), image_size=SIDE, seed=seed,
                threads=self.threads, **TOKENIZERS[target],
            )  # fmt: skip
            write_atomically(kept, json.dumps({"seconds": time.perf_counter() - began}).encode())
        return json.loads(kept.read_text())["seconds"]

    def rates(self) -> dict[str, float]:
        """Images a second of pre-training on each target, medians over turns."""
        kept = self.out / "rates.json"
        if not kept.exists():
            found: dict[str, list[float]] = {target: [] for target in TARGETS}
            for turn in range(ROUNDS):
                for target, rates in found.items():
                    self.tokenizer(target, 0)
                    run = self._pretrained(target, 0, TRIED, self.out / "rates" / f"{target}-{turn}")
                    last = [event for event in read_journal(run / "journal.jsonl") if event.kind == "train"][-1]
                    rates.append(last.numbers["images_per_second"])
            write_atomically(kept, json.dumps({target: statistics.median(rates) for target, rates in found.items()}).encode())
        return json.loads(kept.read_text())

    def measure(self, target: str, seed: int) -> Found:
        """Train both, and measure."""
        spent = self.tokenizer(target, seed)
        steps = round((self.seconds - spent) * self.rates()[target] / BATCH)
        if steps < TRIED:
            raise SystemExit(f"the tokenizer took {spent:.0f} s of {self.seconds:.0f}; give more --minutes")
        name = f"{target}-{seed}"
        model = self._pretrained(target, seed, steps, self.out / "pre" / name)
        probed = beitkit.probe(
            self.images, model=model, out=self.out / "probe" / name, limit=LABELS, seed=seed, threads=self.threads
        )
        tuned = beitkit.finetune(
            self.images, model=model, out=self.out / "tuned" / name, labels=LABELS, seed=seed, steps=FINETUNE_STEPS,
            batch_size=BATCH, lr=2e-3, pooling="grid", pool_cells=2, head_init="probe", drop_path=0.1, view=VIEW,
            augment=NO_AUGMENT, loop=LoopConfig(ema=0.0), threads=self.threads,
            optim=OptimConfig(lr_batch=BATCH, min_lr=1e-6, warmup_steps=FINETUNE_STEPS // 10, layer_decay=0.8, clip=3.0),
        )  # fmt: skip
        return Found(steps, spent, probed.linear.test[probed.linear.chosen], tuned.accuracy)

    def _tokenizer(self, target: str, seed: int) -> Path:
        return self.out / "tok" / f"{target}-{seed}"

    def _pretrained(self, target: str, seed: int, steps: int, out: Path) -> Path:
        what: dict[str, Any] = {"target": "pixels"} if target == "pixels" else {"tokenizer": self._tokenizer(target, seed)}
        return beitkit.pretrain(
            self.images / "train", **what, out=out, size="micro", image_size=SIDE, patch=PATCH, steps=steps, batch_size=BATCH,
            lr=4e-3, seed=seed, threads=self.threads, network=NetworkConfig(positions="none", drop_path=0.0, depth=4),
            mask=MaskConfig(kind="random"), view=VIEW, loop=LoopConfig(log_every=50),
            optim=OptimConfig(lr_batch=BATCH, betas=(0.9, 0.98), warmup_steps=min(200, steps // 10)),
        )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=0)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    race = Race(arguments.images, arguments.out, 60 * arguments.minutes, arguments.threads)
    found = {target: [race.measure(target, seed) for seed in arguments.seeds] for target in TARGETS}
    rates = race.rates()
    print("| target | images/s | tokenizer | steps | linear probe | spread | fine-tuned, 5,000 labels | spread |\n|" + 8 * "---|")
    for target, runs in found.items():
        seconds = statistics.mean(run.tokenizer for run in runs)
        steps = ", ".join(f"{run.steps:,}" for run in runs)
        scores = " | ".join(_scores([getattr(run, name) for run in runs]) for name in ("probe", "tuned"))
        print(f"| {TARGETS[target]} | {rates[target]:.0f} | {seconds:.0f} s | {steps} | {scores} |")


def _scores(values: list[float]) -> str:
    spread = f"{100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1%} ({', '.join(f'{value:.1%}' for value in values)}) | {spread}"


if __name__ == "__main__":
    main()
