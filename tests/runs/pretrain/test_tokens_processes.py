"""Two processes read a complete token cache, and together do what one process does; an incomplete one is refused."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import beitkit
from beitkit.configs.tokenizer import DVAEConfig
from beitkit.configs.train import LoopConfig

CACHE = {"image_size": 32, "patch": 8, "batch_size": 2, "threads": 1, "device": "cpu"}


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """`images`, `tok` and their complete `cache` of two views."""
    generator = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for index in range(8):
        Image.fromarray(generator.integers(0, 255, (40, 36, 3), dtype=np.uint8)).save(tmp_path / "images" / f"{index}.png")
    torch.manual_seed(0)
    config = DVAEConfig(vocabulary=16, stride=4, hidden=16, codebook_dim=8)
    beitkit.save(beitkit.DiscreteVAE(config), tmp_path / "tok")
    beitkit.tokenize(tmp_path / "images", tokenizer=tmp_path / "tok", views=2, out=tmp_path / "cache", **CACHE)
    return tmp_path


def by_two(world: Path, out: Path) -> list[tuple[int, str]]:
    """Exit code and stderr of each process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [sys.executable, "-m", "beitkit", "pretrain", world / "images", "--tokenizer", world / "tok", "--out", out]
    command += ["--tokens", world / "cache", "--size", "nano", "--image-size", "32", "--patch", "8", "--batch-size", "2"]
    command += ["--steps", "4", "--loop.log-every", "1", "--threads", "1", "--device", "cpu", "--precision", "float32"]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            list(map(str, command)),
            env={**os.environ, **shared, "RANK": rank, "LOCAL_RANK": rank},
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        for rank in ("0", "1")
    ]
    said = [process.communicate(timeout=200)[1] for process in processes]
    return [(process.returncode, text) for process, text in zip(processes, said, strict=True)]


def losses(run: Path) -> list[float]:
    events = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    return [event["loss"] for event in events if event["kind"] == "train"]


def test_two_processes_with_a_cache_end_where_one_does(world: Path) -> None:
    before = {entry.name: entry.read_bytes() for entry in (world / "cache").iterdir()}
    ended = by_two(world, world / "two")
    assert [code for code, _ in ended] == [0, 0], ended
    one = beitkit.pretrain(
        world / "images", tokenizer=world / "tok", tokens=world / "cache", out=world / "one", size="nano", steps=4,
        loop=LoopConfig(log_every=1, accumulate=2), precision="float32", **CACHE,
    )  # fmt: skip
    assert losses(world / "two") == pytest.approx(losses(one), rel=1e-5)
    weights = [load_file(run / "model.safetensors") for run in (world / "two", one)]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(tensor, weights[1][name], rtol=1e-4, atol=1e-5, msg=name)
    assert {entry.name: entry.read_bytes() for entry in (world / "cache").iterdir()} == before  # read, and not touched


def test_two_processes_do_not_fill_a_cache(world: Path) -> None:
    states = np.load(world / "cache" / "states.npy")
    states[5, 1] = 0
    np.save(world / "cache" / "states.npy", states)
    ended = by_two(world, world / "two")
    assert [code for code, _ in ended] == [2, 2], ended
    line = next(text for _, text in ended if "beitkit tokenize" in text)
    assert "is not complete and only one process can fill it; first do beitkit tokenize" in line
    assert "--views 2 --image-size 32 --patch 8 --out CACHE, then give --tokens CACHE" in line
    assert "Traceback" not in line
