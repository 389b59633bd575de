"""The CIFAR-10 run of docs/results.md, by beitkit commands only.

    python -m benchmarks.cifar10 CIFAR10_FOLDER --out runs/cifar10

CIFAR10_FOLDER holds train/<class>/ and test/<class>/. Only training images choose anything; the test images are
measured once per run. Prints the tables of docs/results.md as Markdown. The same command continues a run that was cut.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import beitkit
from beitkit.configs.data import NO_AUGMENT, ViewConfig
from beitkit.configs.parts import NetworkConfig
from beitkit.configs.tokenizer import DVAEConfig
from beitkit.configs.train import LoopConfig, OptimConfig

SEEDS = (0, 1, 2)
STEPS = {500: 400, 5000: 1000, 50000: 5000}
"""Optimizer steps of 32 images by number of labels."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--size", default="nano")
    parser.add_argument("--pretrain-steps", type=int, default=8000)
    parser.add_argument("--labels", type=int, nargs="+", default=[500, 5000])
    arguments = parser.parse_args()
    out, images = arguments.out, arguments.images
    minutes: dict[str, float] = {}

    def timed(name: str, run):
        start = time.monotonic()
        result = run()
        minutes[name] = minutes.get(name, 0) + (time.monotonic() - start) / 60
        return result

    timed(
        "tokenizer",
        lambda: beitkit.tokenizer(
            images / "train", out=out / "tok", image_size=32, steps=1500, batch_size=64,
            dvae=DVAEConfig(vocabulary=512, stride=4, hidden=64, codebook_dim=64),
            view=ViewConfig(crop_scale=(0.3, 1.0), color_jitter=0.0), loop=LoopConfig(log_every=250),
        ),
    )  # fmt: skip
    timed(
        "pretrain",
        lambda: beitkit.pretrain(
            images / "train", tokenizer=out / "tok", out=out / "pre", size=arguments.size, image_size=32, patch=4,
            steps=arguments.pretrain_steps, batch_size=32, lr=3e-3, network=NetworkConfig(drop_path=0.0),
            view=ViewConfig(crop_scale=(0.3, 1.0), color_jitter=0.2),
            optim=OptimConfig(lr_batch=32, warmup_steps=400), loop=LoopConfig(log_every=500, save_every=1000),
        ),
    )  # fmt: skip
    probe = timed("probe", lambda: beitkit.probe(images, model=out / "pre", out=out / "probe", limit=5000))
    scores: dict[int, dict[str, list[float]]] = {}
    for labels in arguments.labels:
        for start in ("scratch", "pretrained"):
            for seed in SEEDS:
                result = timed(
                    f"finetune with {labels} labels",
                    lambda labels=labels, start=start, seed=seed: beitkit.finetune(
                        images, model=out / "pre", out=out / "cls" / f"{labels}-{start}-{seed}", scratch=start == "scratch",
                        labels=labels, seed=seed, steps=STEPS[labels], batch_size=32, lr=3e-3,
                        optim=OptimConfig(lr_batch=32, min_lr=1e-6, warmup_steps=STEPS[labels] // 10, layer_decay=1.0, clip=None),
                        drop_path=0.1, augment=NO_AUGMENT, loop=LoopConfig(log_every=500, ema=0.0),
                    ),
                )  # fmt: skip
                scores.setdefault(labels, {}).setdefault(start, []).append(result.accuracy)

    print("| labels | from scratch | pre-trained | gain | spread (larger standard deviation over seeds) |\n|---|---|---|---|---|")
    for labels, score in scores.items():
        cells = [f"{statistics.mean(values):.1%} ({', '.join(f'{value:.1%}' for value in values)})" for values in score.values()]
        gain = 100 * (statistics.mean(score["pretrained"]) - statistics.mean(score["scratch"]))
        spread = 100 * max(statistics.stdev(values) for values in score.values())
        print(f"| {labels:,} | {cells[0]} | {cells[1]} | {gain:+.1f} | {spread:.1f} |")
    assert probe.neighbors is not None
    assert probe.linear is not None
    print("\n| block | nearest neighbors | linear probe |\n|---|---|---|")
    for block, (neighbors, linear) in enumerate(zip(probe.neighbors.test, probe.linear.test, strict=True)):
        marks = [" (chosen)" if block == one.chosen else "" for one in (probe.neighbors, probe.linear)]
        print(f"| {block + 1} | {neighbors:.1%}{marks[0]} | {linear:.1%}{marks[1]} |")
    print("\n" + json.dumps({name: round(value, 1) for name, value in minutes.items()}))


if __name__ == "__main__":
    main()
