"""Attention maps: those of transformers' BEiT on the same weights, of a softmax by hand, and what the fast path computes with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import BeitConfig, BeitModel

from beitkit.configs.model import BackboneConfig, RelativePositions
from beitkit.errors import UserError
from beitkit.interop.load import load
from beitkit.nn.attention_maps import attention_maps
from beitkit.nn.backbone import Backbone

SIZES = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48, "image_size": 48}


@pytest.mark.parametrize(
    "positions", ["use_relative_position_bias", "use_shared_relative_position_bias", "use_absolute_position_embeddings"]
)
def test_those_of_transformers(positions: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = BeitModel(BeitConfig(**SIZES, layer_norm_eps=1e-6, attn_implementation="eager", **{positions: True})).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    theirs.save_pretrained(tmp_path)
    images = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        expected = theirs(images, output_attentions=True).attentions
    found = attention_maps(load(tmp_path).backbone, images, [0, 1, 2])
    for ours, reference in zip(found, expected, strict=True):
        assert reference.std() > 0.01  # far from uniform, or equality would say little
        torch.testing.assert_close(ours, reference, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("positions", ["none", "shared", "per_block"])
@pytest.mark.parametrize("key_bias", [False, True])
def test_a_softmax_by_hand_and_the_fast_path(positions: RelativePositions, key_bias: bool) -> None:
    backbone = _backbone(positions, key_bias)
    images = torch.randn(2, 3, 24, 32, dtype=torch.float64)
    mask = torch.rand(2, 12) < 0.4
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []
    attn = backbone.each_block()[1].attn
    attn.register_forward_pre_hook(lambda _module, given: inputs.append(given[0]))
    attn.register_forward_hook(lambda _module, _given, output: outputs.append(output))
    with torch.no_grad():
        backbone(images, mask)
        x, shared = inputs[0], None if backbone.rel_pos_bias is None else backbone.rel_pos_bias()
        queries, keys, values = (x @ attn.qkv.weight[part * 24 : (part + 1) * 24].T for part in range(3))
        if attn.qkv.bias is None:
            assert attn.q_bias is not None
            assert attn.v_bias is not None
            queries, values = queries + attn.q_bias, values + attn.v_bias
        else:
            queries, keys, values = (y + attn.qkv.bias[i * 24 : (i + 1) * 24] for i, y in enumerate((queries, keys, values)))
        expected = torch.zeros(2, 4, 13, 13, dtype=torch.float64)
        for head in range(4):
            part = slice(6 * head, 6 * head + 6)
            for query in range(13):
                scores = (keys[:, :, part] @ queries[:, query, part].unsqueeze(-1))[..., 0] / 6**0.5  # (b, t)
                if shared is not None:
                    scores = scores + shared[0, head, query]
                if attn.relative_position_bias_table is not None:
                    scores = scores + attn.relative_position_bias_table[attn.relative_position_index[query], head]
                expected[:, head, query] = scores.exp() / scores.exp().sum(1, keepdim=True)
        (whole,) = attention_maps(backbone, images, [1], mask=mask)
        (some,) = attention_maps(backbone, images, [1], torch.tensor([0, 7]), mask)
    torch.testing.assert_close(whole.double(), expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(some, whole[:, :, [0, 7]])
    mixed = (expected @ values.unflatten(2, (4, 6)).transpose(1, 2)).transpose(1, 2).flatten(2)
    torch.testing.assert_close(mixed @ attn.proj.weight.T + attn.proj.bias, outputs[0])


def test_blocks_that_are_not_there() -> None:
    for blocks in ([2], [1, 0], [-1]):
        with pytest.raises(UserError, match="blocks are numbered 0 to 1 and ascend"):
            attention_maps(_backbone("none", False), torch.zeros(1, 3, 24, 32, dtype=torch.float64), blocks)


def _backbone(positions: RelativePositions, key_bias: bool) -> Backbone:
    torch.manual_seed(0)
    config = BackboneConfig(
        width=24, depth=2, heads=4, hidden=48, image_size=(24, 32), patch=(8, 8), relative_positions=positions,
        absolute_positions=positions == "none", mask_token=True, key_bias=key_bias,
    )  # fmt: skip
    backbone = Backbone(config).double().eval()
    for parameter in backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return backbone
