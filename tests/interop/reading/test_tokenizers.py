"""Tokenizers from their official files, against the official golden vectors, and without running anything in the files."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from beitkit.configs.model import BackboneConfig
from beitkit.configs.tokenizer import DVAEConfig, VQKDConfig
from beitkit.errors import UserError
from beitkit.interop.build import build
from beitkit.interop.inspect import inspect_checkpoint
from beitkit.interop.load import load_tokenizer
from beitkit.interop.reading.checkpoints import read_file
from beitkit.interop.reading.describe import Hints
from beitkit.interop.reading.tokenizers import vq_kd
from beitkit.interop.save import convert
from beitkit.tokenizers.dvae import DiscreteVAE
from beitkit.tokenizers.vqkd import VQKD

SMALL_DALLE = DVAEConfig(geometry="dalle", vocabulary=512, hidden=64, codebook_dim=32, reconstruction="logit_laplace")


def golden_half(half: nn.Module) -> dict[str, Tensor]:
    """The weights of golden vector G under DALL-E's names, for an encoder or a decoder."""
    names = {
        name.removesuffix(".weight").removesuffix(".bias") + (".w" if name.endswith("weight") else ".b"): name
        for name in half.state_dict()
    }
    state = {}
    for j, official in enumerate(sorted(names)):
        tensor = half.state_dict()[names[official]]
        amplitude = np.sqrt(2 / (tensor.shape[1] * tensor.shape[2] ** 2)) if official.endswith(".w") else 0.05
        values = amplitude * np.sin(0.37 * np.arange(tensor.numel()) + 0.11 * j)
        state[official] = torch.from_numpy(values.astype(np.float32)).view_as(tensor)
    return state


