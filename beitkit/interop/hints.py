"""What a checkpoint says besides its tensors, in each software's words: sizes, class names, pixel statistics."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

from beitkit.configs.data import INCEPTION, Preprocessing
from beitkit.configs.model import Pair
from beitkit.errors import UserError
from beitkit.interop.describe import Hints
from beitkit.interop.stored import State
from beitkit.interop.unpickle import Inert
from beitkit.nn.position import table_rows

T = TypeVar("T")


def hints_of_dict(outside: dict[Any, Any], file_name: str) -> Hints:
    """From what lies beside the weights in a pickled file: the training script's options, mmsegmentation's `meta`, our notes."""
    options = outside.get("args")
    given = options.attributes if isinstance(options, Inert) else {}
    meta = outside.get("meta")
    meta = meta if isinstance(meta, dict) else {}
    noted = outside.get("beitkit")
    noted = noted if isinstance(noted, dict) else {}
    classes = noted.get("classes", meta.get("CLASSES"))
    palette = noted.get("palette", meta.get("PALETTE"))
    return Hints(
        image_size=_pair(noted.get("image_size")),
        heads=_typed(int, noted.get("heads")),
        classes=_names(classes),
        preprocessing=_preprocessing(noted, "mean", "std", noted.get("crop_share")),
        palette=_palette(palette),
        early_layer=_typed(int, given.get("early_layers")),
        layer_scale=_typed(float, given.get("layer_scale_init_value")) or None,
        taps=_taps(noted.get("taps")),
        tokenizer=_typed(str, noted.get("tokenizer")) or "",
        is_imagenet=_typed(bool, given.get("imagenet_default_mean_and_std")),
        is_version_2=file_name.lower().startswith("beitv2"),
    )
