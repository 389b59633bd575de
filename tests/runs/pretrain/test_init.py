"""Going on from a given network: its own head, another tokenizer, what is kept, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import beitkit
from beitkit.configs.data import MaskConfig
from beitkit.configs.model import BackboneConfig, ClassifierConfig, SegmenterConfig
from beitkit.configs.parts import NetworkConfig
from beitkit.configs.tokenizer import DVAEConfig
from beitkit.configs.train import LoopConfig, OptimConfig
from beitkit.errors import Interrupted, UserError
from beitkit.report.journal import read_journal, series
from beitkit.train.loop import Best

MACHINE: dict[str, Any] = {"batch_size": 8, "threads": 1, "workers": 0, "device": "cpu"}
SMALL = {"size": "nano", "image_size": 32, "patch": 8, **MACHINE}
LABELED = 20


def dvae(folder: Path, vocabulary: int, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    beitkit.save(beitkit.DiscreteVAE(DVAEConfig(vocabulary=vocabulary, stride=4, hidden=16, codebook_dim=8)), folder)
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of two colors, plain and in class folders; tokenizers; and a finished run."""
    path = tmp_path_factory.mktemp("world")
    generator = np.random.default_rng(0)
    for index in range(2 * LABELED):
        name, color = ("red", (180, 60, 60)) if index % 2 else ("blue", (60, 60, 180))
        pixels = np.clip(np.array(color) + generator.normal(0, 50, (36, 36, 3)), 0, 255).astype(np.uint8)
        for folder in (path / "images", path / "labeled" / "train" / name):
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / f"{index}.png")
    (path / "labeled" / "val" / "red").mkdir(parents=True)
    (path / "labeled" / "val" / "blue").mkdir()
    for index, (name, color) in enumerate({"red": "red", "blue": "blue"}.items()):
        Image.new("RGB", (32, 32), color).save(path / "labeled" / "val" / name / f"v{index}.png")
    dvae(path / "tok", 16)
    dvae(path / "other", 16, seed=1)
    dvae(path / "larger", 24)
    beitkit.pretrain(path / "images", tokenizer=path / "tok", out=path / "pre", steps=80, lr=5e-2, **SMALL)
    return path


def go_on(world: Path, out: Path, **options: Any) -> Path:
    given = {"tokenizer": world / "tok", "init": world / "pre", "steps": 4, **MACHINE, **options}
    return beitkit.pretrain(world / "images", out=out, **given)


def evaluated(run: Path, key: str = "fixed/loss") -> dict[int, float]:
    points = series(read_journal(run / "journal.jsonl"), key, "evaluate")
    return {int(step): value for step, value in zip(points.steps, points.values, strict=True)}


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model.safetensors")


def started(run: Path) -> dict[str, Any]:
    return json.loads((run / "start.json").read_text())


def result(run: Path) -> dict[str, Any]:
    return json.loads((run / "result.json").read_text())


def test_the_first_loss_with_the_own_head_is_the_old_runs_last(world: Path, tmp_path: Path, capsys: Any) -> None:
    run = go_on(world, tmp_path / "run")
    assert evaluated(run)[0] == evaluated(world / "pre")[80]
    said = capsys.readouterr().err
    assert "head kept: it was trained with this tokenizer" in said
    assert "--lr 0.01667: a third of its own run's, which would undo it (0.00313 at 8)" in said
    assert started(run) == {"head": "head kept: it was trained with this tokenizer", "head_steps": 0, "fresh": []}
    config = json.loads((run / "config.json").read_text())
    assert (config["size"], config["patch"], config["image_size"]) == ("nano", 8, 32)
    assert (config["train"]["lr"], config["optim"]["layer_decay"], config["loop"]["evaluate_every"]) == (
        pytest.approx(5e-2 / 3),
        0.9,
        1,
    )
    assert "init" in json.loads((run / "inputs.json").read_text())


