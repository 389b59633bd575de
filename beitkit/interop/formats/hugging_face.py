"""Files of a Hugging Face folder besides the weights: `config.json`, `preprocessor_config.json` and the model card."""

from __future__ import annotations

from typing import Any, get_args

from beitkit.configs.data import Filter
from beitkit.configs.model import BareBackbone, ClassifierConfig, MaskedImageModelConfig, Pair, SegmenterConfig
from beitkit.data.views.framing import in_words, outer_size
from beitkit.errors import UserError
from beitkit.interop.kinds import CROP_MODES, MULTILABEL, TASKS, AnyNetworkConfig, kind_of_config

ARCHITECTURES = {
    "masked": "BeitForMaskedImageModeling",
    "classify": "BeitForImageClassification",
    "segment": "BeitForSemanticSegmentation",
    "backbone": "BeitModel",
}
FEATURES = "image-feature-extraction"
PIPELINES = {"masked": FEATURES, "backbone": FEATURES, "classify": "image-classification", "segment": "image-segmentation"}
FILTERS: tuple[Filter, ...] = get_args(Filter)


def refuse_for_hugging_face(config: AnyNetworkConfig) -> tuple[str, ...]:
    """Notes on what transformers does differently.

    Raises:
        UserError: if transformers has no such network.
    """
    backbone, notes = config.backbone, []
    if backbone.patch[0] != backbone.patch[1]:
        raise UserError(
            f"transformers has square patches only, this network's are {backbone.patch[0]}x{backbone.patch[1]}; "
            "use microsoft or native"
        )
    if backbone.sub_norm:
        raise UserError("transformers' BEiT has no inner norms, as this network (BEiT-3's) has; use timm or native")
    if isinstance(config, BareBackbone) and not backbone.final_norm:
        raise UserError("transformers' BEiT without a head has a norm at its end, and this one has none; use microsoft or native")
    if backbone.norm_eps == 1e-12:
        notes.append("LayerNorm's eps 1e-12 is written, and obeyed by transformers; beitkit takes it for 1e-6 in files of BEiT")
    if isinstance(config, MaskedImageModelConfig):
        if not backbone.final_norm:
            raise UserError("transformers has no masked-image model without a final norm; use microsoft or native")
        if config.cls_branch is not None:
            notes.append("the class-token branch is left out: transformers has none, and only pre-training uses it")
    if isinstance(config, SegmenterConfig):
        if config.head != "uper":
            raise UserError(f"transformers has BEiT with UPerNet only, this network has the head {config.head}; use native")
        if config.decoder_channels != backbone.width:
            raise UserError(
                f"transformers' decoder is as wide as the backbone ({backbone.width}), this one is {config.decoder_channels}; "
                "use microsoft or native"
            )
        if backbone.patch != (16, 16):
            raise UserError("transformers has the feature pyramid for patches of 16 pixels only; use microsoft or native")
        notes.append(
            "transformers feeds its pyramid from blocks two below those that out_indices names, so its results will differ"
        )
    if backbone.channels == 1:
        notes.append("transformers' processor does not make images gray; give it gray ones (Pillow's mode L)")
    if config.preprocessing.fit == "crop" and backbone.image_size[0] != backbone.image_size[1]:
        notes.append("transformers' processor squeezes images to a rectangle; ours keeps their aspect and cuts the center")
    if config.preprocessing.fit == "letterbox":
        notes.append("transformers' processor squeezes whole images; ours keeps their aspect, between bars of the mean color")
    if backbone.grid[0] != backbone.grid[1] and backbone.relative_positions != "none":
        notes.append("transformers confuses the axes of position tables for images that are not square; its results will differ")
    if config.preprocessing.value_range is not None:
        ranges = ", ".join(f"{low:g} to {high:g}" for low, high in dict.fromkeys(config.preprocessing.value_range))
        notes.append(f"transformers' processor takes values from 0 to 255: bring those of the images, {ranges}, there first")
    return tuple(notes)


