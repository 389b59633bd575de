"""Accuracy with K stored views compared with new views in every epoch: the table of docs/results.md.

    python -m benchmarks.views CIFAR10_FOLDER --tokenizer runs/tok --out runs/views

CIFAR10_FOLDER holds train/<class>/ and test/<class>/. The same images are pre-trained on for the same number of steps
with K = 1, 4 and 16 stored views and with fresh ones, several seeds each (first weights, order, views, masks); then a
linear probe and a fine-tuning with few labels. Prints the table as Markdown; the same command continues a run that was cut.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import beitkit
from beitkit.configs.data import NO_AUGMENT, ViewConfig
from beitkit.configs.parts import NetworkConfig
from beitkit.configs.train import LoopConfig, OptimConfig

VIEWS = (1, 4, 16, None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--per-class", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--labels", type=int, default=500)
    arguments = parser.parse_args()
    out, images = arguments.out, arguments.images
    out.mkdir(parents=True, exist_ok=True)
    chosen = [
        image.resolve()
        for folder in sorted((images / "train").iterdir())
        for image in sorted(folder.iterdir())[: arguments.per_class]
    ]
    listed = out / "images.txt"
    listed.write_text("".join(f"{image}\n" for image in chosen))
    scores: dict[int | None, list[tuple[float, float]]] = {views: [] for views in VIEWS}
    for seed in range(arguments.seeds):
        for views in VIEWS:
            name = f"{views or 'fresh'}-{seed}"
            model = beitkit.pretrain(
                listed, tokenizer=arguments.tokenizer, out=out / "pre" / name, size="nano", image_size=32, patch=4,
                views=views, epochs=arguments.epochs, batch_size=32, lr=3e-3, seed=seed, threads=1,
                network=NetworkConfig(drop_path=0.0), view=ViewConfig(crop_scale=(0.3, 1.0), color_jitter=0.2),
                optim=OptimConfig(lr_batch=32), loop=LoopConfig(log_every=500, save_every=1000),
            )  # fmt: skip
            probe = beitkit.probe(images, model=model, out=out / "probe" / name, limit=5000, seed=seed, threads=1)
            tuned = beitkit.finetune(
                images, model=model, out=out / "cls" / name, labels=arguments.labels, seed=seed, steps=400, batch_size=32,
                lr=3e-3, threads=1, optim=OptimConfig(lr_batch=32, min_lr=1e-6, warmup_steps=40, layer_decay=1.0, clip=None),
                drop_path=0.1, augment=NO_AUGMENT, loop=LoopConfig(log_every=200, ema=0.0),
            )  # fmt: skip
            scores[views].append((probe.linear.test[probe.linear.chosen], tuned.accuracy))
            print(f"{name}: linear {scores[views][-1][0]:.1%}, fine-tuned {scores[views][-1][1]:.1%}", flush=True)
    print(f"| views | linear probe | spread | fine-tuned, {arguments.labels} labels | spread |\n|---|---|---|---|---|")
    for views, score in scores.items():
        cells = [
            f"{statistics.mean(values):.1%} ({', '.join(f'{value:.1%}' for value in values)}) | "
            f"{100 * statistics.stdev(values):.1f}"
            for values in zip(*score, strict=True)
        ]
        print(f"| {views or 'fresh'} | {cells[0]} | {cells[1]} |")


if __name__ == "__main__":
    main()
