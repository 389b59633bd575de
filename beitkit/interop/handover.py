"""What a checkpoint becomes: the network that is wanted, and each tensor's way there.

A pre-training file becomes a classifier or a segmenter by the rules of the official fine-tuning code (method 5.2): the position
table that all blocks shared is copied into every block, what served the old task is left out, the new head starts afresh.
Another picture size resizes the positions. Nothing else changes, and anything unforeseen is an error.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple, get_args

import torch
from torch import Tensor

from beitkit.configs.model import BackboneConfig, ClassifierConfig, MaskedImageModelConfig, Pair, SegmenterConfig, as_pair
from beitkit.contracts import TensorRecord
from beitkit.errors import UserError
from beitkit.interop.build import shapes_of
from beitkit.interop.formats.layouts import NATIVE, SHARED_TABLE
from beitkit.interop.kinds import CLASS_TENSORS, OWN_TENSORS, TASKS, Headless, NetworkConfig, Task, kind_of_config, numbered
from beitkit.interop.stored import State, Stored
from beitkit.nn.resize import resize_absolute_positions, resize_relative_positions

BLOCK_TABLE = re.compile(r"blocks\.\d+\.attn\.relative_position_bias_table")


class Wish(NamedTuple):
    """What the caller of `load` asked for; None leaves it as the file has it."""

    task: Task | None = None
    num_classes: int | None = None
    classes: tuple[str, ...] | None = None
    image_size: int | Pair | None = None
    drop_path: float | None = None


class Plan(NamedTuple):
    """Which network, and how each of its tensors comes about."""

    config: NetworkConfig
    tensors: State
    """By our own names."""
    fresh: tuple[str, ...]
    records: tuple[TensorRecord, ...]
    """What became of every tensor, the dropped ones last."""


def plan(found: NetworkConfig | Headless, official: State, wish: Wish) -> Plan:
    """How a file's tensors, under official names, become the wished network."""
    config = wished_config(found, wish)
    kind, before = kind_of_config(config), _kind(found)
    wanted = shapes_of(config)
    tensors = dict(official)
    dropped = _drop(tensors, before, kind, _has_new_classes(found, config))
    if config.backbone.relative_positions == "per_block" and SHARED_TABLE in tensors:
        _expand(tensors, config.backbone.depth)
    if config.backbone.grid != found.backbone.grid:
        _resize(tensors, found.backbone.grid, config.backbone.grid)
    ours = {_our_name(kind, name): stored for name, stored in tensors.items()}
    fresh = tuple(
        name for name in wanted if name not in ours and _may_be_fresh(name, before, kind, _has_new_classes(found, config))
    )
    records = [TensorRecord(name, stored.fate, stored.sources, stored.shape, _reason(stored)) for name, stored in ours.items()]
    records += [TensorRecord(name, "fresh", (), wanted[name], f"for {TASKS[kind]}") for name in fresh]
    return Plan(config, ours, fresh, (*records, *dropped))


def wished_config(found: NetworkConfig | Headless, wish: Wish) -> NetworkConfig:
    """The config of the wished network.

    Raises:
        UserError: if the wish cannot be met from this file.
    """
    before, backbone = _kind(found), found.backbone
    if wish.task not in (None, *get_args(Task)):
        raise UserError(f"task must be one of {', '.join(get_args(Task))}, got {wish.task!r}")
    if wish.image_size is not None:
        backbone = replace(backbone, image_size=as_pair(wish.image_size))
    if wish.drop_path is not None:
        backbone = replace(backbone, drop_path=wish.drop_path)
    if wish.task is None and isinstance(found, Headless):
        raise UserError("the file holds a backbone without a head; say task='classify' or 'segment' and num_classes=")
    if wish.task == "masked" and not isinstance(found, MaskedImageModelConfig):
        raise UserError(
            f"the file holds a network for {TASKS[before]}, which has no mask token and predicts no visual tokens; "
            "load a pre-trained one"
        )
    if isinstance(found, MaskedImageModelConfig) and wish.task in (None, "masked"):
        if wish.num_classes is not None or wish.classes is not None:
            raise UserError("a masked-image model has no classes; say task='classify' or 'segment' to get a fresh head")
        return replace(found, backbone=backbone)
    classes = wished_classes(wish)
    if isinstance(found, ClassifierConfig | SegmenterConfig) and wish.task in (None, before):
        if classes is None or (wish.classes is None and len(classes) == len(found.classes)):
            return replace(found, backbone=backbone)
        if isinstance(found, SegmenterConfig):
            return replace(found, backbone=backbone, classes=classes, palette=found.palette if classes == found.classes else None)
        return replace(found, backbone=backbone, classes=classes)
    assert wish.task in ("classify", "segment")
    if classes is None:
        raise UserError(f"task={wish.task!r} needs num_classes= or classes=, because the file is for {TASKS[before]}")
    return _other_task(wish.task, found, _fine_tuning_form(backbone), classes)


