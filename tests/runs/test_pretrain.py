"""Pre-training against other tokenizers than our own discrete VAE, and what a continued run refuses."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import beitkit
from beitkit.configs.model import BackboneConfig, DVAEConfig, VQKDConfig
from beitkit.errors import UserError

SMALL = {"size": "nano", "image_size": 32, "patch": 8, "steps": 2, "batch_size": 4, "threads": 1, "device": "cpu"}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    for index in range(6):
        Image.fromarray(generator.integers(0, 255, (40, 36, 3), dtype=np.uint8)).save(tmp_path / "pictures" / f"{index}.png")
    return tmp_path / "pictures"


def dvae(folder: Path, vocabulary: int) -> Path:
    torch.manual_seed(vocabulary)
    beitkit.save(beitkit.DiscreteVAE(DVAEConfig(vocabulary=vocabulary, stride=4, hidden=16, codebook_dim=8)), folder)
    return folder


def test_vqkd_gives_targets_and_the_report_does_without_its_pixels(pictures: Path, tmp_path: Path) -> None:
    encoder = BackboneConfig.named(
        "nano/8", image_size=32, absolute_positions=True, relative_positions="none", layer_scale=None, final_norm=True
    )
    torch.manual_seed(0)
    beitkit.save(
        beitkit.VQKD(VQKDConfig(encoder=encoder, decoder_depth=1, vocabulary=16, code_dim=4, target_dim=8)), tmp_path / "tok"
    )
    out = beitkit.pretrain(pictures, tokenizer=tmp_path / "tok", out=tmp_path / "run", **SMALL)
    html = (out / "report.html").read_text()
    assert "masked" in html
    assert "from predicted tokens</th>" not in html
    model = beitkit.load(out)
    assert isinstance(model, beitkit.MaskedImageModel)
    assert model.config.vocabulary == 16
    assert (out / "checkpoints" / "best" / "model.safetensors").exists()


def test_a_tokenizer_or_pictures_that_changed_are_refused(pictures: Path, tmp_path: Path) -> None:
    tok = dvae(tmp_path / "tok", 16)
    beitkit.pretrain(pictures, tokenizer=tok, out=tmp_path / "run", **SMALL)
    (tmp_path / "run" / "model.json").unlink()  # as if it had been cut before the end
    dvae(tok, 32)
    with pytest.raises(UserError, match="the tokenizer changed since the run"):
        beitkit.pretrain(pictures, tokenizer=tok, out=tmp_path / "run", **SMALL)
    dvae(tok, 16)
    Image.new("RGB", (32, 32)).save(pictures / "new.png")
    with pytest.raises(UserError, match="the pictures changed since the run"):
        beitkit.pretrain(pictures, tokenizer=tok, out=tmp_path / "run", **SMALL)


def test_more_per_batch_than_there_are_pictures_is_refused(pictures: Path, tmp_path: Path) -> None:
    tok = dvae(tmp_path / "tok", 16)
    with pytest.raises(UserError, match="--batch-size 64 is more than there are pictures; give at most 6"):
        beitkit.pretrain(pictures, tokenizer=tok, out=tmp_path / "run", **{**SMALL, "batch_size": 64})
