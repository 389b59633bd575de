"""How many recompressed and resized copies `beitkit audit` finds, and which images of two folders it takes for the same.

python -m benchmarks.near_duplicates cifar10/train cifar10/test --every 5 --sheet pairs.png

The second folder's images (each `--every`th) are changed in memory, added to those of both folders, and looked for. The sheet
shows all pairs across the two folders, to be judged by eye.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from beitkit.data.decoding.decode import Encoded, open_image
from beitkit.data.sources.find import find_images
from beitkit.data.sources.image_list import ImageList
from beitkit.runs.audit.alike import descriptors, near_pairs
from beitkit.runs.audit.config import AuditRun
from beitkit.runs.audit.look import LOOK, look

ACROSS, CELL = 14, 56
"""Pairs in a row of the sheet, and pixels of an image."""


def saved(image: Image.Image, kind: str, quality: int = 95) -> bytes:
    """The image as a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, quality=quality)
    return buffer.getvalue()


def scaled(share: float, how: Image.Resampling) -> Callable[[Image.Image], Image.Image]:
    """A change of size."""
    return lambda image: image.resize((round(image.width * share), round(image.height * share)), how)


CHANGES: dict[str, Callable[[Image.Image], bytes]] = {
    "JPEG, quality 50": lambda image: saved(image, "JPEG", 50),
    "half the size": lambda image: saved(scaled(0.5, Image.Resampling.BICUBIC)(image), "PNG"),
    "3/4 of the size": lambda image: saved(scaled(0.75, Image.Resampling.BICUBIC)(image), "PNG"),
    "twice the size": lambda image: saved(scaled(2, Image.Resampling.BICUBIC)(image), "PNG"),
    "3/4 and quality 50": lambda image: saved(scaled(0.75, Image.Resampling.LANCZOS)(image), "JPEG", 50),
}


def thumbnail(source: object) -> np.ndarray:
    """What the audit reduces an image to."""
    row = np.zeros(1, dtype=LOOK)
    look(source, row, np.zeros(256, dtype=np.int64))
    return row["thumbnail"][0]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    parser.add_argument("--every", type=int, default=5)
    parser.add_argument("--sheet", type=Path)
    options = parser.parse_args()
    lists = find_images(options.first), find_images(options.second)
    thumbnails = np.stack([thumbnail(files.source(index)) for files in lists for index in range(len(files))])
    pairs, distances = near_pairs(descriptors(thumbnails), AuditRun.near)
    count = len(lists[0])
    across = [(one, two - count, far) for (one, two), far in zip(pairs.tolist(), distances, strict=True) if one < count <= two]
    print(
        f"{len(across)} pairs of {lists[0].root} and {lists[1].root}, {len({two for _, two, _ in across})} images of the second"
    )
    chosen = range(0, len(lists[1]), options.every)
    for name, change in CHANGES.items():
        changed = []
        for index in chosen:
            source = lists[1].source(index)
            content = change(open_image(source, 3))  # type: ignore[arg-type] - a file
            changed.append(thumbnail(Encoded(lists[1].path(index), content)))
        found, _ = near_pairs(descriptors(np.concatenate([thumbnails, np.stack(changed)])), AuditRun.near)
        known = {tuple(pair) for pair in found.tolist()}
        hits = sum((count + index, len(thumbnails) + place) in known for place, index in enumerate(chosen))
        print(f"{name}: {hits} of {len(chosen)} found ({hits / len(chosen):.2%})")
    if options.sheet is not None:
        sheet(lists, across, options.sheet)


def sheet(lists: tuple[ImageList, ImageList], pairs: list[tuple[int, int, float]], path: Path) -> None:
    """All pairs with their distances."""
    page = Image.new("RGB", (ACROSS * (2 * CELL + 8), -(-len(pairs) // ACROSS) * (CELL + 16)), "white")
    draw = ImageDraw.Draw(page)
    for place, (one, two, distance) in enumerate(pairs):
        left, top = place % ACROSS * (2 * CELL + 8), place // ACROSS * (CELL + 16)
        for files, index, shift in ((lists[0], one, 0), (lists[1], two, CELL + 2)):
            page.paste(open_image(files.source(index), 3).resize((CELL, CELL)), (left + shift, top))  # type: ignore[arg-type]
        draw.text((left, top + CELL), f"{distance:.3f}", fill="black")
    page.save(path)


if __name__ == "__main__":
    main()
