"""Our own files: the identity for every kind of network and tokenizer, whole or not at all, strict when read."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import beitkit
from beitkit.configs.model import BackboneConfig
from beitkit.configs.tokenizer import DVAEConfig, KMeansConfig, VQKDConfig
from beitkit.errors import UserError
from beitkit.interop.formats.native import save_native
from beitkit.interop.load import load, load_tokenizer
from beitkit.system import peak_resident_bytes, reset_peak_memory
from beitkit.tokenizers.dvae import DiscreteVAE
from beitkit.tokenizers.kmeans import KMeansTokenizer
from beitkit.tokenizers.vqkd import VQKD

TOKENIZERS: dict[str, Callable[[], Any]] = {
    "light": lambda: DiscreteVAE(DVAEConfig(geometry="light", vocabulary=16, hidden=16, codebook_dim=8, stride=4, channels=1)),
    "beit": lambda: DiscreteVAE(DVAEConfig(geometry="beit", vocabulary=16, hidden=16, codebook_dim=8)),
    "dalle": lambda: DiscreteVAE(
        DVAEConfig(geometry="dalle", vocabulary=16, hidden=16, codebook_dim=8, reconstruction="logit_laplace")
    ),
    "kmeans": lambda: KMeansTokenizer(KMeansConfig(vocabulary=16, stride=4, channels=2)),
    "vqkd": lambda: VQKD(
        VQKDConfig(
            encoder=BackboneConfig(
                width=64,
                depth=2,
                heads=1,
                hidden=96,
                image_size=(32, 32),
                patch=(16, 16),
                relative_positions="none",
                absolute_positions=True,
                layer_scale=None,
            ),
            decoder_depth=1,
            vocabulary=16,
            code_dim=4,
            target_dim=6,
        )
    ),
}


def test_networks(any_network: Any, tmp_path: Path, assert_same_tensors: Callable[..., None]) -> None:
    save_native(any_network, tmp_path / "a" / "b")
    again: Any = load(tmp_path / "a" / "b")
    assert type(again) is type(any_network)
    assert again.config == any_network.config
    assert not again.training
    assert_same_tensors(again, any_network)
    assert again.load_report.counts() == {"kept": len(any_network.state_dict())}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_tokenizers(kind: str, tmp_path: Path, assert_same_tensors: Callable[..., None]) -> None:
    tokenizer = TOKENIZERS[kind]()
    save_native(tokenizer, tmp_path)
    again: Any = load_tokenizer(tmp_path)
    assert again.config == tokenizer.config
    assert_same_tensors(again, tokenizer)
    assert again.fingerprint == tokenizer.fingerprint
    assert not any(parameter.requires_grad for parameter in again.parameters())
    images = torch.rand(2, tokenizer.channels, 32, 32)
    assert torch.equal(again.encode(images), tokenizer.eval().encode(images))


def test_parameters_can_be_trained_on(network: Any, tmp_path: Path) -> None:
    save_native(network("classify"), tmp_path)
    model = load(tmp_path).train()
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in model.parameters())
    before = (tmp_path / "model.safetensors").read_bytes()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_the_description(network: Any, tmp_path: Path) -> None:
    save_native(network("classify"), tmp_path)
    description = json.loads((tmp_path / "model.json").read_text(encoding="utf-8"))
    assert description["kind"] == "classify"
    assert description["beitkit"] == beitkit.__version__
    assert description["config"]["classes"] == ["cat", "dog", "fungi ü"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.json", "model.safetensors"]


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells how much memory a process held")
def test_saving_copies_no_network(tmp_path: Path) -> None:
    tokenizer = DiscreteVAE(DVAEConfig(vocabulary=100_000, hidden=128))
    size = sum(tensor.nbytes for tensor in tokenizer.state_dict().values())
    reset_peak_memory()
    before = peak_resident_bytes()
    save_native(tokenizer, tmp_path)
    after = peak_resident_bytes()
    assert before is not None
    assert after is not None
    assert (tmp_path / "model.safetensors").stat().st_size > size > 100e6
    assert after - before < size / 4


def test_a_failed_write_leaves_the_old_model(network: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = network("classify")
    save_native(old, tmp_path)
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def no_space(descriptor: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", no_space)
    with pytest.raises(OSError, match="no space"):
        save_native(network("masked"), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d | {"format_version": 99}, "format version 99"),
        (lambda d: d | {"kind": "detector"}, "kind 'detector'"),
        (lambda d: {"kind": "classify"}, "not the description"),
        (lambda d: [], "not the description"),
        (lambda d: d | {"config": d["config"] | {"pooling": "max"}}, r"model\.json: pooling must be one of 'mean', 'cls'"),
        (
            lambda d: d | {"config": d["config"] | {"classes": ["a", "b"]}},
            r"2 of another shape: .*head\.weight 3x24 instead of 2x24",
        ),
        (lambda d: d | {"config": d["config"] | {"backbone": d["config"]["backbone"] | {"depth": 7}}}, "16 not expected: "),
        (lambda d: d | {"config": d["config"] | {"backbone": d["config"]["backbone"] | {"depth": 9}}}, "16 missing: "),
    ],
)
def test_a_description_that_does_not_fit(
    change: Callable[[dict[str, Any]], Any], message: str, network: Any, tmp_path: Path
) -> None:
    save_native(network("classify"), tmp_path)
    path = tmp_path / "model.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(UserError, match=message) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


def test_missing_files(network: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        load(tmp_path / "nothing")
    with pytest.raises(UserError, match="holds neither"):
        load(tmp_path)
    (tmp_path / "config.json").write_text('{"verb": "pretrain"}')
    with pytest.raises(UserError, match="not finished"):
        load(tmp_path)
    save_native(network("classify"), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"has model\.json but no model\.safetensors"):
        load(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is a file"):
        save_native(network("classify"), tmp_path / "file")


def test_networks_and_tokenizers_are_told_apart(network: Any, tmp_path: Path) -> None:
    save_native(network("classify"), tmp_path / "network")
    save_native(TOKENIZERS["light"](), tmp_path / "tokenizer")
    with pytest.raises(UserError, match="holds a network, not a tokenizer"):
        load_tokenizer(tmp_path / "network")
    with pytest.raises(UserError, match="holds a tokenizer, not a network"):
        load(tmp_path / "tokenizer")


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content[:-40],
        lambda content: content[:100],
        lambda content: b"",
        lambda content: (2**60).to_bytes(8, "little") + content[8:],
        lambda content: content[:8] + b"[" + content[9:],
        lambda content: content.replace(b'"F32"', b'"F99"', 1),
        lambda content: content.replace(b'"shape":[', b'"shape":[-', 1),
        lambda content: content.replace(b'"data_offsets":[0,', b'"data_offsets":[4,', 1),
    ],
)
def test_damaged_weights(change: Callable[[bytes], bytes], network: Any, tmp_path: Path) -> None:
    save_native(network("classify"), tmp_path)
    path = tmp_path / "model.safetensors"
    changed = change(path.read_bytes())
    assert changed != path.read_bytes()
    path.write_bytes(changed)
    with pytest.raises(UserError) as caught:
        load(tmp_path)
    assert "model.safetensors" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_numbers_of_another_type_are_named(network: Any, tmp_path: Path) -> None:
    save_native(network("classify"), tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state["head.weight"] = state["head.weight"].to(torch.float8_e4m3fn)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="tensor 'head.weight' is of the type F8_E4M3; expected F64, F32"):
        load(tmp_path)
