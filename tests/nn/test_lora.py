import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from beitkit.configs.model import BackboneConfig, ClassifierConfig
from beitkit.errors import UserError
from beitkit.interop.load import load
from beitkit.interop.save import save
from beitkit.nn.blocks import Block
from beitkit.nn.lora import LoRALinear, add_adapters, merged_state
from beitkit.nn.models import Classifier

RANK, ALPHA = 3, 6.0


def classifier(key_bias: bool = False) -> Classifier:
    backbone = BackboneConfig.named("nano/8", image_size=16, relative_positions="per_block", layer_scale=None, final_norm=False)
    backbone = replace(backbone, key_bias=key_bias)
    return Classifier(ClassifierConfig(backbone=backbone, classes=("a", "b")), head_scale=1.0)


def adapted(key_bias: bool = False) -> tuple[Classifier, Classifier]:
    """A network, and the same one with adapters that have learned something."""
    torch.manual_seed(0)
    plain = classifier(key_bias)
    with torch.no_grad():
        for name, parameter in plain.named_parameters():  # biases and position tables that are not zero
            if parameter.ndim == 1 or "table" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    light = copy.deepcopy(plain)
    add_adapters(light.backbone.blocks, RANK, ALPHA)
    for name, parameter in light.named_parameters():
        if name.endswith("lora_B"):
            nn.init.normal_(parameter, std=0.1)
    return plain.eval(), light.eval()


def test_it_starts_as_the_given_layer_does() -> None:
    base = nn.Linear(5, 7)
    x = torch.randn(4, 5)
    expected = base(x)
    layer = LoRALinear(base, RANK, ALPHA)
    assert torch.equal(layer(x), expected)
    assert torch.equal(layer.merged(), base.weight)
    assert layer.lora_A.abs().max() <= 5**-0.5
    assert layer.lora_A.abs().max() > 0


def test_gradients_are_those_of_the_dense_weight_projected() -> None:
    """With W + s B A in place of W: dB = s G A^T and dA = s B^T G, where G is the gradient of the dense weight."""
    layer = LoRALinear(nn.Linear(5, 7).double(), RANK, ALPHA)
    nn.init.normal_(layer.lora_B)
    x, target = torch.randn(4, 2, 5, dtype=torch.float64), torch.randn(4, 2, 7, dtype=torch.float64)
    (layer(x) * target).sin().sum().backward()
    dense = layer.merged().requires_grad_()
    (F.linear(x, dense, layer.bias) * target).sin().sum().backward()
    assert dense.grad is not None
    scale = ALPHA / RANK
    torch.testing.assert_close(layer.lora_B.grad, scale * dense.grad @ layer.lora_A.T)
    torch.testing.assert_close(layer.lora_A.grad, scale * layer.lora_B.T @ dense.grad)
    assert layer.weight.grad is None
    assert layer.bias.grad is None


@pytest.mark.parametrize("key_bias", [False, True])
def test_merged_equals_unmerged_and_has_the_ordinary_names(key_bias: bool) -> None:
    plain, light = adapted(key_bias)
    images = torch.randn(3, 3, 16, 16)
    merged = classifier(key_bias).eval()
    merged.load_state_dict(merged_state(light), strict=True)
    with torch.no_grad():
        torch.testing.assert_close(merged(images), light(images), rtol=1e-6, atol=1e-6)
        assert not torch.allclose(merged(images), plain(images), atol=1e-2)
    changed = {name for name, tensor in merged.state_dict().items() if not torch.equal(tensor, plain.state_dict()[name])}
    layers = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    assert changed == {f"backbone.blocks.{index}.{layer}.weight" for index in range(4) for layer in layers}


@pytest.mark.parametrize("form", ["native", "huggingface", "microsoft"])
def test_saved_files_are_ordinary(tmp_path: Path, form: str) -> None:
    _, light = adapted()
    path = tmp_path / ("model.pth" if form == "microsoft" else "model")
    save(light, path, format=form)  # type: ignore[arg-type]
    images = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(load(path)(images), light(images), rtol=1e-6, atol=1e-6)


def test_recomputed_and_dropped_branches_have_the_same_gradients() -> None:
    _, light = adapted()
    x = torch.randn(6, 5, 96)
    found = []
    for recompute in (False, True):
        block = copy.deepcopy(light.backbone.each_block()[0]).train()
        assert isinstance(block, Block)
        block.recompute, block.drop_path = recompute, 0.5
        torch.manual_seed(1)
        block(x, None).square().sum().backward()
        found.append([block.attn.qkv.lora_A.grad, block.mlp.fc2.lora_B.grad])
    torch.testing.assert_close(found[0], found[1])
    assert all(gradient.abs().sum() > 0 for gradient in found[0])


def test_a_rank_that_is_none() -> None:
    with pytest.raises(
        UserError, match="`lora_rank` must be at most 5, as a layer of this network has 5 inputs and 7 outputs; got 6"
    ):
        LoRALinear(nn.Linear(5, 7), 6, 1.0)
