"""`beitkit tokenizer --kind kmeans`: from images to a tokenizer, and on to pre-training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

import beitkit
from beitkit.cli import main
from beitkit.configs.tokenizer import DVAEConfig, KMeansConfig
from beitkit.configs.train import LoopConfig
from beitkit.errors import UserError

CPU = {"threads": 1, "device": "cpu", "workers": 0}
KMEANS = KMeansConfig(vocabulary=16, stride=4, patches=2000, iterations=6)
SMALL: dict[str, Any] = {"kind": "kmeans", "image_size": 32, "kmeans": KMEANS, "batch_size": 8, **CPU}


def coarse(generator: np.random.Generator, channels: int, top: int) -> np.ndarray:
    """An image (36, 40, channels) of cells in a few directions, with values from 0 to `top`."""
    cells = generator.random((9, 10, channels)).repeat(4, 0).repeat(4, 1)
    return (cells * np.linspace(0.3, 1, 40)[:, None] * top).astype(np.uint16 if top > 255 else np.uint8)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, generator = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for index in range(20):
        Image.fromarray(coarse(generator, 3, 255)).save(folder / f"{index:02d}.png")
    return folder


def test_the_life_cycle(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tok, pre = tmp_path / "tok", tmp_path / "pre"
    with pytest.raises(SystemExit) as stopped:
        main(
            [
                "tokenizer", str(images), "--kind", "kmeans", "--out", str(tok), "--image-size", "32", "--batch-size", "8",
                "--kmeans.vocabulary", "16", "--kmeans.stride", "4", "--kmeans.patches", "2000", "--kmeans.iterations", "6",
                "--threads", "1", "--device", "cpu", "--workers", "0",
            ]
        )  # fmt: skip
    assert stopped.value.code == 0
    said = capsys.readouterr().err
    assert "tokenizer: k-means, 16 codes, stride 4, margin 2, whitened with 0.1, at 32x32; 2,000 patches of 20 images" in said
    assert "patches 2,000/2,000" in said
    assert "of 16 codes used" in said
    assert f"done: {tok}" in said
    rounds = [json.loads(line) for line in (tok / "journal.jsonl").read_text().splitlines()]
    losses = [event["loss"] for event in rounds if event["kind"] == "train"]
    assert 1 < len(losses) <= 6
    assert losses[-1] < losses[0]
    html = (tok / "report.html").read_text()
    assert "reconstruction" in html
    assert "brightness" in html
    tokenizer = beitkit.load_tokenizer(tok)
    assert isinstance(tokenizer, beitkit.KMeansTokenizer)
    assert len(tokenizer.encode(torch.rand(4, 3, 32, 24)).unique()) > 4
    beitkit.tokenizer(images, out=tok, **SMALL)  # the same command, by Python: it is finished
    assert "holds this run, finished" in capsys.readouterr().err
    beitkit.pretrain(
        images, tokenizer=tok, out=pre, size="nano", image_size=32, patch=4, steps=2, batch_size=4, views=1,
        loop=LoopConfig(log_every=1), **CPU,
    )  # fmt: skip
    model = beitkit.load(pre)
    assert isinstance(model, beitkit.MaskedImageModel)
    assert model.config.vocabulary == 16
    assert model.config.tokenizer == tokenizer.fingerprint
    assert "from predicted tokens" in (pre / "report.html").read_text()


def test_a_seed_gives_the_same_tokenizer_and_a_killed_run_starts_again(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = beitkit.load_tokenizer(beitkit.tokenizer(images, out=tmp_path / "a", **SMALL))
    with monkeypatch.context() as patched:
        patched.setattr("beitkit.runs.tokenizer.kmeans.save_result", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            beitkit.tokenizer(images, out=tmp_path / "b", **SMALL)
    again = beitkit.load_tokenizer(beitkit.tokenizer(images, out=tmp_path / "b", **SMALL | {"workers": 1}))
    assert again.fingerprint == first.fingerprint
    assert (tmp_path / "a" / "journal.jsonl").read_text() == (tmp_path / "b" / "journal.jsonl").read_text()
    other = beitkit.load_tokenizer(beitkit.tokenizer(images, out=tmp_path / "c", seed=1, **SMALL))
    assert other.fingerprint != first.fingerprint


def test_fewer_places_in_a_view_than_patches_taken_of_one(images: Path, tmp_path: Path) -> None:
    few = KMeansConfig(vocabulary=4, stride=16, patches=101, iterations=2)
    tokenizer = beitkit.load_tokenizer(beitkit.tokenizer(images, out=tmp_path / "t", **SMALL | {"kmeans": few}))
    assert tokenizer.encode(torch.rand(1, 3, 32, 32)).shape == (1, 2, 2)


@pytest.mark.parametrize("channels", [1, 5])
def test_16_bits_and_other_channels(channels: int, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for index in range(6):
        values = coarse(generator, channels, 4000)
        layout = {"planarconfig": "contig"} if channels > 1 else {}
        tifffile.imwrite(
            tmp_path / "images" / f"{index}.tif", values if layout else values[..., 0], photometric="minisblack", **layout
        )
    run = beitkit.tokenizer(tmp_path / "images", out=tmp_path / "t", channels=channels, value_range=(0.0, 4095.0), **SMALL)
    tokenizer = beitkit.load_tokenizer(run)
    assert tokenizer.channels == channels
    assert tokenizer.value_range == ((0.0, 4095.0),) * channels
    shown = tokenizer.decode(tokenizer.encode(torch.rand(2, channels, 32, 32)))
    assert shown.shape == (2, channels, 32, 32)
    assert 0.05 < shown.mean() < 0.95


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dvae": DVAEConfig(vocabulary=64)}, "`dvae.vocabulary` has no meaning for a tokenizer of `kind='kmeans'`"),
        ({"steps": 5}, "`steps` has no meaning"),
        ({"loop": LoopConfig(log_every=3)}, "`loop.log_every` has no meaning"),
        ({"kind": "dvae"}, "`kmeans.vocabulary` has no meaning for a tokenizer of `kind='dvae'`"),
        ({"image_size": 34}, "`image_size` 34x34 is not a multiple of the tokenizer's stride 4; nearest: 32x32"),
        ({"image_size": 2}, "`image_size` must be at least `kmeans.stride`, got 2x2 and 4"),
    ],
)
def test_wrong_use_is_one_line_and_writes_nothing(options: dict[str, Any], message: str, images: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as raised:
        beitkit.tokenizer(images, out=tmp_path / "t", **SMALL | options)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "t").exists()
