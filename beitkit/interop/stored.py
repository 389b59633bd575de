"""A tensor that lies in a file and is read when it is wanted, and the safetensors files that hold such tensors.

Checkpoints are understood, checked and converted by names, shapes and types alone; the numbers are read last, one tensor
at a time, straight from their place in the file. So looking into a file costs nothing, and loading it needs memory once.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from beitkit.contracts import Fate
from beitkit.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A tensor not read yet, what was done to it so far, and where it came from."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]
    sources: tuple[str, ...]
    """Names in the file."""
    fate: Fate = "kept"
    reason: str = ""


State = dict[str, Stored]
"""Tensors by name."""

SAFETENSORS_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
MAX_HEADER = 100 * 2**20  # the format's own limit; a wrong number must not make us allocate what it says


def read_slice(
    path: Path, offset: int, dtype: torch.dtype, shape: tuple[int, ...], stride: tuple[int, ...] | None = None
) -> Tensor:
    """The tensor whose first element lies `offset` bytes into a file; `stride` in elements, None for contiguous."""
    if math.prod(shape) == 0:
        return torch.empty(shape, dtype=dtype)
    count = math.prod(shape) if stride is None else 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    raw = np.fromfile(path, np.uint8, count * dtype.itemsize, offset=offset)
    if raw.size != count * dtype.itemsize:
        raise UserError(f"{path} ends in the middle of a tensor; download or copy it again")
    flat = torch.from_numpy(raw).view(dtype)
    return flat.view(shape) if stride is None else flat.as_strided(shape, stride).contiguous()


def of_tensors(tensors: dict[str, Tensor]) -> State:
    """Tensors in memory as if they were stored."""
    return {
        name: Stored(shape=tuple(tensor.shape), dtype=tensor.dtype, read=lambda tensor=tensor: tensor, sources=(name,))
        for name, tensor in tensors.items()
    }


def read_safetensors(path: Path) -> tuple[State, dict[str, str]]:
    """The tensors of a safetensors file, and the text it carries about itself.

    Raises:
        UserError: if the file is not one, or is cut off.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(MAX_HEADER, size - 8):
            raise UserError(f"{path} is not a whole safetensors file; download or copy it again")
        header = _parse(path, file.read(length))
    metadata = header.pop("__metadata__", {})
    return {name: _entry(path, name, about, 8 + length, size) for name, about in header.items()}, metadata


def _parse(path: Path, text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text)
    except ValueError:
        header = None
    if not isinstance(header, dict):
        raise UserError(f"{path} is not a safetensors file: its header is not JSON")
    return header


def _entry(path: Path, name: str, about: Any, start: int, size: int) -> Stored:
    try:
        dtype, shape = SAFETENSORS_TYPES[about["dtype"]], tuple(int(side) for side in about["shape"])
        begin, end = (int(offset) for offset in about["data_offsets"])
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{path}: the header entry of {name} cannot be understood: {about}") from None
    if min(shape, default=0) < 0 or begin < 0 or end - begin != math.prod(shape) * dtype.itemsize or start + end > size:
        raise UserError(f"{path} is damaged or cut off at tensor {name}; download or copy it again")
    return Stored(shape=shape, dtype=dtype, read=lambda: read_slice(path, start + begin, dtype, shape), sources=(name,))