def wished_classes(wish: Wish) -> tuple[str, ...] | None:
    """Names of the classes; numbers where only their count is given."""
    if wish.classes is None:
        if wish.num_classes is not None and wish.num_classes < 1:
            raise UserError(f"num_classes must be at least 1, got {wish.num_classes}")
        return None if wish.num_classes is None else numbered(wish.num_classes)
    if wish.num_classes not in (None, len(wish.classes)):
        raise UserError(f"num_classes={wish.num_classes} and {len(wish.classes)} classes contradict each other; give one of them")
    if len(set(wish.classes)) != len(wish.classes):
        raise UserError("every class must have a name of its own; one occurs twice in classes=")
    return wish.classes


def _fine_tuning_form(backbone: BackboneConfig) -> BackboneConfig:
    positions = "per_block" if backbone.relative_positions == "shared" else backbone.relative_positions
    return replace(backbone, relative_positions=positions, mask_token=False, final_norm=False, pretrain_init=False)


def _other_task(
    task: Task, found: NetworkConfig | Headless, backbone: BackboneConfig, classes: tuple[str, ...]
) -> ClassifierConfig | SegmenterConfig:
    if task == "classify":
        return ClassifierConfig(backbone=backbone, classes=classes, preprocessing=found.preprocessing)
    # The official decoders are as wide as their backbones (method 7.2).
    return SegmenterConfig(backbone=backbone, classes=classes, channels=backbone.width, preprocessing=found.preprocessing)


def _kind(found: NetworkConfig | Headless) -> str:
    return "backbone" if isinstance(found, Headless) else kind_of_config(found)


def _has_new_classes(found: NetworkConfig | Headless, config: NetworkConfig) -> bool:
    """Whether the file's head is of no use. Classes that had only numbers may be given names without losing the head."""
    if not isinstance(found, ClassifierConfig | SegmenterConfig) or not isinstance(config, ClassifierConfig | SegmenterConfig):
        return False
    are_only_named = found.classes == numbered(len(found.classes)) and len(found.classes) == len(config.classes)
    return found.classes != config.classes and not are_only_named


def _drop(tensors: State, before: str, kind: str, new_classes: bool) -> tuple[TensorRecord, ...]:
    """Take out what the wished network has no use for, and say why."""
    if before != kind:
        unused, reason = OWN_TENSORS[before], f"for {TASKS[before]}"
    else:
        unused, reason = CLASS_TENSORS[kind] if new_classes else (), "for other classes"
    names = [name for name in tensors if unused and name.startswith(unused)]
    taken = [(name, tensors.pop(name)) for name in names]
    return tuple(TensorRecord(name, "dropped", stored.sources, stored.shape, reason) for name, stored in taken)


def _may_be_fresh(our_name: str, before: str, kind: str, new_classes: bool) -> bool:
    if our_name.startswith("backbone."):
        return False
    return before != kind or (new_classes and our_name.startswith(CLASS_TENSORS[kind]))


def _expand(tensors: State, depth: int) -> None:
    """Give every block its own copy of the shared table."""
    shared = tensors.pop(SHARED_TABLE)
    for index in range(depth):
        copied = replace(
            shared, read=lambda: shared.read().clone(), fate="expanded", reason="every block gets a copy of the shared table"
        )
        tensors[f"blocks.{index}.attn.relative_position_bias_table"] = copied


def _resize(tensors: State, old: Pair, new: Pair) -> None:
    """Bring positions to another grid of patches."""
    reason = f"grid {old[0]}x{old[1]} to {new[0]}x{new[1]}"
    for name, stored in tensors.items():
        if name == SHARED_TABLE or BLOCK_TABLE.fullmatch(name):
            rows = (2 * new[0] - 1) * (2 * new[1] - 1) + 3
            tensors[name] = _resized(stored, (rows, stored.shape[1]), reason, lambda x: resize_relative_positions(x, old, new))
        elif name == "pos_embed":
            tokens = new[0] * new[1] + 1
            tensors[name] = _resized(
                stored, (1, tokens, stored.shape[2]), reason, lambda x: resize_absolute_positions(x, old, new)
            )


def _resized(stored: Stored, shape: tuple[int, ...], reason: str, transform: Callable[[Tensor], Tensor]) -> Stored:
    reasons = "; ".join(filter(None, (stored.reason, reason)))
    return replace(stored, shape=shape, read=lambda: transform(stored.read()), fate="resized", reason=reasons)


def _reason(stored: Stored) -> str:
    is_converted = stored.dtype.is_floating_point and stored.dtype != torch.float32
    return "; ".join(
        filter(None, (stored.reason, f"{str(stored.dtype).removeprefix('torch.')} to float32" if is_converted else ""))
    )


def _our_name(kind: str, official: str) -> str:
    names = NATIVE.tables[kind].to_foreign(official)
    return names[0] if names else official
