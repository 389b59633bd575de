"""Heads on backbones: golden vectors of the official code, agreement with transformers, pooling, masks, published sizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BeitConfig, BeitForImageClassification, BeitForMaskedImageModeling

from beitkit.configs.model import BackboneConfig, ClassifierConfig, ClsBranchConfig, MaskedImageModelConfig
from beitkit.errors import UserError
from beitkit.nn.models import Classifier, MaskedImageModel

PREFIXES = {"backbone.": "", "cls_branch.": ""}
CLASSES = tuple("abcde")


def small(**options: Any) -> BackboneConfig:
    return BackboneConfig(width=24, depth=3, heads=4, hidden=96, image_size=(48, 48), patch=(16, 16), **options)


def classifier(pooling: str = "mean", **options: Any) -> Classifier:
    return Classifier(ClassifierConfig(backbone=small(final_norm=pooling == "cls", **options), classes=CLASSES, pooling=pooling))  # type: ignore[arg-type]


def masked_model(branch: ClsBranchConfig | None = None, **options: Any) -> MaskedImageModel:
    return MaskedImageModel(MaskedImageModelConfig(backbone=small(mask_token=True, **options), vocabulary=32, cls_branch=branch))


def assert_golden(values: Tensor, total: float, magnitude: float, first: list[float]) -> None:
    assert float(values.sum()) == pytest.approx(total, rel=1e-6)
    assert float(values.abs().sum()) == pytest.approx(magnitude, rel=1e-6)
    assert values.flatten()[: len(first)].tolist() == pytest.approx(first, rel=1e-6, abs=1e-7)


@torch.no_grad()
def test_golden_a_mean_pooling(golden_fill: Callable[..., Classifier], golden_input: Callable[..., Tensor]) -> None:
    model = golden_fill(classifier(relative_positions="per_block"), PREFIXES)
    assert len(model.state_dict()) == 55
    images = golden_input(2, 3, 48, 48)
    first = [0.3364435578, -0.4321940162, 0.1893377536, 0.1560735304, -0.1538027129, 0.3327497905]
    assert_golden(model(images), 0.1914945488, 2.5244775145, first)
    first = [1.1197366336, -0.5400045525, -0.9952838163, 1.9285703365, -1.1745313975, 0.1183304055]
    assert_golden(model.features(images), 0.4188936257, 39.2711540049, first)


@torch.no_grad()
def test_golden_b_class_token(golden_fill: Callable[..., Classifier], golden_input: Callable[..., Tensor]) -> None:
    model = golden_fill(classifier("cls", relative_positions="per_block"), PREFIXES)
    first = [0.2978606581, -0.4605720499, 0.1326829102, 0.1245159863, -0.1918488848, 0.2977358735]
    assert_golden(model(golden_input(2, 3, 48, 48)), -0.1947425497, 2.4146084326, first)


@torch.no_grad()
def test_golden_c_absolute_positions(golden_fill: Callable[..., Classifier], golden_input: Callable[..., Tensor]) -> None:
    model = golden_fill(classifier(relative_positions="none", absolute_positions=True, layer_scale=None), PREFIXES)
    images = golden_input(2, 3, 48, 48)
    first = [-0.1515965077, -0.4062043361, 0.1587513811, -0.4355916547, 0.2106457775, -0.1591930379]
    assert_golden(model(images), -1.2477251871, 2.7452569683, first)
    tokens = [
        torch.cat((features.cls[:, None], features.patches), dim=1) for features in model.backbone.intermediates(images, [0, 2])
    ]
    assert_golden(tokens[0], 49.6221238846, 407.2004599744, [1.139090357, -0.1744477246, -1.228975735])
    assert_golden(tokens[1], 54.6510978768, 982.3525896696, [4.2234601613, -1.2073120686, -2.3358981344])


@torch.no_grad()
def test_golden_d_masked_tokens(
    golden_fill: Callable[..., MaskedImageModel], golden_input: Callable[..., Tensor], golden_mask: Tensor
) -> None:
    model = golden_fill(masked_model(), PREFIXES)
    images = golden_input(2, 3, 48, 48)
    logits = model(images, golden_mask)
    first = [0.1721472664, -0.3977855545, -0.0304279755, 0.117628635, -0.2515319792, 0.494230772]
    assert_golden(logits, 2.6814667540, 40.2282243396, first)
    assert_golden(model.lm_head(model.backbone(images, golden_mask).patches), 8.9165936905, 155.0273592653, [])
    loss = nn.functional.cross_entropy(logits, torch.tensor([3, 7, 31, 0, 12]))
    assert float(loss) == pytest.approx(3.3501788247, rel=1e-6)


@torch.no_grad()
def test_golden_e_class_token_branch(
    golden_fill: Callable[..., MaskedImageModel], golden_input: Callable[..., Tensor], golden_mask: Tensor
) -> None:
    model = golden_fill(masked_model(ClsBranchConfig(early_layer=2)), PREFIXES)
    images = golden_input(2, 3, 48, 48)
    main, branch = model.both_logits(images, golden_mask, golden_mask)
    first = [1.50954394, -0.98091639, 0.6260701, 0.13819726, -0.89477844, 1.10387028]
    assert_golden(main, 1.69885012, 141.85754417, first)
    first = [1.13847922, -0.91889104, 0.89104143, -0.37705749, -0.27841436, 0.56484367]
    assert_golden(branch, 1.58252803, 111.59878212, first)
    torch.testing.assert_close(model(images, golden_mask), main)


def transformers_names(state: dict[str, Tensor], *, norm: str) -> dict[str, Tensor]:
    """Our state dict under the names that transformers 5 has in memory; `norm` is where the final norm lives."""
    blocks = [
        ("attn.proj.", "attention.o_proj."),
        ("attn.relative_position_bias_table", "relative_position_bias.relative_position_bias_table"),
        ("attn.q_bias", "attention.q_proj.bias"),
        ("attn.v_bias", "attention.v_proj.bias"),
        ("norm1.", "layernorm_before."),
        ("norm2.", "layernorm_after."),
        ("gamma_", "lambda_"),
    ]
    tops = [
        ("backbone.blocks.", "beit.layers."),
        ("backbone.rel_pos_bias.", "beit.shared_position_bias."),
        ("backbone.patch_embed.proj.", "beit.embeddings.patch_embeddings.projection."),
        ("backbone.pos_embed", "beit.embeddings.position_embeddings"),
        ("backbone.norm.", norm),
        ("backbone.", "beit.embeddings."),
        ("fc_norm.", "beit.pooler.layernorm."),
        ("head.", "classifier."),
    ]
    named = {}
    for ours, tensor in state.items():
        name = next((theirs + ours.removeprefix(prefix) for prefix, theirs in tops if ours.startswith(prefix)), ours)
        if name.startswith("beit.layers."):
            for part, theirs in blocks:
                name = name.replace(part, theirs)
        if name.endswith("attn.qkv.weight"):
            for letter, rows in zip("qkv", tensor.chunk(3), strict=True):
                named[name.replace("attn.qkv", f"attention.{letter}_proj")] = rows
        else:
            named[name] = tensor
    return named


def transformers_config(config: BackboneConfig, **options: Any) -> BeitConfig:
    return BeitConfig(
        hidden_size=config.width,
        num_hidden_layers=config.depth,
        num_attention_heads=config.heads,
        intermediate_size=config.hidden,
        image_size=config.image_size[0],
        patch_size=config.patch[0],
        num_channels=config.channels,
        layer_norm_eps=1e-6,
        layer_scale_init_value=config.layer_scale or 0.0,
        use_absolute_position_embeddings=config.absolute_positions,
        use_shared_relative_position_bias=config.relative_positions == "shared",
        use_relative_position_bias=config.relative_positions == "per_block",
        drop_path_rate=0.0,
        **options,
    )


def randomize(model: nn.Module) -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    model.eval()


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"relative_positions": "none", "absolute_positions": True, "layer_scale": None}])
def test_masked_logits_agree_with_transformers(options: dict[str, Any], golden_mask: Tensor) -> None:
    ours = masked_model(**options)
    randomize(ours)
    config = transformers_config(ours.config.backbone, vocab_size=32, use_mask_token=True)
    theirs = BeitForMaskedImageModeling(config).eval()
    theirs.load_state_dict(transformers_names(ours.state_dict(), norm="layernorm."))
    images = torch.randn(2, 3, 48, 48)
    expected = theirs(images, bool_masked_pos=golden_mask).logits[golden_mask]
    torch.testing.assert_close(ours(images, golden_mask), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_class_logits_agree_with_transformers(pooling: str) -> None:
    ours = classifier(pooling, relative_positions="per_block")
    randomize(ours)
    config = transformers_config(ours.config.backbone, num_labels=5, use_mean_pooling=pooling == "mean")
    theirs = BeitForImageClassification(config).eval()
    theirs.load_state_dict(transformers_names(ours.state_dict(), norm="beit.layernorm."))
    images = torch.randn(2, 3, 48, 48)
    torch.testing.assert_close(ours(images), theirs(images).logits, atol=1e-5, rtol=1e-5)


def test_masked_logits_come_in_row_major_order(golden_mask: Tensor) -> None:
    model = masked_model().eval()
    images = torch.randn(2, 3, 48, 48)
    patches = model.backbone(images, golden_mask).patches
    expected = [model.lm_head(patches[image, place]) for image, place in ((0, 0), (0, 4), (0, 5), (1, 2), (1, 8))]
    torch.testing.assert_close(model(images, golden_mask), torch.stack(expected))


def test_pooling_takes_patches_or_the_class_token() -> None:
    images = torch.randn(2, 3, 48, 48)
    mean, cls = classifier("mean").eval(), classifier("cls").eval()
    assert mean.fc_norm is not None
    torch.testing.assert_close(mean.features(images), mean.fc_norm(mean.backbone(images).patches.mean(1)))
    assert cls.fc_norm is None
    assert torch.equal(cls.features(images), cls.backbone(images).cls)


@torch.no_grad()
def test_heads_start_as_the_table_says() -> None:
    torch.manual_seed(0)
    config = ClassifierConfig(backbone=small(final_norm=False), classes=tuple(map(str, range(1000))))
    assert float(Classifier(config).head.weight.std()) == pytest.approx(0.02 * 0.001, rel=0.05)
    assert float(Classifier(config, head_scale=1.0).head.weight.std()) == pytest.approx(0.02, rel=0.05)
    masked = MaskedImageModel(MaskedImageModelConfig(backbone=small(mask_token=True), vocabulary=1000))
    assert float(masked.lm_head.weight.std()) == pytest.approx(0.02 * 0.53956, rel=0.05)
    assert masked.lm_head.weight.abs().max() <= 0.02 * (1 + 1e-6)
    for head in (masked.lm_head, Classifier(config).head):
        assert not head.bias.any()


@pytest.mark.parametrize("branch", [None, ClsBranchConfig(early_layer=2), ClsBranchConfig(early_layer=3, shared_head=False)])
def test_every_parameter_gets_a_gradient(branch: ClsBranchConfig | None, golden_mask: Tensor) -> None:
    model = masked_model(branch)
    images = torch.randn(2, 3, 48, 48)
    logits = (model(images, golden_mask),) if branch is None else model.both_logits(images, golden_mask, golden_mask)
    torch.stack([(part * torch.randn_like(part)).sum() for part in logits]).sum().backward()
    unreached = {name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()}
    assert not unreached


def test_branch_reaches_late_blocks_through_the_class_token_only(golden_mask: Tensor) -> None:
    model = masked_model(ClsBranchConfig(early_layer=2)).eval()
    late_tokens: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        output.retain_grad()
        late_tokens.append(output)

    model.backbone.blocks[2].register_forward_hook(keep)
    model.both_logits(torch.randn(2, 3, 48, 48), golden_mask, golden_mask)[1].square().sum().backward()
    (late,) = late_tokens
    assert late.grad is not None
    assert late.grad[:, 0].any()
    assert not late.grad[:, 1:].any()


@torch.no_grad()
def test_branch_starts_as_in_the_official_code() -> None:
    torch.manual_seed(0)
    model = masked_model(ClsBranchConfig(early_layer=2, head_layers=3, shared_head=False), drop_path=0.4, pretrain_init=True)
    assert model.cls_branch is not None
    blocks: list[Any] = list(model.cls_branch.cls_pt_layers)
    # 3 blocks, 2 + 3 = 5 steps: the line goes from 0 to 0.4 over max(3, 5) blocks.
    assert [block.drop_path for block in blocks] == pytest.approx([0.2, 0.3, 0.4])
    for index, block in enumerate(blocks):
        shrink = (2 * (2 + index + 1)) ** 0.5
        # PyTorch's default: uniform within 1 / sqrt(inputs), biases too.
        for weight, inputs, divisor in [
            (block.attn.qkv.weight, 24, 1),
            (block.mlp.fc1.weight, 24, 1),
            (block.attn.proj.weight, 24, shrink),
            (block.mlp.fc2.weight, 96, shrink),
        ]:
            assert float(weight.abs().max()) * divisor == pytest.approx(inputs**-0.5, rel=0.03)
            assert float(weight.abs().max()) * divisor <= inputs**-0.5 * (1 + 1e-6)
        assert block.mlp.fc1.bias.any()
        assert not block.attn.q_bias.any()
    assert model.cls_branch.cls_pt_lm_head is not None
    assert model.cls_branch.cls_pt_lm_head.weight.abs().max() <= 0.02 * (1 + 1e-6)


def count_masked(name: str, branch: ClsBranchConfig | None = None, **options: Any) -> int:
    backbone = BackboneConfig.named(name, mask_token=True, **options)
    with torch.device("meta"):
        model = MaskedImageModel(MaskedImageModelConfig(backbone=backbone, vocabulary=8192, cls_branch=branch))
    return sum(parameter.numel() for parameter in model.parameters())


ABSOLUTE = {"absolute_positions": True, "relative_positions": "none"}


@pytest.mark.parametrize(
    ("name", "options", "count"),
    [
        ("base/16", {}, 91_965_776),
        ("base/16", {**ABSOLUTE, "layer_scale": None}, 92_089_856),
        ("base/16", ABSOLUTE, 92_108_288),
        ("large/16", {}, 311_534_016),
        ("large/16", {**ABSOLUTE, "layer_scale": None}, 311_674_880),
        ("large/16", ABSOLUTE, 311_724_032),
        ("base/16", {"branch": ClsBranchConfig(early_layer=9)}, 106_143_056),
        ("base/16", {"branch": ClsBranchConfig(early_layer=9, shared_head=False)}, 112_444_240),
        ("large/16", {"branch": ClsBranchConfig(early_layer=21)}, 336_728_512),
    ],
)
def test_published_parameter_counts(name: str, options: dict[str, Any], count: int) -> None:
    assert count_masked(name, **options) == count


@pytest.mark.parametrize(
    ("name", "image_size", "classes", "count"),
    [
        ("base/16", 224, 1000, 86_530_984),
        ("base/16", 384, 1000, 86_744_104),
        ("base/16", 224, 21_841, 102_557_713),
        ("large/16", 224, 1000, 304_430_568),
        ("large/16", 512, 1000, 305_674_728),
        ("large/16", 384, 21_841, 326_360_913),
    ],
)
def test_published_classifier_parameter_counts(name: str, image_size: int, classes: int, count: int) -> None:
    backbone = BackboneConfig.named(name, image_size=image_size, relative_positions="per_block", final_norm=False)
    with torch.device("meta"):
        model = Classifier(ClassifierConfig(backbone=backbone, classes=tuple(map(str, range(classes)))))
    assert sum(parameter.numel() for parameter in model.parameters()) == count


def test_layers_and_decay_of_whole_networks() -> None:
    masked, classes = masked_model(ClsBranchConfig(early_layer=2), absolute_positions=True), classifier(absolute_positions=True)
    assert masked.layer_of("backbone.mask_token") == classes.layer_of("backbone.patch_embed.proj.weight") == 0
    assert masked.layer_of("backbone.blocks.2.attn.q_bias") == classes.layer_of("backbone.blocks.2.norm1.weight") == 3
    for name in ("lm_head.weight", "backbone.norm.weight", "cls_branch.cls_pt_layers.0.norm1.weight"):
        assert masked.layer_of(name) == 4
    for name in ("head.weight", "fc_norm.bias", "backbone.rel_pos_bias.relative_position_bias_table"):
        assert classes.layer_of(name) == 4
    assert {name for name, _ in masked.named_parameters() if masked.no_decay(name)} == {
        "backbone.cls_token",
        "backbone.pos_embed",
    }
    assert {name for name, _ in classes.named_parameters() if classes.no_decay(name)} == {
        "backbone.cls_token",
        "backbone.pos_embed",
    }


def test_wrong_use_is_one_clear_line(golden_mask: Tensor) -> None:
    with pytest.raises(UserError, match="has no class-token branch"):
        masked_model().both_logits(torch.zeros(2, 3, 48, 48), golden_mask, golden_mask)
    with pytest.raises(UserError, match="at most the backbone's 3 blocks, got 4"):
        masked_model(ClsBranchConfig(early_layer=4))
    with pytest.raises(UserError, match="`early_layer` must be at least 1, got 0"):
        ClsBranchConfig(early_layer=0)
    with pytest.raises(UserError, match="mask_token=True"):
        replace(masked_model().config, backbone=small())


def test_grid_pooling_puts_the_means_of_the_cells_side_by_side() -> None:
    backbone = BackboneConfig(width=8, depth=1, heads=2, hidden=16, image_size=(24, 16), patch=(4, 4), final_norm=False)
    model = Classifier(ClassifierConfig(backbone=backbone, classes=("a", "b"), pooling="grid", pool_cells=2)).eval()
    images = torch.rand(3, 3, 24, 16)
    with torch.no_grad():
        patches = model.backbone(images).patches  # 6 rows of 4
        assert model.fc_norm is not None
        cells = []
        for rows in (range(3), range(3, 6)):
            for columns in (range(2), range(2, 4)):
                cells.append(
                    model.fc_norm(torch.stack([patches[:, 4 * row + column] for row in rows for column in columns]).mean(0))
                )
        expected = model.head(torch.cat(cells, dim=1) / 4)
        torch.testing.assert_close(model(images), expected)
    assert model.head.weight.shape == (2, 32)


def test_grid_pooling_with_equal_weights_for_all_cells_is_mean_pooling_of_normalized_cells() -> None:
    backbone = BackboneConfig(width=8, depth=1, heads=2, hidden=16, image_size=(16, 16), patch=(4, 4), final_norm=False)
    grid = Classifier(ClassifierConfig(backbone=backbone, classes=("a", "b"), pooling="grid", pool_cells=1)).eval()
    mean = Classifier(ClassifierConfig(backbone=backbone, classes=("a", "b"))).eval()
    mean.load_state_dict(grid.state_dict())
    images = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(grid(images), mean(images))
