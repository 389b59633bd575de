"""Safetensors files, written one tensor at a time, and read a few rows at a time.

The safetensors library needs all tensors in host memory, copies them twice, and the file would have to be read again for its
digest. Here each tensor is copied from the device when it is written, and hashed on the way. Reading uses the library.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from beitkit.errors import UserError
from beitkit.files import check_regular, opened_regular

TYPE_OF_NAME = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
                "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool}  # fmt: skip
NAME_OF_TYPE = {dtype: name for name, dtype in TYPE_OF_NAME.items()}
ALIGNMENT = 8
"""The header is padded to whole multiples, so that tensors can be mapped where they lie."""


def write_tensors(file: IO[bytes], tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> str:
    """Write a safetensors file with metadata; returns its digest."""
    # Wide types first, so that every tensor is aligned.
    ordered = sorted(tensors.items(), key=lambda item: -item[1].element_size())
    header: dict[str, object] = {} if metadata is None else {"__metadata__": dict(metadata)}
    end = 0
    for name, tensor in ordered:
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": NAME_OF_TYPE[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    hashed = _hash()
    for data in (len(text).to_bytes(8, "little"), text):
        hashed.update(data)
        file.write(data)
    for _, tensor in ordered:
        values = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
        hashed.update(values)
        file.write(values)
    return hashed.hexdigest()


def read_rows(path: Path, wanted: Sequence[tuple[str, int, Tensor]]) -> None:
    """Copy rows of a file into tensors: (name, first row, destination).

    Raises:
        UserError: if the file does not hold them.
    """
    try:
        check_regular(path)
        with safe_open(path, framework="pt") as file:
            for name, first, target in wanted:
                stored = file.get_tensor(name) if target.ndim == 0 else file.get_slice(name)[first : first + len(target)]
                if stored.shape != target.shape or stored.dtype != target.dtype:
                    raise SafetensorError(f"{name} has another shape")
                target.copy_(stored)
    except SafetensorError as error:
        raise UserError(f"{path} does not hold what its manifest says ({error}); remove that checkpoint") from None


def digest_of_file(path: Path) -> str:
    """Digest of a file, as returned by `write_tensors`."""
    with opened_regular(path) as file:
        return hashlib.file_digest(file, _hash).hexdigest()


def _hash() -> hashlib.blake2b:
    return hashlib.blake2b(digest_size=16)
