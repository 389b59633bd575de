"""Hand a checkpoint over to another task or size: the target config, and how each tensor gets there.

A pre-training checkpoint becomes a classifier or a segmenter by the rules of the official fine-tuning code (method 5.2): the
shared position table is copied into every block, the old head is dropped, the new one is freshly initialized. The way back, any
network becomes one that predicts masked patches: what it lacks (mask token, final norm, head) is fresh, tables stay as they are.
Positions are resized for another image size. Nothing else changes, and anything unforeseen is an error.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from beitkit.configs.model import BackboneConfig, ClassifierConfig, MaskedImageModelConfig, Pair, SegmenterConfig, as_pair
from beitkit.configs.parts import Task
from beitkit.contracts import TensorRecord
from beitkit.errors import UserError
from beitkit.interop.build import shapes_of
from beitkit.interop.formats.layouts import NATIVE, SHARED_TABLE
from beitkit.interop.kinds import (
    CLS_BRANCH,
    FINAL_NORM,
    FRESH_IN_BACKBONE,
    HEAD_REASONS,
    HEAD_TENSORS,
    MASK_TOKEN,
    OWN_TENSORS,
    POOLING_TENSORS,
    TASKS,
    AnyNetworkConfig,
    BareBackbone,
    kind_of_config,
    numbered,
)
from beitkit.interop.stored import LazyTensor, State
from beitkit.nn.resize import resize_absolute_positions, resize_relative_positions

PATCH_FILTERS = "patch_embed.proj.weight"
BLOCK_TABLE = re.compile(r"blocks\.\d+\.attn\.relative_position_bias_table")
Predicted = int | Literal["pixels"]
"""What a masked-image model predicts: that many visual tokens, or the pixels of a patch."""


class Target(NamedTuple):
    """Arguments of `load`; None keeps the value of the file."""

    task: Task | None = None
    num_classes: int | None = None
    classes: tuple[str, ...] | None = None
    image_size: int | Pair | None = None
    drop_path: float | None = None
    channels: int | None = None
    vocabulary: Predicted | None = None
    pooling: Literal["mean", "grid"] | None = None
    pool_cells: int | None = None


class Handover(NamedTuple):
    """The target network and its tensors."""

    config: AnyNetworkConfig
    tensors: State
    """By beitkit's names."""
    fresh: tuple[str, ...]
    records: tuple[TensorRecord, ...]
    """A record for every tensor, the dropped ones last."""


def hand_over(found: AnyNetworkConfig, official: State, target: Target) -> Handover:
    """How a file's tensors, under official names, become the target network."""
    config = target_config(found, target)
    kind, before = kind_of_config(config), kind_of_config(found)
    wanted = shapes_of(config)
    tensors = dict(official)
    has_new_head = _has_new_classes(found, config) or _has_new_targets(found, config) or _has_new_pooling(found, config)
    dropped = _drop(tensors, _unused(found, config, has_new_head))
    if config.backbone.relative_positions == "per_block" and SHARED_TABLE in tensors:
        _expand(tensors, config.backbone.depth)
    if config.backbone.grid != found.backbone.grid:
        _resize(tensors, found.backbone.grid, config.backbone.grid)
    if config.backbone.channels != found.backbone.channels:
        _spread_filters(tensors, found.backbone.channels, config.backbone.channels)
    ours = {_our_name(kind, name): stored for name, stored in tensors.items()}
    fresh = tuple(name for name in wanted if name not in ours and _may_be_fresh(name, before, kind, has_new_head))
    records = [TensorRecord(name, stored.fate, stored.sources, stored.shape, _reason(stored)) for name, stored in ours.items()]
    records += [TensorRecord(name, "fresh", (), wanted[name], f"for {TASKS[kind]}") for name in fresh]
    return Handover(config, ours, fresh, (*records, *dropped))