def official_module(state: dict[str, Tensor], half: str, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """A module with the class names of DALL-E's package, as its pickles hold it."""
    monkeypatch.setitem(sys.modules, "dall_e", sys.modules.get("dall_e") or ModuleType("dall_e"))
    known = {"": half.capitalize(), "block": f"{half.capitalize()}Block", "conv": "Conv2d"}
    homes = {known[""]: f"dall_e.{half}", known["block"]: f"dall_e.{half}", known["conv"]: "dall_e.utils"}
    classes = {}
    for name, home in homes.items():
        module = sys.modules.get(home) or ModuleType(home)
        classes[name] = type(name, (nn.Module,), {"__module__": home})
        setattr(module, name, classes[name])
        monkeypatch.setitem(sys.modules, home, module)
    root = classes[known[""]]()
    root.n_hid, root.device = 64, torch.device("cpu")
    for name, tensor in state.items():
        *path, leaf = name.split(".")
        place = root
        for depth, part in enumerate(path):
            if part not in place._modules:
                is_conv = depth == len(path) - 1
                is_block = part.startswith("block_")
                place.add_module(
                    part, classes[known["conv"]]() if is_conv else classes[known["block"]]() if is_block else nn.Sequential()
                )
            place = place._modules[part]
        place.register_parameter(leaf, nn.Parameter(tensor, requires_grad=False))
        place.use_float16 = True
    root._modules["blocks"].add_module("pool", nn.MaxPool2d(2) if half == "encoder" else nn.Upsample(scale_factor=2))
    return root


def check_golden_g(tokenizer: Any) -> None:
    images = (0.5 + 0.5 * torch.cos(0.013 * torch.arange(3 * 32 * 32, dtype=torch.float64))).float().view(1, 3, 32, 32)
    logits = tokenizer.logits(images)
    assert float(logits.double().sum()) == pytest.approx(2.66345, rel=1e-3)
    assert float(logits.double().abs().sum()) == pytest.approx(2436.48021, rel=1e-4)
    np.testing.assert_allclose(logits.flatten()[:5], [-0.34281, -0.34197, -0.34196, -0.34262, -0.34253], rtol=1e-4)
    assert set(tokenizer.encode(images).flatten().tolist()) == {137}
    ids = (torch.arange(16) * 31 % 512).view(1, 4, 4)
    output = tokenizer.decode_relaxed(F.one_hot(ids, 512).permute(0, 3, 1, 2).float())
    assert float(output.double().sum()) == pytest.approx(-101.33545, rel=1e-4)
    assert float(output.double().abs().sum()) == pytest.approx(733.73696, rel=1e-4)
    np.testing.assert_allclose(output.flatten()[:5], [-0.07955, -0.04286, -0.03176, -0.03058, -0.03091], rtol=1e-3)


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
def test_golden_g_from_pickled_modules(is_zip: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    halves = DiscreteVAE(SMALL_DALLE)
    with monkeypatch.context() as patch:
        for half in ("encoder", "decoder"):
            module = official_module(golden_half(getattr(halves, half)), half, patch)
            torch.save(module, tmp_path / f"{half}.pkl", _use_new_zipfile_serialization=is_zip)
    assert "dall_e" not in sys.modules
    for path in (tmp_path / "encoder.pkl", tmp_path / "decoder.pkl", tmp_path):
        tokenizer: Any = load_tokenizer(path)
        assert tokenizer.config == SMALL_DALLE
        check_golden_g(tokenizer)
    report = convert(tmp_path / "encoder.pkl", "native", tmp_path / "converted", dry_run=True)
    assert report.counts() == {"kept": 150}
    assert not (tmp_path / "converted").exists()
    convert(tmp_path / "encoder.pkl", "native", tmp_path / "converted")
    check_golden_g(load_tokenizer(tmp_path / "converted"))
    with pytest.raises(UserError, match="native only"):
        convert(tmp_path / "encoder.pkl", "huggingface", tmp_path / "other")


def test_golden_g_from_state_dicts(tmp_path: Path) -> None:
    halves = DiscreteVAE(SMALL_DALLE)
    torch.save({"state_dict": golden_half(halves.encoder)}, tmp_path / "dalle_encoder.pth")
    torch.save(golden_half(halves.decoder), tmp_path / "dalle_decoder.pth")
    check_golden_g(load_tokenizer(tmp_path / "dalle_encoder.pth"))


def test_half_of_dalle_is_not_enough(tmp_path: Path) -> None:
    torch.save(golden_half(DiscreteVAE(SMALL_DALLE).encoder), tmp_path / "encoder.pkl")
    with pytest.raises(UserError, match=r"its decoder must lie beside it as decoder\.pkl"):
        load_tokenizer(tmp_path / "encoder.pkl")
    torch.save(golden_half(DiscreteVAE(SMALL_DALLE).encoder), tmp_path / "decoder.pkl")
    with pytest.raises(UserError, match=r"decoder\.pkl is not DALL-E's decoder"):
        load_tokenizer(tmp_path / "encoder.pkl")


def test_a_strange_layer_in_dalles_file(tmp_path: Path) -> None:
    state = golden_half(DiscreteVAE(SMALL_DALLE).encoder)
    torch.save(golden_half(DiscreteVAE(SMALL_DALLE).decoder), tmp_path / "decoder.pkl")
    torch.save(state | {"blocks.group_9.conv.w": torch.ones(1)}, tmp_path / "encoder.pkl")
    with pytest.raises(UserError, match=r"1 not expected: encoder\.blocks\.group_9\.conv\.weight"):
        load_tokenizer(tmp_path / "encoder.pkl")


@pytest.mark.parametrize("stride", [4, 8])
def test_beits_own_discrete_vae(stride: int, tmp_path: Path, assert_same_tensors: Callable[..., None]) -> None:
    config = DVAEConfig(geometry="beit", vocabulary=24, stride=stride, hidden=16, codebook_dim=12)
    expected = DiscreteVAE(config)
    torch.save({"weights": expected.state_dict(), "hparams": {"num_tokens": 24}}, tmp_path / "pytorch_model.bin")
    for path in (tmp_path, tmp_path / "pytorch_model.bin"):
        tokenizer: Any = load_tokenizer(path)
        assert tokenizer.config == config
        assert_same_tensors(tokenizer, expected)


def small_vqkd(width: int, heads: int) -> VQKD:
    encoder = BackboneConfig(
        width=width,
        depth=2,
        heads=heads,
        hidden=4 * width,
        image_size=(48, 48),
        patch=(16, 16),
        relative_positions="none",
        absolute_positions=True,
        layer_scale=None,
    )
    return VQKD(VQKDConfig(encoder=encoder, decoder_depth=1, vocabulary=16, code_dim=4, target_dim=8))


def official_vqkd_state(model: VQKD) -> dict[str, Tensor]:
    """The state dict as the official file has it, with what a training leaves in it."""
    renamed = {
        "codebook.codes": "quantize.embedding.weight",
        "codebook.usage": "quantize.cluster_size",
        "codebook.is_started": "quantize.embedding.initted",
    }
    state = {
        renamed.get(name, name.replace("coder.norm.", "coder.fc_norm.")): tensor.clone()
        for name, tensor in model.state_dict().items()
    }
    state["quantize.embedding.initted"] = torch.ones(1)
    state["quantize.embedding.cluster_size"] = torch.zeros(16)
    state["quantize.embedding.embed_avg"] = torch.zeros(16, 4)
    state["teacher_model.visual.proj"] = torch.ones(3, 3)
    state["scaling_layer.shift"] = torch.ones(1, 3, 1, 1)
    return state


def test_vq_kd(tmp_path: Path) -> None:
    model = small_vqkd(64, 1).eval()
    torch.save({"model": official_vqkd_state(model), "epoch": 99}, tmp_path / "vqkd.pth")
    tokenizer: Any = load_tokenizer(tmp_path / "vqkd.pth")
    assert tokenizer.config.encoder.heads == 1
    assert bool(tokenizer.codebook.is_started)
    images = torch.rand(2, 3, 48, 48)
    assert torch.equal(tokenizer.encode(images), model.encode(images))
    summary = inspect_checkpoint(tmp_path / "vqkd.pth")
    assert summary.layout == "VQ-KD"
    assert sum(record.fate == "dropped" for record in summary.tensors) == 4


def test_golden_f(tmp_path: Path, golden_input: Callable[..., Tensor]) -> None:
    model = small_vqkd(24, 4)
    state = official_vqkd_state(model)
    filled = sorted(name for name in state if name.startswith(("encoder.", "decoder.", "encode_task", "decode_task")))
    for j, name in enumerate(filled):
        values = (0.2 * np.sin(0.37 * np.arange(state[name].numel()) + 0.11 * j)).astype(np.float32)
        offset = 1.0 if name.endswith(("norm1.weight", "norm2.weight", "fc_norm.weight")) else 0.0
        state[name] = torch.from_numpy(values).view_as(state[name]).double() + offset
    codes = torch.sin(0.7 * torch.arange(64, dtype=torch.float64) + 0.3).view(16, 4)
    state["quantize.embedding.weight"] = F.normalize(codes, dim=1)
    torch.save({"model": state}, tmp_path / "vqkd.pth")
    tensors, _ = read_file(tmp_path / "vqkd.pth")
    checkpoint = vq_kd(tmp_path / "vqkd.pth", tensors, Hints(heads=4))  # no official network has heads of width 6
    tokenizer: Any = build(checkpoint.config, checkpoint.tensors)
    tokenizer.double().requires_grad_(False)
    distilled = tokenizer(0.5 + 0.5 * golden_input(2, 3, 48, 48))
    assert set(distilled.ids.flatten().tolist()) == {3}
    assert float(distilled.commitment) == pytest.approx(0.2465415269, rel=1e-6)
    assert float(distilled.features.sum()) == pytest.approx(22.94417183, rel=1e-6)
    first = [0.30382705, -0.09383154, 0.25448397, 0.24428538, 0.02206779, 0.42703601]
    np.testing.assert_allclose(distilled.features.detach().flatten()[:6], first, rtol=1e-5)


def test_the_encoder_half_of_vq_kd_is_named(tmp_path: Path) -> None:
    state = {name: tensor for name, tensor in official_vqkd_state(small_vqkd(64, 1)).items() if not name.startswith("decode")}
    torch.save(state, tmp_path / "vqkd_encoder.pth")
    with pytest.raises(UserError, match="encoder half"):
        load_tokenizer(tmp_path / "vqkd_encoder.pth")


def test_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        load_tokenizer(tmp_path / "x")
    with pytest.raises(UserError, match="holds no tokenizer: none of"):
        load_tokenizer(tmp_path)
    torch.save({"a": torch.ones(2)}, tmp_path / "x.pth")
    with pytest.raises(UserError, match="its tensors are a"):
        load_tokenizer(tmp_path / "x.pth")
