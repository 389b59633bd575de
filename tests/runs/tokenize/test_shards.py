"""Shards of a token cache: joined, they are the cache that one process would have made, byte for byte."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import beitkit
from beitkit.cli import main
from beitkit.configs.data import ReadConfig, ViewConfig
from beitkit.configs.tokenizer import DVAEConfig
from beitkit.data.tokens.cache import TokenCache
from beitkit.errors import UserError

CACHE = {"image_size": 32, "patch": 8, "batch_size": 4, "threads": 1, "device": "cpu", "read": ReadConfig(max_broken=0.5)}
FILES = ("cache.json", "contents.npy", "states.npy", "tokens.npy")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for index in range(8):
        Image.fromarray(generator.integers(0, 255, (40, 36, 3), dtype=np.uint8)).save(tmp_path / "images" / f"{index}.png")
    return tmp_path / "images"


@pytest.fixture
def tok(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = DVAEConfig(vocabulary=16, stride=4, hidden=16, codebook_dim=8)
    beitkit.save(beitkit.DiscreteVAE(config), tmp_path / "tok")
    return tmp_path / "tok"


def tokenize(images: Path, tok: Path, out: Path, **options: object) -> Path:
    return beitkit.tokenize(images, tokenizer=tok, out=out, **{"views": 3, **CACHE, **options})


def refused(pattern: str, *arguments: Path, **options: object) -> None:
    with pytest.raises(UserError, match=pattern) as error:
        tokenize(*arguments, **options)
    assert "\n" not in str(error.value)


def test_joined_shards_are_what_one_process_makes(images: Path, tok: Path, tmp_path: Path) -> None:
    # The last image of the first shard, and the very last: neither may be replaced by one of another shard.
    for broken in ("1.png", "7.png"):
        (images / broken).write_bytes(b"nothing")
    one, out = tokenize(images, tok, tmp_path / "one"), tmp_path / "cache"
    for shard in ("3/3", "1/3", "2/3"):  # in any order
        made = tokenize(images, tok, out, shard=shard)
        assert made.name == f"cache-0000{shard[0]}-of-00003"
    sizes = [len(np.load(part / "states.npy")) for part in sorted(tmp_path.glob("cache-*"))]
    assert sizes == [2, 3, 3]
    assert tokenize(images, tok, out) == out
    assert [(one / name).read_bytes() == (out / name).read_bytes() for name in FILES] == [True] * 4
    states = np.load(out / "states.npy")
    assert (states == 2).all(axis=1).tolist() == [index in (1, 7) for index in range(8)]
    assert not list(tmp_path.glob("cache-*"))  # they would only take room


def test_shards_of_two_precisions_are_not_joined(
    images: Path, tok: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("beitkit.tokenizers.frozen.LEAST_AGREEMENT", 0.0)
    out = tmp_path / "cache"
    tokenize(images, tok, out, shard="1/2", precision="bfloat16")
    tokenize(images, tok, out, shard="2/2", precision="float32")
    refused("another `precision` .float32 there, bfloat16 here.; give it as it was", images, tok, out)
    shutil.rmtree(tmp_path / "cache-00002-of-00002")
    tokenize(images, tok, out, shard="2/2", precision="bfloat16")
    assert tokenize(images, tok, out) == out


def test_a_joined_cache_is_trained_from(images: Path, tok: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in (1, 2):
        tokenize(images, tok, tmp_path / "cache", shard=f"{number}/2")
    made = tokenize(images, tok, tmp_path / "cache")
    options = {"size": "nano", "image_size": 32, "patch": 8, "batch_size": 4, "threads": 1, "device": "cpu", "steps": 4}
    given = beitkit.pretrain(images, tokenizer=tok, tokens=made, out=tmp_path / "given", **options)
    filled = beitkit.pretrain(images, tokenizer=tok, views=3, out=tmp_path / "filled", **options)
    assert (given / "model.safetensors").read_bytes() == (filled / "model.safetensors").read_bytes()


def test_a_killed_shard_goes_on(images: Path, tok: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = tokenize(images, tok, tmp_path / "cache", shard="2/2")
    whole, states = np.load(part / "tokens.npy"), np.load(part / "states.npy")
    states[1, 2] = 0
    np.save(part / "states.npy", states)
    tokens = whole.copy()
    tokens[1, 2] = 9  # a row that was being written
    np.save(part / "tokens.npy", tokens)
    counts: list[int] = []
    put = TokenCache.put
    monkeypatch.setattr(TokenCache, "put", lambda cache, *rows: (counts.append(len(rows[0])), put(cache, *rows)))
    tokenize(images, tok, tmp_path / "cache", shard="2/2")
    assert counts == [1]
    assert np.array_equal(np.load(part / "tokens.npy"), whole)


def test_shards_that_do_not_make_a_whole_are_named(images: Path, tok: Path, tmp_path: Path) -> None:
    out = tmp_path / "cache"
    for number in (1, 3):
        tokenize(images, tok, out, shard=f"{number}/4")
    part = tmp_path / "cache-00003-of-00004"
    states = np.load(part / "states.npy")
    states[0, 0] = 0
    np.save(part / "states.npy", states)
    refused(r"shard 2/4 is missing, shard 3/4 has 5 of 6 views, shard 4/4 is missing; .*`shard` 2/4", images, tok, out)
    assert not (out / "cache.json").exists()
    for number in (2, 3, 4):
        tokenize(images, tok, out, shard=f"{number}/4")
    refused("made for another `seed` .0 there, 1 here", images, tok, out, seed=1)
    refused("made for another `views`", images, tok, out, views=2)
    refused("made for another `seed`", images, tok, out, seed=1, shard="2/4")
    shutil.copytree(part, tmp_path / "cache-00001-of-00002")
    refused("lie shards of 2 and of 4", images, tok, out)
    refused("is not shard 1/2 but 3/4", images, tok, out, shard="1/2")
    shutil.rmtree(tmp_path / "cache-00001-of-00002")
    content = (images / "5.png").read_bytes()
    Image.new("RGB", (40, 36)).save(images / "5.png")
    refused("5.png changed since its tokens were stored in .*cache-00003-of-00004", images, tok, out)
    (images / "5.png").write_bytes(content)
    with pytest.raises(UserError, match="is shard 3/4 of a token cache; join all of them"):
        beitkit.pretrain(images, tokenizer=tok, tokens=part, out=tmp_path / "run", size="nano", image_size=32, patch=8, steps=1)
    tokenize(images, tok, out)
    refused("holds a token cache already; leave `shard` out", images, tok, out, shard="1/4")
    refused("leaves shards empty; give at most 8", images, tok, tmp_path / "new", shard="1/9")
    refused("`shard` must be one of 1/n to n/n", images, tok, tmp_path / "new", shard="0/2")


def test_the_command_that_is_printed_works(images: Path, tok: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    view = ViewConfig(crop_scale=(0.2, 0.9), color_jitter=0.1)
    tokenize(images, tok, tmp_path / "a cache", views=1, seed=3, view=view)
    command = re.search(r"Next: beitkit (.*)", capsys.readouterr().out)
    assert command is not None
    assert "--view.crop-scale 0.2 0.9 --view.color-jitter 0.1" in command[1]
    small = ["--size", "nano", "--batch-size", "4", "--steps", "1", "--threads", "1", "--device", "cpu"]
    with pytest.raises(SystemExit) as stopped:
        main([*shlex.split(command[1]), *small])
    assert stopped.value.code == 0, capsys.readouterr().err
