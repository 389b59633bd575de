"""How often a run of the discrete VAE revives codes."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import beitkit
from beitkit.configs.data import ViewConfig
from beitkit.configs.tokenizer import DVAEConfig, ReconstructConfig
from beitkit.runs.tokenizer.dvae import with_revivals
from beitkit.tokenizers.revival import CodeRevival


@pytest.mark.parametrize(("batches", "window"), [(188, 8), (400, 15), (600, 23), (667, 25), (100_000, 25), (1, 1)])
def test_short_runs_revive_codes_sooner(batches: int, window: int) -> None:
    assert with_revivals(ReconstructConfig(), batches).revive_every == window


def test_what_is_sooner_or_off_stays() -> None:
    assert with_revivals(ReconstructConfig(revive_every=3), 10_000).revive_every == 3
    assert with_revivals(ReconstructConfig(revive_every=0), 188).revive_every == 0


def test_a_short_run_really_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for index in range(8):
        Image.fromarray(random.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(tmp_path / "images" / f"{index}.png")
    done = []
    revive = CodeRevival.revive
    monkeypatch.setattr(CodeRevival, "revive", lambda *given: done.append(1) or revive(*given))
    beitkit.tokenizer(
        tmp_path / "images", out=tmp_path / "tok", image_size=16, steps=60, batch_size=8, threads=1, device="cpu", workers=0,
        dvae=DVAEConfig(vocabulary=8, stride=4, hidden=16, codebook_dim=8), view=ViewConfig(color_jitter=0.0),
    )  # fmt: skip
    # 60 steps, revived in the first three quarters: every 25 steps it would be once.
    assert len(done) >= 10
