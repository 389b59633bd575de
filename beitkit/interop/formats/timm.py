"""The `config.json` of a timm folder, from which timm rebuilds a classifier, or a backbone without a head."""

from __future__ import annotations

import math
from typing import Any

from beitkit.configs.model import NORM_EPS, BackboneConfig, BareBackbone, ClassifierConfig
from beitkit.errors import UserError
from beitkit.interop.kinds import CROP_MODES, MULTILABEL, TASKS, AnyNetworkConfig, kind_of_config

BEIT, VIT, BEIT3 = "beit_base_patch16_224", "vit_base_patch16_224", "beit3_base_patch16_224"
"""The registered timm models that other sizes are built from, with other arguments."""
BEIT3_EPS = 1e-5


def refuse_for_timm(config: AnyNetworkConfig) -> tuple[str, ...]:
    """No notes; raises a `UserError` if timm has no such network."""
    backbone = config.backbone
    if backbone.norm_eps != (eps := BEIT3_EPS if backbone.sub_norm else NORM_EPS):
        raise UserError(
            f"timm builds such a network with LayerNorms of eps {eps:g}, this one's is {backbone.norm_eps:g}; use native"
        )
    has_only_absolute = backbone.absolute_positions and backbone.relative_positions == "none"
    if (backbone.key_bias or backbone.sub_norm) and not (backbone.key_bias and has_only_absolute):
        raise UserError("timm has a bias of the keys, and inner norms, in plain ViTs with absolute positions only; use native")
    if isinstance(config, BareBackbone) and not backbone.final_norm:
        raise UserError("timm ends every network without a head with a norm, and this one has none; use microsoft or native")
    if not isinstance(config, ClassifierConfig | BareBackbone):
        raise UserError(
            f"timm has BEiT for classification only, this network is for {TASKS[kind_of_config(config)]}; "
            "use microsoft, huggingface or native"
        )
    return ()


def timm_config(config: AnyNetworkConfig) -> dict[str, Any]:
    """The content of `config.json`."""
    assert isinstance(config, ClassifierConfig | BareBackbone)
    backbone, preprocessing = config.backbone, config.preprocessing
    height, width = backbone.image_size
    is_classifier = isinstance(config, ClassifierConfig)
    is_whole = preprocessing.shows_whole(backbone.image_size)
    classes = config.classes if is_classifier else ()
    pooling = "avg" if is_classifier and config.pooling == "mean" else "token"
    return {
        "architecture": BEIT3 if backbone.sub_norm else VIT if backbone.key_bias else BEIT,
        "num_classes": len(classes),
        # Not timm's: it has no word for networks that give several classes; `load` reads it.
        **({"problem_type": MULTILABEL} if is_classifier and config.multilabel else {}),
        "num_features": backbone.width,
        "global_pool": pooling,
        "model_args": {
            "img_size": [height, width],
            "patch_size": list(backbone.patch),
            "in_chans": backbone.channels,
            "embed_dim": backbone.width,
            "depth": backbone.depth,
            "num_heads": backbone.heads,
            "mlp_ratio": _ratio(backbone.width, backbone.hidden),
            "init_values": backbone.layer_scale,
            **({} if backbone.key_bias else _positions(backbone)),
            "drop_path_rate": backbone.drop_path,
            "global_pool": pooling,
        },
        "pretrained_cfg": {
            "num_classes": len(classes),
            "input_size": [backbone.channels, height, width],
            "fixed_input_size": True,
            "interpolation": preprocessing.filter,
            # timm crops images of every size.
            "crop_pct": 1.0 if is_whole else preprocessing.crop_share,
            "crop_mode": CROP_MODES["squeeze" if is_whole else preprocessing.fit],
            "mean": list(preprocessing.mean),
            "std": list(preprocessing.std),
            "first_conv": "patch_embed.proj",
            "classifier": "head",
            **({"label_names": list(classes)} if classes else {}),
        },
    }


def _positions(backbone: BackboneConfig) -> dict[str, bool]:
    return {
        "use_abs_pos_emb": backbone.absolute_positions,
        "use_rel_pos_bias": backbone.relative_positions == "per_block",
        "use_shared_rel_pos_bias": backbone.relative_positions == "shared",
    }


def _ratio(width: int, hidden: int) -> float:
    """hidden / width, such that timm's int(width * ratio) gives hidden again."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)
