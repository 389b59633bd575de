"""Checkpoint layouts as name tables: official, Hugging Face, timm, mmpretrain, mmsegmentation, Detectron2, beitkit.

A layout has one table per kind of network. The layout of a file is the first one with a table that knows all its names. To add a
layout, add its tables here.
"""

from __future__ import annotations

from dataclasses import dataclass

from beitkit.interop.formats.names import NameTable, table

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
SHARED_TABLE = "rel_pos_bias.relative_position_bias_table"

SKIPPED = {
    "*.relative_position_index": "rebuilt from the grid",
    "*.attn.k_bias": "always zero",
    "target_generator.*": "the tokenizer of the pre-training, not the network",
    "data_preprocessor.*": "pixel statistics, not weights",
    "pixel_mean": "pixel statistics, not weights",
    "pixel_std": "pixel statistics, not weights",
    "backbone.bottom_up.backbone.fpn*": "Detectron2's feature pyramid, not the backbone",
    "backbone.fpn_*": "Detectron2's feature pyramid, not the backbone",
    "proposal_generator.*": "a detector's head, not the backbone",
    "roi_heads.*": "a detector's head, not the backbone",
}
"""Tensors in some files that no network here has, and why they are not needed."""


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


def _hugging_face(prefix: str) -> tuple[tuple[str, str | tuple[str, ...]], ...]:
    """The backbone as transformers 4 names it, and every file on the hub; transformers 5 still reads and writes these names."""
    layer = f"{prefix}encoder.layer.{{i}}."
    attention = layer + "attention.attention."
    return (
        ("cls_token", f"{prefix}embeddings.cls_token"),
        ("mask_token", f"{prefix}embeddings.mask_token"),
        ("pos_embed", f"{prefix}embeddings.position_embeddings"),
        ("patch_embed.proj.{p}", f"{prefix}embeddings.patch_embeddings.projection.{{p}}"),
        (SHARED_TABLE, f"{prefix}encoder.relative_position_bias.relative_position_bias_table"),
        ("blocks.{i}.attn.relative_position_bias_table", attention + "relative_position_bias.relative_position_bias_table"),
        ("blocks.{i}.norm1.{p}", layer + "layernorm_before.{p}"),
        ("blocks.{i}.norm2.{p}", layer + "layernorm_after.{p}"),
        ("blocks.{i}.attn.qkv.weight", tuple(f"{attention}{part}.weight" for part in ("query", "key", "value"))),
        ("blocks.{i}.attn.q_bias", attention + "query.bias"),
        ("blocks.{i}.attn.v_bias", attention + "value.bias"),
        ("blocks.{i}.attn.proj.{p}", layer + "attention.output.dense.{p}"),
        ("blocks.{i}.gamma_{j}", layer + "lambda_{j}"),
        ("blocks.{i}.mlp.fc1.{p}", layer + "intermediate.dense.{p}"),
        ("blocks.{i}.mlp.fc2.{p}", layer + "output.dense.{p}"),
    )


def _hugging_face_5(prefix: str) -> tuple[tuple[str, str | tuple[str, ...]], ...]:
    """The backbone as transformers 5 names it in memory; in files only if a bare state dict was saved."""
    layer = f"{prefix}layers.{{i}}."
    return (
        *(rule for rule in _hugging_face(prefix) if not rule[0].startswith(("blocks.", "rel_pos_bias."))),
        (SHARED_TABLE, f"{prefix}shared_position_bias.relative_position_bias_table"),
        ("blocks.{i}.attn.relative_position_bias_table", layer + "relative_position_bias.relative_position_bias_table"),
        ("blocks.{i}.norm1.{p}", layer + "layernorm_before.{p}"),
        ("blocks.{i}.norm2.{p}", layer + "layernorm_after.{p}"),
        ("blocks.{i}.attn.qkv.weight", tuple(f"{layer}attention.{part}_proj.weight" for part in "qkv")),
        ("blocks.{i}.attn.q_bias", layer + "attention.q_proj.bias"),
        ("blocks.{i}.attn.v_bias", layer + "attention.v_proj.bias"),
        ("blocks.{i}.attn.proj.{p}", layer + "attention.o_proj.{p}"),
        ("blocks.{i}.gamma_{j}", layer + "lambda_{j}"),
        ("blocks.{i}.mlp.fc1.{p}", layer + "mlp.fc1.{p}"),
        ("blocks.{i}.mlp.fc2.{p}", layer + "mlp.fc2.{p}"),
    )


