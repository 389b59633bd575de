"""Infer the config of a network from official tensors; what they do not show comes from hints or rules.

Width, depth, MLP, patch, channels, positions, LayerScale, heads, grid, classes and vocabulary follow from the shapes. What does
not: the initial value of LayerScale (irrelevant once trained), which block v2's branch starts from, the orientation of a
rectangle, which pixel statistics the images were normalized with, and, without a position table, the heads. The relatives with
the same tensors (DiT, data2vec-vision, EVA-01) are told apart by their shapes, plain ViTs and BEiT-3 by theirs of every block.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from jaxtyping import Int
from torch import Tensor

from beitkit.configs.data import CLIP, IMAGENET, INCEPTION, Preprocessing
from beitkit.configs.model import (
    NORM_EPS,
    SIZES,
    BackboneConfig,
    ClassifierConfig,
    ClsBranchConfig,
    MaskedImageModelConfig,
    Pair,
    RelativePositions,
    SegmenterConfig,
)
from beitkit.errors import UserError
from beitkit.interop.formats.layouts import EXTRA_TOKENS, SHARED_TABLE
from beitkit.interop.kinds import AnyNetworkConfig, BareBackbone, numbered
from beitkit.interop.stored import State
from beitkit.nn.position import table_rows

BLOCK_TABLE = "blocks.0.attn.relative_position_bias_table"
HEAD_WIDTH = 64  # of most networks; for sizes that nobody released
KNOWN_HEADS = {(size.width, size.depth): size.heads for size in SIZES.values()} | {(544, 24): 16, (1664, 48): 16}
"""Heads by (width, depth) of released networks, where no position table shows them: 88 wide in EVA-01 and BEiT v2's giant, 80 in
its huge one, 34 in its 24x544; 104 in the gigantic ViT."""
BEIT3_EPS = 1e-5
EVA_SIZE = (1408, 40)
WHOLE_CROP_FROM = 384  # official evaluation: images of this side and larger are not cropped (method 5.1)


@dataclass(frozen=True, kw_only=True)
class Hints:
    """Information besides the tensors; None where a file has none."""

    config: AnyNetworkConfig | None = None
    """The whole config; only in files written by beitkit."""
    image_size: Pair | None = None
    heads: int | None = None
    classes: tuple[str, ...] | None = None
    preprocessing: Preprocessing | None = None
    taps: tuple[int, int, int, int] | None = None
    palette: tuple[tuple[int, int, int], ...] | None = None
    early_layer: int | None = None
    layer_scale: float | None = None
    drop_path: float | None = None
    vocabulary: int | None = None
    """Of a masked-image network, where the file says that its outputs are visual tokens."""
    multilabel: bool = False
    names_classes: bool = True
    """Whether the head's outputs are classes; not so for one that projects to CLIP's space or regresses a number."""
    is_imagenet: bool | None = None
    """Whether the options of the training script say that it normalized with ImageNet's statistics."""
    norm_eps: float | None = None
    """Of LayerNorm, where it is what the network was trained with."""
    pooling: str | None = None
    """How a classifier pools, in timm's words: token, avg, or what no network here has."""
    family: Literal["BEiT v2", "data2vec-vision", "ViT"] | None = None
    """What the name of the file, or its config, says that it is."""
    notes: tuple[str, ...] = ()


def kind_of_state(tensors: State) -> str:
    """What the tensors, under official names, are for."""
    marks = {"lm_head.weight": "masked", "decode_head.conv_seg.weight": "segment", "head.weight": "classify"}
    return next((kind for name, kind in marks.items() if name in tensors), "backbone")


