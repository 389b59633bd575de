"""The report of a run that goes on: there while it runs, growing, continued, and without a trace in the weights."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from beitkit.configs.parts import NetworkConfig
from beitkit.configs.train import LoopConfig, MachineConfig, TrainConfig
from beitkit.report.sections import TrainingReport
from beitkit.runs.pretrain import run as pretrain
from beitkit.runs.pretrain.config import PretrainRun
from beitkit.runs.training import live
from beitkit.runs.training.live import Renewal, Strip
from beitkit.train import loop
from beitkit.train.journal import Journal
from tests.train.test_loop import training


@pytest.fixture
def configured(tmp_path: Path) -> Callable[[str], PretrainRun]:
    """A few steps on noise, saved every second one."""
    for index in range(12):
        pixels = np.random.default_rng(index).integers(0, 255, (16, 16, 3)).astype(np.uint8)
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{index}.png")

    def make(name: str) -> PretrainRun:
        return PretrainRun(
            tmp_path / "images",
            out=tmp_path / name,
            target="pixels",
            size="nano",
            image_size=16,
            patch=4,
            train=TrainConfig(steps=7, batch_size=4, lr=1e-3),
            machine=MachineConfig(device="cpu", threads=1, workers=0, precision="float32"),
            network=NetworkConfig(drop_path=0.1),
            loop=LoopConfig(log_every=1, save_every=2, ema=0.9),
        )

    return make


def test_a_page_with_a_growing_strip_is_there_while_it_runs(
    configured: Callable[[str], PretrainRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, save, seen = configured("seen"), loop.Checkpoints.save, {}
    monkeypatch.setattr(live, "SPARED", 0)

    def watched(self: loop.Checkpoints, step: int, *state: dict, **how: bool) -> None:
        save(self, step, *state, **how)
        if step < 7:
            seen[step] = (config.out / "report.html").read_text()
        if step == 4 and len(seen) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop.Checkpoints, "save", watched)
    with pytest.raises(KeyboardInterrupt):
        pretrain.run(config)
    pretrain.run(config)
    assert [*seen] == [2, 4, 6]
    for step, page in seen.items():
        assert f"step {step} of 7, going on" in page
        assert re.findall(r'<th scope="col">step (\d)</th>', page)[: step // 2] == [str(one) for one in range(2, step + 1, 2)]
    final = (config.out / "report.html").read_text()
    assert "going on" not in final
    assert '<th scope="col">step 7</th>' in final
    monkeypatch.undo()
    monkeypatch.setattr(pretrain, "renewing", lambda training, *rest: training)
    pretrain.run(configured("unseen"))
    weights = [(config.out.parent / name / "model.safetensors").read_bytes() for name in ("seen", "unseen")]
    assert weights[0] == weights[1]


def test_a_strip_keeps_few_of_many_steps(tmp_path: Path) -> None:
    strip = Strip(tmp_path, lambda: {"original": torch.zeros(2, 3, 8, 8), "now": torch.ones(2, 3, 8, 8)})
    for step in range(1, 1001):
        strip.grow(step)
    kept = strip.steps()
    assert kept[-1] == 1000
    assert len(kept) < 40
    assert all(later >= 1.25 * before for before, later in pairwise(kept[:-1]))
    (tmp_path / "journal.jsonl").touch()
    report = TrainingReport("Pre-training", tmp_path)
    strip.show(report, 500)
    shown = [int(one.replace(",", "")) for one in re.findall(r'<th scope="col">step ([\d,]+)</th>', report.html())]
    assert len(set(shown)) == live.SHOWN_STEPS
    assert shown[0] == 1
    assert max(shown) <= 500


def test_pages_take_no_more_than_a_fiftieth_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, written = 0.0, []
    monkeypatch.setattr(live.time, "perf_counter", lambda: now)

    def write(self: Renewal, step: int) -> None:
        nonlocal now
        now += 1.0
        written.append(step)
        if step == 1:
            raise OSError("no space")

    monkeypatch.setattr(Renewal, "_write", write)
    stream = io.StringIO()
    settings = training(tmp_path, TrainConfig(steps=9, batch_size=4, lr=0.1), LoopConfig())
    renewal = Renewal(replace(settings, journal=Journal(tmp_path / "journal.jsonl", stream=stream)), "", (), None)
    for step in range(1, 200):
        renewal(step)
        now += 1.0
    assert written == [1, 51, 101, 151]
    assert stream.getvalue() == "the report is not renewed (no space)\n"
