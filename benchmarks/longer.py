"""Pairs of runs, one twice as long as the other, for `evaluation.longer`: what the shorter one's curve says and what came.

    beitkit demo --out runs/demo
    python -m benchmarks.longer runs/demo --out runs/longer

Fine-tunes the demo's network and fresh weights on the demo's training images, a fifth of which judges, with several numbers of
labels and seeds, each at several lengths; the schedule is stretched with the length. Prints the pairs as JSON lines, then the
share of the gains that the intervals cover. The same command goes on where it was cut.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import NamedTuple

import beitkit
from beitkit.configs.data import NO_AUGMENT, ViewConfig
from beitkit.configs.train import LoopConfig, OptimConfig
from beitkit.report.journal import read_journal, series

LENGTHS = (50, 100, 200, 400, 800)
EVALUATIONS = 10
LABELS = (300, 1000, 5000)
VIEW = ViewConfig(shift=2, color_jitter=0.0)


class Case(NamedTuple):
    """A run's own curve, and where runs of once and twice its length ended."""

    name: str
    curve: list[float]
    images: int
    longer: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("demo", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    arguments = parser.parse_args()
    for seed, labels, start in itertools.product(arguments.seeds, LABELS, ("scratch", "pretrained")):
        curves = [_curve(arguments.demo, arguments.out, start, labels, seed, steps) for steps in LENGTHS]
        for steps, (curve, images), (longer, _) in zip(LENGTHS, curves, curves[1:], strict=False):
            print(json.dumps(Case(f"{start} {labels} {seed} {steps}", curve, images, longer[-1])._asdict()), flush=True)


def _curve(demo: Path, out: Path, start: str, labels: int, seed: int, steps: int) -> tuple[list[float], int]:
    run = out / f"{start}-{labels}-{seed}-{steps}"
    is_scratch = start == "scratch"
    beitkit.finetune(
        demo / "pictures" / "labelled" / "train", model=demo / "pretrain", out=run, scratch=is_scratch,
        labels=labels, seed=seed, steps=steps, batch_size=32, lr=3e-3 if is_scratch else 2e-3, drop_path=0.1,
        pooling="grid", pool_cells=7, head_init="zero", augment=NO_AUGMENT, view=VIEW,
        optim=OptimConfig(lr_batch=32, min_lr=1e-6, warmup_steps=steps // 10, layer_decay=1.0 if is_scratch else 0.8, clip=3.0),
        loop=LoopConfig(log_every=steps, evaluate_every=steps // EVALUATIONS, ema=0.0),
    )  # fmt: skip
    return series(read_journal(run / "journal.jsonl"), "val/top1", "evaluate").values, 2800


if __name__ == "__main__":
    main()
