"""Make the part of Fashion-MNIST that ships with the package, for `beitkit demo`.

    python tools/make_fashion_mnist.py SOURCE [--out FOLDER]

SOURCE holds the four official IDX files (`train-images-idx3-ubyte.gz`, ...), as published by Zalando Research or by the
Debian package `dataset-fashion-mnist`. Of each class the first images in file order are taken, and written class after
class as one xz stream of raw bytes: on these images that is smaller than PNG, than lossless WebP and than xz after a
prediction filter, and it needs the standard library only. The sums it prints belong in `PROVENANCE.md`.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import lzma
from pathlib import Path

import numpy as np

NUM_CLASSES = 10
SIDE = 28
TRAIN_PER_CLASS = 1400
TEST_PER_CLASS = 200
DEFAULT_OUT = Path(__file__).resolve().parent.parent / "beitkit" / "assets" / "fashion_mnist"


def read_idx(path: Path) -> np.ndarray:
    """The unsigned bytes of a gzipped IDX file, in the shape that its header states."""
    content = gzip.decompress(path.read_bytes())
    num_axes = content[3]
    shape = np.frombuffer(content, ">u4", count=num_axes, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * num_axes).reshape(shape)


def first_of_each_class(images: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """The first `count` images of every class, class after class: (10 * count, 28, 28)."""
    rows = [np.flatnonzero(labels == label)[:count] for label in range(NUM_CLASSES)]
    assert all(len(row) == count for row in rows)
    return images[np.concatenate(rows)]


def main() -> None:
    """Read the official files, write `train.xz` and `test.xz`, print their sizes and sums."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder with the four official .gz files")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="folder to write to")
    options = parser.parse_args()
    for part, prefix, count in (("train", "train", TRAIN_PER_CLASS), ("test", "t10k", TEST_PER_CLASS)):
        image_file = options.source / f"{prefix}-images-idx3-ubyte.gz"
        images = read_idx(image_file)
        labels = read_idx(options.source / f"{prefix}-labels-idx1-ubyte.gz")
        assert images.shape[1:] == (SIDE, SIDE)
        assert len(images) == len(labels)
        raw = first_of_each_class(images, labels, count).tobytes()
        packed = lzma.compress(raw, preset=9 | lzma.PRESET_EXTREME)
        target = options.out / f"{part}.xz"
        target.write_bytes(packed)
        print(f"{image_file.name}: unpacked sha256 {hashlib.sha256(gzip.decompress(image_file.read_bytes())).hexdigest()}")
        print(f"{target.name}: {NUM_CLASSES * count} images, {len(packed):,} bytes, sha256 {hashlib.sha256(packed).hexdigest()}")
        print(f"{target.name}: unpacked sha256 {hashlib.sha256(raw).hexdigest()}")


if __name__ == "__main__":
    main()
