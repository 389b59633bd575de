"""What makes the host wait for a GPU, forbidden: also where there is none, since it is the calls that are seen.

Inside `no_waiting` every tensor counts as one of the device, but for those that are said to be the host's. With a GPU,
`torch.cuda.set_sync_debug_mode("error")` sees the waiting itself (benchmarks/gpu).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

WAITING = {
    "_local_scalar_dense": "a number is read (item, bool, float, int)",
    "nonzero": "how many there are decides a shape",
    "masked_select": "how many there are decides a shape",
    "_unique2": "how many there are decides a shape",
    "unique_dim": "how many there are decides a shape",
    "bincount": "the largest decides a shape",
    "equal": "a number is read",
    "is_nonzero": "a number is read",
    "lift_fresh": "a tensor is made of Python numbers, and copied from memory that is not pinned",
}
INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_")


class WaitError(AssertionError):
    """The host would have waited."""


class _Operators(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        name = func.overloadpacket.__name__
        if name in WAITING:
            raise WaitError(f"{func}: {WAITING[name]}")
        if name in INDEXING and any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]):
            raise WaitError(f"{func} by a mask: how many there are decides a shape")
        if name == "repeat_interleave" and (kwargs or {}).get("output_size") is None:
            raise WaitError(f"{func}: how many there are decides a shape")
        return func(*args, **(kwargs or {}))


class _Calls(TorchFunctionMode):
    """What operators do not show: `.tolist()`, and copies from one device to another, which a CPU does not make."""

    def __init__(self, host: tuple[Tensor, ...]) -> None:
        self.host = host

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        is_of_host = bool(args) and any(args[0] is tensor for tensor in self.host)
        if name in ("tolist", "cpu", "numpy", "__array__") and not is_of_host:
            raise WaitError(f".{name}() of a tensor of the device")
        # PyTorch's own functions name a device to move to that their tensors are on already.
        is_ours = f"{Path(torch.__file__).parent}" not in sys._getframe(1).f_code.co_filename
        names_device = isinstance(kwargs.get("device"), str | torch.device) or any(
            isinstance(value, str | torch.device) for value in args[1:2]
        )
        if name in ("to", "cuda", "type") and is_ours and names_device and not kwargs.get("non_blocking") and not is_of_host:
            raise WaitError(f".{name}({args[1:]}, {kwargs}) from one device to another, which waits")
        return func(*args, **kwargs)


@contextmanager
def no_waiting(*host: Tensor) -> Iterator[None]:
    """Raise `WaitError` where the host would wait for the device; `host` are tensors that are not on it."""
    with _Operators(), _Calls(host):
        yield
