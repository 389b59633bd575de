"""The demo from its images to its page, with few images and steps."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from beitkit.configs.train import MachineConfig
from beitkit.runs.demo import run as demo
from beitkit.runs.demo.config import DemoRun


def test_it_comes_to_its_page_and_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, pretrain_run = demo.load_fashion_mnist(), demo.pretrain_run
    few = data._replace(
        train_images=data.train_images[:300], train_labels=data.train_labels[:300],
        test_images=data.test_images[:100], test_labels=data.test_labels[:100],
    )  # fmt: skip
    monkeypatch.setattr(demo, "load_fashion_mnist", lambda: few)
    monkeypatch.setattr(demo, "LABELS", (50,))
    monkeypatch.setattr(demo, "SEEDS", (0, 1))
    monkeypatch.setattr(demo, "COURSES", {(start, 50): demo.Course(3, 1e-3, "probe") for start in ("scratch", "pretrained")})

    def short(config: DemoRun, images: Path) -> demo.PretrainRun:
        full = pretrain_run(config, images)
        return replace(full, train=replace(full.train, steps=4), optim=replace(full.optim, warmup_steps=1))

    monkeypatch.setattr(demo, "pretrain_run", short)
    config = DemoRun(out=tmp_path / "demo", machine=MachineConfig(device="cpu", threads=1, workers=0))
    verdict = demo.run(config)
    printed = capsys.readouterr().out
    assert [contest.labels for contest in verdict.contests] == [50]
    assert {one.name for one in verdict.contests[0].starts} == {"pretrain", "scratch"}
    assert json.loads((tmp_path / "demo" / "verdict.json").read_text())
    page = (tmp_path / "demo" / "report.html").read_text()
    assert "What the network learned to fill in" in page
    assert "data:image/png;base64" in page
    assert "report.html" in printed.splitlines()[-1]
    again = demo.run(config)  # nothing is trained a second time
    assert again.contests[0].best.scores == verdict.contests[0].best.scores
