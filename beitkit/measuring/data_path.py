"""The way from a JPEG file to the two views of pre-training, on one core: ours, and what a plain pipeline of Pillow does.

The plain one decodes the whole picture, jitters it, crops, and resizes with Pillow, as the official code does.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from beitkit.configs.data import ViewConfig
from beitkit.configs.model import Pair
from beitkit.data.decoding.decode import open_picture, picture_to_crop, to_tensor
from beitkit.data.views.image import PretrainView, color_jittered, crop_box
from beitkit.measuring.ours import OURS
from beitkit.measuring.race import Race
from beitkit.measuring.turns import Contestant, Step
from beitkit.measuring.workload import Workload

PILLOW = "pillow"
PICTURE_SIZES: tuple[Pair, ...] = ((375, 500), (3000, 4000))
"""(height, width): a picture of ImageNet, and a photograph of 12 megapixels."""
PICTURES = 4
"""Different pictures; a step shows each of them once."""
COARSENESS = 12
"""Pixels across a blob of the random pictures: something between a blank page, which decodes fast, and noise, which does not."""


def races(workload: Workload, folder: Path) -> list[Race]:
    """One race for each size of picture; the pictures are made in `folder`."""
    return [_race(size, _pictures(folder, size), workload) for size in PICTURE_SIZES]


def _race(size: Pair, paths: list[Path], workload: Workload) -> Race:
    view = ViewConfig()
    image_size, token_size = (workload.image_size, workload.image_size), workload.token_size
    make_views = PretrainView(view, image_size, token_size)

    def ours(path: Path, rng: random.Random) -> None:
        make_views(picture_to_crop(path, 3), rng)

    def plain(path: Path, rng: random.Random) -> None:
        image = color_jittered(open_picture(path, 3), view.color_jitter, rng)
        box = crop_box((image.height, image.width), view.crop_scale, view.crop_ratio, rng)
        crop = image.crop((box.left, box.top, box.left + box.width, box.top + box.height))
        if rng.random() < view.flip:
            crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        to_tensor(crop.resize((image_size[1], image_size[0]), Image.Resampling.BICUBIC))
        to_tensor(crop.resize((token_size[1], token_size[0]), Image.Resampling.LANCZOS))

    return Race(
        job=f"data, JPEG of {size[1]}x{size[0]}",
        pictures=PICTURES,
        contestants=[
            Contestant(OURS, f"{PICTURES} pictures to two views each", lambda: _shown(ours, paths), is_ours=True),
            Contestant(PILLOW, "the same crops: decode all, jitter, crop, bicubic and Lanczos", lambda: _shown(plain, paths)),
        ],
        flops={},
        comparisons=[(OURS, PILLOW)],
        parities={},
        share_of={},
    )


def _shown(show: Callable[[Path, random.Random], None], paths: list[Path]) -> Step:
    """Every picture once, under crops that everybody draws in the same order."""
    rng = random.Random(0)

    def step() -> None:
        for path in paths:
            show(path, random.Random(rng.random()))

    return step


def _pictures(folder: Path, size: Pair) -> list[Path]:
    """JPEGs of random blobs."""
    generator = np.random.default_rng(0)
    paths = [folder / f"{size[1]}-{index}.jpg" for index in range(PICTURES)]
    for path in paths:
        blobs = generator.integers(0, 256, (size[0] // COARSENESS, size[1] // COARSENESS, 3), dtype=np.uint8)
        Image.fromarray(blobs).resize((size[1], size[0]), Image.Resampling.BICUBIC).save(path, quality=90)
    return paths
