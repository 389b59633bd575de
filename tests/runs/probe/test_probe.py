"""`beitkit probe` on generated images: every protocol, both kinds of network, continuing, refusals."""

import json
import math
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import beitkit
from beitkit.cli import main
from beitkit.configs.model import BackboneConfig, ClassifierConfig, MaskedImageModelConfig
from beitkit.errors import Interrupted, UserError
from beitkit.objectives.probe import LinearProbes
from beitkit.runs.probe import training as probe_training
from beitkit.runs.probe.config import ProbeRun
from beitkit.runs.probe.training import OPTIM, probe_groups, probe_schedule
from beitkit.train.optim import make_optimizer

SMALL = {"threads": 1, "device": "cpu", "workers": 0, "precision": "float32"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of three colors that any network tells apart, and fresh networks."""
    folder = tmp_path_factory.mktemp("probe")
    rng = np.random.default_rng(0)
    for index in range(54):
        noise = rng.integers(0, 60, (18, 16, 3), dtype=np.uint8)
        noise[..., index % 3] += 150
        path = folder / "images" / ("train" if index < 36 else "val") / ("red", "green", "blue")[index % 3] / f"{index:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise).save(path)
    torch.manual_seed(0)
    masked = BackboneConfig.named("nano/4", image_size=16, mask_token=True)
    beitkit.save(beitkit.MaskedImageModel(MaskedImageModelConfig(backbone=masked, vocabulary=8)), folder / "pre")
    plain = BackboneConfig.named("nano/4", image_size=16, final_norm=False)
    beitkit.save(beitkit.Classifier(ClassifierConfig(backbone=plain, classes=("x", "y"))), folder / "cls")
    return folder


@pytest.mark.parametrize(("protocol", "model"), [("official", "pre"), ("paper", "cls")])
def test_trained_probes_tell_colors_apart(
    world: Path, tmp_path: Path, protocol: str, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = {"protocol": protocol, "epochs": 15, "batch_size": 12, "lr": 0.02, "blocks": (2, 4)}
    result = beitkit.probe(world / "images", model=world / model, out=out, **options, **SMALL)
    assert result.blocks == (2, 4)
    assert result.linear.test == [1.0, 1.0]
    assert result.linear.held_out == [1.0, 1.0]
    assert result.neighbors is None
    assert result.optimistic is not None
    assert result.optimistic.accuracy == 1.0
    assert result.optimistic.block in (2, 4)
    printed = capsys.readouterr()
    assert "optimistic, chosen on the test images: 100.0%" in printed.out
    assert f"linear probes ({protocol}) on 2 blocks: 36 training images; 45 steps of 12, lr 0.02" in printed.err
    html = (out / "report.html").read_text()
    assert "optimistic, chosen on the test images" in html
    assert "Frozen features, block by block" in html
    written = json.loads((out / "probe.json").read_text())
    assert written["linear"]["test"] == [1.0, 1.0]
    assert written["protocol"] == protocol


def test_a_grid_sees_where_a_mean_does_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The classes differ only by which corner is bright, which no mean over the patches of the embedding tells."""
    for index in range(60):
        image = np.random.default_rng(index).integers(0, 40, (16, 16, 3), dtype=np.uint8)
        (image[:8, :8] if index % 2 else image[8:, 8:])[:] += 180
        path = tmp_path / "images" / ("train" if index < 40 else "val") / ("last", "first")[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    torch.manual_seed(0)
    config = BackboneConfig.named("nano/4", image_size=16, mask_token=True, absolute_positions=False, relative_positions="none")
    beitkit.save(beitkit.MaskedImageModel(MaskedImageModelConfig(backbone=config, vocabulary=8)), tmp_path / "pre")
    options = {"model": tmp_path / "pre", "blocks": (1,), **SMALL}
    mean = beitkit.probe(tmp_path / "images", **options)
    grid = beitkit.probe(tmp_path / "images", out=tmp_path / "out", pooling="grid", **options)
    assert (mean.cells, grid.cells) == (None, 2)
    assert grid.linear.test == [1.0]
    assert grid.neighbors is not None
    assert grid.neighbors.test == [1.0]
    assert mean.linear.test[0] < 0.9
    assert "(a grid of 2x2; 40 training and 20 test images" in capsys.readouterr().out
    assert "on the means over a grid of 2x2" in (tmp_path / "out" / "report.html").read_text()
    assert json.loads((tmp_path / "out" / "probe.json").read_text())["cells"] == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"protocol": "official", "pooling": "grid"}, "`pooling='grid'` is for `protocol` quick"),
        ({"pool_cells": 4}, "`pool_cells` are those of `pooling='grid'`"),
    ],
)
def test_a_grid_is_for_the_quick_protocol(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ProbeRun(Path("images"), model=Path("model"), **options)


def test_the_schedule_and_the_group_are_the_official_ones() -> None:
    config = ProbeRun(Path("images"), model=Path("model"), protocol="official")
    schedule = probe_schedule(config, 51_200)
    assert (schedule.steps, schedule.images_per_step) == (5000, 1024)
    for step, epoch in ((0, 0), (49, 0), (50, 1), (2500, 50), (4999, 99)):
        expected = 1e-3 * 1024 / 256 * 0.5 * (1 + math.cos(math.pi * epoch / 100))
        assert schedule.lr_at(step) == pytest.approx(expected)
    uneven = probe_schedule(config, 3000)._replace(images_per_step=7, steps_per_epoch=3000 / 7)
    epochs = [step * 7 // 3000 for step in range(1500)]
    assert [uneven.lr_at(step) for step in range(1500)] == [
        pytest.approx(uneven.lr * 0.5 * (1 + math.cos(math.pi * epoch / 100))) for epoch in epochs
    ]
    paper = probe_schedule(ProbeRun(Path("images"), model=Path("model"), protocol="paper", lr=0.3, batch_size=100), 1000)
    assert (paper.steps, paper.lr_at(0)) == (500, 0.3)

    probes = LinearProbes(2, 4, 3)
    (group,) = make_optimizer(probe_groups(probes), OPTIM).param_groups
    assert {id(one) for one in group["params"]} == {id(one) for one in probes.parameters()}
    assert (group["weight_decay"], group["betas"], group["lr_scale"]) == (1e-4, (0.9, 0.999), 1.0)
    assert OPTIM.clip is None


def test_the_default_batch_is_the_papers_or_all_images() -> None:
    config = ProbeRun(Path("images"), model=Path("model"), protocol="paper")
    assert probe_schedule(config, 5000).images_per_step == 1024
    small = probe_schedule(config, 36)
    assert (small.images_per_step, small.steps) == (36, 50)
    assert small.lr == pytest.approx(1e-3 * 36 / 256)


def test_a_run_that_was_cut_continues_to_the_same_numbers(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"model": world / "pre", "protocol": "official", "epochs": 4, "batch_size": 10, "lr": 0.01, **SMALL}
    whole = beitkit.probe(world / "images", out=tmp_path / "whole", **options)
    cut(monkeypatch, after=2)
    with pytest.raises(Interrupted, match="the same command continues"):
        beitkit.probe(world / "images", out=tmp_path / "cut", **options)
    monkeypatch.undo()
    assert beitkit.probe(world / "images", out=tmp_path / "cut", **options) == whole
    assert beitkit.probe(world / "images", out=tmp_path / "cut", **options) == whole  # once more, finished


def test_without_a_folder_an_interrupted_run_says_that_nothing_was_kept(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut(monkeypatch, after=1)
    with pytest.raises(Interrupted, match="nothing was kept, give `out`") as stopped:
        beitkit.probe(world / "images", model=world / "pre", protocol="paper", epochs=4, batch_size=12, **SMALL)
    assert stopped.value.exit_code == 130


def cut(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Ctrl-C while batch number `after` is made."""
    featured = probe_training.featured

    def interrupted(*args, **rest):
        for count, batch in enumerate(featured(*args, **rest)):
            if count == after:
                signal.raise_signal(signal.SIGINT)
            yield batch

    monkeypatch.setattr(probe_training, "featured", interrupted)


def test_the_quick_protocol_with_chosen_blocks_and_neighbors(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    some = beitkit.probe(world / "images", model=world / "pre", blocks=(3, 1), neighbors=1, **SMALL)
    every = beitkit.probe(world / "images", model=world / "pre", **SMALL)
    assert some.blocks == (1, 3)
    assert every.blocks == (1, 2, 3, 4)
    assert some.neighbors is not None
    assert some.neighbors.test == [1.0, 1.0]
    assert some.linear.test == [every.linear.test[0], every.linear.test[2]]
    assert every.optimistic is None
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[0] == "1"
    assert lines[2].split()[0] == "3"
    assert "Next: beitkit finetune" in lines[-1 - (len(every.blocks) + 3)]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--blocks", "5"], "--blocks 5 is more than the 4 blocks of"),
        (["--blocks", "0"], "--blocks must be at least 1, got 0"),
        (["--blocks", "2", "2"], "--blocks must name each at most once, and at least one, got 2 2"),
        (["--epochs", "3"], "--epochs and --lr are for --protocol official and paper"),
        (["--protocol", "official", "--batch-size", "64"], "--batch-size 64 is more than there are images; give at most 36"),
        (["--protocol", "official", "--lr", "-1"], "--lr must be positive, got -1"),
        (["--neighbors", "0"], "--neighbors must be at least 1, got 0"),
        (["--protocol", "offical"], "official"),
    ],
)
def test_mistakes_are_refused_in_one_line(
    world: Path, tmp_path: Path, options: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as stopped:
        main(["probe", str(world / "images"), "--model", str(world / "pre"), "--out", str(out), *options])
    printed = capsys.readouterr()
    assert stopped.value.code == 2
    assert expected in printed.err
    assert printed.err.count("\n") == 1
    assert not out.exists()


def test_other_networks_and_places_are_refused(world: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        beitkit.probe(tmp_path / "nowhere", model=world / "pre", **SMALL)
    with pytest.raises(UserError, match="none"):
        beitkit.probe(world / "images", model=tmp_path / "none", **SMALL)
