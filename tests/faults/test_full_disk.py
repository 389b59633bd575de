"""A disk that is full: the newest good state stays, the run goes on, and it is said with file, size and free space."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import beitkit
from beitkit.configs.train import LoopConfig, OptimConfig, TrainConfig
from beitkit.contracts import Batch, Loss
from beitkit.errors import Interrupted, NotSaved
from beitkit.system import append, write_atomically
from beitkit.train.checkpoints.checkpoint import Checkpoints
from beitkit.train.checkpoints.manifest import Piece
from beitkit.train.journal import Journal
from beitkit.train.loop import Training, fit
from beitkit.train.machine.runtime import Runtime
from beitkit.train.optim import parameter_groups
from beitkit.train.schedule import make_schedule

VALUES = 10_000
"""Of 4 bytes each in the state below."""


class Disk:
    """A folder that holds so many bytes: what is beyond is noticed when it is written out, as on disks that allocate late."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.room = 2**40
        self.synced = os.fsync
        monkeypatch.setattr("os.fsync", self.fsync)

    def fsync(self, descriptor: int) -> None:
        if sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file()) > self.room:
            raise OSError(28, "No space left on device")
        self.synced(descriptor)


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(tmp_path, monkeypatch)


def state(step: int) -> dict[str, Piece]:
    return {"weight": Piece(torch.full((VALUES,), float(step)), (VALUES,))}


def newest(checkpoints: Checkpoints) -> float:
    manifest, into = checkpoints.newest(), state(0)
    assert manifest is not None
    checkpoints.restore(manifest, into)
    return into["weight"].rows.mean().item()


def test_the_message_has_file_size_and_free_space(disk: Disk) -> None:
    disk.room = 0
    path = disk.folder / "file"
    with pytest.raises(OSError, match=r"No space left on device \(2 MB are needed, .* MB are free\): '.*/file'"):
        write_atomically(path, bytes(2_000_000))
    with pytest.raises(OSError, match=r"\(3 MB are needed"):
        write_atomically(path, lambda file: file.write(b"begun"), size=3_000_000)
    assert not list(disk.folder.iterdir())
    with pytest.raises(OSError, match=r"No space left on device \(.*/dev/full"):
        append(Path("/dev/full"), b"a line")


@pytest.mark.parametrize("in_background", [False, True])
def test_older_checkpoints_make_room_for_a_new_one(disk: Disk, in_background: bool) -> None:
    checkpoints = Checkpoints(disk.folder)
    for step in (1, 2):
        checkpoints.save(step, state(step), {})
    disk.room = int(2.5 * 4 * VALUES)  # two states, not three
    checkpoints.save(3, state(3), {}, in_background=in_background)
    checkpoints.settle()
    assert (checkpoints.failure, checkpoints.failures) == (None, [])
    assert newest(checkpoints) == 3
    assert {path.name[:13] for path in disk.folder.iterdir()} == {"step-00000002", "step-00000003"}


@pytest.mark.parametrize("in_background", [False, True])
def test_what_does_not_fit_is_left_out_and_the_newest_stays(disk: Disk, in_background: bool) -> None:
    checkpoints = Checkpoints(disk.folder)
    for step in (1, 2):
        checkpoints.save(step, state(step), {})
    disk.room = int(1.5 * 4 * VALUES)
    checkpoints.save(3, state(3), {}, in_background=in_background)
    checkpoints.settle()
    assert checkpoints.failure is not None
    assert "step-00000003.0.safetensors: No space left on device (0.0401 MB are needed" in checkpoints.failure
    assert [step for step, _ in checkpoints.failures] == [3]
    assert newest(checkpoints) == 2
    assert sorted(path.name for path in disk.folder.iterdir()) == ["step-00000002.0.safetensors", "step-00000002.json"]
    disk.room = 2**40
    checkpoints.save(4, state(4), {})
    assert checkpoints.failure is None
    assert newest(checkpoints) == 4