def hugging_face_config(config: AnyNetworkConfig) -> dict[str, Any]:
    """The content of `config.json`, every field that differs from transformers' defaults and those that matter."""
    backbone = config.backbone
    content: dict[str, Any] = {
        "architectures": [ARCHITECTURES[kind_of_config(config)]],
        "model_type": "beit",
        "hidden_size": backbone.width,
        "num_hidden_layers": backbone.depth,
        "num_attention_heads": backbone.heads,
        "intermediate_size": backbone.hidden,
        "hidden_act": "gelu",
        "layer_norm_eps": backbone.norm_eps,
        "image_size": _side_or_pair(backbone.image_size),
        "patch_size": backbone.patch[0],
        "num_channels": backbone.channels,
        "use_mask_token": backbone.mask_token,
        "use_absolute_position_embeddings": backbone.absolute_positions,
        "use_relative_position_bias": backbone.relative_positions == "per_block",
        "use_shared_relative_position_bias": backbone.relative_positions == "shared",
        "layer_scale_init_value": backbone.layer_scale or 0.0,
        "drop_path_rate": backbone.drop_path,
        "dtype": "float32",
    }
    if isinstance(config, MaskedImageModelConfig):
        return content | {"vocab_size": config.vocabulary, "use_mean_pooling": True}
    if isinstance(config, BareBackbone):
        return content | {"use_mean_pooling": False}
    content["id2label"] = {str(index): name for index, name in enumerate(config.classes)}
    content["label2id"] = {name: index for index, name in enumerate(config.classes)}
    if isinstance(config, ClassifierConfig):
        problem = {"problem_type": MULTILABEL} if config.multilabel else {}
        return content | {"use_mean_pooling": config.pooling == "mean"} | problem
    return content | {
        "out_indices": list(config.tapped_blocks),
        "pool_scales": [1, 2, 3, 6],
        "use_auxiliary_head": config.auxiliary_channels is not None,
        "auxiliary_channels": config.auxiliary_channels or 256,
        "auxiliary_num_convs": 1,
        "auxiliary_concat_input": False,
        "auxiliary_loss_weight": 0.4,
        "semantic_loss_ignore_index": 255,
    }


def processor_config(config: AnyNetworkConfig) -> dict[str, Any]:
    """The content of `preprocessor_config.json`: for square networks the very pixels that our evaluation sees."""
    preprocessing, (height, width) = config.preprocessing, config.backbone.image_size
    is_whole = preprocessing.shows_whole((height, width))
    outer = (height, width) if is_whole else outer_size((height, width), preprocessing.crop_share)
    keeps_aspect = height == width and not is_whole and preprocessing.fit == "crop"
    # Gray networks take the average of the statistics, as our own reading does.
    mean, std = (
        [sum(values) / len(values)] if config.backbone.channels == 1 else list(values)
        for values in (preprocessing.mean, preprocessing.std)
    )
    return {
        "image_processor_type": "BeitImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": outer[0]} if keeps_aspect else {"height": outer[0], "width": outer[1]},
        "resample": FILTERS.index(preprocessing.filter),
        "do_center_crop": not is_whole,
        "crop_size": {"height": height, "width": width},
        "crop_pct": preprocessing.crop_share,
        "crop_mode": CROP_MODES[preprocessing.fit],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": mean,
        "image_std": std,
        "do_reduce_labels": False,
    }


def model_card(config: AnyNetworkConfig, name: str) -> str:
    """The model card of a folder."""
    kind, backbone = kind_of_config(config), config.backbone
    height, width = backbone.image_size
    facts = [
        f"- {TASKS[kind]}; {backbone.depth} blocks of width {backbone.width}, {backbone.heads} heads, "
        f"patches of {backbone.patch[0]}x{backbone.patch[1]} pixels, images of {height}x{width}",
        f"- pixels: {in_words(config.preprocessing, backbone.image_size)}",
    ]
    several = ", several at once (sigmoid)" if isinstance(config, ClassifierConfig) and config.multilabel else ""
    if not isinstance(config, MaskedImageModelConfig | BareBackbone):
        first = f"{', '.join(config.classes[:10])}{', ...' if len(config.classes) > 10 else ''}"
        facts.append(f"- {len(config.classes)} classes{several}: {first}")
    facts += [f"- {note}" for note in refuse_for_hugging_face(config)]
    return "\n".join(
        (
            "---",
            "library_name: transformers",
            f"pipeline_tag: {PIPELINES[kind]}",
            "tags:",
            "- beit",
            "- beitkit",
            "---",
            "",
            f"# {name}",
            "",
            "A BEiT vision Transformer ([arXiv 2106.08254](https://arxiv.org/abs/2106.08254)), trained with beitkit.",
            "",
            *facts,
            "",
            "```python",
            f"from transformers import AutoImageProcessor, {ARCHITECTURES[kind]}",
            "",
            f'processor = AutoImageProcessor.from_pretrained("{name}")',
            f'model = {ARCHITECTURES[kind]}.from_pretrained("{name}")',
            "```",
            "",
            f'or, with beitkit, `beitkit.load("{name}")`.',
            "",
        )
    )


def _side_or_pair(size: Pair) -> int | list[int]:
    return size[0] if size[0] == size[1] else list(size)
