"""VQ-KD against the official code's golden vector and published sizes; what it promises as a tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from beitkit.configs.codec import from_json, to_json
from beitkit.configs.data import IMAGENET
from beitkit.configs.model import BackboneConfig
from beitkit.configs.tokenizer import VQKDConfig
from beitkit.contracts import Tokenizer
from beitkit.errors import UserError
from beitkit.tokenizers.vqkd import VQKD


def small(image: tuple[int, int] = (48, 48), channels: int = 3, **options: Any) -> VQKDConfig:
    encoder = BackboneConfig(
        width=24,
        depth=2,
        heads=4,
        hidden=96,
        image_size=image,
        patch=(16, 16),
        channels=channels,
        absolute_positions=True,
        relative_positions="none",
        layer_scale=None,
    )
    return VQKDConfig(
        **{
            "encoder": encoder,
            "decoder_depth": 1,
            "vocabulary": 16,
            "code_dim": 4,
            "target_dim": 8,
            "start_from_data": False,
            **options,
        }
    )


@torch.no_grad()
def test_golden_f(golden_fill: Callable[..., VQKD], golden_input: Callable[..., Tensor]) -> None:
    official = {"encoder.norm.": "encoder.fc_norm.", "decoder.norm.": "decoder.fc_norm."}
    model = golden_fill(VQKD(small()), official, kept=("codebook.",))
    rows = torch.sin(0.7 * torch.arange(64, dtype=torch.float64) + 0.3).view(16, 4)
    model.codebook.codes.copy_(F.normalize(rows, dim=1))
    images = 0.5 + 0.5 * golden_input(2, 3, 48, 48)
    assert (model.encode(images) == 3).all()
    quantized = model.quantize(images)
    assert float(quantized.commitment) == pytest.approx(0.2465415269, rel=1e-6)
    assert quantized.vectors.shape == (2, 4, 3, 3)
    assert float(quantized.vectors.sum()) == pytest.approx(-12.34349174, rel=1e-6)
    assert float(quantized.vectors.abs().sum()) == pytest.approx(30.83313501, rel=1e-6)
    assert float(quantized.vectors.flatten()[0]) == pytest.approx(0.49509915, rel=1e-6)
    distilled = model(images)
    assert distilled.features.shape == (2, 9, 8)
    assert float(distilled.features.sum()) == pytest.approx(22.94417183, rel=1e-6)
    assert float(distilled.features.abs().sum()) == pytest.approx(30.50131479, rel=1e-6)
    first = [0.30382705, -0.09383154, 0.25448397, 0.24428538, 0.02206779, 0.42703601]
    assert distilled.features.flatten()[:6].tolist() == pytest.approx(first, rel=1e-6)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("depth", "target", "total", "decoder"),
    [(1, 512, 95_187_488, 7_266_048), (3, 512, 109_361_696, 21_440_256), (1, 768, 95_384_352, 7_266_048)],
)
def test_published_parameter_counts(depth: int, target: int, total: int, decoder: int) -> None:
    encoder = BackboneConfig.named("base/16", absolute_positions=True, relative_positions="none", layer_scale=None)
    with torch.device("meta"):
        model = VQKD(VQKDConfig(encoder=encoder, decoder_depth=depth, target_dim=target))
    assert count(model.encoder) == 85_789_440
    assert count(model.decoder) == decoder
    # Officially the codes, their never used averages and counts are parameters too: 8192 * (32 + 32 + 1).
    assert count(model) + 2 * model.codebook.codes.numel() + model.codebook.usage.numel() == total


def test_is_a_tokenizer() -> None:
    torch.manual_seed(0)
    model = VQKD(small((32, 48))).eval()
    assert isinstance(model, Tokenizer)
    assert (model.vocabulary, model.stride, model.channels) == (16, 16, 3)
    ids = model.encode(torch.rand(2, 3, 32, 48))
    assert ids.shape == (2, 2, 3)
    assert ids.dtype == torch.int64
    assert 0 <= int(ids.min()) <= int(ids.max()) < 16


def test_images_are_normalized_as_the_config_says() -> None:
    torch.manual_seed(0)
    images = torch.rand(1, 3, 48, 48)
    for preprocessing, mean, std in (
        (small().preprocessing, torch.full((3,), 0.5), torch.full((3,), 0.5)),
        (IMAGENET, torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])),
    ):
        model = VQKD(small(preprocessing=preprocessing)).eval()
        seen: list[Tensor] = []
        model.encoder.patch_embed.register_forward_pre_hook(lambda _module, inputs, seen=seen: seen.append(inputs[0]))
        model.encode(images)
        torch.testing.assert_close(seen[0], (images - mean[:, None, None]) / std[:, None, None])
    gray = VQKD(small(channels=1, preprocessing=IMAGENET)).eval()
    gray.encoder.patch_embed.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    gray.encode(images[:, :1])
    torch.testing.assert_close(seen[1], (images[:, :1] - 0.449) / 0.226)


def test_the_same_ids_in_a_batch_and_alone_dark_or_bright() -> None:
    torch.manual_seed(0)
    model = VQKD(small()).eval()
    images = torch.rand(3, 3, 48, 48) * torch.tensor([0.003, 0.5, 1.0])[:, None, None, None]
    together = model.encode(images)
    for index in range(3):
        assert torch.equal(model.encode(images[index : index + 1])[0], together[index])


def test_evaluation_changes_no_buffer() -> None:
    model = VQKD(small(start_from_data=True)).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.encode(torch.rand(2, 3, 48, 48))
    model(torch.rand(2, 3, 48, 48))
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_training_step_reaches_every_parameter_and_moves_the_codes() -> None:
    torch.manual_seed(0)
    model = VQKD(small(start_from_data=True)).train()
    distilled = model(torch.rand(2, 3, 48, 48))
    loss = (1 - F.cosine_similarity(distilled.features, torch.randn(2, 9, 8), dim=2)).mean() + distilled.commitment
    loss.backward()
    # The class tokens take part in attention only; nothing reads them out, but their keys and values are used.
    unreached = {name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()}
    assert not unreached
    assert bool(model.codebook.is_started)
    assert model.codebook.usage.sum() == pytest.approx(0.01 * 18)


def test_codes_are_looked_up_in_full_precision_under_autocast() -> None:
    torch.manual_seed(0)
    model = VQKD(small()).eval()
    images = torch.rand(2, 3, 48, 48)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        quantized = model.quantize(images)
        seen = model.encode(images)
    assert quantized.vectors.dtype == quantized.commitment.dtype == torch.float32
    assert torch.equal(seen, quantized.ids)


def test_fingerprint_follows_what_ids_depend_on() -> None:
    torch.manual_seed(0)
    model = VQKD(small()).eval()
    before = model.fingerprint
    assert len(before) == 32
    model.codebook.usage.add_(1)
    assert model.fingerprint == before
    with torch.no_grad():
        model.encode_task_layer[2].bias[0] += 1
    assert model.fingerprint != before


def test_config_survives_json() -> None:
    config = small(preprocessing=IMAGENET)
    assert from_json(VQKDConfig, to_json(config)) == config
    assert config.decoder.image_size == (3, 3)
    assert (config.decoder.channels, config.decoder.patch, config.decoder.depth) == (4, (1, 1), 1)


def test_there_is_no_way_back_to_pixels() -> None:
    with pytest.raises(UserError, match="teacher's features, not for pixels"):
        VQKD(small()).decode(torch.zeros(1, 3, 3, dtype=torch.int64))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder": BackboneConfig.named("nano/16", final_norm=False)}, "final_norm=True"),
        ({"vocabulary": 1}, "at least 2, got 1"),
        ({"decoder_depth": 0}, "`decoder_depth` must be at least 1, got 0"),
        ({"code_decay": 1.0}, r"must lie in \(0, 1\), got 1"),
    ],
)
def test_wrong_use_is_one_clear_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        small(**options)
    assert "\n" not in str(raised.value)
