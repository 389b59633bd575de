"""Views per second from a folder, its tar shards and its Parquet files, in the shuffled order of a run, as a Markdown table.

    python -m benchmarks.readers PHOTOS [--images 2000] [--rounds 5]

The images are made 500x375, as ImageNet's are, and packed; all take turns on one core, with the files in the page cache, so
what differs is finding and opening an image among others. Parquet files have row groups of 16 and of 100 images.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median

import pyarrow
import pyarrow.parquet
import torch
from PIL import Image

import beitkit
from beitkit.configs.data import ViewConfig
from beitkit.data.dataset import ImageDataset
from beitkit.data.decoding.decode import open_image
from beitkit.data.sources.find import find_images
from beitkit.data.views.image import PretrainView
from benchmarks.compare.turns import Candidate, Step, interleaved

READ = 64
"""Images of a turn."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _resized(options.photos, folder / "folder", options.images)
        beitkit.pack(folder / "folder", out=folder / "shards")
        for rows in (16, 100):
            _as_parquet(folder / "folder", folder / f"parquet-{rows}", rows)
        sources = {"folder": "folder", "tar shards": "shards", "Parquet, 16 a row group": "parquet-16"}
        sources["Parquet, 100 a row group"] = "parquet-100"
        racing = [Candidate(what, "", reader(folder / where), is_ours=True) for what, where in sources.items()]
        taken = interleaved(racing, options.rounds)
    print(f"\n{options.images} images, medians of {options.rounds} rounds\n")
    print("| source | views/s of one core | of the folder's |\n|---|---|---|")
    for what, seconds in taken.items():
        ratio = median(one / other for one, other in zip(taken["folder"], seconds, strict=True))
        print(f"| {what} | {READ / median(seconds):.1f} | {ratio:.2f} |")


def reader(source: Path) -> Callable[[], Step]:
    """What prepares reading the next images of an endless shuffled order."""

    def prepare() -> Step:
        dataset = ImageDataset(find_images(source), PretrainView(ViewConfig(color_jitter=0.0), (224, 224), (112, 112)))
        position = 0

        def step() -> None:
            nonlocal position
            for _ in range(READ):
                dataset.sample(position)
                position += 1

        return step

    return prepare


def _resized(photos: Path, out: Path, total: int) -> None:
    """This many JPEGs of 500x375; photographs come again where there are fewer."""
    out.mkdir()
    found = find_images(photos)
    for number in range(total):
        image = open_image(found.path(number % len(found)), 3).resize((500, 375), Image.Resampling.BICUBIC)
        image.save(out / f"{number:06d}.jpg", quality=90)


def _as_parquet(images: Path, out: Path, rows: int) -> None:
    """The same files as Hugging Face's datasets hold them."""
    out.mkdir()
    encoded = [{"bytes": path.read_bytes(), "path": path.name} for path in sorted(images.iterdir())]
    pyarrow.parquet.write_table(pyarrow.table({"image": encoded}), out / "train-00000-of-00001.parquet", row_group_size=rows)


if __name__ == "__main__":
    main()