def test_what_is_read_back_differently_is_no_checkpoint(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(disk.folder)
    checkpoints.save(1, state(1), {})

    def torn(path: Path) -> None:
        with path.open("r+b") as file:
            file.seek(-4, os.SEEK_END)
            file.write(b"\1\2\3\4")

    monkeypatch.setattr("beitkit.train.checkpoints.checkpoint.drop_from_cache", torn)
    checkpoints.save(2, state(2), {})
    assert checkpoints.failure is not None
    assert "another content is read than was written" in checkpoints.failure
    assert newest(checkpoints) == 1


class Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(VALUES, 1)

    def forward(self, batch: Batch, progress: float) -> Loss:
        return Loss((self.layer(batch["x"]) - 1).square().mean(), {})


def fitted(folder: Path, steps: int = 8, stop_at: int | None = None) -> tuple[Line, Checkpoints]:
    def stream(start: int) -> Iterator[Batch]:
        for number in range(start, 2**40):
            if number == stop_at:
                os.kill(os.getpid(), 15)
            yield {"x": torch.randn(2, VALUES, generator=torch.Generator().manual_seed(number))}

    torch.manual_seed(0)
    line, loop = Line(), LoopConfig(save_every=2, log_every=1)
    optim = OptimConfig(lr_scaling="none", warmup_steps=0)
    checkpoints = Checkpoints(folder / "checkpoints")
    training = Training(
        schedule=make_schedule(TrainConfig(steps=steps, batch_size=2, lr=0.01), loop, optim, 40, default_epochs=1),
        loop=loop,
        optim=optim,
        runtime=Runtime(torch.device("cpu"), None),
        journal=Journal(folder / "journal.jsonl", stream=io.StringIO()),
        checkpoints=checkpoints,
    )
    fit(line, stream, parameter_groups(line, 0.01), replace(training))
    return line, checkpoints


def test_a_run_goes_on_and_warns_at_every_save(disk: Disk) -> None:
    unbroken, _ = fitted(disk.folder / "unbroken")
    disk.room = 0
    line, checkpoints = fitted(disk.folder / "full")
    assert torch.equal(line.layer.weight, unbroken.layer.weight)
    events = [json.loads(line) for line in (disk.folder / "full" / "journal.jsonl").read_text().splitlines()]
    warned = [event["step"] for event in events if event["kind"] == "note" and "could not be saved" in event["text"]]
    assert warned == [2, 4, 6, 8]
    assert checkpoints.failure is not None
    with pytest.raises(Interrupted, match=r"its state could not be saved \(.*No space left on device"):
        fitted(disk.folder / "stopped", stop_at=4)


def test_lines_that_do_not_fit_are_written_later_and_none_is_torn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = io.StringIO()
    journal = Journal(tmp_path / "journal.jsonl", stream=said)
    journal.record("train", 1, loss=1.0)
    with monkeypatch.context() as full:

        def half(path: Path, content: bytes) -> None:
            raise OSError(28, "No space left on device (0.1 MB are needed, 0 MB are free)", str(path))

        full.setattr("beitkit.train.journal.append", half)
        journal.record("train", 2, loss=2.0)
        journal.record("train", 3, loss=3.0)
    journal.record("train", 4, loss=4.0)
    assert [json.loads(line)["step"] for line in journal.path.read_text().splitlines()] == [1, 2, 3, 4]
    assert said.getvalue().count("cannot be written (No space left") == 1


OPTIONS: dict[str, Any] = {
    "target": "pixels", "size": "nano", "image_size": 16, "patch": 8, "steps": 4, "batch_size": 2, "threads": 1, "device": "cpu",
    "workers": 0, "loop": LoopConfig(save_every=2),
}  # fmt: skip


def noise_images(folder: Path) -> Path:
    folder.mkdir()
    for index in range(6):
        noise = np.random.default_rng(index).integers(0, 255, (20, 20, 3)).astype(np.uint8)
        Image.fromarray(noise).save(folder / f"{index}.png")
    return folder


def refuse_models(monkeypatch: pytest.MonkeyPatch, is_refused: Callable[[Path], bool]) -> None:
    """No room for the weights of a finished model, while `is_refused` says so of its folder."""
    synced = os.fsync

    def fsync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if path.name.startswith("model.safetensors") and is_refused(path.parent):
            raise OSError(28, "No space left on device")
        synced(descriptor)

    monkeypatch.setattr("os.fsync", fsync)


@pytest.mark.skipif(sys.platform != "linux", reason="files are known by /proc")
def test_the_finished_model_is_written_later_without_training_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = noise_images(tmp_path / "images")
    beitkit.pretrain(images, out=tmp_path / "unbroken", **OPTIONS)
    with monkeypatch.context() as full:
        refuse_models(full, lambda folder: True)
        with pytest.raises(
            NotSaved,
            match=r"the finished model could not be written \(.*/full/model.safetensors: No space left on device "
            r"\(.* MB are needed, .* MB are free\)\); the state after step 4 is saved; make room, and the same command continues",
        ):
            beitkit.pretrain(images, out=tmp_path / "full", **OPTIONS)
    assert not (tmp_path / "full" / "done.json").exists()

    def trained(*_: object) -> None:
        raise AssertionError("a step was computed again")

    monkeypatch.setattr("beitkit.train.step.Trainer.forward_backward", trained)
    beitkit.pretrain(images, out=tmp_path / "full", **OPTIONS)
    assert (tmp_path / "full" / "done.json").exists()
    weights = [(tmp_path / run / "model.safetensors").read_bytes() for run in ("unbroken", "full")]
    assert weights[0] == weights[1]


@pytest.mark.skipif(sys.platform != "linux", reason="files are known by /proc")
def test_older_checkpoints_make_room_for_the_finished_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_models(monkeypatch, lambda folder: len(list((folder / "checkpoints").glob("step-*.json"))) > 1)
    beitkit.pretrain(noise_images(tmp_path / "images"), out=tmp_path / "run", **OPTIONS)
    assert (tmp_path / "run" / "done.json").exists()
    assert [path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*.json")] == ["step-00000004.json"]


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="a small disk is mounted by root")
def test_a_real_disk_that_is_full(tmp_path: Path) -> None:
    mounted = tmp_path / "disk"
    mounted.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=9m", "none", mounted], check=False, capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        noise_images(tmp_path / "images")
        command = [
            sys.executable, "-m", "beitkit", "pretrain", tmp_path / "images", "--target", "pixels", "--size",
            "nano", "--image-size", 16, "--patch", 8, "--steps", 6, "--batch-size", 2, "--threads", 1, "--device", "cpu",
            "--loop.save-every", 2, "--loop.evaluate-every", 2, "--out", mounted / "run",
        ]  # fmt: skip
        done = subprocess.run([*map(str, command)], check=False, capture_output=True, text=True)
        assert done.returncode == 1, done.stderr
        assert "Traceback" not in done.stderr
        assert "[Errno" not in done.stderr
        assert "step 6/6" in done.stderr
        assert done.stderr.count("could not be saved") >= 2, done.stderr
        assert "No space left on device (" in done.stderr
        assert Checkpoints(mounted / "run" / "checkpoints").newest() is not None
        assert "make room, and the same command continues: beitkit pretrain" in done.stderr
    finally:
        subprocess.run(["umount", mounted], check=False)
