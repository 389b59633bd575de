"""Compiled and recomputed training: the same numbers, and only where it pays and can be done."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from beitkit.configs.model import BackboneConfig, ClassifierConfig
from beitkit.configs.train import SpeedConfig
from beitkit.errors import UserError
from beitkit.nn.blocks import Block
from beitkit.nn.models import Classifier
from beitkit.objectives.classify import Classify
from beitkit.runs.training.speed import COMPILED_FROM, accelerate
from beitkit.train.machine.runtime import Runtime
from beitkit.train.schedule import Schedule

CPU = Runtime(torch.device("cpu"), None)


def objective(name: str = "nano/16", image_size: int = 32) -> Classify:
    backbone = BackboneConfig.named(name, image_size=image_size, relative_positions="per_block", final_norm=False)
    return Classify(Classifier(ClassifierConfig(backbone=backbone, classes=("a", "b"))), 0.0)


def schedule(steps: int) -> Schedule:
    return Schedule(steps=steps, warmup=0, images_per_step=2048, steps_per_epoch=1.0, lr=1e-3, min_lr=0.0, seed=0)


def compiled(module: torch.nn.Module) -> set[bool]:
    return {block.compiled is not None for block in module.modules() if isinstance(block, Block)}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # PyTorch's own, when it loads its compiler
def test_auto_compiles_runs_that_are_long_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    module = objective()
    weights = sum(parameter.numel() for parameter in module.model.backbone.parameters())
    enough = -(-COMPILED_FROM["cpu"] // (6 * 5 * weights * 2048))  # five tokens an image
    assert accelerate(module, SpeedConfig(), CPU, schedule(int(enough) - 1)) == ""
    assert compiled(module) == {False}
    assert accelerate(module, SpeedConfig(recompute=True), CPU, schedule(int(enough))) == ", compiled, recomputing"
    assert compiled(module) == {True}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_auto_compiles_only_small_networks_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    with torch.device("meta"):
        tiny, small = objective("tiny/16", 224), objective("small/16", 224)
    assert accelerate(tiny, SpeedConfig(), CPU, schedule(10**9)) == ", compiled"
    assert accelerate(small, SpeedConfig(), CPU, schedule(10**9)) == ""


def test_without_a_compiler_auto_does_not_compile_and_on_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    module = objective()
    assert accelerate(module, SpeedConfig(), CPU, schedule(10**9)) == ""
    assert compiled(module) == {False}
    with pytest.raises(UserError, match=r"`speed.compile='on'` needs a C\+\+ compiler"):
        accelerate(module, SpeedConfig(compile="on"), CPU, schedule(1))


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no compiler to compile with")
def test_a_compiled_run_learns_the_same(tmp_path: Path) -> None:
    """By the command line: in this process jaxtyping's checks would be compiled too."""
    generator = np.random.default_rng(0)
    images = tmp_path / "images"
    images.mkdir()
    for number in range(8):
        Image.fromarray(generator.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(images / f"{number}.png")
    losses = []
    for speed in (["--speed.compile", "off"], ["--speed.compile", "on"], ["--speed.compile", "on", "--speed.recompute"]):
        out = tmp_path / f"run{len(losses)}"
        command = [
            sys.executable, "-m", "beitkit", "pretrain", str(images), "--target", "pixels", "--out", str(out), "--size", "nano",
            "--image-size", "32", "--steps", "4", "--batch-size", "2", "--lr", "0.05", "--network.drop-path", "0.2",
            "--loop.log-every", "1", "--precision", "float32", "--threads", "1", *speed,
        ]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True, timeout=280)
        events = [json.loads(line) for line in (out / "journal.jsonl").read_text().splitlines()]
        losses.append([event["loss"] for event in events if event["kind"] == "train"])
    assert len(set(losses[0])) == 4, "nothing was learned"
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert losses[2] == pytest.approx(losses[0], rel=1e-4)
