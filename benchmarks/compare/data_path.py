"""From a JPEG file to the two views of pre-training on one core: beitkit and a plain Pillow pipeline.

The plain one decodes the whole image, jitters it, crops, and resizes with Pillow, as the official code does.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from beitkit.configs.data import ViewConfig
from beitkit.configs.model import Pair
from beitkit.data.decoding.decode import image_to_crop, open_image
from beitkit.data.decoding.reading import as_tensor
from beitkit.data.views.image import PretrainView, crop_box
from beitkit.data.views.jitter import color_jittered
from benchmarks.compare.ours import OURS
from benchmarks.compare.races import Race
from benchmarks.compare.turns import Candidate, Step
from benchmarks.compare.workload import Workload

PILLOW = "pillow"
IMAGE_SIZES: tuple[Pair, ...] = ((375, 500), (3000, 4000))
"""(height, width): an image of ImageNet, and a photograph of 12 megapixels."""
IMAGES = 4
"""Different images; a step shows each of them once."""
COARSENESS = 12
"""Pixels across a blob of the random images: something between a blank page, which decodes fast, and noise, which does not."""


def races(workload: Workload, folder: Path) -> list[Race]:
    """One race for each size of image; the images are made in `folder`."""
    return [_race(size, _images(folder, size), workload) for size in IMAGE_SIZES]


def _race(size: Pair, paths: list[Path], workload: Workload) -> Race:
    view = ViewConfig()
    image_size, token_size = (workload.image_size, workload.image_size), workload.token_size
    make_views = PretrainView(view, image_size, token_size)

    def ours(path: Path, rng: random.Random) -> None:
        make_views(image_to_crop(path, 3), rng)

    def plain(path: Path, rng: random.Random) -> None:
        image = color_jittered(open_image(path, 3), view.jitter, rng)
        box = crop_box((image.height, image.width), view.crop_area, view.crop_ratio, rng)
        crop = image.crop((box.left, box.top, box.left + box.width, box.top + box.height))
        if rng.random() < view.flip:
            crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        as_tensor(crop.resize((image_size[1], image_size[0]), Image.Resampling.BICUBIC))
        as_tensor(crop.resize((token_size[1], token_size[0]), Image.Resampling.LANCZOS))

    return Race(
        job=f"data, JPEG of {size[1]}x{size[0]}",
        images=IMAGES,
        candidates=[
            Candidate(OURS, f"{IMAGES} images to two views each", lambda: _shown(ours, paths), is_ours=True),
            Candidate(PILLOW, "the same crops: decode all, jitter, crop, bicubic and Lanczos", lambda: _shown(plain, paths)),
        ],
        flops={},
        comparisons=[(OURS, PILLOW)],
        parities={},
        share_of={},
    )


def _shown(show: Callable[[Path, random.Random], None], paths: list[Path]) -> Step:
    """Every image once, under crops that all candidates draw in the same order."""
    rng = random.Random(0)

    def step() -> None:
        for path in paths:
            show(path, random.Random(rng.random()))

    return step


def _images(folder: Path, size: Pair) -> list[Path]:
    """JPEGs of random blobs."""
    generator = np.random.default_rng(0)
    paths = [folder / f"{size[1]}-{index}.jpg" for index in range(IMAGES)]
    for path in paths:
        blobs = generator.integers(0, 256, (size[0] // COARSENESS, size[1] // COARSENESS, 3), dtype=np.uint8)
        Image.fromarray(blobs).resize((size[1], size[0]), Image.Resampling.BICUBIC).save(path, quality=90)
    return paths
