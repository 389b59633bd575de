"""`--speed.sharding full` through the command line, by two processes: what comes out is what comes out without it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file

import beitkit
from beitkit.cli import main

Launch = Callable[[list[str]], list[tuple[int, str]]]
MACHINE = ["--threads", "1", "--device", "cpu", "--workers", "0", "--precision", "float32"]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for index in range(40):
        image = Image.new("RGB", (32, 32), (20 + index % 7 * 10, 60, 90))
        draw = ImageDraw.Draw(image)
        (draw.ellipse if index % 2 else draw.rectangle)((4, 5, 20 + index % 5, 24), fill=(240, 200, 40 + index % 4 * 20))
        path = folder / ("train", "val")[index // 4 % 5 == 0] / ("square", "disk")[index % 2] / f"{index:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    return folder


def launched(launch: Launch, *arguments: object) -> str:
    ended = launch(["-m", "beitkit", *map(str, arguments), *MACHINE])
    assert [code for code, _ in ended] == [0, 0], ended
    return ended[0][1]


def assert_same_weights(one: Path, other: Path) -> None:
    first, second = (load_file(folder / "model.safetensors") for folder in (one, other))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], rtol=1e-5, atol=1e-5, msg=name)


def test_pretraining_and_finetuning(images: Path, tmp_path: Path, launch_two: Launch) -> None:
    options = ["--target", "pixels", "--size", "nano", "--patch", "8", "--image-size", "32", "--network.drop-path", "0.1",
               "--steps", "3", "--batch-size", "4", "--lr", "0.01", "--loop.accumulate", "4", "--loop.ema", "0.5",
               "--loop.evaluate-every", "2", "--loop.log-every", "1"]  # fmt: skip
    for sharding in ("full", "none"):
        out = tmp_path / sharding
        launched(launch_two, "pretrain", images / "train", "--out", out, *options, "--speed.sharding", sharding)
    full, none = tmp_path / "full", tmp_path / "none"
    assert_same_weights(full, none)
    assert_same_weights(full / "checkpoints/best", none / "checkpoints/best")
    files = sorted(path.name for path in (full / "checkpoints").glob("step-00000003*"))
    assert files == ["step-00000003.0.safetensors", "step-00000003.1.safetensors", "step-00000003.json"]
    noise = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(2, 16, dtype=torch.bool)
    mask[:, ::3] = True
    with torch.no_grad():
        filled = [beitkit.load(folder)(noise, mask) for folder in (full, none)]
    torch.testing.assert_close(*filled, rtol=1e-5, atol=1e-5)
    assert "Is this normal?" in (full / "report.html").read_text()

    options = ["--model", full, "--steps", "2", "--batch-size", "4", "--loop.accumulate", "2", "--lr", "0.01"]
    launched(launch_two, "finetune", images, "--out", tmp_path / "fine", *options, "--speed.sharding", "full")
    with pytest.raises(SystemExit) as stopped:
        main(["finetune", str(images), "--out", str(tmp_path / "fine alone"), *map(str, options), *MACHINE])
    assert stopped.value.code == 0
    assert_same_weights(tmp_path / "fine", tmp_path / "fine alone")
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("fine", "fine alone")]
    assert results[0] == results[1]


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no compiler to compile with")
def test_compiled_and_recomputed_blocks_are_sharded_too(images: Path, tmp_path: Path, launch_two: Launch) -> None:
    options = ["--target", "pixels", "--size", "nano", "--patch", "8", "--image-size", "32", "--network.drop-path", "0.1",
               "--steps", "3", "--batch-size", "4", "--loop.log-every", "1", "--speed.sharding", "full"]  # fmt: skip
    for name, more in (("plain", []), ("compiled", ["--speed.compile", "on", "--speed.recompute"])):
        said = launched(launch_two, "pretrain", images / "train", "--out", tmp_path / name, *options, *more)
        assert ("compiled, recomputing" in said) == (name == "compiled")
    plain, compiled = (
        [json.loads(line) for line in (tmp_path / name / "journal.jsonl").read_text().splitlines()]
        for name in ("plain", "compiled")
    )
    losses = [[event["loss"] for event in events if event["kind"] == "train"] for events in (plain, compiled)]
    assert len(losses[0]) == 3
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_frozen_weights_and_adapters_are_sharded_too(images: Path, tmp_path: Path, launch_two: Launch) -> None:
    size = ["--target", "pixels", "--size", "nano", "--patch", "8", "--image-size", "32", "--steps", "1", "--batch-size", "4"]
    with pytest.raises(SystemExit):
        main(["pretrain", str(images / "train"), "--out", str(tmp_path / "pre"), *size, *MACHINE])
    options = ["--model", tmp_path / "pre", "--lora-rank", "1", "--train-blocks", "last:2", "--steps", "3", "--batch-size", "4",
               "--loop.accumulate", "2", "--lr", "0.05", "--loop.ema", "0.5", "--drop-path", "0.3"]  # fmt: skip
    for name, more in (("full", ["--speed.recompute"]), ("none", [])):
        launched(launch_two, "finetune", images, "--out", tmp_path / name, *options, "--speed.sharding", name, *more)
    with pytest.raises(SystemExit):
        main(["finetune", str(images), "--out", str(tmp_path / "alone"), *map(str, options), *MACHINE])
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("pre", "alone"))
    moved = {name for name in before.keys() & after.keys() if not torch.equal(before[name], after[name])}
    assert {name.split(".")[2] for name in moved} == {"2", "3"}
    for name in ("full", "none"):
        assert_same_weights(tmp_path / name, tmp_path / "alone")
