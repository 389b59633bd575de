"""`beitkit embed`: features of images as an array or a table."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import beitkit
from beitkit.configs.model import BackboneConfig, BareBackbone
from beitkit.data.reader import ImageReader

Command = Callable[..., int]


@pytest.fixture
def images(world: Path, tmp_path: Path) -> Path:
    """Twenty images, one of which cannot be read."""
    folder = tmp_path / "images"
    folder.mkdir()
    for path in sorted((world / "new").rglob("*.png"))[:19]:
        shutil.copy(path, folder / path.name)
    (folder / "00.jpg").write_text("no image")
    return folder


def test_an_array_with_its_paths(world: Path, images: Path, tmp_path: Path, command: Command) -> None:
    out = tmp_path / "features.npy"
    assert command("embed", images, "--model", world / "cls", "--out", out, "--batch-size", 1) == 0
    features = np.load(out, mmap_mode="r")
    rows = [json.loads(line) for line in (tmp_path / "features.paths.jsonl").read_text().splitlines()]
    assert [row["path"] for row in rows] == sorted(str(path) for path in images.iterdir())
    assert features.shape == (20, 24)
    assert features.dtype == np.float32
    model = beitkit.load(world / "cls")
    assert isinstance(model, beitkit.Classifier)
    assert model.reader is not None
    for row, values in zip(rows, features, strict=True):
        assert bool(row["error"]) == row["path"].endswith(".jpg") == np.isnan(values).all()
        if not row["error"]:
            with torch.no_grad():
                np.testing.assert_allclose(values, model.features(model.reader([row["path"]]))[0], atol=1e-5)


def test_a_plain_vit_without_a_head(
    world: Path, images: Path, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its class token after the last norm, as DINO's is used; it is probed, and names nothing."""
    backbone = BackboneConfig(
        width=24, depth=4, heads=2, hidden=48, image_size=(32, 32), patch=(8, 8), relative_positions="none",
        absolute_positions=True, layer_scale=None, key_bias=True,
    )  # fmt: skip
    torch.manual_seed(0)
    model = beitkit.FeatureNetwork(BareBackbone(backbone=backbone)).eval()
    beitkit.save(model, tmp_path / "dino")
    out = tmp_path / "features.npy"
    assert command("embed", images, "--model", tmp_path / "dino", "--pool", "cls", "--out", out, "--precision", "float32") == 0
    files = [path for path in sorted(images.iterdir()) if path.suffix == ".png"]
    with torch.no_grad():
        expected = model(ImageReader.of(backbone, model.config.preprocessing)(files)).cls
    np.testing.assert_allclose(np.load(out)[1:], expected, atol=1e-5)
    assert command("probe", world / "new", "--model", tmp_path / "dino") == 0
    assert command("predict", images, "--model", tmp_path / "dino") == 2
    assert "holds a FeatureNetwork, which names nothing in images" in capsys.readouterr().err


def test_a_table_with_nested_lists(world: Path, images: Path, tmp_path: Path, command: Command) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    options = ["--model", world / "pre", "--block", "all", "--pool", "patches"]
    assert command("embed", images, *options, "--out", tmp_path / "f.npy") == 0
    assert command("embed", images, *options, "--out", tmp_path / "f.parquet", "--dtype", "float16") == 0
    table = parquet.read_table(tmp_path / "f.parquet")
    assert str(table.schema.field("features").type).startswith("fixed_size_list")
    features = np.array(table["features"].to_pylist(), dtype=np.float32)
    expected = np.load(tmp_path / "f.npy")
    assert expected.shape == (20, 3, 12, 24)
    np.testing.assert_allclose(features, expected.astype(np.float16), rtol=0, atol=0)
    assert table["path"].to_pylist() == sorted(str(path) for path in images.iterdir())
    assert sum(error is not None for error in table["error"].to_pylist()) == 1


@pytest.mark.parametrize("ending", ["npy", "parquet"])
def test_shards_together_are_the_whole(world: Path, images: Path, tmp_path: Path, ending: str, command: Command) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")

    def read(path: Path) -> np.ndarray:
        if ending == "npy":
            return np.load(path)
        column = parquet.read_table(path)["features"].to_pylist()
        return np.array(column, dtype=np.float32).reshape(-1, 48)

    arguments = ["embed", images, "--model", world / "pre", "--pool", "both", "--block", 2, "--batch-size", 1]
    assert command(*arguments, "--out", tmp_path / f"f.{ending}") == 0
    for number in (1, 2, 3):
        assert command(*arguments, "--out", tmp_path / f"f.{ending}", "--shard", f"{number}/3") == 0
    shards = [read(tmp_path / f"f-0000{number}-of-00003.{ending}") for number in (1, 2, 3)]
    assert [len(shard) for shard in shards] == [16, 4, 0]
    np.testing.assert_array_equal(np.concatenate(shards), read(tmp_path / f"f.{ending}"))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--block", "4"], "--block 4 is not there: this network has blocks 1 to 3"),
        (["--block", "0"], "--block must be at least 1, got 0"),
        (["--block", "last"], "--block"),
        (["--pool", "max"], "mean"),
        (["--out", "{here}/f.csv"], "--out must end in .npy or .parquet, got"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(
    world: Path, tmp_path: Path, arguments: list[str], expected: str, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [argument.format(here=tmp_path) for argument in arguments]
    given += [] if "--out" in given else ["--out", str(tmp_path / "f.npy")]
    assert command("embed", world / "new", "--model", world / "pre", *given) == 2
    line = capsys.readouterr().err
    assert expected in line
    assert line.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
