"""A split is made once, stored with the run, and used again: by evaluate, and by another run that is compared."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import beitkit
from beitkit import evaluate
from beitkit.configs.model import BackboneConfig, ClassifierConfig
from beitkit.data.sources.split import train_and_val

SHORT = {"steps": 1, "batch_size": 4, "threads": 1, "device": "cpu"}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    backbone = BackboneConfig.named("nano/8", image_size=16, final_norm=False)
    torch.manual_seed(0)
    beitkit.save(beitkit.Classifier(ClassifierConfig(backbone=backbone, classes=("a", "b"))), tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for index in range(20):
        path = tmp_path / "images" / "ab"[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(path)
    return tmp_path / "images"


def test_the_stored_split_is_evaluated_and_trained_on_again(
    images: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = beitkit.finetune(images, model=model, out=tmp_path / "first", **SHORT)
    _, val = train_and_val(images, None, seed=0)
    assert [path.name for path in sorted(first.folder.glob("*.csv"))] == ["split.csv"]
    assert train_and_val(first.folder / "split.csv", None, seed=1)[1].digest == val.digest

    capsys.readouterr()
    assert evaluate(images, model=first.folder, device="cpu").images == len(val) == 4
    assert f"the part of {images} that was set aside" in capsys.readouterr().out
    assert evaluate(first.folder / "split.csv", model=first.folder, device="cpu").top1 == pytest.approx(first.accuracy)

    # Measured on the same images, whatever the seed, so that the two can be compared.
    again = beitkit.finetune(
        first.folder / "split.csv", model=model, out=tmp_path / "again", compare=first.folder, seed=1, labels=6, **SHORT
    )
    used, _ = train_and_val(again.folder / "split.csv", None, seed=0)
    assert len(used) == 6


def test_images_that_were_trained_on_are_named_so(
    images: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f"images/{path.relative_to(images)},{path.parent.name}" for path in sorted(images.glob("*/*.png"))]
    for name, part in (("train", rows[1:-1]), ("val", [rows[0], rows[-1]])):
        (tmp_path / f"{name}.csv").write_text("path,label\n" + "\n".join(part) + "\n")
    run = beitkit.finetune(tmp_path / "train.csv", val=tmp_path / "val.csv", model=model, out=tmp_path / "run", **SHORT)
    capsys.readouterr()
    assert evaluate(tmp_path / "train.csv", model=run.folder, device="cpu").images == 18
    assert "train.csv (training images): top-1" in capsys.readouterr().out
    evaluate(tmp_path / "val.csv", model=run.folder, device="cpu")
    assert "training images" not in capsys.readouterr().out
