"""Bytes that the operations of a step read and write, by category, counted on fake or real tensors.

An operation reads its inputs and writes its outputs, whole and once, as if no cache held anything from one to the next; views
cost nothing. On a CPU an elementwise operation on two types first copies what has the lower one, below what is seen here, which
is added. Bytes count where memory is the limit, and a change of them shows without a clock. What a compiler puts together into
one kernel is not seen.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CATEGORIES = {
    "products": ("mm", "addmm", "bmm", "baddbmm", "convolution", "convolution_backward"),
    "casts": ("_to_copy",),
    "copies": ("copy_", "clone", "cat", "stack", "constant_pad_nd", "lift_fresh"),
    "norms": ("native_layer_norm", "native_layer_norm_backward", "native_batch_norm", "native_batch_norm_backward"),
    "softmax": ("_softmax", "_softmax_backward_data", "_log_softmax", "_log_softmax_backward_data"),
    "update": ("_fused_adamw_", "_foreach_norm", "_foreach_mul_", "_foreach_lerp_", "linalg_vector_norm"),
}
"""Operations by category; all others are "elementwise", sums and gathers among them."""
ATTENTION = "_scaled_dot_product"
WRITE_ONLY = ("copy_", "fill_", "zero_", "normal_", "uniform_", "bernoulli_")
"""Operations that do not read what they overwrite."""
FREE = ("empty", "new_empty", "empty_like", "empty_strided", "detach", "_unsafe_view")


class Count(NamedTuple):
    """How often an operation ran, and the bytes that it read and wrote."""

    calls: int
    bytes: int


class Traffic(TorchDispatchMode):
    """Counts what the operations inside the block read and write."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: Counter[str] = Counter()
        self._bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        """Run the operation and count it."""
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        moved = _moved(func, name, args, kwargs or {}, result)
        if moved:
            self._calls[name] += 1
            self._bytes[name] += moved
        return result

    @property
    def operations(self) -> dict[str, Count]:
        """By operation, the most bytes first."""
        return {name: Count(self._calls[name], size) for name, size in self._bytes.most_common()}

    @property
    def categories(self) -> dict[str, Count]:
        """By category."""
        found = dict.fromkeys((*CATEGORIES, "attention", "elementwise"), Count(0, 0))
        for name, count in self.operations.items():
            category = _category(name)
            found[category] = Count(found[category].calls + count.calls, found[category].bytes + count.bytes)
        return found

    @property
    def bytes(self) -> int:
        """All of them."""
        return self._bytes.total()


def _category(name: str) -> str:
    if name.startswith(ATTENTION):
        return "attention"
    return next((category for category, names in CATEGORIES.items() if name in names), "elementwise")


def _moved(func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> int:
    if name in FREE:
        return 0
    schema = func._schema
    returned = result if isinstance(result, tuple | list) and len(schema.returns) > 1 else (result,)
    outputs = [value for value, declared in zip(returned, schema.returns, strict=False) if declared.alias_info is None]
    written, read = [tensor for value in outputs for tensor in _tensors(value)], []
    given = dict(zip((argument.name for argument in schema.arguments), args, strict=False)) | kwargs
    for argument in schema.arguments:
        tensors = _tensors(given.get(argument.name))
        is_overwritten = argument.alias_info is not None and argument.alias_info.is_write
        if is_overwritten:
            written += tensors
        if not (is_overwritten and name in WRITE_ONLY):
            read += tensors
    if not written:  # a view
        return 0
    converted = 0
    if _category(name) == "elementwise" and written[0].is_cpu and written[0].is_floating_point():
        kind = written[0].dtype
        lower = [tensor for tensor in read if tensor.ndim and tensor.is_floating_point() and tensor.itemsize < kind.itemsize]
        converted = sum(2 * _size(tensor) * kind.itemsize // tensor.itemsize for tensor in lower)
    return sum(map(_size, (*read, *written))) + converted


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def _size(tensor: Tensor) -> int:
    """Bytes of a tensor; what is expanded is read once."""
    distinct = math.prod(size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride)
    return distinct * tensor.element_size()
