"""Networks without content: the same names, shapes and types as those that are drawn."""

import pytest
import torch

from beitkit.configs.model import BackboneConfig, ClassifierConfig, ClsBranchConfig, MaskedImageModelConfig, SegmenterConfig
from beitkit.configs.tokenizer import DVAEConfig, VQKDConfig
from beitkit.interop.kinds import KINDS, kind_of_config
from beitkit.nn.shapes import only_shapes

BODY = {"width": 24, "depth": 4, "heads": 4, "hidden": 48, "image_size": (32, 32), "patch": (8, 8)}
FINE, MASKED = BackboneConfig(**BODY, final_norm=False), BackboneConfig(**BODY, mask_token=True, pretrain_init=True)
CONFIGS = [
    ClassifierConfig(backbone=FINE, classes=("a", "b")),
    MaskedImageModelConfig(backbone=MASKED, vocabulary=8, cls_branch=ClsBranchConfig(early_layer=2, shared_head=False)),
    SegmenterConfig(backbone=FINE, classes=("a", "b"), channels=8),
    SegmenterConfig(backbone=FINE, classes=("a", "b"), head="setr_pup", channels=8),
    DVAEConfig(vocabulary=8, hidden=16),
    VQKDConfig(encoder=BackboneConfig(**BODY, absolute_positions=True), decoder_depth=1, vocabulary=8, target_dim=8),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)
def test_shapes_and_types_are_those_of_a_network_that_is_drawn(config: object) -> None:
    made = KINDS[kind_of_config(config)][0]
    drawn = made(config)
    before = torch.get_rng_state()
    with only_shapes():
        hollow = made(config)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(tensor.is_meta for tensor in hollow.state_dict().values())
    described = [
        {name: (tensor.shape, tensor.dtype) for name, tensor in one.state_dict().items()} | {
            name: parameter.requires_grad for name, parameter in one.named_parameters()
        }
        for one in (drawn, hollow)
    ]  # fmt: skip
    assert described[0] == described[1]


def test_what_has_content_is_written_inside() -> None:
    known = torch.zeros(3)
    with only_shapes():
        known.fill_(2.0)
    assert known.tolist() == [2.0, 2.0, 2.0]
