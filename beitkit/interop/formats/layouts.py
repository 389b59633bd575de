"""Checkpoint layouts as name tables: official, Hugging Face, timm, plain ViTs, BEiT-3, OpenMMLab, Detectron2, beitkit.

A layout has one table per kind of network. The layout of a file is the first one with a table that knows all its names. To add a
layout, add its tables here.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

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
RELATIVES = ("attn.qkv.bias", "attn.norm.{p}", "mlp.norm.{p}")
"""Tensors of a block that BEiT has not: the bias of a plain ViT, BEiT-3's inner norms."""
NATIVE_TRUNK = (*TRUNK, *(f"blocks.{{i}}.{name}" for name in RELATIVES))
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
    skipped: dict[str, str] = field(default_factory=dict)
    """As `SKIPPED`, for this layout only."""


EXTRA_TOKENS = "extra_tokens"
"""Official name, so to speak, of tokens beside the class token, which no network here has: DeiT's for distillation, registers."""


def _same(*names: str) -> tuple[tuple[str, str], ...]:
    return tuple((name, name) for name in names)


def _below(prefix: str, *names: str) -> tuple[tuple[str, str], ...]:
    return tuple((name, prefix + name) for name in names)


NATIVE = Layout(
    "native",
    {
        "masked": table(
            *_below("cls_branch.", *CLS_BRANCH, *(f"cls_pt_layers.{{i}}.{name}" for name in RELATIVES)),
            *_same("lm_head.{p}"),
            *_below("backbone.", *NATIVE_TRUNK, "mask_token", "norm.{p}"),
        ),
        "classify": table(*_same("fc_norm.{p}", "head.{p}"), *_below("backbone.", *NATIVE_TRUNK, "norm.{p}")),
        "segment": table(*_same(*SEGMENTATION_HEADS), *_below("pyramid.", PYRAMID), *_below("backbone.", *NATIVE_TRUNK)),
        "backbone": table(*_below("backbone.", *NATIVE_TRUNK, "mask_token", "norm.{p}")),
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

VIT_TRUNK = (
    *_same("cls_token", "pos_embed", "patch_embed.proj.{p}", "blocks.{i}.attn.qkv.weight"),
    ("blocks.{i}.gamma_{j}", "blocks.{i}.ls{j}.gamma"),
    *_same(*(f"blocks.{{i}}.{name}" for name in (*BLOCK, *RELATIVES) if name not in ("attn.q_bias", "attn.v_bias"))),
    *((EXTRA_TOKENS, name) for name in ("dist_token", "reg_token", "register_tokens")),
)
VIT_SKIPPED = {
    "mask_token": "of another kind of pre-training",
    "decoder_*": "the decoder of MAE's pre-training, not the network",
    "head.mlp.*": "the head of DINO's pre-training, not the network",
    "head.last_layer.*": "the head of DINO's pre-training, not the network",
    "head_dist.*": "the head of the distillation token",
}
VIT = Layout(
    "plain ViT",
    {
        "classify": table(*VIT_TRUNK, *_same("norm.{p}", "fc_norm.{p}", "head.{p}")),
        "backbone": table(*VIT_TRUNK, *_same("norm.{p}", "fc_norm.{p}")),
    },
    VIT_SKIPPED,
)
"""MAE, DINO, DINOv2, DeiT, and what timm calls vit_* and deit_*."""
TIMM_VIT = replace(VIT, name="timm")
DINO = Layout(
    "plain ViT, below backbone.",
    {"backbone": table(*((ours, f"backbone.{theirs}") for ours, theirs in (*VIT_TRUNK, ("norm.{p}", "norm.{p}"))))},
    VIT_SKIPPED,
)
"""DINO's checkpoints of a whole run."""

BEIT3_LAYER, BEIT3_ATTENTION = "beit3.encoder.layers.{i}.", "beit3.encoder.layers.{i}.self_attn."
BEIT3 = Layout(
    "BEiT-3",
    {
        "classify": table(
            ("cls_token", "beit3.vision_embed.cls_token"),
            ("mask_token", "beit3.vision_embed.mask_token"),
            ("pos_embed", "beit3.encoder.embed_positions.A.weight"),
            ("patch_embed.proj.{p}", "beit3.vision_embed.proj.{p}"),
            ("blocks.{i}.norm1.{p}", BEIT3_LAYER + "self_attn_layer_norm.A.{p}"),
            ("blocks.{i}.norm2.{p}", BEIT3_LAYER + "final_layer_norm.A.{p}"),
            ("blocks.{i}.attn.qkv.{p}", tuple(f"{BEIT3_ATTENTION}{part}_proj.A.{{p}}" for part in "qkv")),
            ("blocks.{i}.attn.norm.{p}", BEIT3_ATTENTION + "inner_attn_ln.A.{p}"),
            ("blocks.{i}.attn.proj.{p}", BEIT3_ATTENTION + "out_proj.A.{p}"),
            ("blocks.{i}.mlp.fc1.{p}", BEIT3_LAYER + "ffn.A.fc1.{p}"),
            ("blocks.{i}.mlp.norm.{p}", BEIT3_LAYER + "ffn.A.ffn_layernorm.{p}"),
            ("blocks.{i}.mlp.fc2.{p}", BEIT3_LAYER + "ffn.A.fc2.{p}"),
            ("norm.{p}", "beit3.encoder.layer_norm.A.{p}"),
            *_same("fc_norm.{p}", "head.{p}"),
        )
    },
    {
        "beit3.*.B.*": "the branch for text",
        "beit3.text_embed.*": "the branch for text",
        "language_head.*": "the branch for text",
        "mlm_head.*": "the branch for text",
        "logit_scale": "for comparing images with text",
        "vision_head.*": "for comparing images with text",
        "pooler.*": "for questions about images",
        "head.[0-9]*": "for questions about images",
        "head.dense*": "for pairs of images",
        "head.norm*": "for pairs of images",
    },
)
"""BEiT-3's branch for images (arXiv 2208.10442), as torchscale names it."""


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

VIT_PARTS = ("query", "key", "value")


def _hugging_face_vit(prefix: str) -> tuple[tuple[str, str | tuple[str, ...]], ...]:
    """A plain ViT as transformers names it in files; that of DINOv2 has other names in its blocks."""
    layer = f"{prefix}encoder.layer.{{i}}."
    return (
        *(rule for rule in _hugging_face(prefix) if not rule[0].endswith(("mask_token", "_bias", "_bias_table", "qkv.weight"))),
        ("blocks.{i}.attn.qkv.{p}", tuple(f"{layer}attention.attention.{part}.{{p}}" for part in VIT_PARTS)),
        ("norm.{p}", f"{prefix}layernorm.{{p}}"),
        ("blocks.{i}.norm{j}.{p}", layer + "norm{j}.{p}"),
        ("blocks.{i}.gamma_{j}", layer + "layer_scale{j}.lambda1"),
        ("blocks.{i}.mlp.fc{j}.{p}", layer + "mlp.fc{j}.{p}"),
    )


HUGGING_FACE_VIT = Layout(
    "huggingface (vit)",
    {
        "classify": table(*_hugging_face_vit("vit."), ("head.{p}", "classifier.{p}")),
        "backbone": table(*_hugging_face_vit("")),
    },
    {
        "*embeddings.mask_token": "of another kind of pre-training",
        "decoder.*": "the decoder of a pre-training, not the network",
        "pooler.dense.*": "a layer over the class token that only trains with a task",
    },
)
"""ViT and MAE of transformers; without a prefix before the names, DINOv2 too."""

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

FOREIGN = (
    MICROSOFT,
    HUGGING_FACE,
    HUGGING_FACE_5,
    DATA2VEC_VISION,
    MMPRETRAIN,
    MMSEGMENTATION,
    DETECTRON2,
    VIT,
    DINO,
    BEIT3,
    HUGGING_FACE_VIT,
)
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
