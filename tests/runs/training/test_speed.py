"""Compiled and recomputed training: the same numbers, and only where it pays and can be done."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from beitkit.configs.model import BackboneConfig, ClassifierConfig
from beitkit.configs.train import MachineConfig, SpeedConfig
from beitkit.errors import UserError
from beitkit.nn.blocks import Block
from beitkit.nn.models import Classifier
from beitkit.objectives.classify import Classify
from beitkit.planning.rates import NoiseSteps
from beitkit.planning.workload import Workload
from beitkit.runs.training import speed
from beitkit.runs.training.speed import COMPILED_FROM, Chosen, Trial, accelerate, tried
from beitkit.train.folder import RunFolder
from beitkit.train.machine.processes import ALONE, Processes
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


@pytest.fixture
def compilers(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Every compiler is there, and compiling does nothing; what is compiled."""
    given: list[object] = []
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(torch, "compile", lambda function, **options: given.append(function) or function)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **options: given.append(self))
    monkeypatch.setattr(torch.compiler, "reset", lambda: None)
    return given


def folder(path: Path) -> RunFolder:
    return RunFolder(path, "finetune", MachineConfig(), ALONE)


def test_auto_tries_long_runs_and_keeps_to_what_it_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compilers: list[object]
) -> None:
    module, tries = objective(), []
    results = iter([Chosen("blocks", {"off": 1.2, "blocks": 1.0}), Chosen("off", {"off": 1.0, "blocks": 1.0})])
    monkeypatch.setattr(speed, "tried", lambda *given, **options: tries.append(given) or next(results))
    weights = sum(parameter.numel() for parameter in module.model.backbone.parameters())
    enough = -(-COMPILED_FROM["cpu"] // (6 * 5 * weights * 2048))  # five tokens an image
    run, trial = folder(tmp_path / "run"), Trial(Workload(network=module.model.config), 8)

    def words(steps: int, folder: RunFolder | None, **options: Any) -> str:
        return accelerate(module, SpeedConfig(**options), CPU, schedule(steps), folder=folder, trial=trial)

    assert words(int(enough) - 1, folder(tmp_path / "short")) == ""
    assert tries == []
    assert words(int(enough), run, recompute=True) == ", compiled (1.20 times as fast in a trial), recomputing"
    assert compiled(module) == {True}
    assert words(int(enough), run) == ", compiled (1.20 times as fast in a trial)", "a continued run computes the same"
    assert words(int(enough), run, compile="off") == ""
    assert compiled(module) == {False}
    assert words(int(enough), folder(tmp_path / "other")) == "", "another machine, another result"
    assert len(tries) == 2
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert words(int(enough), run) == "", "continued where there is no compiler"
    (tmp_path / "run/speed.json").write_text('{"compile": "everything", "seconds": {}}')
    with pytest.raises(UserError, match=r"speed.json does not say what the run compiles"):
        words(int(enough), run)


@pytest.mark.parametrize(("off", "blocks", "form"), [(1.0, 0.5, "blocks"), (1.0, 0.995, "off"), (0.5, 1.0, "off")])
def test_a_trial_takes_turns_and_wants_more_than_noise(
    off: float, blocks: float, form: str, monkeypatch: pytest.MonkeyPatch, compilers: list[object]
) -> None:
    """Steps that take as long as they are told."""
    asked: list[bool] = []

    def seconds(step: NoiseSteps) -> float:
        step()
        (is_compiled,) = compiled(step.trainer.objective)
        asked.append(is_compiled)
        return blocks if is_compiled else off

    monkeypatch.setattr(speed, "_seconds", seconds)
    monkeypatch.setattr(speed, "TRIAL_ROUNDS", (1, 2))
    trial = Trial(Workload(network=objective().model.config), 2)
    state = torch.get_rng_state()
    chosen = tried(trial, CPU, schedule(10**5), recompute=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert chosen == Chosen(form, {"off": off, "blocks": blocks})  # type: ignore[arg-type]
    assert asked == [False, False, True, False, True]
    assert tried(trial, CPU, schedule(1), recompute=False) == Chosen("off", {}), "over before it could be won back"


def test_what_cannot_be_compiled_is_not(monkeypatch: pytest.MonkeyPatch, compilers: list[object]) -> None:
    def broken(function: object, **options: object) -> object:
        def fail(*given: object) -> None:
            raise RuntimeError("the compiler says no")

        return fail

    monkeypatch.setattr(torch, "compile", broken)
    monkeypatch.setattr(speed, "TRIED_FROM", 0.0)
    trial = Trial(Workload(network=objective().model.config), 2)
    assert tried(trial, CPU, schedule(10), recompute=False) == Chosen("off", {})


def test_one_gpu_compiles_the_whole_objective_and_several_the_blocks(
    monkeypatch: pytest.MonkeyPatch, compilers: list[object]
) -> None:
    capability = (9, 0)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    module, gpu = objective(), Runtime(torch.device("cuda"), torch.bfloat16)
    assert accelerate(module, SpeedConfig(), gpu, schedule(10**9)) == ", compiled as a whole"
    assert compilers == [module]
    assert compiled(module) == {False}
    assert accelerate(module, SpeedConfig(), gpu, schedule(1)) == ""
    assert accelerate(module, SpeedConfig(compile="on"), gpu, schedule(1), is_static=False) == ", compiled"
    assert compiled(module) == {True}
    monkeypatch.setattr(Processes, "all_gather", lambda self, value: [value])
    two = replace(gpu, processes=Processes(0, 2))
    assert accelerate(module, SpeedConfig(), two, schedule(10**9)) == ", compiled"
    capability = (6, 1)
    assert accelerate(module, SpeedConfig(), gpu, schedule(10**9)) == ""
    with pytest.raises(UserError, match=r"needs a GPU of compute capability 7.0 or newer \(this one has 6.1\)"):
        accelerate(module, SpeedConfig(compile="on"), gpu, schedule(1))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"`speed.compile='on'` needs Triton"):
        accelerate(module, SpeedConfig(compile="on"), gpu, schedule(1))


def test_without_a_compiler_auto_does_not_compile_and_on_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    module = objective()
    assert accelerate(module, SpeedConfig(), CPU, schedule(10**9)) == ""
    assert compiled(module) == {False}
    with pytest.raises(UserError, match=r"`speed.compile='on'` needs a C\+\+ compiler"):
        accelerate(module, SpeedConfig(compile="on"), CPU, schedule(1))


def test_every_objective_is_one_graph_with_the_numbers_of_its_steps_as_they_are() -> None:
    """In a process of its own: here jaxtyping's checks would be compiled too."""
    program = Path(__file__).with_name("one_graph.py")
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = {name: numbers for name, *numbers in map(json.loads, done.stdout.splitlines())}
    assert len(found) == 10
    for name, (breaks, graphs, difference) in found.items():
        assert breaks == 0, name
        assert graphs == 1, f"{name} was compiled again while the run went on"
        assert difference <= 5e-3, f"{name}: more than the rounding of sums that are put together in another order"


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no compiler to compile with")
def test_a_compiled_run_learns_the_same(tmp_path: Path) -> None:
    """By the command line: in this process jaxtyping's checks would be compiled too."""
    generator = np.random.default_rng(0)
    images = tmp_path / "images"
    images.mkdir()
    for number in range(8):
        Image.fromarray(generator.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(images / f"{number}.png")
    losses = []
    for options in (["--speed.compile", "off"], ["--speed.compile", "on"], ["--speed.compile", "on", "--speed.recompute"]):
        out = tmp_path / f"run{len(losses)}"
        command = [
            sys.executable, "-m", "beitkit", "pretrain", str(images), "--target", "pixels", "--out", str(out), "--size", "nano",
            "--image-size", "32", "--steps", "4", "--batch-size", "2", "--lr", "0.05", "--network.drop-path", "0.2",
            "--loop.log-every", "1", "--precision", "float32", "--threads", "1", *options,
        ]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True, timeout=280)
        events = [json.loads(line) for line in (out / "journal.jsonl").read_text().splitlines()]
        losses.append([event["loss"] for event in events if event["kind"] == "train"])
    assert len(set(losses[0])) == 4, "nothing was learned"
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert losses[2] == pytest.approx(losses[0], rel=1e-4)