UPER_5 = (
    ("decode_head.psp_modules.{i}.1.conv.{rest}", "decode_head.psp_modules.blocks.{i}.conv.convolution.{rest}"),
    ("decode_head.psp_modules.{i}.1.bn.{rest}", "decode_head.psp_modules.blocks.{i}.conv.normalization.{rest}"),
    ("decode_head.bottleneck.conv.{rest}", "decode_head.psp_bottleneck.convolution.{rest}"),
    ("decode_head.bottleneck.bn.{rest}", "decode_head.psp_bottleneck.normalization.{rest}"),
    ("decode_head.{name}_convs.{i}.conv.{rest}", "decode_head.{name}_convs.{i}.convolution.{rest}"),
    ("decode_head.{name}_convs.{i}.bn.{rest}", "decode_head.{name}_convs.{i}.normalization.{rest}"),
    ("decode_head.fpn_bottleneck.conv.{rest}", "decode_head.fpn_bottleneck.convolution.{rest}"),
    ("decode_head.fpn_bottleneck.bn.{rest}", "decode_head.fpn_bottleneck.normalization.{rest}"),
    ("auxiliary_head.convs.{i}.conv.{rest}", "auxiliary_head.convs.{i}.convolution.{rest}"),
    ("auxiliary_head.convs.{i}.bn.{rest}", "auxiliary_head.convs.{i}.normalization.{rest}"),
)
"""UPerNet as transformers 5 names it."""


def _hugging_face_layout(name: str, prefix: str, *uper: tuple[str, str]) -> Layout:
    trunk = _hugging_face(prefix)
    return Layout(
        name,
        {
            "masked": table(*trunk, ("norm.{p}", "layernorm.{p}"), ("lm_head.{p}", "lm_head.{p}")),
            "classify": table(
                *trunk,
                ("norm.{p}", f"{prefix}layernorm.{{p}}"),
                ("fc_norm.{p}", f"{prefix}pooler.layernorm.{{p}}"),
                ("head.{p}", "classifier.{p}"),
            ),
            "segment": table(
                *trunk,
                (PYRAMID, PYRAMID),
                *uper,
                ("decode_head.conv_seg.{p}", "decode_head.classifier.{p}"),
                ("auxiliary_head.conv_seg.{p}", "auxiliary_head.classifier.{p}"),
                *_same(*SEGMENTATION_HEADS),
            ),
            "backbone": table(*_hugging_face(""), ("norm.{p}", "layernorm.{p}"), ("fc_norm.{p}", "pooler.layernorm.{p}")),
        },
    )


HUGGING_FACE = _hugging_face_layout("huggingface", "beit.")
DATA2VEC_VISION = _hugging_face_layout("huggingface (data2vec-vision)", "data2vec_vision.", *UPER_5)
HUGGING_FACE_5 = Layout(
    "huggingface (names of transformers 5)",
    {
        "masked": table(*_hugging_face_5("beit."), ("norm.{p}", "layernorm.{p}"), ("lm_head.{p}", "lm_head.{p}")),
        "classify": table(
            *_hugging_face_5("beit."),
            ("norm.{p}", "beit.layernorm.{p}"),
            ("fc_norm.{p}", "beit.pooler.layernorm.{p}"),
            ("head.{p}", "classifier.{p}"),
        ),
        "segment": table(
            *_hugging_face_5("beit."),
            ("fpn1.0.{rest}", "fpn.fpn1.conv_transpose1.{rest}"),
            ("fpn1.1.{rest}", "fpn.fpn1.normalization.{rest}"),
            ("fpn1.3.{rest}", "fpn.fpn1.conv_transpose2.{rest}"),
            ("fpn2.0.{rest}", "fpn.fpn2.{rest}"),
            *UPER_5,
            ("decode_head.conv_seg.{p}", "decode_head.classifier.{p}"),
            ("auxiliary_head.conv_seg.{p}", "auxiliary_head.classifier.{p}"),
        ),
        "backbone": table(*_hugging_face_5(""), ("norm.{p}", "layernorm.{p}"), ("fc_norm.{p}", "pooler.layernorm.{p}")),
    },
)

