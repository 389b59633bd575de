"""The `config.json` of a timm folder, from which timm rebuilds a classifier."""

from __future__ import annotations

import math
from typing import Any

from beitkit.configs.model import ClassifierConfig
from beitkit.errors import UserError
from beitkit.interop.kinds import CROP_MODES, MULTILABEL, TASKS, AnyNetworkConfig, kind_of_config

ARCHITECTURE = "beit_base_patch16_224"
"""The registered timm model that other sizes are built from, with other arguments."""


def refuse_for_timm(config: AnyNetworkConfig) -> tuple[str, ...]:
    """No notes; raises a `UserError` if timm has no such network."""
    if not isinstance(config, ClassifierConfig):
        raise UserError(
            f"timm has BEiT for classification only, this network is for {TASKS[kind_of_config(config)]}; "
            "use microsoft, huggingface or native"
        )
    return ()


def timm_config(config: AnyNetworkConfig) -> dict[str, Any]:
    """The content of `config.json`."""
    assert isinstance(config, ClassifierConfig)
    backbone, preprocessing = config.backbone, config.preprocessing
    height, width = backbone.image_size
    return {
        "architecture": ARCHITECTURE,
        "num_classes": len(config.classes),
        # Not timm's: it has no word for networks that give several classes; `load` reads it.
        **({"problem_type": MULTILABEL} if config.multilabel else {}),
        "num_features": backbone.width,
        "global_pool": "avg" if config.pooling == "mean" else "token",
        "model_args": {
            "img_size": [height, width],
            "patch_size": list(backbone.patch),
            "in_chans": backbone.channels,
            "embed_dim": backbone.width,
            "depth": backbone.depth,
            "num_heads": backbone.heads,
            "mlp_ratio": _ratio(backbone.width, backbone.hidden),
            "init_values": backbone.layer_scale,
            "use_abs_pos_emb": backbone.absolute_positions,
            "use_rel_pos_bias": backbone.relative_positions == "per_block",
            "use_shared_rel_pos_bias": backbone.relative_positions == "shared",
            "drop_path_rate": backbone.drop_path,
            "global_pool": "avg" if config.pooling == "mean" else "token",
        },
        "pretrained_cfg": {
            "num_classes": len(config.classes),
            "input_size": [backbone.channels, height, width],
            "fixed_input_size": True,
            "interpolation": preprocessing.filter,
            "crop_pct": preprocessing.crop_share,
            "crop_mode": CROP_MODES[preprocessing.fit],
            "mean": list(preprocessing.mean),
            "std": list(preprocessing.std),
            "first_conv": "patch_embed.proj",
            "classifier": "head",
            "label_names": list(config.classes),
        },
    }


def _ratio(width: int, hidden: int) -> float:
    """hidden / width, such that timm's int(width * ratio) gives hidden again."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)
