"""The layouts that BEiT checkpoints come in, as name tables: official, Hugging Face, timm, mmpretrain, mmsegmentation, ours.

A layout has one table per kind of network. A file is in the first layout of which one table knows all its names; nothing
else decides. To add a layout is to add its tables here.
"""

from __future__ import annotations

from dataclasses import dataclass

from beitkit.interop.names import NameTable, table

BLOCK = (
    "norm1.{p}",
    "norm2.{p}",
    "attn.qkv.weight",
    "attn.q_bias",
    "attn.v_bias",
    "attn.proj.{p}",
    "gamma_1",
    "gamma_2",
    "mlp.fc1.{p}",
    "mlp.fc2.{p}",
)
TRUNK = (
    "cls_token",
    "pos_embed",
    "patch_embed.proj.{p}",
    "rel_pos_bias.relative_position_bias_table",
    "blocks.{i}.attn.relative_position_bias_table",
    *(f"blocks.{{i}}.{name}" for name in BLOCK),
)
CLS_BRANCH = (*(f"cls_pt_layers.{{i}}.{name}" for name in BLOCK), "cls_pt_norm.{p}", "cls_pt_lm_head.{p}")
SEGMENTATION_HEADS = ("decode_head.{rest}", "auxiliary_head.{rest}")
PYRAMID = "fpn{i}.{rest}"

SKIPPED = {
    ".relative_position_index": "rebuilt from the grid",
    ".k_bias": "always zero",
}
"""Endings of tensors that are in some files and in no network of ours, and why they are not needed."""


@dataclass(frozen=True)
class Layout:
    """A way to name tensors, by kind of network."""

    name: str
    tables: dict[str, NameTable]


def _same(*names: str) -> tuple[tuple[str, str], ...]:
    return tuple((name, name) for name in names)


def _below(prefix: str, *names: str) -> tuple[tuple[str, str], ...]:
    return tuple((name, prefix + name) for name in names)


NATIVE = Layout(
    "native",
    {
        "masked": table(
            *_below("cls_branch.", *CLS_BRANCH), *_same("lm_head.{p}"), *_below("backbone.", *TRUNK, "mask_token", "norm.{p}")
        ),
        "classify": table(*_same("fc_norm.{p}", "head.{p}"), *_below("backbone.", *TRUNK, "norm.{p}")),
        "segment": table(*_same(*SEGMENTATION_HEADS), *_below("pyramid.", PYRAMID), *_below("backbone.", *TRUNK)),
    },
)
MICROSOFT = Layout(
    "microsoft",
    {
        "masked": table(*_same(*TRUNK, "mask_token", "norm.{p}", "lm_head.{p}", *CLS_BRANCH)),
        "classify": table(*_same(*TRUNK, "norm.{p}", "fc_norm.{p}", "head.{p}")),
        "segment": table(*_same(*SEGMENTATION_HEADS), *_below("backbone.", *TRUNK, PYRAMID)),
        "backbone": table(*_same(*TRUNK, "mask_token", "norm.{p}", "fc_norm.{p}")),
    },
)
TIMM = Layout("timm", {kind: MICROSOFT.tables[kind] for kind in ("classify", "backbone")})
