"""Labeling a large image on one core: all scores of all pixels against only those that decide, in turns.

    taskset -c 1 python -m benchmarks.labeling [--size 2000 1500] [--rounds 3]

The network is small (nano/16 at 512 pixels, 150 classes, fresh weights) and sees an image of smooth colors, so that labels come
in areas as those of a trained network do; how many pixels lie between scores that disagree is printed, as it decides the time.
Processor time is compared, the network's part included, and the labels and confidences of both.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F

from beitkit.configs.model import BackboneConfig, SegmenterConfig
from beitkit.nn.segmentation import label_map
from beitkit.nn.segmentation.enlarged import LabeledBand
from beitkit.nn.segmentation.segmenter import Segmenter

CLASSES = 150


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=2, default=(1500, 2000), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    backbone = BackboneConfig.named("nano/16", image_size=512, relative_positions="per_block", final_norm=False)
    config = SegmenterConfig(backbone=backbone, classes=tuple(map(str, range(CLASSES))), channels=64, auxiliary_channels=None)
    model = Segmenter(config).eval()
    colors = torch.randint(256, (1, 3, 16, 16)).float()
    image = F.interpolate(colors, size=tuple(options.size), mode="bilinear")[0].to(torch.uint8)
    print("| what | all scores, s | those that decide, s | ratio | pixels that differ | scored | confidences differ by |")
    print("|---|---|---|---|---|---|---|")
    for name, label in (("label map", label_map.predict_label_map), ("with confidences", label_map.predict_scene)):
        rounds: list[tuple[float, float]] = []
        whole: Any = None
        few: Any = None
        for _ in range(options.rounds):
            with mock.patch.object(label_map, "_enlarged_alone", return_value=None):
                whole, slow = timed(label, model, image)
            few, fast = timed(label, model, image)
            rounds.append((slow, fast))
        before, after = (statistics.median(column) for column in zip(*rounds, strict=True))
        ratio = statistics.median(slow / fast for slow, fast in rounds)
        maps = [found if isinstance(found, Tensor) else found.label_map for found in (whole, few)]
        differ = float((maps[0] != maps[1]).double().mean())
        sure = "" if isinstance(whole, Tensor) else f"{float((whole.confidence - few.confidence).abs().nan_to_num().max()):.1e}"
        scored = scored_share(model, image)
        print(f"| {name} | {before:.1f} | {after:.1f} | {ratio:.2f} | {differ:.1e} | {scored:.1%} | {sure} |", flush=True)


def timed(label: Any, model: Segmenter, image: Tensor) -> tuple[Any, float]:
    """What it finds, and seconds of processor time."""
    start = time.process_time()
    found = label(model, image)
    return found, time.process_time() - start


def scored_share(model: Segmenter, image: Tensor) -> float:
    """Of the pixels, those whose scores a label map needs."""
    count, real = 0, LabeledBand.scores

    def counting(band: LabeledBand, pixels: Tensor) -> Tensor:
        nonlocal count
        count += len(pixels)
        return real(band, pixels)

    with mock.patch.object(LabeledBand, "scores", counting):
        label_map.predict_label_map(model, image)
    return count / (image.shape[1] * image.shape[2])


if __name__ == "__main__":
    main()
