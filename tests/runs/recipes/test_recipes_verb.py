"""Recipes at work: every pre-training recipe shrunk to a nano network, and what overrides what."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import beitkit
from beitkit.cli import main
from beitkit.configs.tokenizer import DVAEConfig
from beitkit.configs.train import LoopConfig, OptimConfig
from beitkit.errors import UserError
from beitkit.runs.pretrain import run as pretrain
from beitkit.runs.pretrain.config import PretrainRun
from beitkit.runs.recipes.pretraining import PRETRAINING

MACHINE = {"threads": 1, "device": "cpu", "workers": 0}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise in color, and a tokenizer of stride 2."""
    folder, generator = tmp_path_factory.mktemp("world"), np.random.default_rng(0)
    (folder / "images").mkdir()
    for index in range(8):
        Image.fromarray(generator.integers(0, 255, (30, 36, 3), dtype=np.uint8)).save(folder / "images" / f"{index}.png")
    torch.manual_seed(0)
    beitkit.save(beitkit.DiscreteVAE(DVAEConfig(vocabulary=16, stride=2, hidden=16, codebook_dim=8)), folder / "tok")
    return folder


def shrunk(config: PretrainRun, world: Path, out: Path) -> PretrainRun:
    """The recipe with everything that costs time made small: the size, the images, the batch, the length."""
    warmup = None if config.optim.warmup_steps is None else 1
    return replace(
        config,
        images=world / "images",
        tokenizer=world / "tok",
        out=out,
        size="nano",
        image_size=56,
        patch=4,
        cls_branch=None if config.cls_branch is None else 3,
        train=replace(config.train, epochs=None, steps=2, batch_size=2),
        optim=replace(config.optim, warmup_steps=warmup),
        loop=replace(config.loop, accumulate=2),
        machine=replace(config.machine, threads=1, device="cpu", workers=0),
    )


@pytest.mark.parametrize("recipe", PRETRAINING, ids=lambda recipe: recipe.name)
def test_every_pretraining_recipe_runs(recipe, world: Path, tmp_path: Path) -> None:
    out = pretrain.run(shrunk(recipe.config, world, tmp_path / "run"))
    model = beitkit.load(out)
    assert isinstance(model, beitkit.MaskedImageModel)
    network = recipe.config.network
    assert model.config.backbone.absolute_positions == (network.positions == "none")
    assert (model.config.backbone.layer_scale is None) == (network.layer_scale == 0.0)
    assert (model.config.cls_branch is not None) == (recipe.config.cls_branch is not None)
    assert recipe.name in (out / "report.html").read_text()
    loaded = [json.loads(line) for line in (out / "journal.jsonl").read_text().splitlines()]
    assert [event["step"] for event in loaded if event["kind"] == "train"] == [2]


SMALL = {"size": "nano", "image_size": 32, "patch": 8, "steps": 1, "batch_size": 2}


def test_options_override_the_recipe_on_the_command_line(world: Path, tmp_path: Path) -> None:
    options = [f"--{name.replace('_', '-')}={value}" for name, value in {**SMALL, **MACHINE, "lr": 0.01}.items()]
    with pytest.raises(SystemExit) as stopped:
        main(
            [
                "pretrain", str(world / "images"), "--tokenizer", str(world / "tok"), "--out", str(tmp_path / "run"),
                "--recipe", "pretrain-large-in1k", "--loop.accumulate", "1", *options,
            ]
        )  # fmt: skip
    assert stopped.value.code == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["recipe"] == "pretrain-large-in1k"
    assert (config["size"], config["train"]["lr"], config["train"]["epochs"]) == ("nano", 0.01, None)
    assert (config["optim"]["clip"], config["network"]["positions"], config["mask"]["kind"]) == (1.0, "none", "official")


def test_options_override_the_recipe_in_python(world: Path, tmp_path: Path) -> None:
    out = beitkit.pretrain(
        world / "images",
        recipe="pretrain-v2-base-300",
        tokenizer=world / "tok",
        out=tmp_path / "run",
        cls_branch=2,
        loop=LoopConfig(),
        **SMALL,
        **MACHINE,
    )
    config = json.loads((out / "config.json").read_text())
    assert config["recipe"] == "pretrain-v2-base-300"
    assert (config["cls_branch"], config["train"]["batch_size"], config["train"]["lr"]) == (2, 2, 1.5e-3)
    assert (config["optim"]["betas"], config["view"]["crop_scale"]) == ([0.9, 0.98], [0.2, 1.0])


def test_a_config_given_in_python_replaces_the_recipes(world: Path, tmp_path: Path) -> None:
    out = beitkit.pretrain(
        world / "images", recipe="pretrain-base-in1k", target="pixels", out=tmp_path / "run", loop=LoopConfig(),
        optim=OptimConfig(warmup_steps=0), **SMALL, **MACHINE,
    )  # fmt: skip
    config = json.loads((out / "config.json").read_text())
    assert (config["optim"]["clip"], config["optim"]["warmup_steps"]) == (3.0, 0)
    assert config["network"]["layer_scale"] == 0.0


def test_mistakes_with_recipes_are_one_line(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="did you mean 'pretrain-base-in1k"):
        beitkit.pretrain(world / "images", recipe="pretrain-base-in1", out=tmp_path / "run")
    with pytest.raises(UserError, match="the recipe 'finetune-base-pt22k' needs model"):
        beitkit.finetune(world / "images", recipe="finetune-base-pt22k", out=tmp_path / "run")
    command = ["pretrain", "photos", "--out", str(tmp_path / "run"), "--tokenizer", "t"]
    for options, message in (
        (["--recipe", "finetune-base-pt22k"], "is for beitkit finetune, not for pretrain"),
        (["--recipe=pretrain-bse-in1k"], "did you mean 'pretrain-base-in1k'"),
        (["--recipe", "pretrain-base-in1k", "--recipe", "pretrain-v2-base"], "--recipe is given 2 times"),
        (["--recipe", "pretrain-base-in1k", "--epochs", "3", "--steps", "3"], "give --epochs or --steps, not both"),
        (["--recipe"], "--recipe"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main([*command, *options])
        assert stopped.value.code == 2
        said = capsys.readouterr().err
        assert message in said
        assert said.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("recipe", ["scratch-small-in1k", "supervised-base-in22k"])
def test_a_recipe_from_scratch_needs_no_model(recipe: str, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for index in range(16):
        path = tmp_path / "labeled" / ("train" if index < 12 else "val") / "ab"[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 255, (34, 36, 3), dtype=np.uint8)).save(path)
    result = beitkit.finetune(
        tmp_path / "labeled", recipe=recipe, out=tmp_path / "run", size="nano", image_size=32, loop=LoopConfig(),
        steps=2, batch_size=4, **MACHINE,
    )  # fmt: skip
    classifier = beitkit.load(result.folder)
    assert isinstance(classifier, beitkit.Classifier)
    assert classifier.config.pooling == "cls"
    assert classifier.config.backbone.absolute_positions
    assert classifier.config.backbone.layer_scale is None
