"""Write networks in any format: official `.pth`, Hugging Face folders, timm folders, and beitkit's own.

A format is a layout (the name tables, shared with reading) and a function that writes the renamed tensors. What a format cannot
hold is an error, or is listed in the report if it is not needed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from beitkit.configs.codec import to_json
from beitkit.configs.data import IMAGENET
from beitkit.configs.model import NORM_EPS, ClassifierConfig, MaskedImageModelConfig, SegmenterConfig
from beitkit.configs.parts import CheckpointFormat
from beitkit.contracts import TensorRecord
from beitkit.errors import UserError
from beitkit.interop.formats.hugging_face import hugging_face_config, model_card, processor_config, refuse_for_hugging_face
from beitkit.interop.formats.layouts import HUGGING_FACE, MICROSOFT, NATIVE, TIMM, TIMM_VIT, Layout
from beitkit.interop.formats.native import write_native
from beitkit.interop.formats.timm import refuse_for_timm, timm_config
from beitkit.interop.kinds import OUR_NOTE, AnyNetworkConfig, kind_of_config
from beitkit.interop.stored import LazyTensor, State
from beitkit.nn.position import relative_position_index
from beitkit.system import write_atomically
from beitkit.train.checkpoints.tensor_files import write_tensors
from beitkit.version import __version__

Tensors = dict[str, Tensor]


class Output(NamedTuple):
    """What will be written."""

    config: AnyNetworkConfig
    """Of the network as the format holds it."""
    tensors: State
    """By the format's names."""
    records: tuple[TensorRecord, ...]
    notes: tuple[str, ...]


class Writer(NamedTuple):
    """A format: its layout, what it cannot hold, and how its files are written."""

    layout: Layout
    refuse: Callable[[AnyNetworkConfig], tuple[str, ...]]
    """Raises a `UserError` for a network that the format cannot hold; returns notes on what is lost."""
    write: Callable[[AnyNetworkConfig, Tensors, Path], None]
    left_out: tuple[str, ...] = ()
    """Prefixes of official names that the format drops."""
    key_bias: Layout | None = None
    """The layout of networks whose keys have a bias; None for a format that has no place for it, where it is left out."""


def prepare(config: AnyNetworkConfig, tensors: State, file_format: CheckpointFormat) -> Output:
    """Names and splits of tensors in a format; nothing is read or written.

    Raises:
        UserError: if the format cannot hold this network.
    """
    writer, kind = WRITERS[file_format], kind_of_config(config)
    if isinstance(config, ClassifierConfig) and config.pooling == "grid" and file_format != "native":
        raise UserError(f"the {file_format} format has no grid pooling; use native, or fine-tune with `pooling='mean'`")
    # The official layout is also that of EVA and data2vec, which regress features.
    is_held = file_format == "native" or (file_format == "microsoft" and getattr(config, "features", None) is not None)
    if isinstance(config, MaskedImageModelConfig) and config.vocabulary is None and not is_held:
        raise UserError(
            f"the {file_format} format holds networks that predict visual tokens, and this one predicts "
            f"{'pixels' if config.features is None else 'features'}; use native, or hand it over to another task first"
        )
    notes, layout = writer.refuse(config), writer.layout
    if isinstance(config, ClassifierConfig) and file_format != "native":
        config, tensors, lost = _with_temperature_in_head(config, tensors)
        notes = (*notes, *lost)
    if config.backbone.key_bias and writer.key_bias is not None:
        layout = writer.key_bias
    elif config.backbone.key_bias:
        config = replace(config, backbone=replace(config.backbone, key_bias=False))
        tensors = _without_key_bias(tensors)
        notes = (
            *notes,
            "the bias of the keys is left out: it adds the same to all scores of a query, and cancels in the softmax",
        )
    names = layout.tables[kind]
    renamed: State = {}
    records, dropped = [], []
    for our_name, stored in tensors.items():
        place = NATIVE.tables[kind].to_official(our_name)
        assert place is not None, our_name
        foreign = None if place.official.startswith(writer.left_out) else names.to_foreign(place.official)
        if foreign is None:
            assert place.official.startswith(writer.left_out), f"{place.official} has no place in {file_format}"
            dropped.append(TensorRecord(our_name, "dropped", stored.sources, stored.shape, f"no place in {file_format}"))
            continue
        for part, name in enumerate(foreign):
            piece = _piece(stored, part, len(foreign))
            renamed[name] = piece
            records.append(TensorRecord(name, piece.fate, piece.sources, piece.shape, piece.reason))
    return Output(config, renamed, (*records, *dropped), notes)


def write(output: Output, path: Path, file_format: CheckpointFormat) -> None:
    """Read the tensors and write the files, each atomically."""
    tensors = {name: stored.read().detach().cpu().contiguous() for name, stored in output.tensors.items()}
    floats = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    WRITERS[file_format].write(output.config, floats, path)


