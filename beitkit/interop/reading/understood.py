"""An identified checkpoint: config and lazy tensors under official names."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

import torch

from beitkit.contracts import TensorRecord
from beitkit.errors import UserError
from beitkit.interop.build import listed
from beitkit.interop.formats.layouts import SKIPPED
from beitkit.interop.formats.names import NameTable
from beitkit.interop.kinds import AnyNetworkConfig, BareBackbone
from beitkit.interop.stored import LazyTensor, State


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """An identified checkpoint."""

    path: Path
    layout: str
    config: AnyNetworkConfig | BareBackbone
    tensors: State
    """By official names."""
    skipped: tuple[TensorRecord, ...] = ()
    """Tensors of the file that no network needs."""
    notes: tuple[str, ...] = ()


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
