"""Hints besides the tensors, from each library's metadata: sizes, class names, pixel statistics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from beitkit.configs.codec import from_json
from beitkit.configs.data import Preprocessing
from beitkit.configs.model import Pair
from beitkit.errors import UserError
from beitkit.interop.kinds import KINDS, OUR_NOTE, AnyNetworkConfig
from beitkit.interop.reading.describe import Hints
from beitkit.interop.reading.unpickle import Inert

T = TypeVar("T")


def hints_of_pickle(outside: dict[Any, Any], file_name: str) -> Hints:
    """From the metadata of a `.pth`: the training script's options, mmsegmentation's `meta`, beitkit's config."""
    options = outside.get("args")
    given = options.attributes if isinstance(options, Inert) else {}
    meta = _typed(dict, outside.get("meta")) or {}
    newer_meta = _typed(dict, meta.get("dataset_meta")) or {}  # mmsegmentation 1.x
    return Hints(
        config=_own_config(outside.get(OUR_NOTE), file_name),
        classes=_names(meta.get("CLASSES", newer_meta.get("classes"))),
        palette=_palette(meta.get("PALETTE", newer_meta.get("palette"))),
        early_layer=_typed(int, given.get("early_layers")),
        layer_scale=_typed(float, given.get("layer_scale_init_value")) or None,
        is_imagenet=_typed(bool, given.get("imagenet_default_mean_and_std")),
        is_version_2=file_name.lower().startswith("beitv2"),
    )


def hints_of_hugging_face(config: dict[str, Any], processor: dict[str, Any] | None) -> Hints:
    """From a Hugging Face folder's `config.json` and, where there is one, `preprocessor_config.json`.

    Raises:
        UserError: if the folder holds another network than BEiT, or an unsupported variant.
    """
    if config.get("model_type") != "beit":
        raise UserError(f"config.json describes a network of type {config.get('model_type')!r}; beitkit reads 'beit'")
    if config.get("hidden_act", "gelu") != "gelu":
        raise UserError(f"config.json wants the activation {config['hidden_act']!r}; BEiT has 'gelu'")
    labels = _typed(dict, config.get("id2label")) or {}
    names = _names([labels[key] for key in sorted(labels, key=_number)])
    are_placeholders = names is not None and all(name == f"LABEL_{index}" for index, name in enumerate(names))
    eps = _typed(float, config.get("layer_norm_eps"))
    notes = () if eps in (None, 1e-6) else (f"LayerNorm: eps 1e-6 as in the official code, config.json says {eps:g}",)
    return Hints(
        image_size=_pair(config.get("image_size")),
        heads=_typed(int, config.get("num_attention_heads")),
        classes=None if are_placeholders else names,
        preprocessing=_hugging_face_preprocessing(processor or {}),
        taps=_taps(config.get("out_indices")),
        layer_scale=_typed(float, config.get("layer_scale_init_value")) or None,
        drop_path=_typed(float, config.get("drop_path_rate")),
        notes=notes,
    )


def hints_of_timm(config: dict[str, Any]) -> Hints:
    """From a timm folder's `config.json`, of the newer form with `pretrained_cfg` or the older without."""
    about = _typed(dict, config.get("pretrained_cfg")) or config
    arguments = _typed(dict, config.get("model_args")) or {}
    sizes = about.get("input_size")
    size = arguments.get("img_size", sizes[1:] if isinstance(sizes, list) else None)
    return Hints(
        image_size=_pair(size),
        heads=_typed(int, arguments.get("num_heads")),
        classes=_names(config.get("label_names") or about.get("label_names") or about.get("labels")),
        preprocessing=_preprocessing(about.get("mean"), about.get("std"), about.get("crop_pct")),
        layer_scale=_typed(float, arguments.get("init_values")) or None,
        drop_path=_typed(float, arguments.get("drop_path_rate")),
    )


def _own_config(note: object, file_name: str) -> AnyNetworkConfig | None:
    if not isinstance(note, dict) or note.get("kind") not in KINDS:
        return None
    config = from_json(KINDS[note["kind"]][1], note.get("config"), where=file_name)
    return config if isinstance(config, AnyNetworkConfig) else None


def _hugging_face_preprocessing(processor: dict[str, Any]) -> Preprocessing | None:
    size, crop = _side(processor.get("size")), _side(processor.get("crop_size"))
    share = crop / size if processor.get("do_center_crop") and size and crop else 1.0
    said = _typed(float, processor.get("crop_pct"))
    return _preprocessing(processor.get("image_mean"), processor.get("image_std"), said or min(share, 1.0))


def _side(size: object) -> int | None:
    """The shorter side of a size in any of the forms that processors write."""
    if isinstance(size, dict):
        sides = [side for side in size.values() if isinstance(side, int)]
        return min(sides, default=None)
    return _typed(int, size)


def _preprocessing(mean: object, std: object, crop_share: object) -> Preprocessing | None:
    means, deviations = _numbers(mean, 3, float), _numbers(std, 3, float)
    if means is None or deviations is None:
        return None
    share = _typed(float, crop_share)
    fields = {} if share is None else {"crop_share": share}
    return Preprocessing(mean=(means[0], means[1], means[2]), std=(deviations[0], deviations[1], deviations[2]), **fields)


def _typed(kind: type[T], value: object) -> T | None:
    """The value if it has the type (int counts as float), else None."""
    if kind is float and type(value) is int:
        return kind(value)  # type: ignore[call-arg]
    return value if isinstance(value, kind) and (kind is bool or not isinstance(value, bool)) else None


def _numbers(values: object, count: int, kind: Callable[[Any], T]) -> tuple[T, ...] | None:
    is_usable = isinstance(values, list | tuple) and len(values) == count and all(type(value) in (int, float) for value in values)
    return tuple(kind(value) for value in values) if is_usable and isinstance(values, list | tuple) else None


def _pair(size: object) -> Pair | None:
    if type(size) is int:
        return size, size
    pair = _numbers(size, 2, int)
    return None if pair is None else (pair[0], pair[1])


def _taps(values: object) -> tuple[int, int, int, int] | None:
    taps = _numbers(values, 4, int)
    return None if taps is None else (taps[0], taps[1], taps[2], taps[3])


def _names(values: object) -> tuple[str, ...] | None:
    are_names = isinstance(values, list | tuple) and values and all(isinstance(value, str) for value in values)
    return tuple(values) if are_names and isinstance(values, list | tuple) else None


def _palette(values: object) -> tuple[tuple[int, int, int], ...] | None:
    colors = [_numbers(value, 3, int) for value in values] if isinstance(values, list | tuple) else []
    found = [(color[0], color[1], color[2]) for color in colors if color is not None]
    return tuple(found) if found and len(found) == len(colors) else None


def _number(key: str) -> int:
    return int(key) if key.isdigit() else 0
