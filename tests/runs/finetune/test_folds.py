"""Cross-validation: every fold an ordinary run, the table their mean and spread."""

from __future__ import annotations

import json
import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import beitkit
from beitkit.configs.data import NO_AUGMENT, ViewConfig
from beitkit.configs.train import LoopConfig, MachineConfig, OptimConfig, TrainConfig
from beitkit.errors import Interrupted, UserError
from beitkit.runs.finetune import run as finetune
from beitkit.runs.finetune.config import FinetuneRun
from beitkit.train import loop as loops


@pytest.fixture
def config(tmp_path: Path) -> FinetuneRun:
    """Three folds of 18 images of red and blue noise, a few steps each."""
    for index in range(18):
        pixels = np.random.default_rng(index).integers(0, 120, (16, 16, 3))
        pixels[..., (index + index // 5) % 2 * 2] += 130  # some labels are wrong
        path = tmp_path / "images" / ("red", "blue")[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(path)
    return FinetuneRun(
        tmp_path / "images",
        scratch=True,
        size="nano",
        patch=8,
        folds=3,
        out=tmp_path / "out",
        train=TrainConfig(steps=3, batch_size=5, lr=1e-3),
        machine=MachineConfig(device="cpu", threads=1, workers=0, precision="float32"),
        optim=OptimConfig(lr_batch=5, min_lr=1e-6, warmup_steps=1),
        augment=NO_AUGMENT,
        view=ViewConfig(color_jitter=0.0),
        loop=LoopConfig(ema=0.0, save_every=1),
    )


def test_a_cut_cross_validation_goes_on_and_its_folds_are_ordinary_runs(
    config: FinetuneRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save, calls = loops.Checkpoints.save, []

    def cut(self: loops.Checkpoints, step: int, *state: dict, **rest: bool) -> None:
        save(self, step, *state, **rest)
        calls.append(step)
        if len(calls) == 4:  # in the second fold
            raise Interrupted(1, 3, 2)

    with monkeypatch.context() as patch:
        patch.setattr(loops.Checkpoints, "save", cut)
        with pytest.raises(Interrupted):
            finetune.run(config)
    assert not (config.out / "folds.json").exists()
    result = finetune.run(config)
    printed = capsys.readouterr().out
    scores = [json.loads((config.out / f"fold-{number}" / "scores.json").read_text()) for number in (1, 2, 3)]
    values = [one["top1"] for one in scores]
    assert result.accuracy == pytest.approx(statistics.mean(values))
    stored = json.loads((config.out / "folds.json").read_text())
    assert stored["measures"]["top-1"] == {
        "mean": pytest.approx(statistics.mean(values)),
        "deviation": pytest.approx(statistics.stdev(values)),
        "repetitions": 3,
        "folds": values,
    }
    assert len(set(values)) > 1
    assert sum(one["images"] for one in scores) == 18
    assert f"top-1 {result.accuracy:.1%} on average" in printed
    report = (config.out / "report.html").read_text()
    assert "All folds together" in report
    assert "Confusion matrix" in report
    alone = finetune.run(replace(config, folds=None, fold="2/3", out=config.out.parent / "alone"))
    folder = config.out / "fold-2"
    assert (alone.folder / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert finetune.run(config) == result  # finished: nothing is trained again
    measured = beitkit.evaluate(config.images, model=folder, threads=1, device="cpu", workers=0, precision="float32")
    assert "set aside for validation" in measured.where
    assert measured.top1 == pytest.approx(values[1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"folds": 1}, "`folds` must be at least 2, got 1"),
        ({"fold": "1/3"}, "`folds` runs every `fold`"),
        ({"folds": None, "fold": "4/3"}, "`fold` must be one of 1/n to n/n, such as 3/8, got '4/3'"),
        ({"folds": None, "fold": "1/1"}, "`fold` must be one of at least two"),
        ({"val": Path("val")}, "leave `val` out"),
        ({"compare": Path("other")}, "`compare` needs the same validation images"),
    ],
)
def test_folds_that_cannot_be(config: FinetuneRun, changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(config, **changes)  # type: ignore[arg-type]