def test_a_run_without_init_has_the_plain_values_and_none_of_the_new_fields(world: Path) -> None:
    config = json.loads((world / "pre" / "config.json").read_text())
    assert not {"init", "labels", "head_steps"} & config.keys()
    assert config["optim"]["warmup_epochs"] == 10.0
    assert config["optim"]["layer_decay"] is None
    assert config["loop"]["evaluate_every"] == 0
    assert not (world / "pre" / "start.json").exists()
    assert list(evaluated(world / "pre")) == [80]


def test_the_best_evaluation_is_the_finished_model(world: Path, tmp_path: Path) -> None:
    run = go_on(world, tmp_path / "run", steps=6, loop=LoopConfig(evaluate_every=2))
    losses, found = evaluated(run), result(run)
    best = min(losses, key=losses.__getitem__)
    assert sorted(losses) == [0, 2, 4, 6]
    assert (found["step"], found["best"], found["start"]) == (best, losses[best], losses[0])
    assert found["is_better"] == (best > 0)
    for name, tensor in load_file(run / "checkpoints" / "best" / "model.safetensors").items():
        assert torch.equal(tensor, weights(run)[name]), name
    assert "Did it get better than its start?" in (run / "report.html").read_text()


def test_a_rate_far_too_high_is_caught_and_the_start_is_kept(world: Path, tmp_path: Path, capsys: Any) -> None:
    run = go_on(world, tmp_path / "run", lr=1.0, steps=8, optim=OptimConfig(warmup_steps=0, lr_scaling="none", clip=None))
    assert "step 0 was better: no evaluation beat the start's masked loss" in capsys.readouterr().err
    for name, tensor in weights(world / "pre").items():
        assert torch.equal(tensor, weights(run)[name]), name
    assert not result(run)["is_better"]
    assert "Not better than its start" in (run / "report.html").read_text()


@pytest.mark.parametrize(("tokenizer", "reason"), [("other", "trained with another tokenizer"), ("larger", "16 visual tokens")])
def test_a_fresh_head_learns_alone_first(tokenizer: str, reason: str, world: Path, tmp_path: Path, capsys: Any) -> None:
    options = {"tokenizer": world / tokenizer, "head_steps": 3, "steps": 6, "loop": LoopConfig(save_every=1, evaluate_every=6)}
    seen: dict[int, dict[str, torch.Tensor]] = {}

    def keep(step: int) -> None:
        files = load_file(tmp_path / "run" / "checkpoints" / f"step-{step:08d}.0.safetensors")
        seen[step] = {name: tensor for name, tensor in files.items() if name.startswith("parameter.model.")}

    with pytest.MonkeyPatch.context() as patch:
        save = beitkit.train.checkpoints.checkpoint.Checkpoints.save

        def saving(self: Any, step: int, *rest: Any, **how: Any) -> None:
            save(self, step, *rest)  # not beside the training, so that it is there
            keep(step)

        patch.setattr("beitkit.train.checkpoints.checkpoint.Checkpoints.save", saving)
        run = go_on(world, tmp_path / "run", **options)
    said = capsys.readouterr().err
    assert "head fresh: " in said
    assert reason in said
    assert evaluated(run).keys() == {0, 3, 6}
    before = weights(world / "pre")
    for step in range(4):
        for name, tensor in seen[step].items():
            own = name.removeprefix("parameter.model.")
            if not own.startswith("lm_head"):
                assert torch.equal(tensor, before[own]), (step, name)
    assert not torch.equal(seen[3]["parameter.model.lm_head.weight"], seen[1]["parameter.model.lm_head.weight"])
    body = [name for name in seen[6] if "lm_head" not in name]
    assert all(not torch.equal(seen[6][name], seen[3][name]) for name in body if name.endswith("qkv.weight"))


