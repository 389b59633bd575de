"""Networks that have shapes and no content, which are made in no time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

WRITES = {
    getattr(torch.Tensor, name)
    for name in ("normal_", "uniform_", "erfinv_", "mul_", "div_", "clamp_", "fill_", "zero_", "copy_")
}
"""What first weights are made with. On tensors without content it would do nothing, but torch would import its compiler for it,
which takes two seconds."""


@contextmanager
def only_shapes() -> Iterator[None]:
    """What is made inside lies on the device "meta": names, shapes and types, no memory, and weights that nobody draws."""
    with torch.device("meta"), _Unwritten():
        yield


def autocast_off(device: torch.device) -> AbstractContextManager[Any]:
    """No autocast inside; on the device "meta" there is none anyway, and torch refuses to be asked."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


class _Unwritten(TorchFunctionMode):
    """Leaves tensors without content as they are."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """What `func` returns; of those that write, the tensor that it was to write."""
        return args[0] if func in WRITES and args[0].is_meta else func(*args, **(kwargs or {}))
