"""The verbs on shards, Parquet files and an index: what comes out is what comes out of the folder."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import beitkit
from beitkit.configs.data import NO_AUGMENT
from beitkit.configs.tokenizer import DVAEConfig
from beitkit.configs.train import LoopConfig
from beitkit.errors import UserError

MACHINE = {"threads": 1, "device": "cpu", "precision": "float32"}
NETWORK = {"size": "nano", "image_size": 32, "patch": 8, "batch_size": 4, "steps": 3, "loop": LoopConfig(log_every=1), **MACHINE}


@pytest.fixture(scope="module")
def labeled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images") / "labeled"
    for index in range(12):
        path = folder / ("red", "blue")[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(index).integers(0, 120, (40, 36, 3))
        pixels[..., index % 2 * 2] += 130
        Image.fromarray(pixels.astype(np.uint8)).save(path)
    return folder


@pytest.fixture(scope="module")
def shards(labeled: Path) -> Path:
    out = labeled.parent / "shards"
    assert beitkit.pack(labeled, out=out, labels=True) == out
    return out


@pytest.fixture(scope="module")
def index(shards: Path) -> Path:
    return beitkit.index(shards, out=shards.parent / "shards.index", labels=True)


def losses(run: Path) -> list[float]:
    events = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    return [event["loss"] for event in events if event["kind"] == "train"]


def test_pretraining_and_its_token_cache(labeled: Path, shards: Path, index: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    beitkit.save(beitkit.DiscreteVAE(DVAEConfig(vocabulary=16, stride=4, hidden=16, codebook_dim=8)), tmp_path / "tok")
    cache = beitkit.tokenize(
        shards, tokenizer=tmp_path / "tok", views=2, out=tmp_path / "cache", image_size=32, patch=8, batch_size=4, **MACHINE
    )
    runs = {}
    for name, images, tokens in (
        ("folder", labeled, None),
        ("shards", shards, None),
        ("index", index, None),
        ("cached", shards, cache),
        ("cached, folder", labeled, cache),  # the cache is of these images, wherever they lie
    ):
        given = {"views": 2} if tokens is None else {"tokens": tokens}
        out = tmp_path / name
        runs[name] = losses(beitkit.pretrain(images, tokenizer=tmp_path / "tok", out=out, **given, **NETWORK))
    assert all(run == runs["folder"] for run in runs.values()), runs
    assert len(runs["folder"]) == 3


def test_a_stale_cache_is_refused(labeled: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    beitkit.save(beitkit.DiscreteVAE(DVAEConfig(vocabulary=16, stride=4, hidden=16, codebook_dim=8)), tmp_path / "tok")
    shards = beitkit.pack(labeled, out=tmp_path / "shards")
    given = {"tokenizer": tmp_path / "tok", "views": 1, "out": tmp_path / "cache", "image_size": 32, "patch": 8, "batch_size": 4}
    beitkit.tokenize(shards, **given, **MACHINE)
    archive = shards / "000000.tar"
    content = bytearray(archive.read_bytes())
    content[700] ^= 1  # a byte of the first image
    archive.write_bytes(content)
    with pytest.raises(UserError, match=r"000000.tar: blue/1.png changed since its tokens were stored"):
        beitkit.tokenize(shards, **given, **MACHINE)


def test_labeled_verbs(labeled: Path, shards: Path, index: Path, tmp_path: Path) -> None:
    made, judged = {}, {}
    for name, images in (("folder", labeled), ("shards", shards), ("index", index)):
        run = tmp_path / name
        beitkit.finetune(images, scratch=True, out=run, augment=NO_AUGMENT, **NETWORK)
        made[name] = losses(run)
        beitkit.evaluate(images, model=run, out=tmp_path / f"{name} judged", **MACHINE)
        with (tmp_path / f"{name} judged/predictions.csv").open(newline="") as file:
            judged[name] = [(Path(row["path"].replace(": ", "/")).name, row["predicted"]) for row in csv.DictReader(file)]
        beitkit.probe(images, model=run, **MACHINE)
    assert made["folder"] == made["shards"] == made["index"]
    assert judged["folder"] == judged["shards"] == judged["index"]
    assert len(judged["folder"]) == 2  # the part that was set aside


def test_predict_and_embed(labeled: Path, shards: Path, tmp_path: Path) -> None:
    beitkit.finetune(labeled, scratch=True, out=tmp_path / "run", augment=NO_AUGMENT, **NETWORK)
    features, rows = {}, {}
    for name, images in (("folder", labeled), ("shards", shards)):
        beitkit.embed(images, model=tmp_path / "run", out=tmp_path / f"{name}.npy", batch_size=4, **MACHINE)
        features[name] = np.load(tmp_path / f"{name}.npy")
        beitkit.predict(images, model=tmp_path / "run", out=tmp_path / f"{name}.csv", batch_size=4, **MACHINE)
        with (tmp_path / f"{name}.csv").open(newline="") as file:
            rows[name] = list(csv.DictReader(file))
    assert np.array_equal(features["folder"], features["shards"])
    assert rows["shards"][0]["path"] == f"{shards}/000000.tar: blue/1.png"
    assert [{**row, "path": ""} for row in rows["folder"]] == [{**row, "path": ""} for row in rows["shards"]]
    pytest.importorskip("ray")
    with pytest.raises(UserError, match="`engine='ray'` opens images by their paths"):
        beitkit.predict(shards, model=tmp_path / "run", out=tmp_path / "r.csv", engine="ray", **MACHINE)
