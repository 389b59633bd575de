"""Runs whose tokens come from a cache: the same as without one, bit for bit, and every stale cache is refused."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import beitkit
from beitkit.configs.data import ReadConfig, ViewConfig
from beitkit.configs.tokenizer import DVAEConfig
from beitkit.configs.train import LoopConfig
from beitkit.data.tokens.cache import TokenCache
from beitkit.errors import UserError

NETWORK = {"size": "nano", "image_size": 32, "patch": 8, "batch_size": 4, "threads": 1, "device": "cpu"}
SMALL = {**NETWORK, "loop": LoopConfig(log_every=1, save_every=3)}
CACHE = {"image_size": 32, "patch": 8, "batch_size": 4, "threads": 1, "device": "cpu"}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for index in range(8):
        Image.fromarray(generator.integers(0, 255, (40, 36, 3), dtype=np.uint8)).save(tmp_path / "images" / f"{index}.png")
    return tmp_path / "images"


@pytest.fixture
def tok(tmp_path: Path) -> Path:
    return dvae(tmp_path / "tok", 16)


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many images each call of `TokenCache.put` stores."""
    counts: list[int] = []
    put = TokenCache.put

    def counting(cache: TokenCache, indices: Tensor, views: Tensor, tokens: Tensor) -> None:
        counts.append(len(indices))
        put(cache, indices, views, tokens)

    monkeypatch.setattr(TokenCache, "put", counting)
    return iter([counts]).__next__()


def dvae(folder: Path, vocabulary: int) -> Path:
    torch.manual_seed(vocabulary)
    beitkit.save(beitkit.DiscreteVAE(DVAEConfig(vocabulary=vocabulary, stride=4, hidden=16, codebook_dim=8)), folder)
    return folder


def losses(run: Path) -> list[float]:
    events = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    return [event["loss"] for event in events if event["kind"] == "train"]


def weights(run: Path) -> bytes:
    return (run / "model.safetensors").read_bytes()


