"""`read.max_pixels` through the verbs: what is refused says what it would take, and what is allowed is read, by workers too."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import beitkit
from beitkit.configs.codec import to_json
from beitkit.configs.data import ReadConfig, ReadLimit
from beitkit.configs.model import BackboneConfig, ClassifierConfig
from beitkit.configs.train import MachineConfig
from beitkit.data.decoding import limit
from beitkit.errors import UserError
from beitkit.nn.models import Classifier
from beitkit.verbs import VERBS

MACHINE = {"threads": 1, "device": "cpu", "precision": "float32"}
READING = {
    "run",
    "audit",
    "verdict",
    "pack",
    "tokenizer",
    "tokenize",
    "pretrain",
    "probe",
    "finetune",
    "segment",
    "evaluate",
    "predict",
    "embed",
    "show",
    "ablate",
    "plan",
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large")
    for index in range(4):
        path = folder / "images" / ("blue", "red")[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(index).integers(0, 255, (100, 100, 3)).astype(np.uint8)).save(path)
    torch.manual_seed(0)
    backbone = BackboneConfig.named("nano/16", image_size=48, final_norm=False)
    beitkit.save(Classifier(ClassifierConfig(backbone=backbone, classes=("blue", "red")), head_scale=30.0), folder / "cls")
    return folder


def test_every_verb_that_reads_images_has_the_option() -> None:
    assert {name for name, entry in VERBS.items() if "read" in entry.config_class().__dataclass_fields__} == READING
    assert to_json(ReadConfig()) == {"max_broken": 0.01}  # as runs from before have it
    assert to_json(ReadConfig(max_pixels=120.0)) == {"max_broken": 0.01, "max_pixels": 120.0}
    with pytest.raises(UserError, match="`read.max_pixels` must be positive, got 0"):
        ReadConfig(max_pixels=0.0)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_verb_reads_up_to_its_limit(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], workers: int
) -> None:
    monkeypatch.setattr(limit, "_limit", ReadLimit(max_pixels=0.005))  # as if 10,000 pixels were more than 64 million
    options = {"model": world / "cls", "workers": workers, **MACHINE}
    with pytest.raises(UserError, match="4 of 4 images cannot be read|none of the 4 images can be read"):
        beitkit.evaluate(world / "images", read=ReadConfig(max_pixels=0.005, max_broken=1.0), **options)
    said = capsys.readouterr().err
    assert said.count("100x100 pixels, more than 0.005 million; `read.max_pixels=1` lets it in") == 4
    assert beitkit.evaluate(world / "images", read=ReadConfig(max_pixels=0.01), **options).images == 4
    assert limit.allowed() == 0.005  # what was there before


def test_other_processes_are_told(world: Path) -> None:
    """What engines of other machines are shipped carries the limit."""
    path = world / "images" / "red" / "1.png"
    predictor = beitkit.Predictor(world / "cls", machine=MachineConfig(device="cpu"))
    for read, is_read in ((ReadLimit(max_pixels=0.005), False), (ReadLimit(max_pixels=0.01), True)):
        batches = predictor._batches.__class__(model=world / "cls", compute=predictor._batches.compute, read=read)
        assert (batches({"path": [str(path)]})["error"][0] == "") == is_read


def test_pack_and_predict(world: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="images cannot be read, more than the 1.00% allowed"):
        beitkit.pack(world / "images", out=tmp_path / "none", read=ReadConfig(max_pixels=0.005))
    beitkit.pack(world / "images", out=tmp_path / "shards", read=ReadConfig(max_pixels=0.01))
    options = {"model": world / "cls", "workers": 0, **MACHINE}
    with pytest.raises(UserError, match="4 images can be read"):
        beitkit.predict(world / "images", out=tmp_path / "none.jsonl", read=ReadLimit(max_pixels=0.005), **options)
    beitkit.predict(world / "images", out=tmp_path / "p.jsonl", read=ReadLimit(max_pixels=0.01), **options)
    assert all(json.loads(line)["error"] is None for line in (tmp_path / "p.jsonl").read_text().splitlines())
