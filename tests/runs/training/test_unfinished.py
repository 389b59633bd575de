"""The network of a run that goes on: what its newest checkpoint holds is what the run would end with there."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import beitkit
from beitkit.configs.tokenizer import DVAEConfig
from beitkit.configs.train import LoopConfig
from beitkit.errors import UserError
from beitkit.runs.training.unfinished import is_unfinished, newest_network
from beitkit.train.folder import NETWORK

CPU: dict[str, Any] = {"threads": 1, "device": "cpu", "workers": 0}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Finished runs: `pre` keeps an average, `cls` trains adapters of it, `tok` is a tokenizer."""
    room = tmp_path_factory.mktemp("runs")
    for index in range(8):
        for seed, part in enumerate(("images", "val")):
            path = room / part / "ab"[index % 2] / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            noise = np.random.default_rng((seed, index)).integers(0, 255, (16, 16, 3)).astype(np.uint8)
            Image.fromarray(noise).save(path)
    common: dict[str, Any] = {**CPU, "image_size": 16, "batch_size": 2}
    beitkit.pretrain(
        room / "images", out=room / "pre", target="pixels", size="nano", patch=8, steps=4,
        loop=LoopConfig(save_every=2, ema=0.5), **common,
    )  # fmt: skip
    beitkit.finetune(
        room / "images", val=room / "val", model=room / "pre", out=room / "cls", steps=2,
        lora_rank=2, train_blocks="last:2", **common,
    )  # fmt: skip
    beitkit.tokenizer(
        room / "images", out=room / "tok", dvae=DVAEConfig(vocabulary=8, hidden=8, stride=4), steps=2, **common
    )  # fmt: skip
    return room


def cut(run: Path, into: Path) -> Path:
    """The run as it was right before its model was written."""
    shutil.copytree(run, into)
    for name in ("model.json", "model.safetensors", "done.json"):
        (into / name).unlink()
    return into


@pytest.mark.parametrize("name", ["pre", "cls", "tok"])
def test_it_is_the_network_that_the_run_ends_with(name: str, runs: Path, tmp_path: Path) -> None:
    assert not is_unfinished(runs / name)
    run = cut(runs / name, tmp_path / "run")
    assert is_unfinished(run)
    found = newest_network(run)
    finished = beitkit.load_tokenizer(runs / name) if name == "tok" else beitkit.load(runs / name)
    assert found.step == (4 if name == "pre" else 2)
    assert not found.model.training
    expected, there = finished.state_dict(), found.model.state_dict()
    assert there.keys() == expected.keys()
    assert all(torch.equal(there[key], expected[key]) for key in expected)


def test_an_older_state_is_another(runs: Path, tmp_path: Path) -> None:
    run = cut(runs / "pre", tmp_path / "run")
    (run / "checkpoints" / "step-00000004.json").write_bytes(b"{}")
    found, finished = newest_network(run), beitkit.load(runs / "pre").state_dict()
    assert found.step == 2
    assert not torch.equal(found.model.state_dict()["lm_head.weight"], finished["lm_head.weight"])


def test_show_says_the_step(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = cut(runs / "pre", tmp_path / "run"), tmp_path / "page.html"
    beitkit.show(
        (runs / "images",), model=run, out=out, count=1, only=("masks",), **{key: CPU[key] for key in ("threads", "device")}
    )
    assert f"{run} is not finished: shown is its state after step 4\n" in capsys.readouterr().out
    assert "of a run that is not finished, after step 4" in re.sub(r"\s+", " ", out.read_text())


def test_what_has_saved_nothing_is_refused(runs: Path, tmp_path: Path) -> None:
    run = cut(runs / "pre", tmp_path / "run")
    (run / NETWORK).rename(tmp_path / "kept")
    with pytest.raises(UserError, match=f"begun by a version that wrote no {NETWORK}; repeat its command"):
        newest_network(run)
    (tmp_path / "kept").rename(run / NETWORK)
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").mkdir()
    with pytest.raises(UserError, match="is a run that is not finished, and it has saved no state yet"):
        beitkit.show((runs / "images",), model=run, out=tmp_path / "page.html")
