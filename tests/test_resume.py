"""A real process, killed without warning and started again, ends where an unbroken one does, bit for bit."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

COMMON = ["--threads", "1", "--device", "cpu", "--precision", "float32", "--batch-size", "4", "--loop.save-every", "2"]
STEPS = 12


def beitkit(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "beitkit", *map(str, arguments)]


def run(command: list[str]) -> str:
    """Run to the end; returns what it said."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


def kill_after(command: list[str], out: Path, step: int) -> None:
    """Start the command and kill it as soon as its journal says that it has done `step` steps, and a state is written.

    States are written beside the training, so the first may still be on its way when the step is logged.
    """
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    journal = out / "journal.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        has_state = any((out / "checkpoints").glob("step-*.json"))
        if has_state and journal.exists() and f'"step": {step},' in journal.read_text():
            break
        time.sleep(0.002)
    assert process.poll() is None, "the run ended before it could be killed"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (out / "model.safetensors").exists()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labeled images of two classes, a tokenizer and a pre-trained network."""
    folder = tmp_path_factory.mktemp("world")
    for index in range(24):
        name = ("disk", "square")[index % 2]
        image = Image.new("RGB", (24, 24), (30, 10 * index, 90))
        draw = ImageDraw.Draw(image)
        (draw.ellipse if name == "disk" else draw.rectangle)((4, 4 + index % 5, 15, 15 + index % 5), fill=(250, 200, 10 * index))
        path = folder / "images" / ("train" if index < 18 else "val") / name / f"{index:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    run(beitkit(*commands(folder)["tokenizer"], "--out", folder / "tok"))
    run(beitkit(*commands(folder)["pretrain"], "--out", folder / "pre"))
    return folder


def commands(world: Path) -> dict[str, list[object]]:
    length = ["--steps", STEPS, *COMMON]
    return {
        "tokenizer": [
            "tokenizer", world / "images", "--image-size", 16, "--dvae.vocabulary", 16, "--dvae.hidden", 16, "--dvae.stride", 4,
            "--dvae.codebook-dim", 8, "--reconstruct.revive-every", 3, *length,
        ],
        "pretrain": [
            "pretrain", world / "images", "--tokenizer", world / "tok", "--size", "nano", "--image-size", 32, "--patch", 8,
            "--network.drop-path", 0.3, "--loop.ema", 0.9, "--workers", 1, *length,
        ],
        "finetune": [
            "finetune", world / "images", "--model", world / "pre", "--drop-path", 0.3, "--loop.accumulate", 2, *length,
        ],
    }  # fmt: skip


@pytest.mark.parametrize(("verb", "step"), [("tokenizer", 5), ("pretrain", 7), ("finetune", 3)])
def test_killed_and_continued_equals_unbroken(world: Path, tmp_path: Path, verb: str, step: int) -> None:
    command = commands(world)[verb]
    unbroken = {"tokenizer": world / "tok", "pretrain": world / "pre"}.get(verb, tmp_path / "unbroken")
    if not unbroken.exists():
        run(beitkit(*command, "--out", unbroken))
    cut = tmp_path / "cut"
    # Every step is logged, so that the kill can be timed; how often is logged does not change the result.
    kill_after(beitkit(*command, "--out", cut, "--loop.log-every", 1), cut, step)
    said = run(beitkit(*command, "--out", cut))
    assert "continuing after step" in said
    assert (cut / "model.safetensors").read_bytes() == (unbroken / "model.safetensors").read_bytes()
    assert (cut / "report.html").exists()