def describe(tensors: State, hints: Hints) -> tuple[AnyNetworkConfig, tuple[str, ...]]:
    """The config of the network, and notes on what was decided by rule.

    Raises:
        UserError: if the tensors are not those of a BEiT network, or are ambiguous.
    """
    if hints.config is not None:
        return hints.config, ("config: carried by the file",)
    kind, (backbone, backbone_notes) = kind_of_state(tensors), describe_backbone(tensors, hints)
    preprocessing, note = _preprocessing(kind, tensors, backbone, hints)
    notes = (*hints.notes, *backbone_notes, note)
    if kind == "masked":
        outputs, branch = tensors["lm_head.weight"].shape[0], _cls_branch(tensors, backbone.depth, hints)
        regression = "" if hints.vocabulary == outputs or branch is not None else _regression(outputs, backbone)
        return MaskedImageModelConfig(
            backbone=backbone,
            vocabulary=None if regression else outputs,
            features=outputs if regression else None,
            cls_branch=branch,
            preprocessing=preprocessing,
        ), (*notes, f"head: {regression}") if regression else notes
    if kind == "classify" and not hints.names_classes:
        return BareBackbone(backbone=backbone, preprocessing=preprocessing), (
            *notes,
            "head: left out, its outputs are no classes",
        )
    if kind == "classify":
        classes = _classes(tensors["head.weight"].shape[0], hints)
        pooling = "mean" if "fc_norm.weight" in tensors else "cls"
        if hints.pooling not in (None, "avg" if pooling == "mean" else "token"):
            order = "norm before" if pooling == "cls" else "norm after"
            raise UserError(
                f"the classifier pools by {hints.pooling!r} with a {order} pooling, which no network here does; "
                "expected the class token after the norm, or the patches' mean before it"
            )
        return ClassifierConfig(
            backbone=backbone, classes=classes, pooling=pooling, multilabel=hints.multilabel, preprocessing=preprocessing
        ), notes
    if kind == "segment":
        if "decode_head.fpn_bottleneck.conv.weight" not in tensors:
            raise UserError("the decoder in the file is not UPerNet, the only one that is read from files without a config")
        auxiliary = tensors.get("auxiliary_head.convs.0.conv.weight")
        segmenter = SegmenterConfig(
            backbone=backbone,
            classes=_classes(tensors["decode_head.conv_seg.weight"].shape[0], hints),
            channels=tensors["decode_head.conv_seg.weight"].shape[1],
            auxiliary_channels=None if auxiliary is None else auxiliary.shape[0],
            taps=hints.taps,
            palette=hints.palette if hints.classes is not None else None,
            preprocessing=preprocessing,
        )
        return segmenter, notes
    return BareBackbone(backbone=backbone, preprocessing=preprocessing), notes


def describe_backbone(tensors: State, hints: Hints) -> tuple[BackboneConfig, tuple[str, ...]]:
    """The backbone among official tensors, and notes on what was decided by rule.

    Raises:
        UserError: if there is none, or the tensors are ambiguous.
    """
    needed = ("cls_token", "patch_embed.proj.weight", "blocks.0.mlp.fc1.weight")
    absent = [name for name in needed if name not in tensors]
    if EXTRA_TOKENS in tensors:
        source = tensors[EXTRA_TOKENS].sources[0]
        raise UserError(f"the network has {source} beside the class token, and networks here have none; take a file without it")
    if absent:
        raise UserError(f"this is no BEiT network: it has no {' and no '.join(absent)} (in official names)")
    width, channels, *patch = tensors["patch_embed.proj.weight"].shape
    depth = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("blocks."))
    positions: RelativePositions = "shared" if SHARED_TABLE in tensors else "per_block" if BLOCK_TABLE in tensors else "none"
    grid = _grid(tensors, hints, (patch[0], patch[1]))
    has_layer_scale = "blocks.0.gamma_1" in tensors
    heads, notes = _heads(tensors, hints, width, depth)
    can_mask = "mask_token" in tensors and kind_of_state(tensors) in ("masked", "backbone")
    backbone = BackboneConfig(
        width=width,
        depth=depth,
        heads=heads,
        hidden=tensors["blocks.0.mlp.fc1.weight"].shape[0],
        image_size=(grid[0] * patch[0], grid[1] * patch[1]),
        patch=(patch[0], patch[1]),
        channels=channels,
        absolute_positions="pos_embed" in tensors,
        relative_positions=positions,
        layer_scale=(hints.layer_scale or _usual_layer_scale(width, depth)) if has_layer_scale else None,
        drop_path=hints.drop_path or 0.0,
        mask_token=can_mask,
        final_norm="norm.weight" in tensors,
        pretrain_init=can_mask,
        key_bias="blocks.0.attn.qkv.bias" in tensors,
        sub_norm="blocks.0.attn.norm.weight" in tensors,
        norm_eps=hints.norm_eps or (BEIT3_EPS if "blocks.0.attn.norm.weight" in tensors else NORM_EPS),
    )
    return backbone, notes


