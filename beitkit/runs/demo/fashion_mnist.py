"""The bundled images: a part of Fashion-MNIST (Zalando Research, MIT license).

14,000 training and 2,000 test images of clothes, 28x28 gray, ten balanced classes, for the demo and the tests; where
they come from is written beside them in `beitkit/assets/fashion_mnist/PROVENANCE.md`. Only numpy and the standard library
are needed. Classes take turns (image i has label i mod 10), so that every prefix is balanced.
"""

from __future__ import annotations

import lzma
from importlib.resources import files
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64, UInt8

CLASS_NAMES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
SIDE = 28


class FashionMNIST(NamedTuple):
    """Training and test images with their labels, and the names of the classes."""

    train_images: UInt8[np.ndarray, "n 28 28"]
    train_labels: Int64[np.ndarray, " n"]
    test_images: UInt8[np.ndarray, "n 28 28"]
    test_labels: Int64[np.ndarray, " n"]
    class_names: tuple[str, ...]


def load_fashion_mnist() -> FashionMNIST:
    """The bundled images, in well under a second."""
    train_images, train_labels = _read("train.xz")
    test_images, test_labels = _read("test.xz")
    return FashionMNIST(train_images, train_labels, test_images, test_labels, CLASS_NAMES)


def _read(name: str) -> tuple[UInt8[np.ndarray, "n 28 28"], Int64[np.ndarray, " n"]]:
    """Images and labels of one file, which holds raw pixels class after class (it packs better that way)."""
    packed = (files("beitkit") / "assets" / "fashion_mnist" / name).read_bytes()
    by_class = np.frombuffer(lzma.decompress(packed), np.uint8).reshape(len(CLASS_NAMES), -1, SIDE, SIDE)
    images = by_class.swapaxes(0, 1).reshape(-1, SIDE, SIDE)
    return images, np.arange(len(images)) % len(CLASS_NAMES)
