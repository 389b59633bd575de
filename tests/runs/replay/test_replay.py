"""`beitkit replay`: steps of a run that is over, computed again."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import beitkit
from beitkit.configs.tokenizer import DVAEConfig
from beitkit.configs.train import LoopConfig, OptimConfig
from beitkit.errors import NumericalError, UserError
from beitkit.train.bad_steps import listed

OPTIONS = {
    "tokenizer": None, "target": "pixels", "size": "nano", "image_size": 16, "patch": 8, "batch_size": 4, "threads": 1,
    "device": "cpu", "workers": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for index in range(12):
        noise = np.random.default_rng(index).integers(0, 255, (20, 20, 3)).astype(np.uint8)
        Image.fromarray(noise).save(folder / f"{index:02d}.png")
    return folder


@pytest.fixture(scope="module")
def done(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of ten steps, logged every second and saved every fourth."""
    out = tmp_path_factory.mktemp("runs") / "pre"
    beitkit.pretrain(images, out=out, steps=10, loop=LoopConfig(log_every=2, save_every=4, ema=0.9), **OPTIONS)
    return out


@pytest.mark.parametrize(("step", "first", "events"), [(10, 9, 1), (9, 9, 1), (8, 1, 4), (3, 1, 2), (1, 1, 1)])
def test_steps_give_the_numbers_of_the_run_again(
    done: Path, capsys: pytest.CaptureFixture[str], step: int, first: int, events: int
) -> None:
    before = sorted(path.name for path in done.rglob("*"))
    result = beitkit.replay(done, step=step)
    assert (result.step, result.first_step, result.compared) == (step, first, events * 5)  # loss, explained, lr, norm, epoch
    assert "gave the numbers of the run again" in capsys.readouterr().out
    assert sorted(path.name for path in done.rglob("*")) == before


def test_the_first_difference_is_named(done: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    copy.mkdir()
    for path in done.glob("*.json*"):
        (copy / path.name).write_bytes(path.read_bytes())
    lines = [json.loads(line) for line in (copy / "journal.jsonl").read_text().splitlines()]
    for line in lines:
        if line["step"] >= 6 and line["kind"] == "train":
            line["loss"] *= 1.25
    (copy / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert beitkit.replay(copy, step=4).first_step == 1
    with pytest.raises(NumericalError, match=r"first difference is in step 6: loss was .* \(by 0\.2; not by rounding\)"):
        beitkit.replay(copy, step=9)


def test_what_cannot_be_replayed_is_said(done: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the run has 10 steps; `step` must be one of them, got 11"):
        beitkit.replay(done, step=11)
    with pytest.raises(UserError, match="holds no run"):
        beitkit.replay(tmp_path, step=1)
    for verb, shown in (('"probe"', "'probe'"), ("[]", r"\[\]")):
        (tmp_path / "config.json").write_text(f'{{"verb": {verb}}}')
        with pytest.raises(UserError, match=f"is of {shown}; only runs of tokenizer, pretrain, finetune, segment"):
            beitkit.replay(tmp_path, step=1)


def test_bad_steps_are_computed_again_from_the_state_before_them(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "pre"
    wild = OptimConfig(lr_scaling="none", warmup_steps=0, clip=None)
    with pytest.raises(NumericalError, match="after going back 2 times"):
        beitkit.pretrain(images, out=out, steps=30, lr=1e30, optim=wild, loop=LoopConfig(save_every=1), **OPTIONS)
    kept = listed(out / "bad_steps" / "steps.jsonl")
    step = kept[-1].step
    assert len({line.step for line in kept}) >= 3
    capsys.readouterr()
    result = beitkit.replay(out, step=step)
    said = capsys.readouterr().out
    assert not math.isfinite(result.loss)
    assert result.compared == 2
    assert f"its 4 images: {images}" in said


@pytest.mark.parametrize("is_given", [False, True])
def test_a_token_cache_that_is_not_full_is_only_read(images: Path, tmp_path: Path, is_given: bool) -> None:
    """Which rows are stored depends on the images that were shown: a replay would store those of its steps."""
    machine = {"threads": 1, "device": "cpu", "workers": 0}
    small = DVAEConfig(vocabulary=8, hidden=8, stride=4)
    beitkit.tokenizer(images, out=tmp_path / "tok", dvae=small, image_size=16, steps=2, batch_size=4, **machine)
    options = OPTIONS | {"tokenizer": tmp_path / "tok", "target": "tokens", "patch": 4}
    tokens = tmp_path / "given" if is_given else None
    if tokens is not None:
        beitkit.tokenize(images, tokenizer=tmp_path / "tok", out=tokens, views=3, image_size=16, patch=4, **machine)
        states = np.lib.format.open_memmap(tokens / "states.npy", "r+")
        states[:] = 0
        states.flush()
    beitkit.pretrain(images, out=tmp_path / "pre", steps=2, views=3, tokens=tokens, loop=LoopConfig(log_every=1), **options)
    cache = tokens or tmp_path / "pre" / "tokens"
    assert 0 < (np.load(cache / "states.npy") == 1).mean() < 1
    (cache / ".lock").unlink()
    before = {path: (path.read_bytes(), path.stat().st_ctime_ns) for path in cache.iterdir()}
    assert beitkit.replay(tmp_path / "pre", step=2).compared
    assert {path: (path.read_bytes(), path.stat().st_ctime_ns) for path in cache.iterdir()} == before