def target_config(found: AnyNetworkConfig, target: Target) -> AnyNetworkConfig:
    """The config of the target network.

    Raises:
        UserError: if the checkpoint cannot be handed over to it.
    """
    before, backbone = kind_of_config(found), found.backbone
    if target.task not in (None, *get_args(Task)):
        raise UserError(f"task must be one of {', '.join(get_args(Task))}, got {target.task!r}")
    if target.image_size is not None:
        backbone = replace(backbone, image_size=as_pair(target.image_size))
    if target.drop_path is not None:
        backbone = replace(backbone, drop_path=target.drop_path)
    if target.channels not in (None, backbone.channels):
        backbone = replace(backbone, channels=target.channels)
        is_kept = target.task in (None, "masked") and target.vocabulary is None
        if is_kept and isinstance(found, MaskedImageModelConfig) and found.vocabulary is None and found.features is None:
            raise UserError(
                f"the file predicts the pixels of {found.backbone.channels} channels; channels={target.channels} needs a task"
            )
    is_masked = target.task == "masked" or (target.task is None and isinstance(found, MaskedImageModelConfig))
    if target.vocabulary is not None and not is_masked:
        raise UserError("vocabulary= is what a masked-image model predicts; say task='masked' with it")
    if target.pooling is not None:
        found = _pooled(found, target)
    if target.task is None and isinstance(found, BareBackbone):
        if target.num_classes is not None or target.classes is not None:
            raise UserError("the file holds a backbone without a head; say task='classify' or 'segment' to get a fresh one")
        return replace(found, backbone=backbone)
    if is_masked:
        if target.num_classes is not None or target.classes is not None:
            raise UserError("a masked-image model has no classes; say task='classify' or 'segment' to get a fresh head")
        return _masked(found, backbone, target.vocabulary)
    classes = target_classes(target)
    if isinstance(found, ClassifierConfig | SegmenterConfig) and target.task in (None, before):
        if classes is None or (target.classes is None and len(classes) == len(found.classes)):
            return replace(found, backbone=backbone)
        if isinstance(found, SegmenterConfig):
            return replace(found, backbone=backbone, classes=classes, palette=found.palette if classes == found.classes else None)
        made = replace(found.uncalibrated(), backbone=backbone, classes=classes)
        if _has_new_classes(found, made):
            return made
        return replace(made, temperature=found.temperature, thresholds=found.thresholds)
    assert target.task in ("classify", "segment")
    if classes is None:
        raise UserError(f"task={target.task!r} needs num_classes= or classes=, because the file is for {TASKS[before]}")
    made = _other_task(target.task, found, _fine_tuning_form(backbone), classes)
    return _with_pooling(made, target) if isinstance(made, ClassifierConfig) else made


def _pooled(found: AnyNetworkConfig, target: Target) -> AnyNetworkConfig:
    """A classifier with another pooling; any other network as it is, to become one."""
    if target.task != "classify" and not (target.task is None and isinstance(found, ClassifierConfig)):
        raise UserError("pooling= is of a classifier; say task='classify' with it")
    if not isinstance(found, ClassifierConfig):
        return found
    if found.pooling == "cls":
        raise UserError(f"the file's classifier reads its class token, so pooling={target.pooling!r} does not fit; leave it out")
    return _with_pooling(found, target)


def _with_pooling(config: ClassifierConfig, target: Target) -> ClassifierConfig:
    made = replace(config, pooling=target.pooling or config.pooling, pool_cells=target.pool_cells or config.pool_cells)
    return made.uncalibrated() if _has_new_pooling(config, made) else made


def _masked(found: AnyNetworkConfig, backbone: BackboneConfig, vocabulary: Predicted | None) -> MaskedImageModelConfig:
    """The network that predicts masked patches, in the positions that the file has."""
    if isinstance(found, MaskedImageModelConfig):
        config = replace(found, backbone=backbone)
        if vocabulary is None or vocabulary == predicted_by(found):
            return config
    elif vocabulary is None:
        there = TASKS[kind_of_config(found)]
        raise UserError(f"task='masked' needs vocabulary=, the number of visual tokens, because the file is for {there}")
    else:
        backbone = replace(backbone, mask_token=True, final_norm=True, pretrain_init=True)
        config = MaskedImageModelConfig(backbone=backbone, vocabulary=None, preprocessing=found.preprocessing)
    if vocabulary == "pixels":  # which the class-token branch does not predict
        return replace(config, vocabulary=None, features=None, cls_branch=None, tokenizer="")
    return replace(config, vocabulary=vocabulary, features=None, tokenizer="")


def predicted_by(config: MaskedImageModelConfig) -> Predicted | None:
    """What a masked-image model predicts; None for one that regresses features."""
    return None if config.features is not None else config.vocabulary or "pixels"


def target_classes(target: Target) -> tuple[str, ...] | None:
    """Class names; numbers if only their count is given."""
    if target.classes is None:
        if target.num_classes is not None and target.num_classes < 1:
            raise UserError(f"num_classes must be at least 1, got {target.num_classes}")
        return None if target.num_classes is None else numbered(target.num_classes)
    if target.num_classes not in (None, len(target.classes)):
        raise UserError(
            f"num_classes={target.num_classes} and {len(target.classes)} classes contradict each other; give one of them"
        )
    if len(set(target.classes)) != len(target.classes):
        raise UserError("every class must have a name of its own; one occurs twice in classes=")
    return target.classes


def _fine_tuning_form(backbone: BackboneConfig) -> BackboneConfig:
    positions = "per_block" if backbone.relative_positions == "shared" else backbone.relative_positions
    return replace(backbone, relative_positions=positions, mask_token=False, final_norm=False, pretrain_init=False)


def _other_task(
    task: Task, found: AnyNetworkConfig, backbone: BackboneConfig, classes: tuple[str, ...]
) -> ClassifierConfig | SegmenterConfig:
    if task == "classify":
        return ClassifierConfig(backbone=backbone, classes=classes, preprocessing=found.preprocessing)
    # The official decoders are as wide as their backbones (method 7.2).
    return SegmenterConfig(backbone=backbone, classes=classes, channels=backbone.width, preprocessing=found.preprocessing)


