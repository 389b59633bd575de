"""A frozen tokenizer in the fast precision where that finds the same tokens, and in float32 where it does not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from beitkit.configs.tokenizer import DVAEConfig
from beitkit.tokenizers.dvae import DiscreteVAE
from beitkit.tokenizers.frozen import LEAST_AGREEMENT, Encoder, encoder_of

IMAGES = torch.randint(0, 256, (4, 3, 20, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


class Rounding:
    """Under autocast the first `wrong` of the 400 ids of four images are others; the images come as floats in [0, 1]."""

    vocabulary, stride, channels, fingerprint = 8, 2, 3, "rounding"

    def __init__(self, wrong: int) -> None:
        self.wrong = wrong

    def encode(self, images: Tensor) -> Tensor:
        """Ids."""
        assert images.max() <= 1
        assert not torch.is_grad_enabled()
        ids = torch.zeros(400, dtype=torch.int64)
        if torch.is_autocast_enabled("cpu"):
            ids[: self.wrong] = 1
        return ids.view(4, 10, 10)

    def decode(self, ids: Tensor) -> Tensor:
        """Not needed here."""
        raise NotImplementedError


@pytest.mark.parametrize(("wrong", "is_fast"), [(0, True), (2, True), (3, False)])
def test_the_fast_precision_is_used_where_it_agrees(wrong: int, is_fast: bool) -> None:
    assert LEAST_AGREEMENT == 0.995  # the product's promise: two of 400 are just allowed
    encoder = encoder_of(Rounding(wrong), IMAGES, torch.bfloat16)
    assert (encoder.precision is torch.bfloat16) == is_fast
    assert encoder.agreement == pytest.approx(1 - wrong / 400)
    assert encoder(IMAGES).sum() == (wrong if is_fast else 0)
    assert encoder.describe().startswith(
        "tokenizer in bfloat16: " if is_fast else "tokenizer in float32: in bfloat16 only 99.25%"
    )


def test_the_precision_that_was_tried_is_named() -> None:
    assert encoder_of(Rounding(0), IMAGES, torch.float16).describe().startswith("tokenizer in float16: 100.00%")
    assert "in float16 only 99.25%" in encoder_of(Rounding(3), IMAGES, torch.float16).describe()


def test_tokens_are_computed_without_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    seen = []
    tokenizer = Rounding(0)
    monkeypatch.setattr(
        tokenizer,
        "encode",
        lambda images: seen.append((cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark)) or images[:, 0].long(),
    )
    before = cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark
    Encoder.laid_out(tokenizer)(IMAGES)
    assert seen == [(False, False, True)]
    assert (cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark) == before
    assert before[0], "there was nothing to turn off"


def test_float32_is_not_tried_against_itself() -> None:
    encoder = encoder_of(Rounding(400), IMAGES, None)
    assert (encoder.precision, encoder.agreement, encoder.describe()) == (None, None, "")


@pytest.mark.parametrize("geometry", ["dalle", "beit", "light"])
def test_laying_out_changes_no_token_and_bfloat16_few(geometry) -> None:
    torch.manual_seed(0)
    likelihood = "logit_laplace" if geometry == "dalle" else "mse"
    config = DVAEConfig(geometry=geometry, vocabulary=64, hidden=16, codebook_dim=16, stride=8, reconstruction=likelihood)
    tokenizer = DiscreteVAE(config).eval()
    with torch.no_grad():  # as a trained one: scores that differ
        tokenizer.code_layer.weight.normal_()
    images = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
    plain = tokenizer.encode(images.float() / 255)
    fingerprint = tokenizer.fingerprint
    encoder = Encoder.laid_out(tokenizer)
    assert torch.equal(encoder(images), plain)
    assert tokenizer.fingerprint == fingerprint
    scores = tokenizer.logits(images.float() / 255)
    reduced = Encoder.laid_out(tokenizer, torch.bfloat16)(images)
    best, chosen = scores.amax(1), scores.gather(1, reduced[:, None])[:, 0]
    assert (best - chosen).max() < 0.05 * scores.std(), "another token is chosen only where two are nearly as good"
