from __future__ import annotations

import hashlib
import subprocess
import sys
from importlib.resources import files

import numpy as np

from beitkit.runs.demo.fashion_mnist import load_fashion_mnist


def test_images_are_balanced_and_as_published() -> None:
    data = load_fashion_mnist()
    assert data.train_images.shape == (14_000, 28, 28)
    assert data.test_images.shape == (2_000, 28, 28)
    assert data.train_images.dtype == np.uint8
    for images, labels, digest in (
        (data.train_images, data.train_labels, "4f51cf10e77b9134a9b8226e812e90527a80ebcc4207eced6fe01774dd30c072"),
        (data.test_images, data.test_labels, "80f041a1db53aeefce90d32bb6094e616abf55eed82a9c247b6c2a44a773acf7"),
    ):
        assert len(set(np.bincount(labels))) == 1
        assert labels[:10].tolist() == list(range(10))
        by_class = np.concatenate([images[labels == label] for label in range(10)])
        assert hashlib.sha256(by_class.tobytes()).hexdigest() == digest
    assert len(data.class_names) == 10


def test_classes_look_like_themselves() -> None:
    """The nearest class mean of the training images names most test images, so labels and images belong together."""
    data = load_fashion_mnist()
    means = np.stack([data.train_images[data.train_labels == label].mean(0) for label in range(10)]).reshape(10, -1)
    images = data.test_images.reshape(len(data.test_images), -1).astype(np.float64)
    distances = (means**2).sum(1) - 2 * images @ means.T
    assert (distances.argmin(1) == data.test_labels).mean() > 0.6


def test_size_and_papers() -> None:
    folder = files("beitkit") / "assets" / "fashion_mnist"
    contents = {item.name: item.read_bytes() for item in folder.iterdir() if item.is_file()}
    assert sum(map(len, contents.values())) <= 6_000_000
    assert b"Zalando SE" in contents["LICENSE"]
    for name in ("train.xz", "test.xz"):
        assert hashlib.sha256(contents[name]).hexdigest() in contents["PROVENANCE.md"].decode()


def test_needs_no_torch() -> None:
    program = "import sys, beitkit.runs.demo.fashion_mnist as data; data.load_fashion_mnist(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