def _has_new_pooling(found: AnyNetworkConfig, config: AnyNetworkConfig) -> bool:
    """Whether the file's head saw another kind of features."""
    if not isinstance(found, ClassifierConfig) or not isinstance(config, ClassifierConfig):
        return False
    return (found.pooling, found.head_width) != (config.pooling, config.head_width)


def _has_new_classes(found: AnyNetworkConfig, config: AnyNetworkConfig) -> bool:
    """Whether the file's head cannot be reused. Naming classes that had only numbers keeps the head."""
    if not isinstance(found, ClassifierConfig | SegmenterConfig) or not isinstance(config, ClassifierConfig | SegmenterConfig):
        return False
    are_only_named = found.classes == numbered(len(found.classes)) and len(found.classes) == len(config.classes)
    return found.classes != config.classes and not are_only_named


def _has_new_targets(found: AnyNetworkConfig, config: AnyNetworkConfig) -> bool:
    """Whether both predict masked patches, but not the same of them."""
    if not isinstance(found, MaskedImageModelConfig) or not isinstance(config, MaskedImageModelConfig):
        return False
    return (predicted_by(found), found.outputs) != (predicted_by(config), config.outputs)


def _unused(found: AnyNetworkConfig, config: AnyNetworkConfig, has_new_head: bool) -> dict[str, str]:
    """Prefixes of the official names of the file's tensors that the target network does not take, and why."""
    before, kind = kind_of_config(found), kind_of_config(config)
    if before != kind:
        shared = (MASK_TOKEN, FINAL_NORM) if kind == "masked" else ()
        return {prefix: f"for {TASKS[before]}" for prefix in OWN_TENSORS[before] if prefix not in shared}
    if kind == "backbone":
        return dict.fromkeys(POOLING_TENSORS, "for pooling or a head")
    unused = dict.fromkeys(HEAD_TENSORS[kind] if has_new_head else (), HEAD_REASONS[kind])
    if kind != "masked":
        return unused | {MASK_TOKEN: "for pre-training"}
    branches = [one.cls_branch for one in (found, config) if isinstance(one, MaskedImageModelConfig)]
    return unused | ({CLS_BRANCH: HEAD_REASONS[kind]} if branches[0] is not None and branches[1] is None else {})


def _drop(tensors: State, unused: dict[str, str]) -> tuple[TensorRecord, ...]:
    """Drop tensors that the target network does not have, with reasons by prefix."""
    reasons = {name: reason for name in tensors for prefix, reason in unused.items() if name.startswith(prefix)}
    taken = [(name, tensors.pop(name), reason) for name, reason in reasons.items()]
    return tuple(TensorRecord(name, "dropped", stored.sources, stored.shape, reason) for name, stored, reason in taken)


def _may_be_fresh(our_name: str, before: str, kind: str, new_head: bool) -> bool:
    if our_name.startswith("backbone."):
        return before != kind and kind == "masked" and our_name in FRESH_IN_BACKBONE
    return before != kind or (new_head and our_name.removeprefix("cls_branch.").startswith(HEAD_TENSORS[kind]))


def _expand(tensors: State, depth: int) -> None:
    """Give every block its own copy of the shared table."""
    shared = tensors.pop(SHARED_TABLE)
    for index in range(depth):
        copied = replace(
            shared, read=lambda: shared.read().clone(), fate="expanded", reason="every block gets a copy of the shared table"
        )
        tensors[f"blocks.{index}.attn.relative_position_bias_table"] = copied


def _resize(tensors: State, old: Pair, new: Pair) -> None:
    """Resize positions to another patch grid."""
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


def _spread_filters(tensors: State, old: int, new: int) -> None:
    """Give each of `new` channels the mean of the patch embedding's filters for `old`, times old / new.

    An image that is the same in all channels, normalized alike, then gives the same embedding as before.
    """
    stored = tensors[PATCH_FILTERS]
    reason = f"each of {new} channels gets the mean of the filters of {old}, times {old}/{new}"
    tensors[PATCH_FILTERS] = replace(
        stored,
        shape=(stored.shape[0], new, *stored.shape[2:]),
        read=lambda: (stored.read().float().mean(1, keepdim=True) * (old / new)).expand(-1, new, -1, -1).contiguous(),
        fate="expanded",
        reason="; ".join(filter(None, (stored.reason, reason))),
    )


def _resized(stored: LazyTensor, shape: tuple[int, ...], reason: str, transform: Callable[[Tensor], Tensor]) -> LazyTensor:
    reasons = "; ".join(filter(None, (stored.reason, reason)))
    return replace(stored, shape=shape, read=lambda: transform(stored.read()), fate="resized", reason=reasons)


def _reason(stored: LazyTensor) -> str:
    is_converted = stored.dtype.is_floating_point and stored.dtype != torch.float32
    return "; ".join(
        filter(None, (stored.reason, f"{str(stored.dtype).removeprefix('torch.')} to float32" if is_converted else ""))
    )


def _our_name(kind: str, official: str) -> str:
    names = NATIVE.tables[kind].to_foreign(official)
    return names[0] if names else official