MM_BLOCK = (
    ("norm1.{p}", "ln1.{p}"),
    ("norm2.{p}", "ln2.{p}"),
    ("mlp.fc1.{p}", "ffn.layers.0.0.{p}"),
    ("mlp.fc2.{p}", "ffn.layers.1.{p}"),
    *_same(*(name for name in BLOCK if not name.startswith(("norm", "mlp"))), "attn.relative_position_bias_table"),
)


def _mm_trunk(prefix: str) -> tuple[tuple[str, str], ...]:
    return (
        *_below(prefix, "cls_token", "mask_token", "pos_embed", SHARED_TABLE),
        ("patch_embed.proj.{p}", f"{prefix}patch_embed.projection.{{p}}"),
        *((f"blocks.{{i}}.{ours}", f"{prefix}layers.{{i}}.{theirs}") for ours, theirs in MM_BLOCK),
    )


MM_TRUNK = _mm_trunk("backbone.")
MMPRETRAIN = Layout(
    "mmpretrain",
    {
        "masked": table(
            *MM_TRUNK,
            ("norm.{p}", "backbone.ln1.{p}"),
            ("norm.{p}", "neck.norm.{p}"),
            ("lm_head.{p}", "head.cls_head.{p}"),
            *((f"cls_pt_layers.{{i}}.{ours}", f"neck.patch_aggregation.{{i}}.{theirs}") for ours, theirs in MM_BLOCK),
        ),
        "classify": table(
            *MM_TRUNK, ("norm.{p}", "backbone.ln1.{p}"), ("fc_norm.{p}", "backbone.ln2.{p}"), ("head.{p}", "head.fc.{p}")
        ),
        "backbone": table(*_mm_trunk(""), ("norm.{p}", "ln1.{p}"), ("fc_norm.{p}", "ln2.{p}")),
    },
)
MMSEGMENTATION = Layout(
    "mmsegmentation",
    {
        "segment": table(
            *MM_TRUNK,
            ("fpn1.{rest}", "neck.upsample_4x.{rest}"),
            ("fpn2.{rest}", "neck.upsample_2x.{rest}"),
            *_same(*SEGMENTATION_HEADS),
        )
    },
)

DETECTRON2 = Layout(
    "detectron2", {"backbone": table(*_below("backbone.bottom_up.backbone.", *TRUNK, "mask_token", "norm.{p}", "fc_norm.{p}"))}
)
"""Detectors of DiT's release; what is not the backbone is in `SKIPPED`."""

FOREIGN = (MICROSOFT, HUGGING_FACE, HUGGING_FACE_5, DATA2VEC_VISION, MMPRETRAIN, MMSEGMENTATION, DETECTRON2)
"""The layouts that a file without any description is tried against, in this order. timm's names are official ones."""

DALLE_ENCODER = table(("encoder.{rest}.weight", "{rest}.w"), ("encoder.{rest}.bias", "{rest}.b"))
DALLE_DECODER = table(("decoder.{rest}.weight", "{rest}.w"), ("decoder.{rest}.bias", "{rest}.b"))
"""DALL-E's two files; "official" here means the names of `tokenizers.dvae`."""
DISCRETE_VAE = table(*_same("codebook.weight", "encoder.{rest}", "decoder.{rest}"))
"""BEiT's own discrete VAE."""
VQ_KD = table(
    ("encoder.norm.{p}", "encoder.fc_norm.{p}"),
    ("decoder.norm.{p}", "decoder.fc_norm.{p}"),
    *_same(*(f"{side}.{name}" for side in ("encoder", "decoder") for name in TRUNK)),
    *_same("encode_task_layer.{i}.{p}", "decode_task_layer.{i}.{p}"),
    ("codebook.codes", "quantize.embedding.weight"),
    ("codebook.usage", "quantize.cluster_size"),
    ("codebook.is_started", "quantize.embedding.initted"),
)
"""BEiT v2's tokenizer; "official" here means the names of `tokenizers.vqkd`."""
VQ_KD_SKIPPED = {
    "quantize.embedding.cluster_size": "never used",
    "quantize.embedding.embed_avg": "never used",
    "teacher*": "the teacher network, needed in training only",
    "scaling*": "the teacher's pixel statistics, needed in training only",
    "loss*": "needed in training only",
}