def never_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if there were no cache: whatever was stored is not found, and the tokenizer computes it again."""
    monkeypatch.setattr(TokenCache, "stored", lambda cache, indices, views: torch.zeros(len(indices), dtype=torch.bool))
    monkeypatch.setattr(TokenCache, "is_complete", property(lambda cache: False))


@pytest.mark.parametrize("views", [1, 2])
def test_cached_equals_uncached(
    views: int, images: Path, tok: Path, tmp_path: Path, encoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    epochs = {"steps": 8}  # four epochs of two batches
    filled = beitkit.pretrain(images, tokenizer=tok, views=views, out=tmp_path / "filled", **SMALL, **epochs)
    assert sum(encoded) == 8 * views
    made = beitkit.tokenize(images, tokenizer=tok, views=views, out=tmp_path / "cache", **CACHE)
    assert sum(encoded) == 2 * 8 * views
    given = beitkit.pretrain(images, tokenizer=tok, tokens=made, out=tmp_path / "given", **SMALL, **epochs)
    by_workers = beitkit.pretrain(images, tokenizer=tok, views=views, out=tmp_path / "w", workers=2, **SMALL, **epochs)
    assert np.array_equal(np.load(made / "tokens.npy"), np.load(filled / "tokens" / "tokens.npy"))
    encoded.clear()
    never_stored(monkeypatch)
    uncached = beitkit.pretrain(images, tokenizer=tok, views=views, out=tmp_path / "uncached", **SMALL, **epochs)
    assert sum(encoded) == 32
    for run in (filled, given, by_workers):
        assert losses(run) == losses(uncached)
        assert weights(run) == weights(uncached)


def test_the_report_and_the_journal_say_what_was_saved(images: Path, tok: Path, tmp_path: Path) -> None:
    filled = beitkit.pretrain(images, tokenizer=tok, views=1, out=tmp_path / "filled", steps=8, **SMALL)
    assert "24 of 32 images shown had their tokens from the cache" in (filled / "journal.jsonl").read_text()
    assert "24 of 32 images shown had their tokens from the cache" in (filled / "report.html").read_text()
    again = beitkit.pretrain(images, tokenizer=tok, tokens=filled / "tokens", views=1, out=tmp_path / "again", steps=8, **SMALL)
    said = (again / "journal.jsonl").read_text()
    assert "32 of 32 images shown had their tokens from the cache" in said
    assert "ms an image, so 0 s were saved" not in said


def test_views_change_what_is_shown_and_none_does_not(images: Path, tok: Path, tmp_path: Path) -> None:
    fresh = beitkit.pretrain(images, tokenizer=tok, out=tmp_path / "fresh", steps=6, **SMALL)
    stored = beitkit.pretrain(images, tokenizer=tok, views=1, out=tmp_path / "stored", steps=6, **SMALL)
    assert not (fresh / "tokens").exists()
    assert "stored views" not in (fresh / "inputs.json").read_text()
    assert losses(fresh) != losses(stored)


def test_killed_while_filling_and_continued_equals_unbroken(images: Path, tok: Path, tmp_path: Path) -> None:
    options = [
        "pretrain", images, "--tokenizer", tok, "--size", "nano", "--image-size", 32, "--patch", 8, "--batch-size", 4,
        "--threads", 1, "--device", "cpu", "--views", 6, "--steps", 12, "--loop.save-every", 1, "--loop.log-every", 1,
    ]  # fmt: skip
    command = [sys.executable, "-m", "beitkit", *map(str, options), "--out", str(tmp_path / "cut")]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    journal = tmp_path / "cut" / "journal.jsonl"
    while time.monotonic() < deadline and process.poll() is None:
        if journal.exists() and '"step": 5,' in journal.read_text():
            break
        time.sleep(0.002)
    assert process.poll() is None, "the run ended before it could be killed"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()

    def run(out: Path) -> Path:
        loop = LoopConfig(log_every=1, save_every=1)
        return beitkit.pretrain(images, tokenizer=tok, views=6, out=out, steps=12, loop=loop, **NETWORK)

    cut, unbroken = run(tmp_path / "cut"), run(tmp_path / "unbroken")
    assert weights(cut) == weights(unbroken)
    # Of what is marked, nothing is wrong; unmarked rows that the kill took are computed when their view comes again.
    marks = np.load(cut / "tokens" / "states.npy") == 1
    tokens = [np.load(run / "tokens" / "tokens.npy") for run in (cut, unbroken)]
    assert np.array_equal(tokens[0][marks], tokens[1][marks])


def test_tokenizing_goes_on_where_it_was(
    images: Path, tok: Path, tmp_path: Path, encoded: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    made = beitkit.tokenize(images, tokenizer=tok, views=3, out=tmp_path / "cache", **CACHE)
    assert "Next: beitkit pretrain" in capsys.readouterr().out.splitlines()[-1]
    whole = np.load(made / "tokens.npy")
    states = np.load(made / "states.npy")
    states[2:4, 1] = 0
    np.save(made / "states.npy", states)
    tokens = whole.copy()
    tokens[2:4, 1] = 99  # a row that was being written
    np.save(made / "tokens.npy", tokens)
    encoded.clear()
    beitkit.tokenize(images, tokenizer=tok, views=3, out=made, **CACHE)
    assert sum(encoded) == 2
    assert np.array_equal(np.load(made / "tokens.npy"), whole)
    encoded.clear()
    beitkit.tokenize(images, tokenizer=tok, views=3, out=made, **CACHE)
    assert encoded == []


def test_a_partial_cache_is_completed_by_training(images: Path, tok: Path, tmp_path: Path, encoded: list[int]) -> None:
    made = beitkit.tokenize(images, tokenizer=tok, views=1, out=tmp_path / "cache", **CACHE)
    states = np.load(made / "states.npy")
    states[5] = 0
    np.save(made / "states.npy", states)
    encoded.clear()
    beitkit.pretrain(images, tokenizer=tok, tokens=made, out=tmp_path / "run", steps=4, **SMALL)
    assert encoded == [1]
    assert np.load(made / "states.npy").all()


def test_a_cache_is_completed_in_the_precision_it_was_begun_with(
    images: Path, tok: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("beitkit.tokenizers.frozen.LEAST_AGREEMENT", 0.0)  # whatever bfloat16 finds will do
    options = {"tokenizer": tok, "views": 2, **CACHE, "precision": "bfloat16"}
    made = beitkit.tokenize(images, out=tmp_path / "cache", **options)
    assert json.loads((made / "cache.json").read_text())["precision"] == "bfloat16"
    assert "tokenizer in bfloat16" in capsys.readouterr().err
    whole = np.load(made / "tokens.npy")
    states = np.load(made / "states.npy")
    states[:4] = 0
    np.save(made / "states.npy", states)
    np.save(made / "tokens.npy", np.where(states[..., None] > 0, whole, 0))
    seen: list[bool] = []
    encode = beitkit.DiscreteVAE.encode

    def watched(tokenizer: beitkit.DiscreteVAE, batch: Tensor) -> Tensor:
        seen.append(torch.is_autocast_enabled("cpu"))
        return encode(tokenizer, batch)

    monkeypatch.setattr(beitkit.DiscreteVAE, "encode", watched)
    monkeypatch.setattr("beitkit.tokenizers.frozen.LEAST_AGREEMENT", 1.1)  # a cache that begins now would be in float32
    # A run in float32 reads and completes it as it is; only `tokenize` was told what the tokens are to be computed in.
    beitkit.pretrain(images, tokenizer=tok, tokens=made, out=tmp_path / "run", steps=4, **SMALL, precision="float32")
    assert seen
    assert all(seen)
    assert np.load(made / "states.npy").all()
    assert np.array_equal(np.load(made / "tokens.npy"), whole)
    with pytest.raises(UserError, match="another `precision` .bfloat16 there, float32 here"):
        beitkit.tokenize(images, out=made, **{**options, "precision": "float32"})


def test_stale_caches_are_refused(images: Path, tok: Path, tmp_path: Path) -> None:
    made = beitkit.tokenize(images, tokenizer=tok, views=2, out=tmp_path / "cache", **CACHE)

    def refused(match: str, **options: object) -> None:
        given = {"tokenizer": tok, "tokens": made, "steps": 2, **SMALL, **options}
        with pytest.raises(UserError, match=match) as error:
            beitkit.pretrain(images, out=tmp_path / "run", **given)
        assert "\n" not in str(error.value)
        shutil.rmtree(tmp_path / "run", ignore_errors=True)

    refused("made for another `tokenizer` ", tokenizer=dvae(tmp_path / "other", 16 + 1))
    refused("made for another `view` ", view=ViewConfig(flip=0.0))
    refused("made for another `seed` .0 there, 3 here", seed=3)
    refused("made for another `views` .2 there, 4 here", views=4)
    refused("made for another `image_size` .32x32 there, 64x64 here.", image_size=64)
    refused("holds no token cache", tokens=tmp_path / "nothing")
    (images / "0.png").rename(images / "a.png")
    refused("made for another `images`")
    (images / "a.png").rename(images / "0.png")
    with pytest.raises(UserError, match="made for another `seed`"):
        beitkit.tokenize(images, tokenizer=tok, views=2, out=made, seed=1, **CACHE)
    content = (images / "3.png").read_bytes()
    Image.new("RGB", (40, 36)).save(images / "3.png")
    refused("3.png changed since its tokens were stored")
    (images / "3.png").write_bytes(content)  # another time of change, the same content
    beitkit.pretrain(images, tokenizer=tok, tokens=made, out=tmp_path / "run", steps=2, **SMALL)


def test_options_that_make_no_sense_are_refused(images: Path, tok: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="`views` must lie in"):
        beitkit.pretrain(images, tokenizer=tok, views=0, out=tmp_path / "run", steps=2, **SMALL)
    with pytest.raises(UserError, match="leave `views` and `tokens` out"):
        beitkit.pretrain(images, target="pixels", views=2, out=tmp_path / "run", steps=2, **SMALL)
    with pytest.raises(UserError, match="not a whole number of patches"):
        beitkit.tokenize(images, tokenizer=tok, views=2, out=tmp_path / "run", **{**CACHE, "image_size": 33})
    with pytest.raises(UserError, match="is not empty and holds no token cache"):
        beitkit.tokenize(images, tokenizer=tok, views=2, out=images, **CACHE)


def test_images_that_cannot_be_read_do_not_keep_a_cache_from_being_complete(
    images: Path, tok: Path, tmp_path: Path, encoded: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    (images / "2.png").write_bytes(b"nothing")
    read = ReadConfig(max_broken=0.5)
    made = beitkit.tokenize(images, tokenizer=tok, views=2, out=tmp_path / "cache", read=read, **CACHE)
    assert "skipped" in capsys.readouterr().err
    assert np.load(made / "states.npy").tolist() == [[1 + (index == 2)] * 2 for index in range(8)]
    encoded.clear()
    given = beitkit.pretrain(images, tokenizer=tok, tokens=made, read=read, out=tmp_path / "given", steps=8, **SMALL)
    assert encoded == []
    filled = beitkit.pretrain(images, tokenizer=tok, views=2, read=read, out=tmp_path / "filled", steps=8, **SMALL)
    assert int((np.load(filled / "tokens" / "states.npy") == 1).sum()) == 14
    assert weights(given) == weights(filled)
