"""Bytes that the operations of a step read and write, by category, counted on fake or real tensors.

An operation reads its inputs and writes its outputs, whole and once, as if no cache held anything from one to the next; views
cost nothing. On a CPU an elementwise operation on two types first copies what has the lower one, below what is seen here, which
is added. Bytes count where memory is the limit, and a change of them shows without a clock. What a compiler puts together into
one kernel is not seen here; `Chains` says what it would come to at best.
"""

from __future__ import annotations

import math
import weakref
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


class Touched(NamedTuple):
    """Tensors that an operation reads and writes; none for a view."""

    read: list[Tensor]
    written: list[Tensor]


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
        self._add(name, _touched(func, name, args, kwargs or {}, result))
        return result

    def _add(self, name: str, touched: Touched) -> None:
        """Count an operation."""
        moved = _moved(name, touched)
        if moved:
            self._calls[name] += 1
            self._bytes[name] += moved

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


class Chains(Traffic):
    """Counts a step as a GPU makes it: attention by one kernel, and a chain of operations between two products by one at best.

    Operations on scores (b, k, t, t) are attention's, which a fused kernel keeps on the chip, and are counted apart; `fused` is
    what is left of the others where every chain between two products reads what it is given once, and writes once what is used
    after it.
    """

    def __init__(self, images: int, tokens: int) -> None:
        """A step of this many images, whose networks see `tokens` tokens of each."""
        super().__init__()
        self.inside_attention = Count(0, 0)
        self._scores = images, tokens
        self._numbers: dict[int, int] = {}
        """Of the storages that there are now, by address: an address is used again."""
        self._gone: set[int] = set()
        self._last_use: dict[int, int] = {}
        """Chain in which a storage was read last."""
        self._chains: list[tuple[dict[int, int], dict[int, int]]] = [({}, {})]
        """Bytes that each read before it wrote them, and that it wrote, by storage."""

    @property
    def eager(self) -> Count:
        """Operations that are no products, one after the other, attention's inside left out."""
        apart = ("products", "attention")
        counts = [count for category, count in self.categories.items() if category not in apart]
        return Count(sum(count.calls for count in counts), sum(count.bytes for count in counts))

    @property
    def products(self) -> Count:
        """Matrix products and convolutions, attention's left out."""
        return self.categories["products"]

    @property
    def fused(self) -> Count:
        """What `eager` comes to as chains; those that move nothing are no kernel."""
        moved = []
        for place, (read, written) in enumerate(self._chains):
            used = {
                number: size
                for number, size in written.items()
                if number not in self._gone or self._last_use.get(number, -1) > place
            }
            moved.append(sum(read.values()) + sum(used.values()))
        return Count(sum(size > 0 for size in moved), sum(moved))

    def _add(self, name: str, touched: Touched) -> None:
        if not touched.written:
            return
        if any(self._is_of_scores(tensor) for tensor in (*touched.read, *touched.written)):
            calls, moved = self.inside_attention
            self.inside_attention = Count(calls + 1, moved + sum(map(_size, (*touched.read, *touched.written))))
            self._chained(touched, is_apart=True)
            return
        self._calls[name] += 1
        self._bytes[name] += sum(map(_size, (*touched.read, *touched.written)))
        self._chained(touched, is_apart=_category(name) in ("products", "attention"))

    def _is_of_scores(self, tensor: Tensor) -> bool:
        images, tokens = self._scores
        shape = tensor.shape
        if len(shape) == 3:  # as products take them
            return shape[1] == shape[2] == tokens and shape[0] >= images and shape[0] % images == 0 and images > 1
        return len(shape) == 4 and shape[0] == images > 1 and shape[2] == shape[3] == tokens

    def _chained(self, touched: Touched, *, is_apart: bool) -> None:
        """Add to the chain that goes on; what is apart ends it."""
        if is_apart:
            self._chains.append(({}, {}))
        place, (read, written) = len(self._chains) - 1, self._chains[-1]
        for tensor in touched.read:
            number = self._number(tensor)
            self._last_use[number] = place
            if not is_apart and number not in written:
                _note(read, number, tensor)
        for tensor in touched.written:
            number = self._number(tensor)
            if not is_apart:
                _note(written, number, tensor)
        if is_apart:
            self._chains.append(({}, {}))

    def _number(self, tensor: Tensor) -> int:
        storage = tensor.untyped_storage()
        address = storage._cdata
        if address not in self._numbers:
            number = self._numbers[address] = len(self._gone) + len(self._numbers)
            weakref.finalize(storage, self._forget, address, number)
        return self._numbers[address]

    def _forget(self, address: int, number: int) -> None:
        del self._numbers[address]
        self._gone.add(number)


def _note(sizes: dict[int, int], number: int, tensor: Tensor) -> None:
    """What is touched in parts counts in parts, but no storage more than whole."""
    sizes[number] = min(tensor.untyped_storage().nbytes(), max(_size(tensor), sizes.get(number, 0)))


def _category(name: str) -> str:
    if name.startswith(ATTENTION):
        return "attention"
    return next((category for category, names in CATEGORIES.items() if name in names), "elementwise")


def _touched(func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Touched:
    if name in FREE:
        return Touched([], [])
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
    return Touched(read, written) if written else Touched([], [])  # else it is a view


def _moved(name: str, touched: Touched) -> int:
    read, written = touched
    if not written:
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
