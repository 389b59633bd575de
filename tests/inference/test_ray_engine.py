"""The Ray engine gives the rows of the local one, on a cluster of this machine."""

from __future__ import annotations

import csv
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import beitkit
from beitkit.cli import main
from beitkit.configs.tokenizer import DVAEConfig


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs Ray (pip install 'beitkit[ray]')")
def test_rows_are_those_of_the_local_engine(world: Path, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / os.fsdecode(b"\xff.jpg")).write_text("no image")
    # In a process of its own: Ray starts threads, changes signal handlers and logging, and warns about libraries.
    command = [sys.executable, "-m", "beitkit", "predict", str(world / "new"), str(tmp_path / "more")]
    command += [
        "--model",
        str(world / "cls"),
        "--device",
        "cpu",
        "--precision",
        "float32",
        "--threads",
        "1",
        "--batch-size",
        "16",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("RAY_ADDRESS", None)
    printed = {}
    for engine in ("local", "ray"):
        out = tmp_path / f"{engine}.csv"
        done = subprocess.run(
            [*command, "--engine", engine, "--out", str(out)], capture_output=True, text=True, env=environment, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("\n") == 1
        printed[engine] = done.stderr
    assert printed["ray"] == printed["local"]  # nothing of Ray's own
    tables = []
    for engine in ("local", "ray"):
        with (tmp_path / f"{engine}.csv").open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            tables.append(list(csv.DictReader(file)))
    assert len(tables[0]) == len(tables[1]) == 41
    for here, there in zip(*tables, strict=True):
        for name, value in here.items():
            if name.startswith("probability") and value:
                assert float(there[name]) == pytest.approx(float(value), abs=1e-5)
            else:
                assert there[name] == value


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs Ray (pip install 'beitkit[ray]')")
def test_tokens_are_those_of_one_process(world: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    beitkit.save(beitkit.DiscreteVAE(DVAEConfig(vocabulary=64, stride=4, hidden=16, codebook_dim=8)), tmp_path / "tok")
    images = tmp_path / "images"
    shutil.copytree(world / "new" / "cat", images)
    (images / "05.png").write_bytes(b"nothing")
    options = ["--image-size", "32", "--patch", "8", "--views", "3", "--batch-size", "8", "--read.max-broken", "0.5"]
    command = [sys.executable, "-m", "beitkit", "tokenize", str(images), "--tokenizer", str(tmp_path / "tok"), *options]
    command += ["--device", "cpu", "--threads", "1", "--workers", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("RAY_ADDRESS", None)
    printed = {}
    for engine in ("local", "ray"):
        out = tmp_path / engine
        whole = [*command, "--engine", engine, "--out", str(out)]
        done = subprocess.run(whole, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr
        # On a slow machine it is said how far it is.
        said = [line for line in done.stderr.splitlines() if not line.endswith((" a second", " are those of float32"))]
        printed[engine] = said, done.stdout.replace(str(out), "OUT")
    assert printed["ray"] == printed["local"]
    assert len(printed["ray"][0]) == 1
    assert "05.png: not an image" in printed["ray"][0][0]
    for name in ("cache.json", "contents.npy", "states.npy", "tokens.npy"):
        assert (tmp_path / "ray" / name).read_bytes() == (tmp_path / "local" / name).read_bytes(), name
    assert len(set(np.load(tmp_path / "ray" / "tokens.npy").flatten().tolist())) > 8  # not all the same


def test_without_ray_the_extra_is_named(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SystemExit) as stopped:
        main(["predict", str(world / "new"), "--model", str(world / "cls"), "--engine", "ray", "--out", str(tmp_path / "p.csv")])
    assert stopped.value.code == 2
    assert "pip install 'beitkit[ray]'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