def _usual_layer_scale(width: int, depth: int) -> float:
    return next((size.layer_scale for size in SIZES.values() if (size.width, size.depth) == (width, depth)), 0.1)


def _heads(tensors: State, hints: Hints, width: int, depth: int) -> tuple[int, tuple[str, ...]]:
    """The number of heads: what the file shows or says, else that of the released network of its size, else a rule and a note."""
    table = tensors.get(SHARED_TABLE) or tensors.get(BLOCK_TABLE)
    known = (table.shape[1] if table is not None else None) or hints.heads or KNOWN_HEADS.get((width, depth))
    heads = known or width // HEAD_WIDTH
    if width % (known or HEAD_WIDTH):
        raise UserError(
            f"the file does not show its number of heads, and width {width} is no multiple of {known or HEAD_WIDTH}; "
            "add config.json"
        )
    rule = f"heads: {heads}, by the rule of {HEAD_WIDTH} numbers for each; the file does not say, and its size is not a known one"
    return heads, () if known else (rule,)


def _is_eva(backbone: BackboneConfig) -> bool:
    """Whether this is EVA-01's network (arXiv 2211.07636), alone of its size with absolute positions only and no LayerScale."""
    is_plain = backbone.absolute_positions and backbone.relative_positions == "none" and backbone.layer_scale is None
    return is_plain and not backbone.key_bias and (backbone.width, backbone.depth) == EVA_SIZE


def _regression(outputs: int, backbone: BackboneConfig) -> str:
    """Why a pre-training head regresses features; empty for one that predicts visual tokens."""
    if _is_eva(backbone):
        return f"regresses {outputs} features of CLIP, as EVA-01 does; there are no visual tokens"
    if outputs == backbone.width:
        return f"regresses {outputs} features, as wide as the network, as data2vec-vision does; there are no visual tokens"
    return ""


def _grid(tensors: State, hints: Hints, patch: Pair) -> Pair:
    """The grid of patches (gh, gw). The size in the file is used if its tensors agree; else the grid is a square."""
    table = tensors.get(SHARED_TABLE) or tensors.get(BLOCK_TABLE)
    rows = None if table is None else table.shape[0]
    tokens = tensors["pos_embed"].shape[1] if "pos_embed" in tensors else None
    if rows is None and tokens is None and hints.image_size is None:
        raise UserError("the file has no positions, so it does not show its image size; add config.json")
    if hints.image_size is not None:
        said = hints.image_size[0] // patch[0], hints.image_size[1] // patch[1]
        if _agrees(said, rows, tokens):
            return said
    side = (math.isqrt((rows or 0) - 3) + 1) // 2 if rows is not None and rows > 3 else math.isqrt((tokens or 1) - 1)
    if not _agrees((side, side), rows, tokens):
        raise UserError(
            f"the grid of patches is not a square ({rows if rows is not None else tokens} position rows), and the file does not "
            "say how high and wide it is; add config.json with image_size"
        )
    return side, side


def _agrees(grid: Pair, rows: int | None, tokens: int | None) -> bool:
    return (rows is None or table_rows(grid) == rows) and (tokens is None or grid[0] * grid[1] + 1 == tokens)


