"""Images that are no squares, through the verbs: `image_size` as one number or as height and width."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import beitkit
from beitkit.command.parse import parse
from beitkit.configs.codec import from_json, to_json
from beitkit.configs.data import SceneViewConfig
from beitkit.configs.model import by
from beitkit.configs.tokenizer import DVAEConfig
from beitkit.errors import UserError
from beitkit.runs.finetune.config import FinetuneRun
from beitkit.runs.plan.config import PlanRun
from beitkit.runs.plan.subject import subject_of
from beitkit.runs.pretrain.config import PretrainRun
from beitkit.runs.pretrain.setup import view_options

MACHINE = {"threads": 1, "device": "cpu", "precision": "float32", "workers": 0}
SIZE = (16, 24)


@pytest.fixture(scope="module")
def labeled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images") / "labeled"
    for index in range(8):
        path = folder / ("red", "blue")[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(index).integers(0, 255, (40, 60, 3)).astype(np.uint8)).save(path)
    return folder


def test_from_tokenizer_to_prediction(labeled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    training = {"image_size": SIZE, "steps": 1, "batch_size": 2, **MACHINE}
    beitkit.tokenizer(
        labeled, out=tmp_path / "tok", dvae=DVAEConfig(vocabulary=8, stride=4, hidden=8, codebook_dim=4), **training
    )
    given = {"tokenizer": tmp_path / "tok", "size": "nano", "patch": 8}
    beitkit.tokenize(
        labeled, tokenizer=tmp_path / "tok", views=1, out=tmp_path / "cache", image_size=SIZE, patch=8, batch_size=2, **MACHINE
    )
    beitkit.pretrain(labeled, tokens=tmp_path / "cache", out=tmp_path / "pre", **given, **training)
    beitkit.finetune(labeled, model=tmp_path / "pre", out=tmp_path / "cls", **training)
    assert json.loads((tmp_path / "cls" / "config.json").read_text())["image_size"] == [16, 24]
    beitkit.finetune(labeled, model=tmp_path / "pre", out=tmp_path / "cls", **training)  # a finished run is recognized
    model = beitkit.load(tmp_path / "cls")
    assert model.config.backbone.image_size == SIZE
    assert beitkit.load(tmp_path / "cls", image_size=(24, 40)).config.backbone.grid == (3, 5)
    assert len(model.predict([labeled / "red" / "0.png"])) == 1
    beitkit.evaluate(labeled, model=(tmp_path / "cls",), image_size=(24, 16), batch_size=4, **MACHINE)
    said = capsys.readouterr()
    assert "nano/8 at 16x24" in said.err + said.out


def test_one_number_stays_a_square_and_old_configs_load() -> None:
    run = parse(PretrainRun, ["photos", "--out", "o", "--image-size", "64"], "beitkit pretrain")
    assert run.image_size == to_json(run)["image_size"] == 64
    assert from_json(PretrainRun, to_json(run)) == run
    run = parse(
        FinetuneRun, ["photos", "--model", "m", "--out", "o", "--image-size", "64", "96", "--lr", "1"], "beitkit finetune"
    )
    assert run.image_size == (64, 96)
    assert from_json(FinetuneRun, to_json(run)) == run
    assert by(64) == "64x64"
    assert by((64, 96)) == "64x96"


@pytest.mark.parametrize("values", [["64", "96", "3"], ["a"], []])
def test_sizes_that_are_none(values: list[str]) -> None:
    with pytest.raises(UserError, match="--image-size expects a whole number, or two \\(the height, then the width\\)"):
        parse(PretrainRun, ["photos", "--out", "o", "--image-size", *values], "beitkit pretrain")


def test_view_options_write_the_size_as_it_is_given() -> None:
    view = PretrainRun(Path(), out=Path()).view
    assert view_options(view, 224, 16, 0) == ""
    assert view_options(view, (224, 224), 16, 0) == ""
    assert view_options(view, (224, 320), 16, 0) == " --image-size 224 320"


def test_segmentation_of_rectangles_in_all_orientations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for index in range(5):
        values = np.random.default_rng(index).integers(0, 2, (8, 12)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
        for name, pixels in (("images", np.stack([120 * values] * 3, 2)), ("masks", values)):
            path = tmp_path / "scenes" / name / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    network = {"scratch": True, "size": "nano", "patch": 16, "head": "linear", "steps": 1, "batch_size": 2, **MACHINE}
    view = SceneViewConfig(vertical_flip=0.5, quarter_turns=0.75)
    result = beitkit.segment(tmp_path / "scenes", out=tmp_path / "seg", image_size=(64, 96), view=view, **network)
    assert "crops of 64x96" in capsys.readouterr().err
    assert json.loads((tmp_path / "seg" / "config.json").read_text())["view"]["quarter_turns"] == 0.75
    assert beitkit.load(result.folder).config.backbone.grid == (4, 6)


def test_a_plan_is_of_the_size_that_is_given() -> None:
    for recipe in (None, "finetune-base-in1k"):
        config = parse(
            PlanRun, ["--images", "1000", "--image-size", "224", "448", *(["--recipe", recipe] if recipe else [])], "plan"
        )
        assert subject_of(config).workload.network.backbone.grid == (14, 28)
