"""Digest of a config and its weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import torch
from torch import Tensor

from beitkit.configs.codec import to_json


def digest_of(config: object, state: Mapping[str, Tensor]) -> str:
    """Digest (32 hex digits) of a config dataclass and the names, types, shapes and values of tensors."""
    digest = hashlib.blake2b(json.dumps(to_json(config), sort_keys=True).encode(), digest_size=16)
    for name, tensor in state.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
