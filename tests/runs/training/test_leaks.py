"""Training, and evaluation after it, name the images that are on both sides; of clean data nothing is said."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import beitkit
from beitkit.configs.data import NO_AUGMENT

MACHINE = {"threads": 1, "device": "cpu", "workers": 0, "precision": "float32"}
SHORT = {"scratch": True, "size": "nano", "patch": 8, "image_size": 16, "steps": 1, "batch_size": 2}


@pytest.fixture
def labeled(tmp_path: Path) -> Path:
    for index in range(12):
        path = tmp_path / "labeled" / ("train" if index < 8 else "val") / ("a", "b")[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(index).integers(0, 255, (16, 16, 3)).astype(np.uint8)).save(path)
    return tmp_path / "labeled"


def test_finetune_and_evaluate(labeled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    beitkit.finetune(labeled, out=tmp_path / "clean", augment=NO_AUGMENT, **SHORT, **MACHINE)
    beitkit.evaluate(labeled, model=tmp_path / "clean", **MACHINE)
    assert "byte for byte" not in "".join(capsys.readouterr())
    for name in ("x", "y"):
        shutil.copy(labeled / "train" / "b" / "3.png", labeled / "val" / "b" / f"{name}.png")
    beitkit.finetune(labeled, out=tmp_path / "leaky", augment=NO_AUGMENT, **SHORT, **MACHINE)
    expected = f"2 of the 6 validation images are training images too, byte for byte (first {labeled / 'val/b/x.png'}, which is "
    assert capsys.readouterr().err.count(expected + f"{labeled / 'train/b/3.png'})") == 1
    other = shutil.copytree(labeled / "val", tmp_path / "other")  # known by what the run wrote down, not by the folder's parts
    beitkit.evaluate(other, model=tmp_path / "leaky", **MACHINE)
    assert capsys.readouterr().err.count("warning: 2 of the 6 measured images are training images too") == 1
    shutil.rmtree(labeled / "train")
    beitkit.evaluate(other, model=tmp_path / "leaky", **MACHINE)
    assert "byte for byte" not in capsys.readouterr().err  # what it was trained on is gone


def test_segment_and_evaluate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for index in range(8):
        pixels = np.random.default_rng(index % 7).integers(0, 255, (16, 16, 3)).astype(np.uint8)
        for part, content in (("images", pixels), ("masks", (pixels[..., 0] > 127).astype(np.uint8))):
            path = tmp_path / "scenes" / part / ("train" if index < 5 else "val") / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(content).save(path)
    beitkit.segment(tmp_path / "scenes", out=tmp_path / "seg", **SHORT | {"patch": 4}, **MACHINE)
    assert "warning: 1 of the 3 validation images are training images too" in capsys.readouterr().err
    beitkit.evaluate(tmp_path / "scenes", model=tmp_path / "seg", **MACHINE)
    assert "warning: 1 of the 3 measured images are training images too" in capsys.readouterr().err