def _with_temperature_in_head(config: ClassifierConfig, tensors: State) -> tuple[ClassifierConfig, State, tuple[str, ...]]:
    """The same probabilities from a head whose logits are divided by the temperature already, and notes on it."""
    notes = []
    if config.thresholds is not None:
        notes.append("thresholds of classes are beitkit's own: other software takes one probability, usually 0.5, for all")
    if config.temperature == 1:
        return config, tensors, tuple(notes)
    notes.append(f"the temperature {config.temperature:.4g} is divided into the head, so that probabilities stay calibrated")
    head = {name: _divided(tensors[name], config.temperature) for name in ("head.weight", "head.bias")}
    return replace(config, temperature=1.0), tensors | head, tuple(notes)


def _divided(stored: LazyTensor, by: float) -> LazyTensor:
    return replace(stored, read=lambda: stored.read().float() / by)


def _without_key_bias(tensors: State) -> State:
    """The thirds for queries and values of every bias vector, as BEiT has them."""
    kept: State = {}
    for name, stored in tensors.items():
        if name.endswith("attn.qkv.bias"):
            place = name.removesuffix("qkv.bias")
            kept |= {f"{place}q_bias": _piece(stored, 0, 3), f"{place}v_bias": _piece(stored, 2, 3)}
        else:
            kept[name] = stored
    return kept


def _piece(stored: LazyTensor, part: int, parts: int) -> LazyTensor:
    """One of several equal pieces along dimension 0."""
    if parts == 1:
        return stored
    rows = stored.shape[0] // parts
    return replace(
        stored,
        shape=(rows, *stored.shape[1:]),
        read=lambda: stored.read()[part * rows : (part + 1) * rows],
        fate="split",
        reason=f"rows {part * rows} to {(part + 1) * rows - 1}",
    )


def _write_microsoft(config: AnyNetworkConfig, tensors: Tensors, path: Path) -> None:
    if path.suffix not in (".pth", ".pt", ".bin") or path.is_dir():
        raise UserError(f"the microsoft format is a single file, got {path}; give a path that ends in .pth")
    prefix = "backbone." if isinstance(config, SegmenterConfig) else ""
    tables = {"shared": ["rel_pos_bias"], "per_block": [f"blocks.{i}.attn" for i in range(config.backbone.depth)], "none": []}
    for place in tables[config.backbone.relative_positions]:
        # The official code loads strictly in places and counts these buffers among the weights.
        tensors[f"{prefix}{place}.relative_position_index"] = relative_position_index(config.backbone.grid)
    note = {"version": __version__, "kind": kind_of_config(config), "config": to_json(config)}
    content: dict[str, Any] = {OUR_NOTE: note}
    if isinstance(config, SegmenterConfig):
        palette = None if config.palette is None else [list(color) for color in config.palette]
        content |= {"state_dict": tensors, "meta": {"CLASSES": list(config.classes), "PALETTE": palette}}
    else:
        is_imagenet = config.preprocessing.mean == IMAGENET.mean
        # A plain dict, where official files have a Namespace: PyTorch loads it with weights_only=True.
        content |= {"model": tensors, "args": {"imagenet_default_mean_and_std": is_imagenet}}
    write_atomically(path, lambda file: torch.save(content, file))


def _write_hugging_face(config: AnyNetworkConfig, tensors: Tensors, folder: Path) -> None:
    texts = {
        "config.json": _as_json(hugging_face_config(config)),
        "preprocessor_config.json": _as_json(processor_config(config)),
        "README.md": model_card(config, folder.name),
    }
    _write_folder(folder, tensors, texts)


def _write_timm(config: AnyNetworkConfig, tensors: Tensors, folder: Path) -> None:
    _write_folder(folder, tensors, {"config.json": _as_json(timm_config(config))})


def _write_folder(folder: Path, tensors: Tensors, texts: dict[str, str]) -> None:
    if folder.is_file():
        raise UserError(f"{folder} is a file; this format is a folder, give another path")
    write_atomically(folder / "model.safetensors", lambda file: write_tensors(file, tensors, {"format": "pt"}))
    for name, text in texts.items():
        write_atomically(folder / name, text.encode())


def _as_json(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _holds_everything(config: AnyNetworkConfig) -> tuple[str, ...]:
    return ()


def _refuse_for_microsoft(config: AnyNetworkConfig) -> tuple[str, ...]:
    if isinstance(config, SegmenterConfig) and config.head != "uper":
        raise UserError(f"the official code has UPerNet only, this network has the head {config.head}; use native")
    if config.backbone.sub_norm:
        raise UserError("the official code of BEiT has no inner norms, as this network (BEiT-3's) has; use timm or native")
    if config.backbone.norm_eps != NORM_EPS:
        raise UserError(f"the official code's LayerNorms have eps 1e-6, this network's {config.backbone.norm_eps:g}; use native")
    return ()


WRITERS: dict[CheckpointFormat, Writer] = {
    "native": Writer(NATIVE, _holds_everything, write_native, key_bias=NATIVE),
    "microsoft": Writer(MICROSOFT, _refuse_for_microsoft, _write_microsoft),
    "huggingface": Writer(HUGGING_FACE, refuse_for_hugging_face, _write_hugging_face, left_out=("cls_pt_",)),
    "timm": Writer(TIMM, refuse_for_timm, _write_timm, left_out=("mask_token",), key_bias=TIMM_VIT),
}