def test_a_head_of_unknown_tokenizer_is_measured(world: Path, tmp_path: Path) -> None:
    beitkit.save(beitkit.load(world / "pre"), tmp_path / "ours.pth", format="microsoft")
    state = torch.load(tmp_path / "ours.pth", weights_only=False)["model"]
    torch.save({"model": state}, tmp_path / "pre.pth")  # without our description, like a released file
    given = {"init": tmp_path / "pre.pth", "network": NetworkConfig(normalization="inception")}
    own = go_on(world, tmp_path / "own", **given, steps=2)
    strange = go_on(world, tmp_path / "strange", **given, tokenizer=world / "other", head_steps=1)
    of_both = "head {}: the file does not name its tokenizer, and its masked loss is {:.2f}, against"
    for run, fate in ((own, "kept"), (strange, "fresh")):
        said = started(run)["head"]
        loss = float(said.partition("masked loss is ")[2].partition(",")[0])
        entropy = float(said.partition("against ")[2].partition(" by")[0])
        assert said.startswith(of_both.format(fate, loss))
        assert (loss < entropy - 0.1) == (fate == "kept")
        assert entropy < np.log(16)
    assert started(own)["head_steps"] == 0
    assert started(strange)["fresh"] == ["lm_head.weight", "lm_head.bias"]


@pytest.mark.parametrize("kind", ["classify", "segment", "huggingface", "microsoft"])
def test_other_files_as_a_start(kind: str, world: Path, tmp_path: Path) -> None:
    backbone = BackboneConfig.named("nano/8", image_size=64, relative_positions="per_block", final_norm=False)
    torch.manual_seed(3)
    path = tmp_path / "start"
    if kind == "segment":
        beitkit.save(beitkit.Segmenter(SegmenterConfig(backbone=backbone, classes=("a", "b"), auxiliary_channels=8)), path)
    else:
        path = tmp_path / "start.pth" if kind == "microsoft" else path
        classifier = beitkit.Classifier(ClassifierConfig(backbone=backbone, classes=("a", "b")))
        beitkit.save(classifier, path, format="native" if kind == "classify" else kind)
    run = go_on(world, tmp_path / "run", init=path, image_size=32, head_steps=1, steps=2)
    fresh = set(started(run)["fresh"])
    assert fresh == {"backbone.mask_token", "backbone.norm.weight", "backbone.norm.bias", "lm_head.weight", "lm_head.bias"}
    model = beitkit.load(run)
    assert isinstance(model, beitkit.MaskedImageModel)
    assert model.config.backbone.image_size == (32, 32)
    assert model.config.backbone.relative_positions == "per_block"
    assert model.config.vocabulary == 16
    assert model.config.tokenizer == beitkit.load_tokenizer(world / "tok").fingerprint


