"""Pre-training against other tokenizers than our own discrete VAE, and what a continued run refuses."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import beitkit
from beitkit.configs.data import MaskConfig
from beitkit.configs.model import BackboneConfig
from beitkit.configs.tokenizer import DVAEConfig, VQKDConfig
from beitkit.errors import UserError

SMALL = {"size": "nano", "image_size": 32, "patch": 8, "steps": 2, "batch_size": 4, "threads": 1, "device": "cpu"}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for index in range(6):
        Image.fromarray(generator.integers(0, 255, (40, 36, 3), dtype=np.uint8)).save(tmp_path / "images" / f"{index}.png")
    return tmp_path / "images"


def dvae(folder: Path, vocabulary: int) -> Path:
    torch.manual_seed(vocabulary)
    beitkit.save(beitkit.DiscreteVAE(DVAEConfig(vocabulary=vocabulary, stride=4, hidden=16, codebook_dim=8)), folder)
    return folder


def test_vqkd_gives_targets_and_the_report_does_without_its_pixels(images: Path, tmp_path: Path) -> None:
    encoder = BackboneConfig.named(
        "nano/8", image_size=32, absolute_positions=True, relative_positions="none", layer_scale=None, final_norm=True
    )
    torch.manual_seed(0)
    beitkit.save(
        beitkit.VQKD(VQKDConfig(encoder=encoder, decoder_depth=1, vocabulary=16, code_dim=4, target_dim=8)), tmp_path / "tok"
    )
    out = beitkit.pretrain(images, tokenizer=tmp_path / "tok", out=tmp_path / "run", **SMALL)
    html = (out / "report.html").read_text()
    assert "masked" in html
    assert "from predicted tokens</th>" not in html
    model = beitkit.load(out)
    assert isinstance(model, beitkit.MaskedImageModel)
    assert model.config.vocabulary == 16
    assert (out / "checkpoints" / "best" / "model.safetensors").exists()


def test_a_tokenizer_or_images_that_changed_are_refused(images: Path, tmp_path: Path) -> None:
    tok = dvae(tmp_path / "tok", 16)
    beitkit.pretrain(images, tokenizer=tok, out=tmp_path / "run", **SMALL)
    (tmp_path / "run" / "model.json").unlink()  # as if it had been cut before the end
    dvae(tok, 32)
    with pytest.raises(UserError, match="the tokenizer changed since the run"):
        beitkit.pretrain(images, tokenizer=tok, out=tmp_path / "run", **SMALL)
    dvae(tok, 16)
    Image.new("RGB", (32, 32)).save(images / "new.png")
    with pytest.raises(UserError, match="the images changed since the run"):
        beitkit.pretrain(images, tokenizer=tok, out=tmp_path / "run", **SMALL)


def test_more_per_batch_than_there_are_images_is_refused(images: Path, tmp_path: Path) -> None:
    tok = dvae(tmp_path / "tok", 16)
    with pytest.raises(UserError, match="`batch_size` 64 is more than there are images; give at most 6"):
        beitkit.pretrain(images, tokenizer=tok, out=tmp_path / "run", **{**SMALL, "batch_size": 64})


@pytest.mark.parametrize(
    "variant",
    [
        {"recover": "all"},
        {"recover": "all", "mask": MaskConfig(kind="none")},
        {"mask": MaskConfig(kind="random")},
        {"cls_branch": 2},
    ],
    ids=["recover-all", "no-mask", "random", "cls-branch"],
)
def test_a_variant_of_token_prediction_runs_and_reports(variant: dict, images: Path, tmp_path: Path) -> None:
    tok = dvae(tmp_path / "tok", 16)
    out = beitkit.pretrain(images, tokenizer=tok, out=tmp_path / "run", **SMALL, **variant)
    html = (out / "report.html").read_text()
    assert "Token accuracy" in html
    model = beitkit.load(out)
    assert isinstance(model, beitkit.MaskedImageModel)
    assert (model.config.cls_branch is not None) == ("cls_branch" in variant)
    assert ("through the class token" in html) == ("cls_branch" in variant)
    assert ("No patch was hidden" in html) == ("mask" in variant and variant["mask"].kind == "none")


@pytest.mark.parametrize("recover", ["masked", "all"])
def test_pixels_need_no_tokenizer_and_the_model_is_of_use(recover: str, images: Path, tmp_path: Path) -> None:
    out = beitkit.pretrain(images, target="pixels", recover=recover, out=tmp_path / "run", **SMALL)
    html = (out / "report.html").read_text()
    assert "from predicted pixels" in html
    assert "variance" in html
    events = [json.loads(line) for line in (out / "journal.jsonl").read_text().splitlines()]
    last = [event for event in events if event["kind"] == "evaluate"][-1]
    assert last["fixed/explained"] == pytest.approx(1 - last["fixed/loss"] / last["fixed/variance"], rel=1e-3)
    model = beitkit.load(out)
    assert isinstance(model, beitkit.MaskedImageModel)
    assert model.config.vocabulary is None
    mask = torch.zeros(1, 16, dtype=torch.bool)
    mask[0, :3] = True
    assert model(torch.zeros(1, 3, 32, 32), mask).shape == (3, 3 * 8 * 8)
    for file_format in ("microsoft", "huggingface", "timm"):
        with pytest.raises(UserError, match="this one predicts pixels"):
            beitkit.save(model, tmp_path / "foreign.pth", format=file_format)
    assert not (tmp_path / "foreign.pth").exists()
    classifier = beitkit.load(out, task="classify", num_classes=2)
    assert isinstance(classifier, beitkit.Classifier)
    patches = "backbone.patch_embed.proj.weight"
    assert classifier.state_dict()[patches].equal(model.state_dict()[patches])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "missing required option `tokenizer`"),
        ({"target": "pixels", "tokenizer": "tok"}, "`target='pixels'` uses no tokenizer"),
        ({"tokenizer": "tok", "mask": MaskConfig(kind="none")}, "give `recover='all'` with it"),
        ({"target": "pixels", "cls_branch": 2}, "`cls_branch` predicts the tokens"),
        ({"tokenizer": "tok", "recover": "all", "cls_branch": 2}, "`cls_branch` predicts the tokens"),
        ({"tokenizer": "tok", "cls_branch": 5}, "`cls_branch` must be at most the 4 blocks of `size` nano, got 5"),
        ({"tokenizer": "tok", "channels": 1}, "`channels` 1 does not fit a tokenizer of 3"),
    ],
)
def test_variants_that_make_no_sense_are_refused(options: dict, message: str, images: Path, tmp_path: Path) -> None:
    dvae(tmp_path / "tok", 16)
    options = {key: tmp_path / "tok" if key == "tokenizer" else value for key, value in options.items()}
    with pytest.raises(UserError, match=message):
        beitkit.pretrain(images, out=tmp_path / "run", **SMALL, **options)
    assert not (tmp_path / "run").exists()


def test_channels_without_a_tokenizer(images: Path, tmp_path: Path) -> None:
    model = beitkit.load(beitkit.pretrain(images, target="pixels", channels=1, out=tmp_path / "run", **SMALL))
    assert model.config.backbone.channels == 1
