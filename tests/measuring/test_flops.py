"""Closed forms against PyTorch's counter on the real networks, and the published figures."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from beitkit.configs.model import DVAEConfig, MaskedImageModelConfig
from beitkit.measuring.flops import forward_flops, step_flops, tokenizer_flops
from beitkit.measuring.result import share
from beitkit.measuring.workload import TOKENIZER, Workload
from beitkit.nn.models import MaskedImageModel
from beitkit.tokenizers.dvae import DiscreteVAE

SMALL = Workload(size="nano", image_size=64, patch=16, batch_size=3)


def counted(work) -> int:
    # The counter knows no formula for the CPU's fused attention, but the matrix products it is made of.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def test_forward_and_step_are_what_pytorch_counts() -> None:
    backbone = SMALL.masked_config.backbone
    model = MaskedImageModel(MaskedImageModelConfig(backbone=backbone, vocabulary=40))
    inputs = SMALL.inputs(torch.device("cpu"))
    with torch.no_grad():
        forward = counted(lambda: model(inputs.images, inputs.mask))
    step = counted(lambda: model(inputs.images, inputs.mask).square().mean().backward())
    assert forward == 3 * forward_flops(backbone, 40, SMALL.num_masked)
    assert step == 3 * step_flops(backbone, 40, SMALL.num_masked)


def test_a_tokenizers_encoder_is_what_pytorch_counts() -> None:
    config = DVAEConfig(geometry="dalle", vocabulary=16, hidden=8, codebook_dim=4, reconstruction="logit_laplace")
    assert tokenizer_flops(config, (16, 24)) == counted(lambda: DiscreteVAE(config).encode(torch.zeros(1, 3, 16, 24)))


def test_the_base_size_costs_what_is_known() -> None:
    base = Workload(size="base", image_size=224, patch=16, batch_size=8)
    assert (base.num_masked, base.token_size) == (75, (112, 112))
    backbone = base.masked_config.backbone
    assert forward_flops(backbone, 8192, 75) == pytest.approx(36e9, rel=0.01)
    assert step_flops(backbone, 8192, 75) == pytest.approx(108e9, rel=0.01)
    assert tokenizer_flops(TOKENIZER, base.token_size) == pytest.approx(52e9, rel=0.02)


def test_a_share_adds_the_time_of_each_precision() -> None:
    # 4 pictures: 4 x 10 at 20 a second take 2 s, 4 x 6 at 8 a second take 3 s; the step took 10 s.
    assert share({"bfloat16": 10, "float32": 6}, 4, {"bfloat16": 20.0, "float32": 8.0}, 10.0) == pytest.approx(0.5)
    assert share({}, 4, {}, 10.0) is None
