"""Views per second of one core, from a JPEG file to BEiT's two uint8 views, for docs/performance.md.

    taskset -c 1 python benchmarks/input_path.py PHOTOS

PHOTOS is a folder of photographs, from which JPEGs of 500x375 and 4000x3000 pixels are made. The old path decodes the whole
picture, jitters it, crops, and resizes with Pillow; the new one is `PretrainView` on `picture_to_crop`. Both draw the same
crops and take turns; the medians of ROUNDS rounds are printed as Markdown.
"""

from __future__ import annotations

import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image

from beitkit.configs.data import ViewConfig
from beitkit.data.files import find_pictures
from beitkit.data.pictures import open_picture, picture_to_crop, to_tensor
from beitkit.data.views import PretrainView, color_jittered, crop_box

ROUNDS = 3
PICTURES = 4
VIEWS = {(500, 375): 8, (4000, 3000): 1}
"""(width, height), and how many views of each picture a round takes."""


def old(path: Path, view: ViewConfig, rng: random.Random) -> None:
    image = color_jittered(open_picture(path, 3), view.color_jitter, rng)
    box = crop_box((image.height, image.width), view.crop_scale, view.crop_ratio, rng)
    crop = image.crop((box.left, box.top, box.left + box.width, box.top + box.height))
    if rng.random() < view.flip:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    to_tensor(crop.resize((224, 224), Image.Resampling.BICUBIC))
    to_tensor(crop.resize((112, 112), Image.Resampling.LANCZOS))


def new(path: Path, view: ViewConfig, rng: random.Random) -> None:
    PretrainView(view, (224, 224), (112, 112))(picture_to_crop(path, 3), rng)


def main(photos: Path) -> None:
    torch.set_num_threads(1)
    found = find_pictures(photos)
    print("| JPEG | color jitter | old, views/s | new, views/s | ratio |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for size, views in VIEWS.items():
            paths = [Path(folder) / f"{size[0]}-{index}.jpg" for index in range(min(PICTURES, len(found)))]
            for index, path in enumerate(paths):
                open_picture(found.path(index), 3).resize(size, Image.Resampling.BICUBIC).save(path, quality=90)
            for jitter in (0.4, 0.0):
                view = ViewConfig(color_jitter=jitter)
                rates = [[rate(path, views, paths, view) for path in (old, new)] for _ in range(ROUNDS)]
                before, after = (statistics.median(column) for column in zip(*rates, strict=True))
                ratio = statistics.median(after / before for before, after in rates)
                print(f"| {size[0]}x{size[1]} | {jitter} | {before:.0f} | {after:.0f} | {ratio:.1f} |", flush=True)


def rate(show: Callable[[Path, ViewConfig, random.Random], None], views: int, paths: list[Path], view: ViewConfig) -> float:
    start = time.perf_counter()
    for seed in range(views):
        for path in paths:
            show(path, view, random.Random(seed))
    return views * len(paths) / (time.perf_counter() - start)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