def _cls_branch(tensors: State, depth: int, hints: Hints) -> ClsBranchConfig | None:
    """v2's branch. Where it starts is not in the file: three blocks before the end in every released one (9 of 12, 21 of 24)."""
    layers = {name.split(".")[1] for name in tensors if name.startswith("cls_pt_layers.")}
    if not layers:
        return None
    early = hints.early_layer or max(1, depth - 3)
    return ClsBranchConfig(early_layer=early, head_layers=len(layers), shared_head="cls_pt_lm_head.weight" not in tensors)


def _classes(count: int, hints: Hints) -> tuple[str, ...]:
    if hints.classes is None:
        return numbered(count)
    if len(hints.classes) != count:
        raise UserError(f"the file names {len(hints.classes)} classes, its head has {count}; correct id2label in config.json")
    return hints.classes


def _preprocessing(kind: str, tensors: State, backbone: BackboneConfig, hints: Hints) -> tuple[Preprocessing, str]:
    """Pixel statistics of the file; else by the rule of method 8.3, with a note."""
    if hints.preprocessing is not None:
        as_said = "images: normalized as the file says"
        if hints.preprocessing.fit == "crop":
            return hints.preprocessing, as_said
        if kind != "segment":
            whole = "squeezed whole to the network's size" if hints.preprocessing.fit == "squeeze" else "whole, between bars"
            return hints.preprocessing, f"{as_said}, {whole}"
        slide = "labeled in sliding windows as by the official code; the file squeezes them, as `inference.mode='whole'` does"
        return replace(hints.preprocessing, fit="crop"), f"{as_said}, {slide}"
    is_version_2 = hints.family == "BEiT v2" or any(name.startswith("cls_pt_") for name in tensors)
    is_eva = _is_eva(backbone)
    is_data2vec = hints.family == "data2vec-vision" or (kind == "masked" and tensors["lm_head.weight"].shape[0] == backbone.width)
    if hints.is_imagenet is not None:
        chosen = IMAGENET if hints.is_imagenet else CLIP if is_eva else INCEPTION
        why = "the training options in the file say so"
    elif is_eva:
        chosen, why = CLIP, "as in EVA-01's code"
    elif backbone.sub_norm and kind == "classify":
        chosen, why = IMAGENET, "as in BEiT-3's code for ImageNet"
    elif backbone.sub_norm:
        chosen, why = INCEPTION, "as in BEiT-3's code"
    elif hints.family == "ViT":
        chosen, why = INCEPTION, "as transformers' ViTs; the folder does not say"
    elif backbone.key_bias:
        chosen, why = IMAGENET, "as MAE, DINO and DeiT; the file does not say"
    elif kind == "segment":
        chosen, why = IMAGENET, "as all official segmentation networks"
    elif is_version_2:
        chosen, why = IMAGENET, "as all official networks of BEiT v2"
    elif is_data2vec:
        chosen, why = IMAGENET, "as all official networks of data2vec-vision"
    elif kind == "masked" and backbone.relative_positions == "none" and backbone.layer_scale is None:
        chosen, why = IMAGENET, "as the official network pre-trained on ImageNet-1k with absolute positions"
    else:
        chosen, why = INCEPTION, "as the official networks of BEiT v1 and DiT; the file does not say"
    # EVA-01's and BEiT-3's classifiers were evaluated without a crop at every size.
    is_whole = min(backbone.image_size) >= WHOLE_CROP_FROM or ((is_eva or backbone.sub_norm) and kind == "classify")
    name = "ImageNet's statistics" if chosen is IMAGENET else "CLIP's statistics" if chosen is CLIP else "mean and deviation 0.5"
    return replace(chosen, crop_share=1.0 if is_whole else INCEPTION.crop_share), f"images: normalized with {name}, {why}"


def grid_of_index(index: Int[Tensor, "t t"]) -> Pair:
    """The grid (gh, gw) that an index table was made for: down a column, rows of patches begin where the index leaps."""
    column = index[1:, 1]
    leaps = (column[1:] - column[:-1] != 1).nonzero()
    width = int(leaps[0]) + 1 if len(leaps) else len(column)
    return len(column) // width, width
