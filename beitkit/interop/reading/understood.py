"""An identified checkpoint: config and lazy tensors under official names."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch.nn import functional

from beitkit.configs.model import Pair
from beitkit.contracts import TensorRecord
from beitkit.errors import UserError
from beitkit.interop.build import listed
from beitkit.interop.formats.layouts import SKIPPED
from beitkit.interop.formats.names import NameTable
from beitkit.interop.kinds import AnyNetworkConfig
from beitkit.interop.stored import LazyTensor, State


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """An identified checkpoint."""

    path: Path
    layout: str
    config: AnyNetworkConfig
    tensors: State
    """By official names."""
    skipped: tuple[TensorRecord, ...] = ()
    """Tensors of the file that no network needs."""
    notes: tuple[str, ...] = ()


def is_skipped(name: str, skipped: dict[str, str]) -> bool:
    """Whether a tensor's name matches one of the patterns."""
    return any(fnmatchcase(name, pattern) for pattern in skipped)


def split_skipped(tensors: State, skipped: dict[str, str] = SKIPPED) -> tuple[State, tuple[TensorRecord, ...]]:
    """Tensors to use, and records of those that are never needed; `skipped` gives reasons by pattern."""
    reasons = {name: reason for name in tensors for pattern, reason in skipped.items() if fnmatchcase(name, pattern)}
    records = tuple(TensorRecord(name, "dropped", (name,), tensors[name].shape, reason) for name, reason in reasons.items())
    return {name: stored for name, stored in tensors.items() if name not in reasons}, records


def to_official(tensors: State, names: NameTable) -> State:
    """Tensors under their official names; those that a layout keeps in parts are put together.

    Raises:
        UserError: if a name is not in the table, a part is missing, or two tensors claim one name.
    """
    unknown = names.unknown(tensors)
    if unknown:
        raise UserError(f"{len(unknown)} tensors have names that the layout does not know: {listed(unknown)}")
    parts: dict[str, dict[int, LazyTensor]] = defaultdict(dict)
    counts: dict[str, int] = {}
    for name, stored in tensors.items():
        place = names.to_official(name)
        assert place is not None
        if place.part in parts[place.official]:
            raise UserError(f"two tensors of the file are {place.official} in our terms; the second is {name}")
        parts[place.official][place.part] = stored
        counts[place.official] = place.parts
    torn = [official for official, found in parts.items() if len(found) != counts[official]]
    if torn:
        raise UserError(f"parts are missing of {listed(torn)}")
    return {official: _merged([found[part] for part in sorted(found)]) for official, found in parts.items()}


def with_usual_positions(official: State, image_size: Pair | None) -> State:
    """Tensors whose absolute positions are (1, 1 + patches, width), as here; two kinds of networks store them otherwise.

    BEiT-3 has an embedding table, the first two rows of which are never looked up (fairseq's padding). DeiT III and others of
    timm give the class token no position (`no_embed_class`), which is a row of zeros; they are known by the number of patches
    in images of the size that the file says, else by a square one.
    """
    stored = official.get("pos_embed")
    if stored is None:
        return official
    rows, width = stored.shape[-2:] if len(stored.shape) > 1 else (0, 0)
    is_plain_vit = "blocks.0.attn.qkv.bias" in official and len(stored.shape) == 3
    if len(stored.shape) == 2 and rows > 2:
        usual = replace(
            stored,
            shape=(1, rows - 2, width),
            read=lambda: stored.read()[2:].unsqueeze(0),
            fate="split",
            reason="without the two rows that are never looked up",
        )
    elif is_plain_vit and rows == _patches(official, image_size, rows):
        usual = replace(
            stored,
            shape=(1, rows + 1, width),
            read=lambda: functional.pad(stored.read(), (0, 0, 1, 0)),
            fate="expanded",
            reason="a row of zeros for the class token, which has no position",
        )
    else:
        return official
    return official | {"pos_embed": usual}


def _patches(official: State, image_size: Pair | None, rows: int) -> int:
    """How many patches an image has; without its size, the largest square of at most `rows`."""
    kernel = official.get("patch_embed.proj.weight")
    if image_size is None or kernel is None or len(kernel.shape) != 4:
        return math.isqrt(rows) ** 2
    return (image_size[0] // kernel.shape[2]) * (image_size[1] // kernel.shape[3])


def _merged(pieces: list[LazyTensor]) -> LazyTensor:
    """Concatenate tensors along dimension 0."""
    if len(pieces) == 1:
        return pieces[0]
    first = pieces[0]
    return replace(
        first,
        shape=(sum(piece.shape[0] for piece in pieces), *first.shape[1:]),
        read=lambda: torch.cat([piece.read() for piece in pieces]),
        sources=tuple(source for piece in pieces for source in piece.sources),
        fate="merged",
    )
