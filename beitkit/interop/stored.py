"""Lazy tensors, which are read from their file on demand, and safetensors files of them.

Checkpoints are identified, checked and converted by names, shapes and types alone; the values are read last, one tensor at a
time. So inspecting a file is cheap, and loading it needs its memory only once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from beitkit.contracts import Fate
from beitkit.errors import UserError, few
from beitkit.files import check_regular, why
from beitkit.train.checkpoints.tensor_files import TYPE_OF_NAME


@dataclass(frozen=True, kw_only=True)
class LazyTensor:
    """A tensor not read yet, what was done to it so far, and where it came from."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]
    sources: tuple[str, ...]
    """Names in the file."""
    fate: Fate = "kept"
    reason: str = ""


State = dict[str, LazyTensor]
"""Tensors by name."""


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
    """Tensors in memory as lazy tensors."""
    return {
        name: LazyTensor(shape=tuple(tensor.shape), dtype=tensor.dtype, read=lambda tensor=tensor: tensor, sources=(name,))
        for name, tensor in tensors.items()
    }


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raise a `UserError` that names the tensors with numbers that are not finite."""
    bad = [name for name, tensor in tensors.items() if not _is_finite(tensor)]
    if bad:
        raise UserError(f"numbers are not finite (NaN or infinite) in {few(bad, 8)}; take a checkpoint from before they went bad")


def _is_finite(tensor: Tensor) -> bool:
    # The extremes carry every NaN and infinity; `isfinite` on the tensor itself would hold a copy of it for a moment.
    return not tensor.numel() or bool(torch.stack(tensor.detach().aminmax()).isfinite().all())


def read_safetensors(path: Path) -> State:
    """The tensors of a safetensors file.

    Raises:
        UserError: if the file is not one, is cut off, or has numbers of a type that no network here is made of.
    """
    with _opened(path) as file:
        return {name: _entry(path, name, file.get_slice(name)) for name in file.offset_keys()}


def _entry(path: Path, name: str, about: Any) -> LazyTensor:
    def read() -> Tensor:
        with _opened(path) as file:
            return file.get_tensor(name)

    if about.get_dtype() not in TYPE_OF_NAME:
        raise UserError(f"{path}: tensor {name!r} is of the type {about.get_dtype()}; expected {', '.join(TYPE_OF_NAME)}")
    return LazyTensor(shape=tuple(about.get_shape()), dtype=TYPE_OF_NAME[about.get_dtype()], read=read, sources=(name,))


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a safetensors file; its errors become one-line `UserError`s."""
    try:
        check_regular(path)  # the library would wait for a pipe's writer
        with safe_open(path, framework="pt") as file:
            yield file
    except OSError as error:
        raise UserError(f"{path} cannot be read: {why(error)}") from None
    except SafetensorError:
        raise UserError(f"{path} is damaged, cut off, or not a safetensors file; download or copy it again") from None
