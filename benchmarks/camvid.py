"""The CamVid segmentation run of docs/results.md, from unlabeled images to the table, by beitkit commands only.

    python -m benchmarks.camvid CAMVID_FOLDER PHOTOS_FOLDER --out runs/camvid

CAMVID_FOLDER holds images/{train,val} and labels/{train,val} (11 classes, 11 = unlabeled), PHOTOS_FOLDER any photographs. The
backbone is pre-trained on both without labels, CamVid's validation images left out; then the same network is fine-tuned from it
and from fresh weights, in the same set-up, with three seeds. The validation images choose nothing and are measured once a run.
Prints the tables of docs/results.md as Markdown. The same command continues a run that was cut.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import beitkit
from beitkit.configs.data import SceneViewConfig
from beitkit.configs.parts import NetworkConfig
from beitkit.configs.segmentation import InferenceConfig
from beitkit.configs.tokenizer import DVAEConfig
from beitkit.configs.train import LoopConfig, OptimConfig
from beitkit.runs.segment.run import SegmentResult

SEEDS = (0, 1, 2)
CLASSES = {
    "names": ["sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist"],
    "ignore": [11],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("camvid", type=Path)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=0)
    arguments = parser.parse_args()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    images, classes = out / "unlabeled.txt", out / "classes.json"
    found = [*sorted(arguments.photos.glob("*.jpg")), *sorted((arguments.camvid / "images" / "train").glob("*.jpg"))]
    images.write_text("".join(f"{path.absolute()}\n" for path in found))
    classes.write_text(json.dumps(CLASSES))

    beitkit.tokenizer(
        images, out=out / "tok", image_size=64, steps=1500, batch_size=64, threads=arguments.threads,
        dvae=DVAEConfig(vocabulary=256, stride=4, hidden=64, codebook_dim=64), loop=LoopConfig(log_every=250),
    )  # fmt: skip
    beitkit.pretrain(
        images, tokenizer=out / "tok", out=out / "pre", size="nano", patch=8, image_size=128, steps=3000, batch_size=32,
        lr=3e-3, threads=arguments.threads, network=NetworkConfig(drop_path=0.0),
        optim=OptimConfig(lr_batch=32, warmup_steps=200), loop=LoopConfig(log_every=100),
    )  # fmt: skip
    runs: dict[str, list[SegmentResult]] = {"from scratch": [], "pre-trained": []}
    minutes: dict[str, float] = {}
    for seed in SEEDS:
        for start in runs:
            began = time.monotonic()
            runs[start].append(segment(arguments.camvid, classes, out, start, seed, arguments.threads))
            minutes[f"{start}, seed {seed}"] = round((time.monotonic() - began) / 60, 1)

    print("| | from scratch | pre-trained | gain | spread (larger standard deviation over seeds) |\n|---|---|---|---|---|")
    rows = {"mIoU": {start: [run.mean_iou for run in results] for start, results in runs.items()}}
    for name in CLASSES["names"]:
        rows[name] = {start: [run.class_iou[name] or 0.0 for run in results] for start, results in runs.items()}
    for name, values in rows.items():
        cells = [f"{statistics.mean(one):.1%} ({', '.join(f'{value:.1%}' for value in one)})" for one in values.values()]
        gain = 100 * (statistics.mean(values["pre-trained"]) - statistics.mean(values["from scratch"]))
        spread = 100 * max(statistics.stdev(one) for one in values.values())
        print(f"| {name} | {cells[0]} | {cells[1]} | {gain:+z.1f} | {spread:.1f} |")
    print("\n" + json.dumps(minutes))


def segment(camvid: Path, classes: Path, out: Path, start: str, seed: int, threads: int) -> SegmentResult:
    """The same set-up for both starts; only the first weights of the backbone differ."""
    return beitkit.segment(
        camvid, model=out / "pre", out=out / "seg" / f"{start.replace(' ', '-')}-{seed}", scratch=start == "from scratch",
        classes=classes, image_size=128, channels=64, drop_path=0.0, steps=1000, batch_size=8, lr=2e-3, seed=seed,
        threads=threads, view=SceneViewConfig(scale=(1.0, 3.0)), inference=InferenceConfig(short_side=256),
        optim=OptimConfig(schedule="linear", lr_batch=8, min_lr=0.0, warmup_steps=100, layer_decay=1.0, clip=3.0),
        loop=LoopConfig(log_every=100),
    )  # fmt: skip


if __name__ == "__main__":
    main()
