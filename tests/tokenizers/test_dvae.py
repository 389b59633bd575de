from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from beitkit.configs.tokenizer import PUBLISHED_DVAES, DVAEConfig
from beitkit.contracts import Tokenizer
from beitkit.errors import UserError
from beitkit.tokenizers.dvae import DiscreteVAE


def dalle(vocabulary: int = 16, hidden: int = 8, first: int = 8) -> DVAEConfig:
    return DVAEConfig(
        geometry="dalle", vocabulary=vocabulary, hidden=hidden, codebook_dim=first, stride=8, reconstruction="logit_laplace"
    )


def beit(vocabulary: int = 16, hidden: int = 8, dim: int = 6, stride: int = 8) -> DVAEConfig:
    return DVAEConfig(geometry="beit", vocabulary=vocabulary, hidden=hidden, codebook_dim=dim, stride=stride)


def light(stride: int = 4, channels: int = 1) -> DVAEConfig:
    return DVAEConfig(geometry="light", vocabulary=16, hidden=32, codebook_dim=16, stride=stride, channels=channels)


SMALL = [dalle(), beit(), light(), light(stride=8, channels=3), light(stride=16), light(stride=2)]


def num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def fill_as_golden(module: nn.Module) -> None:
    """Fill rule of golden vector G: sorted official names (`w`, `b`), amplitude by fan-in, 0.05 for biases."""
    official = {name.removesuffix("eight").removesuffix("ias"): tensor for name, tensor in module.state_dict().items()}
    for j, name in enumerate(sorted(official)):
        tensor = official[name]
        amplitude = math.sqrt(2 / math.prod(tensor.shape[1:])) if tensor.ndim == 4 else 0.05
        i = torch.arange(tensor.numel(), dtype=torch.float64)
        tensor.copy_((amplitude * torch.sin(0.37 * i + 0.11 * j)).reshape(tensor.shape))


def test_published_parameter_counts() -> None:
    with torch.device("meta"):
        full = DiscreteVAE(PUBLISHED_DVAES["dalle"])
        assert num_parameters(full.encoder) == 53_786_240
        assert num_parameters(full.decoder) == 43_829_766
        assert num_parameters(DiscreteVAE(PUBLISHED_DVAES["beit"])) == 20_081_411


def test_dalle_golden_vector() -> None:
    tokenizer = DiscreteVAE(dalle(vocabulary=512, hidden=64, first=32))
    with torch.no_grad():
        fill_as_golden(tokenizer.encoder)
        fill_as_golden(tokenizer.decoder)
        images = (0.5 + 0.5 * torch.cos(0.013 * torch.arange(3 * 32 * 32, dtype=torch.float64))).float().reshape(1, 3, 32, 32)
        logits = tokenizer.logits(images)
        ids = (torch.arange(16) * 31 % 512).reshape(1, 4, 4)
        weights = nn.functional.one_hot(ids, 512).permute(0, 3, 1, 2).float()
        output = tokenizer.decode_relaxed(weights)
    assert logits.shape == (1, 512, 4, 4)
    assert output.shape == (1, 6, 32, 32)
    assert float(logits.sum()) == pytest.approx(2.66345, rel=1e-3)
    assert float(logits.abs().sum()) == pytest.approx(2436.48021, rel=1e-4)
    assert logits.flatten()[:5].tolist() == pytest.approx([-0.34281, -0.34197, -0.34196, -0.34262, -0.34253], rel=1e-4)
    assert (tokenizer.encode(images) == 137).all()
    assert float(output.sum()) == pytest.approx(-101.33545, rel=1e-4)
    assert float(output.abs().sum()) == pytest.approx(733.73696, rel=1e-4)
    assert output.flatten()[:5].tolist() == pytest.approx([-0.07955, -0.04286, -0.03176, -0.03058, -0.03091], abs=2e-5)
    expected = ((torch.sigmoid(output[:, :3]) - 0.1) / 0.8).clamp(0, 1)
    torch.testing.assert_close(tokenizer.decode(ids), expected, atol=1e-5, rtol=0)


def test_names_are_those_of_the_files_they_come_from() -> None:
    names = DiscreteVAE(dalle()).state_dict().keys()
    assert {"encoder.blocks.input.weight", "encoder.blocks.group_1.block_1.res_path.conv_1.weight"} <= names
    assert {"decoder.blocks.group_1.block_1.id_path.bias", "decoder.blocks.output.conv.weight"} <= names
    assert "encoder.blocks.group_1.block_1.id_path.weight" not in names
    expected = {"codebook.weight"}
    for part in ("encoder", "decoder"):
        for i in (0, 2, 4):
            expected |= {f"{part}.{i}.0.{kind}" for kind in ("weight", "bias")}
            expected |= {f"{part}.{i + 1}.net.{j}.{kind}" for j in (0, 2, 4) for kind in ("weight", "bias")}
        expected |= {f"{part}.6.{kind}" for kind in ("weight", "bias")}
    assert DiscreteVAE(beit()).state_dict().keys() == expected


