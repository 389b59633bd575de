"""Hints besides the tensors, from each library's metadata: sizes, class names, pixel statistics."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from beitkit.configs.codec import from_json
from beitkit.configs.data import MOST_CHANNELS, Filter, Fit, Preprocessing
from beitkit.configs.model import Pair
from beitkit.errors import UserError
from beitkit.interop.kinds import CROP_MODES, KINDS, MULTILABEL, OUR_NOTE, AnyNetworkConfig
from beitkit.interop.reading.describe import Hints
from beitkit.interop.reading.unpickle import Inert

T = TypeVar("T")
MODEL_TYPES = ("beit", "data2vec-vision", "vit", "vit_mae", "dinov2")
"""transformers' names of networks that are BEiT's, and of plain ViTs."""
FILTERS: tuple[Filter, ...] = get_args(Filter)
FITS: dict[object, Fit] = {mode: fit for fit, mode in CROP_MODES.items()}
DEFAULT_EPS = 1e-12
LARGEST = 1e300
"""Numbers from here on mean nothing, and whole ones may not fit a float."""
BICUBIC = FILTERS.index("bicubic")


def hints_of_pickle(outside: dict[Any, Any], path: Path) -> Hints:
    """From the metadata of a `.pth`: the training script's options, mmsegmentation's `meta`, beitkit's config."""
    options = outside.get("args")
    given = options.attributes if isinstance(options, Inert) else _typed(dict, options) or {}
    meta = _typed(dict, outside.get("meta")) or {}
    newer_meta = _typed(dict, meta.get("dataset_meta")) or {}  # mmsegmentation 1.x
    return Hints(
        config=_own_config(outside.get(OUR_NOTE), path.name),
        classes=_names(meta.get("CLASSES", newer_meta.get("classes"))),
        palette=_palette(meta.get("PALETTE", newer_meta.get("palette"))),
        early_layer=_typed(int, given.get("early_layers")),
        layer_scale=_typed(float, given.get("layer_scale_init_value")) or None,
        is_imagenet=_typed(bool, given.get("imagenet_default_mean_and_std")),
        family=_family(path),
    )


def hints_of_hugging_face(config: dict[str, Any], processor: dict[str, Any] | None) -> Hints:
    """From a Hugging Face folder's `config.json` and, where there is one, `preprocessor_config.json`.

    Raises:
        UserError: if the folder holds another network than BEiT, or an unsupported variant.
    """
    model_type = config.get("model_type")
    if model_type not in MODEL_TYPES:
        raise UserError(f"config.json describes a network of type {model_type!r}; beitkit reads {', '.join(MODEL_TYPES)}")
    if config.get("hidden_act", "gelu") != "gelu":
        raise UserError(f"config.json wants the activation {config['hidden_act']!r}; networks here have 'gelu'")
    labels = _typed(dict, config.get("id2label")) or {}
    names = _names([labels[key] for key in sorted(labels, key=_number)])
    are_placeholders = names is not None and all(name == f"LABEL_{index}" for index, name in enumerate(names))
    eps = _typed(float, config.get("layer_norm_eps"))
    # transformers' default, which no network of BEiT's code was trained with.
    is_default = eps == DEFAULT_EPS and model_type in ("beit", "data2vec-vision")
    notes = (f"LayerNorm: eps 1e-6 as in the official code, config.json says {eps:g}",) if is_default else ()
    image_size, problem_type = _pair(config.get("image_size")), config.get("problem_type")
    preprocessing, of_pixels = _hugging_face_preprocessing(processor or {}, image_size)
    return Hints(
        image_size=image_size,
        heads=_typed(int, config.get("num_attention_heads")),
        classes=None if are_placeholders else names,
        preprocessing=preprocessing,
        vocabulary=_typed(int, config.get("vocab_size")),
        multilabel=problem_type == MULTILABEL,
        names_classes=problem_type != "regression",
        norm_eps=None if is_default else eps,
        family="data2vec-vision" if model_type == "data2vec-vision" else "ViT" if model_type == "vit" else None,
        taps=_taps(config.get("out_indices")),
        layer_scale=_typed(float, config.get("layer_scale_init_value")) or None,
        drop_path=_typed(float, config.get("drop_path_rate")),
        notes=(*notes, *of_pixels),
    )


def hints_of_timm(config: dict[str, Any]) -> Hints:
    """From a timm folder's `config.json`, of the newer form with `pretrained_cfg` or the older without."""
    about = _typed(dict, config.get("pretrained_cfg")) or config
    arguments = _typed(dict, config.get("model_args")) or {}
    sizes = about.get("input_size")
    size = arguments.get("img_size", sizes[1:] if isinstance(sizes, list) else None)
    names = _names(config.get("label_names") or about.get("label_names") or about.get("labels"))
    mode, filter = about.get("crop_mode"), about.get("interpolation")
    activation = arguments.get("act_layer", "quick_gelu" if "quickgelu" in str(config.get("architecture")) else "gelu")
    if activation != "gelu":
        raise UserError(f"config.json describes a network with the activation {activation!r}; networks here have 'gelu'")
    return Hints(
        image_size=_pair(size),
        heads=_typed(int, arguments.get("num_heads")),
        classes=names,
        preprocessing=_preprocessing(
            about.get("mean"), about.get("std"), about.get("crop_pct"), fit=FITS.get(mode, "crop"), filter=filter
        ),
        multilabel=config.get("problem_type") == MULTILABEL,
        pooling=_typed(str, config.get("global_pool")) or _typed(str, arguments.get("global_pool")),
        notes=() if mode is None or mode in FITS else (f"images: crop_mode {mode} is not known; beitkit crops the center",),
        # timm counts the projection of a CLIP network's features among the classifiers.
        names_classes=names is not None or "_clip_" not in str(config.get("architecture")),
        layer_scale=_typed(float, arguments.get("init_values")) or None,
        drop_path=_typed(float, arguments.get("drop_path_rate")),
    )


