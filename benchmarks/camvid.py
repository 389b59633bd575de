"""The CamVid segmentation run of docs/results.md, from unlabeled images to the tables.

    python -m benchmarks.camvid CAMVID_FOLDER PHOTOS_FOLDER --out runs/camvid [--threads 1]

CAMVID_FOLDER holds images/{train,val} and labels/{train,val} (11 classes, 11 = unlabeled), PHOTOS_FOLDER any photographs. The
backbone is pre-trained on both without labels, CamVid's validation images left out; then the same network is trained from it and
from fresh weights, with three seeds, beside floors. The validation images choose nothing and are measured once a run. Prints
the tables of docs/results.md as Markdown. The same command continues a run that was cut.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from beitkit.configs.data import MaskConfig, SceneViewConfig, ViewConfig
from beitkit.configs.parts import NetworkConfig
from beitkit.configs.segmentation import InferenceConfig, SegmentationLossConfig
from beitkit.configs.tokenizer import KMeansConfig
from beitkit.configs.train import LoopConfig, MachineConfig, OptimConfig, TrainConfig
from beitkit.data.scenes.scenes import train_and_val_scenes
from beitkit.report.table import Table
from beitkit.runs.pretrain import run as pretrain
from beitkit.runs.pretrain.config import PretrainRun
from beitkit.runs.segment.config import SegmentRun
from beitkit.runs.tokenizer import run as tokenizer
from beitkit.runs.tokenizer.config import TokenizerRun
from beitkit.runs.verdict.config import SCRATCH
from beitkit.runs.verdict.measured import Kept, NamedStart, named_starts
from beitkit.runs.verdict.report import Verdict, by_class, print_sentences, table
from beitkit.runs.verdict.scenes import LabeledScenes, scene_contest

SEEDS = (0, 1, 2)
SIDE, PATCH = 128, 8
CLASSES = {
    "names": ["sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist"],
    "ignore": [11],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("camvid", type=Path)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=0)
    arguments = parser.parse_args()
    camvid, out, machine = arguments.camvid, arguments.out, MachineConfig(threads=arguments.threads)
    out.mkdir(parents=True, exist_ok=True)
    images, classes = out / "unlabeled.txt", out / "classes.json"
    found = [*sorted(arguments.photos.glob("*.jpg")), *sorted((camvid / "images" / "train").glob("*.jpg"))]
    images.write_text("".join(f"{path.absolute()}\n" for path in found))
    classes.write_text(json.dumps(CLASSES))

    tokenizer.run(
        TokenizerRun(
            images, out=out / "tok", kind="kmeans", image_size=SIDE, machine=machine, view=ViewConfig(color_jitter=0.0),
            kmeans=KMeansConfig(vocabulary=512, stride=PATCH, patches=100_000),
        )
    )  # fmt: skip
    pretrain.run(
        PretrainRun(
            images, tokenizer=out / "tok", out=out / "pre", size="micro", image_size=SIDE, patch=PATCH,
            train=TrainConfig(steps=5000, batch_size=32, lr=3e-3), machine=machine,
            network=NetworkConfig(drop_path=0.0, depth=4), mask=MaskConfig(kind="random"), view=ViewConfig(color_jitter=0.0),
            optim=OptimConfig(lr_batch=32, betas=(0.9, 0.98), warmup_steps=200), loop=LoopConfig(log_every=100),
        )
    )  # fmt: skip

    def training(start: NamedStart, seed: int) -> SegmentRun:
        """The same set-up for both starts; only the first weights of the backbone and their layer decay differ."""
        return SegmentRun(
            camvid, model=out / "pre", out=out / "seg" / f"{start.slug}-{seed}", scratch=start.path is None, classes=classes,
            image_size=SIDE, channels=64, drop_path=0.0, machine=machine,
            train=TrainConfig(steps=3000, batch_size=8, lr=2e-3, seed=seed), view=SceneViewConfig(scale=(1.0, 3.0)),
            loss=SegmentationLossConfig(dice_weight=1.0), inference=InferenceConfig(short_side=256),
            optim=OptimConfig(
                schedule="linear", lr_batch=8, min_lr=0.0, warmup_steps=100, layer_decay=1.0 if start.path is None else 0.8,
                clip=3.0,
            ),
            loop=LoopConfig(log_every=100),
        )  # fmt: skip

    train, val = train_and_val_scenes(camvid, None, SEEDS[0], classes=classes)
    contest = scene_contest(
        LabeledScenes(train, val, machine),
        named_starts((SCRATCH, out / "pre")),
        SEEDS,
        training,
        Kept(out, len(val), len(train.classes)),
    )
    verdict = Verdict("mIoU", "images", SEEDS, len(val), (contest,), tuple(train.classes), is_weighed=True)
    for shown in (table(verdict), by_class(verdict)):
        print_markdown(shown)
    print_sentences(verdict)


def print_markdown(shown: Table) -> None:
    """A table as docs/results.md has it."""
    for row in (shown.header, ["---"] * len(shown.header), *shown.cells):
        print(f"| {' | '.join(row)} |")
    print()


if __name__ == "__main__":
    main()
