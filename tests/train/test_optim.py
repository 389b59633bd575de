"""Parameter groups against method 4.1 and 4.2."""

import pytest
import torch

from beitkit.configs.model import BackboneConfig, ClassifierConfig, MaskedImageModelConfig
from beitkit.configs.train import OptimConfig
from beitkit.nn.models import Classifier, MaskedImageModel
from beitkit.train.optim import layered_groups, make_optimizer, parameter_groups

# Official scales for 12 blocks at 0.65, rounded to eight digits.
GOLDEN_SCALES = [
    0.00369721, 0.00568801, 0.00875078, 0.01346274, 0.02071191, 0.03186448, 0.04902228,
    0.07541889, 0.11602906, 0.17850625, 0.274625, 0.4225, 0.65, 1.0,
]  # fmt: skip


def classifier(depth: int = 12) -> Classifier:
    backbone = BackboneConfig(
        width=8, depth=depth, heads=2, hidden=16, image_size=(8, 8), patch=(4, 4), relative_positions="per_block",
        absolute_positions=True, final_norm=False,
    )  # fmt: skip
    return Classifier(ClassifierConfig(backbone=backbone, classes=("a", "b")))


def test_layer_scales_equal_the_official_ones() -> None:
    model = classifier()
    groups = layered_groups(model, model, OptimConfig(layer_decay=0.65))
    assert sorted({group["lr_scale"] for group in groups}) == pytest.approx(GOLDEN_SCALES, abs=5e-9)


def test_every_parameter_is_in_one_group_and_decays_by_the_rule() -> None:
    backbone = BackboneConfig.named("nano/4", image_size=8, mask_token=True, absolute_positions=True)
    model = MaskedImageModel(MaskedImageModelConfig(backbone=backbone, vocabulary=8))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = layered_groups(model, model, OptimConfig(layer_decay=0.5, weight_decay=0.05))
    grouped = [names[id(parameter)] for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(names.values())
    decay = {names[id(parameter)]: group["weight_decay"] for group in groups for parameter in group["params"]}
    for name in ("backbone.mask_token", "backbone.rel_pos_bias.relative_position_bias_table", "lm_head.weight"):
        assert decay[name] == 0.05, name
    for name in ("backbone.cls_token", "backbone.pos_embed", "backbone.blocks.0.gamma_1", "backbone.blocks.0.attn.q_bias"):
        assert decay[name] == 0, name
    scale = {names[id(parameter)]: group["lr_scale"] for group in groups for parameter in group["params"]}
    assert scale["backbone.mask_token"] == scale["backbone.patch_embed.proj.weight"] == 0.5**5
    assert scale["backbone.rel_pos_bias.relative_position_bias_table"] == scale["lm_head.bias"] == 1


def test_plain_groups_split_matrices_from_vectors() -> None:
    groups = parameter_groups(torch.nn.Linear(3, 2), 0.1)
    assert {(tuple(group["params"][0].shape), group["weight_decay"]) for group in groups} == {((2, 3), 0.1), ((2,), 0.0)}


def test_frozen_parameters_are_left_out() -> None:
    layer = torch.nn.Linear(3, 2)
    layer.bias.requires_grad_(False)
    assert [len(group["params"]) for group in parameter_groups(layer, 0.1)] == [1]


def test_one_step_follows_adamw_by_hand() -> None:
    layer = torch.nn.Linear(1, 1, bias=False)
    layer.weight.data.fill_(2.0)
    optimizer = make_optimizer(parameter_groups(layer, 0.1), OptimConfig(betas=(0.9, 0.999), eps=1e-8))
    optimizer.param_groups[0]["lr"] = 0.01
    layer(torch.ones(1, 1)).backward()  # gradient 1: the first AdamW step is lr in size, after decay by lr * 0.1
    optimizer.step()
    assert layer.weight.item() == pytest.approx(2.0 * (1 - 0.01 * 0.1) - 0.01, rel=1e-6)
