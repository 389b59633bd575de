"""Views per second of one core, from a JPEG file to BEiT's two uint8 views, for docs/performance.md.

    taskset -c 1 python -m benchmarks.input_path PHOTOS

PHOTOS is a folder of photographs, from which JPEGs of 500x375 and 4000x3000 pixels are made. Pillow's path, which uses nothing of
beitkit's but the drawing of crops, decodes the whole image, jitters it by ImageEnhance, crops, and resizes; ours is
`PretrainView` on `image_to_crop`, decoded by Pillow alone and by simplejpeg where it can. All draw the same crops
and take turns; the medians of ROUNDS rounds are printed as Markdown.
"""

from __future__ import annotations

import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch
from PIL import Image, ImageEnhance

from beitkit.configs.data import ViewConfig
from beitkit.data.decoding import decode
from beitkit.data.decoding.decode import image_to_crop, open_image, to_tensor
from beitkit.data.sources.find import find_images
from beitkit.data.views.image import PretrainView, crop_box

ROUNDS = 5
IMAGES = 4
VIEWS = {(500, 375): 8, (4000, 3000): 1}
"""(width, height), and how many views of each image a round takes."""


def by_pillow(path: Path, view: ViewConfig, rng: random.Random) -> None:
    with Image.open(path) as file:
        image = file.convert("RGB")
    if view.jitter:
        jitters = [ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color]
        rng.shuffle(jitters)
        for jitter in jitters:
            image = jitter(image).enhance(rng.uniform(1 - view.jitter, 1 + view.jitter))
    box = crop_box((image.height, image.width), view.crop_area, view.crop_ratio, rng)
    crop = image.crop((box.left, box.top, box.left + box.width, box.top + box.height))
    if rng.random() < view.flip:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    to_tensor(crop.resize((224, 224), Image.Resampling.BICUBIC))
    to_tensor(crop.resize((112, 112), Image.Resampling.LANCZOS))


def ours(path: Path, view: ViewConfig, rng: random.Random) -> None:
    with mock.patch.object(decode, "is_decodable", return_value=False):
        fast(path, view, rng)


def fast(path: Path, view: ViewConfig, rng: random.Random) -> None:
    PretrainView(view, (224, 224), (112, 112))(image_to_crop(path, 3), rng)


def main(photos: Path) -> None:
    torch.set_num_threads(1)
    found = find_images(photos)
    print("| JPEG | color jitter | Pillow, views/s | ours | ratio | with simplejpeg | ratio |\n|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for size, views in VIEWS.items():
            paths = [Path(folder) / f"{size[0]}-{index}.jpg" for index in range(min(IMAGES, len(found)))]
            for index, path in enumerate(paths):
                open_image(found.path(index), 3).resize(size, Image.Resampling.BICUBIC).save(path, quality=90)
            for jitter in (0.4, 0.0):
                view = ViewConfig(color_jitter=jitter)
                rates = [[rate(path, views, paths, view) for path in (by_pillow, ours, fast)] for _ in range(ROUNDS)]
                pillow, own, faster = (statistics.median(column) for column in zip(*rates, strict=True))
                ratios = [statistics.median(row[place] / row[0] for row in rates) for place in (1, 2)]
                print(
                    f"| {size[0]}x{size[1]} | {jitter} | {pillow:.1f} | {own:.1f} | {ratios[0]:.2f} | {faster:.1f} | "
                    f"{ratios[1]:.2f} |",
                    flush=True,
                )


def rate(show: Callable[[Path, ViewConfig, random.Random], None], views: int, paths: list[Path], view: ViewConfig) -> float:
    start = time.perf_counter()
    for seed in range(views):
        for path in paths:
            show(path, view, random.Random(seed))
    return views * len(paths) / (time.perf_counter() - start)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