def _own_config(note: object, file_name: str) -> AnyNetworkConfig | None:
    if not isinstance(note, dict) or note.get("kind") not in KINDS:
        return None
    config = from_json(KINDS[note["kind"]][1], note.get("config"), where=file_name)
    return config if isinstance(config, AnyNetworkConfig) else None


def _family(path: Path) -> Literal["BEiT v2", "data2vec-vision"] | None:
    """What a file's name says; data2vec's fine-tuned ones have a name that only their folder explains."""
    if path.name.lower().startswith("beitv2"):
        return "BEiT v2"
    return "data2vec-vision" if "data2vec" in f"{path.parent.name}/{path.name}".lower() else None


def _hugging_face_preprocessing(
    processor: dict[str, Any], image_size: Pair | None
) -> tuple[Preprocessing | None, tuple[str, ...]]:
    """What transformers' processor does, and notes on what of it is not done here.

    A height and width bring the whole image to that size, whatever its aspect; a shortest edge keeps the aspect. `crop_pct` and
    `crop_mode` are in our own files only, which say what transformers has no words for.
    """
    wanted, said = processor.get("size"), _typed(float, processor.get("crop_pct"))
    keeps_aspect = isinstance(wanted, dict) and "shortest_edge" in wanted
    outer, inner = _height_and_width(wanted), _height_and_width(processor.get("crop_size"))
    notes = []
    if not processor.get("do_center_crop"):
        inner = outer if not keeps_aspect else None
    if processor.get("do_resize") is False:
        notes.append("images: preprocessor_config does not resize them, beitkit does")
    elif keeps_aspect and inner is None and said is None:
        notes.append("images: preprocessor_config keeps their aspect and cuts nothing off; beitkit cuts the center")
    if inner is not None and image_size not in (None, inner):
        notes.append(f"images: preprocessor_config makes {inner[0]}x{inner[1]} pixels, the network takes those of config.json")
    share = 1.0
    if outer is not None and inner is not None:
        share = _share(inner[0], outer[0])
        if inner != outer and not keeps_aspect and _share(inner[1], outer[1]) != share:
            notes.append("images: preprocessor_config cuts off other shares of height and width, beitkit that of the height")
    number = processor.get("resample", BICUBIC)
    filter = FILTERS[number] if type(number) is int and 0 <= number < len(FILTERS) else None
    fit = ("crop" if keeps_aspect else "squeeze") if said is None else FITS.get(processor.get("crop_mode"), "crop")
    mean, std = _hugging_face_statistics(processor)
    return _preprocessing(mean, std, said or share, fit=fit, filter=filter), tuple(notes)


def _hugging_face_statistics(processor: dict[str, Any]) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Mean and deviation of pixels in [0, 1]: what the processor subtracts and divides by, after whatever it multiplies with."""
    if processor.get("do_normalize") is False:
        means, deviations = _per_channel(0.0), _per_channel(1.0)
    else:
        means, deviations = _per_channel(processor.get("image_mean")), _per_channel(processor.get("image_std"))
    scale = 255 * (_typed(float, processor.get("rescale_factor")) or 1 / 255) if processor.get("do_rescale", True) else 255.0
    if means is None or deviations is None or not processor:
        return None, None
    return _per_channel([mean / scale for mean in means]), _per_channel([std / scale for std in deviations])


def _height_and_width(size: object) -> Pair | None:
    """A size in any of the forms that processors write; a single number stands for both sides."""
    if isinstance(size, dict):
        edge = size.get("shortest_edge")
        return _pair(edge if edge is not None else [size.get("height"), size.get("width")])
    return _pair(size)


def _share(inner: int, outer: int) -> float:
    """inner / outer, at most 1, such that int(inner / share) gives outer again."""
    share = min(inner / outer, 1.0)
    return share if int(inner / share) == max(inner, outer) else math.nextafter(share, 0.0)


def _preprocessing(mean: object, std: object, crop_share: object, *, fit: Fit, filter: object) -> Preprocessing | None:
    means, deviations = _per_channel(mean), _per_channel(std)
    if means is None or deviations is None:
        return None
    share = _typed(float, crop_share)
    fields: dict[str, Any] = {} if share is None else {"crop_share": share}
    known: list[Filter] = [name for name in FILTERS if name == filter]
    return Preprocessing(mean=means, std=deviations, fit=fit, filter=known[0] if known else "bicubic", **fields)


def _per_channel(values: object) -> tuple[float, ...] | None:
    """A number for each channel; a single one, as gray networks have it, stands for all of RGB."""
    given = list(values) if isinstance(values, list | tuple) else [values]
    numbers = _numbers(given, len(given), float) if 1 <= len(given) <= MOST_CHANNELS else None
    return numbers * 3 if numbers is not None and len(numbers) == 1 else numbers


def _typed(kind: type[T], value: object) -> T | None:
    """The value if it has the type (int counts as float), else None."""
    if kind is float and type(value) is int:
        return kind(value) if abs(value) < LARGEST else None  # type: ignore[call-arg]
    return value if isinstance(value, kind) and (kind is bool or not isinstance(value, bool)) else None


def _numbers(values: object, count: int, kind: Callable[[Any], T]) -> tuple[T, ...] | None:
    is_usable = isinstance(values, list | tuple) and len(values) == count and all(map(_is_number, values))
    return tuple(kind(value) for value in values) if is_usable and isinstance(values, list | tuple) else None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST


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