def test_labels_judge_the_blocks_and_never_by_their_val(world: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "run"
    run = go_on(world, out, labels=world / "labeled", tokenizer=world / "other", head_steps=2)
    accuracy = evaluated(run, "labels/linear")
    assert accuracy[0] == accuracy[2]  # the body has not moved
    assert result(run)["metric"] == "labels/linear"
    assert result(run)["held_out"] == 2 * LABELED // 5
    assert accuracy[0] > 0.7  # two colors
    assert "What the blocks know of the classes" in (run / "report.html").read_text()
    (world / "labeled" / "val" / "red" / "v0.png").rename(world / "v0.png")  # the val part is not even pinned
    try:
        Image.new("RGB", (32, 32), "pink").save(world / "labeled" / "val" / "red" / "v9.png")
        assert go_on(world, out, labels=world / "labeled", tokenizer=world / "other", head_steps=2) == out
    finally:
        (world / "labeled" / "val" / "red" / "v9.png").unlink()
        (world / "v0.png").rename(world / "labeled" / "val" / "red" / "v0.png")


def test_labels_without_init_are_watched(world: Path, tmp_path: Path) -> None:
    run = beitkit.pretrain(
        world / "images", tokenizer=world / "tok", out=tmp_path / "run", labels=world / "labeled", steps=2, **SMALL
    )
    assert evaluated(run, "labels/neighbors").keys() == {2}
    assert not (run / "result.json").exists()


@pytest.mark.parametrize("cut", [0, 3])
def test_a_run_that_is_cut_goes_on_bit_for_bit(cut: int, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {
        "tokenizer": world / "other",
        "labels": world / "labeled",
        "head_steps": 2,
        "steps": 6,
        "loop": LoopConfig(evaluate_every=2, save_every=1),
    }
    whole = go_on(world, tmp_path / "whole", **options)
    update, done = beitkit.train.step.Trainer.update, 0

    def dying(self: Any, *given: Any) -> Any:
        nonlocal done
        if done == cut:
            raise Interrupted(done, 6, 15)
        done += 1
        return update(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr("beitkit.train.step.Trainer.update", dying)
        with pytest.raises(Interrupted):
            go_on(world, tmp_path / "cut", **options)
    again = go_on(world, tmp_path / "cut", **options)
    assert evaluated(again) == evaluated(whole)
    assert evaluated(again, "labels/linear") == evaluated(whole, "labels/linear")
    assert {**result(again)} == {**result(whole)}
    assert started(again) == started(whole)
    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, weights(again)[name]), name
    last = [load_file(run / "checkpoints" / "step-00000006.0.safetensors") for run in (whole, again)]
    assert all(torch.equal(last[0][name], last[1][name]) for name in last[0])


def test_another_command_for_a_finished_run_names_init(world: Path) -> None:
    with pytest.raises(UserError, match=r"it is finished: choose another `out`, with `init` .*pre to go on from it"):
        beitkit.pretrain(world / "images", tokenizer=world / "tok", out=world / "pre", steps=90, lr=5e-2, **SMALL)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch": 4}, r"`patch` 4 is not the 8x8 of .*pre: positions can be resized, patches cannot; leave it out"),
        ({"size": "base"}, r"`size` base is not the network of .*pre \(width 96, 4 blocks\)"),
        ({"network": NetworkConfig(positions="none")}, r"`network.positions` none are not those of .*pre \(shared\)"),
        ({"network": NetworkConfig(layer_scale=0.0)}, "`network.layer_scale` 0 is for fresh weights"),
        ({"network": NetworkConfig(normalization="inception")}, "was trained with statistics of its own"),
        ({"cls_branch": 2}, r"`cls_branch` 2 is not what .*pre has \(no such branch\)"),
        ({"image_size": 36}, "36x36 is not a whole number of 8x8 patches"),
        ({"image_size": 8}, "at least 2x2 are needed"),
        ({"init": Path("nothing.pth")}, "nothing.pth does not exist"),
        ({"init": "tok"}, "holds a tokenizer, not a network"),
        ({"init": "images"}, "give a run folder"),
        ({"tokenizer": None}, "missing required option `tokenizer`"),
        ({"init": None, "head_steps": 2, **SMALL}, "`head_steps` is for a fresh head on the network of `init`"),
        ({"tokenizer": "other", "head_steps": 4}, "`head_steps` 4 leave nothing of a run of 4 steps"),
        ({"labels": Path("nowhere")}, "nowhere"),
        ({"recover": "all", "mask": MaskConfig(kind="none"), "channels": 1}, "does not fit a tokenizer of 3"),
    ],
)
def test_wrong_use_is_one_line(options: dict[str, Any], message: str, world: Path, tmp_path: Path) -> None:
    given = {
        name: world / value if name in ("init", "tokenizer") and isinstance(value, str) else value
        for name, value in options.items()
    }
    with pytest.raises(UserError, match=message) as caught:
        go_on(world, tmp_path / "run", **given)
    assert "\n" not in str(caught.value)


def test_the_best_by_a_loss_is_the_smallest() -> None:
    written: list[float] = []
    best = Best("fixed/loss", lambda: written.append(best.value), is_loss=True)
    for loss in (3.0, 4.0, float("nan"), 2.0):
        best.offer({"fixed/loss": loss})
    assert written == [-3.0, -2.0]