def test_beit_geometry_against_the_written_out_formula() -> None:
    """Method 3.1, step by step from the state dict, for images in [-1, 1]."""
    torch.manual_seed(0)
    tokenizer = DiscreteVAE(beit())
    state, functional = tokenizer.state_dict(), nn.functional
    images = torch.rand(2, 3, 16, 24)

    def block(x: torch.Tensor, name: str) -> torch.Tensor:
        y = functional.conv2d(x, state[f"{name}.net.0.weight"], state[f"{name}.net.0.bias"], padding=1).relu()
        y = functional.conv2d(y, state[f"{name}.net.2.weight"], state[f"{name}.net.2.bias"], padding=1).relu()
        return functional.conv2d(y, state[f"{name}.net.4.weight"], state[f"{name}.net.4.bias"]) + x

    x = 2 * images - 1
    for i in (0, 2, 4):
        x = functional.conv2d(x, state[f"encoder.{i}.0.weight"], state[f"encoder.{i}.0.bias"], stride=2, padding=1).relu()
        x = block(x, f"encoder.{i + 1}")
    ids = functional.conv2d(x, state["encoder.6.weight"], state["encoder.6.bias"]).argmax(1)
    assert ids.unique().numel() > 1
    assert torch.equal(tokenizer.encode(images), ids)
    y = state["codebook.weight"][ids].permute(0, 3, 1, 2)
    for i in (0, 2, 4):
        y = functional.conv_transpose2d(
            y, state[f"decoder.{i}.0.weight"], state[f"decoder.{i}.0.bias"], stride=2, padding=1
        ).relu()
        y = block(y, f"decoder.{i + 1}")
    y = functional.conv2d(y, state["decoder.6.weight"], state["decoder.6.bias"])
    torch.testing.assert_close(tokenizer.decode(ids), ((y + 1) / 2).clamp(0, 1))


@pytest.mark.parametrize("config", SMALL, ids=lambda c: f"{c.geometry}{c.stride}")
def test_is_a_tokenizer_of_any_rectangle(config: DVAEConfig) -> None:
    torch.manual_seed(0)
    tokenizer = DiscreteVAE(config)
    assert isinstance(tokenizer, Tokenizer)
    images = torch.rand(2, config.channels, 2 * config.stride, 3 * config.stride)
    ids = tokenizer.encode(images)
    assert ids.shape == (2, 2, 3)
    assert ids.dtype == torch.int64
    assert int(ids.min()) >= 0
    assert int(ids.max()) < tokenizer.vocabulary
    decoded = tokenizer.decode(ids)
    assert decoded.shape == images.shape
    assert float(decoded.min()) >= 0
    assert float(decoded.max()) <= 1
    one_hot = nn.functional.one_hot(ids, config.vocabulary).permute(0, 3, 1, 2).float()
    torch.testing.assert_close(tokenizer.pixels(tokenizer.decode_relaxed(one_hot)), decoded, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("config", [dalle(hidden=32), beit(), light()], ids=lambda c: c.geometry)
def test_every_weight_gets_a_gradient(config: DVAEConfig) -> None:
    torch.manual_seed(0)
    tokenizer = DiscreteVAE(config)
    for parameter in tokenizer.parameters():  # residual paths of the light geometry start at zero
        parameter.data.add_(0.01 * torch.randn_like(parameter))
    logits = tokenizer.logits(torch.rand(2, config.channels, 16, 16))
    tokenizer.decode_relaxed(logits.softmax(1)).square().mean().backward()
    assert [name for name, parameter in tokenizer.named_parameters() if parameter.grad is None or not parameter.grad.any()] == []


def test_initialization_statistics() -> None:
    torch.manual_seed(0)
    blocks = DiscreteVAE(dalle(hidden=64)).encoder.get_submodule("blocks")
    for name in ("group_2.block_2.res_path.conv_1", "group_4.block_1.res_path.conv_4"):
        layer = blocks.get_submodule(name)
        assert isinstance(layer, nn.Conv2d)
        assert layer.bias is not None
        assert not layer.bias.any()
        fan_in = math.prod(layer.weight.shape[1:])
        assert float(layer.weight.detach().std()) == pytest.approx(fan_in**-0.5, rel=0.05)


def test_a_light_encoder_costs_little() -> None:
    """Below 10 MFLOP for a 28x28 image at the default width and 256 codes; a nano backbone's train step takes 250."""
    multiplications = 0

    def count(layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal multiplications
        assert isinstance(layer, nn.Conv2d)
        multiplications += output.numel() * layer.weight[0].numel()

    tokenizer = DiscreteVAE(DVAEConfig(geometry="light", vocabulary=256, stride=4, hidden=64, codebook_dim=64, channels=1))
    for layer in tokenizer.encoder.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(count)
    tokenizer.encode(torch.rand(1, 1, 28, 28))
    assert 2 * multiplications < 10e6


def test_fingerprint_follows_weights_and_config() -> None:
    torch.manual_seed(0)
    tokenizer = DiscreteVAE(light())
    first = tokenizer.fingerprint
    twin = DiscreteVAE(light())
    assert twin.fingerprint != first
    twin.load_state_dict(tokenizer.state_dict())
    assert twin.fingerprint == first == tokenizer.fingerprint
    with torch.no_grad():
        tokenizer.embeddings[3, 1] += 1e-3
    assert tokenizer.fingerprint != first


def test_mistakes_are_told_in_one_line() -> None:
    tokenizer = DiscreteVAE(light())
    with pytest.raises(UserError, match=r"30x28 pixels.*nearest.*32x28"):
        tokenizer.encode(torch.rand(1, 1, 30, 28))
    with pytest.raises(UserError, match="3 channels"):
        tokenizer.encode(torch.rand(1, 3, 28, 28))
    with pytest.raises(UserError, match="codes 0 to 15"):
        tokenizer.decode(torch.full((1, 2, 2), 16))


def test_a_light_encoder_sees_no_frame() -> None:
    """A constant image has the same scores everywhere, so an empty border needs no codes of its own."""
    torch.manual_seed(0)
    logits = DiscreteVAE(light()).logits(torch.zeros(1, 1, 28, 28)).detach()
    torch.testing.assert_close(logits, logits[:, :, 3:4, 3:4].expand_as(logits))
