"""Small images, decoded once and held in memory as one tensor, which the processes that read share.

What is held is counted as it lies there, decoded pixels padded to the size of the largest, against `data.budget`.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Generator
from contextlib import closing

import torch
from jaxtyping import Shaped
from torch import Tensor

from beitkit.configs.model import Pair
from beitkit.contracts import Batch
from beitkit.data.budget import budget

SMALL_PIXELS = 128 * 128
"""Only images up to this size are worth holding decoded."""


BESIDE = 1024
"""Bytes that a tensor takes beside its values."""


class HeldImages:
    """The first images of a list, as far as they have been decoded; a larger image than the slots is never held.

    The memory is shared with processes that are forked: what one of them decodes, all have.
    """

    def __init__(self, count: int, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
        """Room for up to `count` images of at most `shape` (c, h, w), as far as the process may hold them."""
        each = math.prod(shape) * dtype.itemsize + 4
        self.count = budget().taken(count, each, self)
        """How many there is room for."""
        self.bytes = self.count * each
        self.pixels = _shared((self.count, *shape), dtype)
        """(count, c, h, w), 0 beyond an image's own size."""
        self.sizes = _shared((self.count, 2), torch.int16)
        """(height, width) of each; 0 before it is decoded, -1 if it is not to be held."""

    def size(self, index: int) -> Pair | None:
        """(height, width) of an image; None if it is not here."""
        height, width = self.sizes[index].tolist() if index < self.count else (0, 0)
        return (height, width) if height > 0 else None

    def get(self, index: int) -> Shaped[Tensor, "c h w"] | None:
        """The pixels of an image; None if they are not here."""
        size = self.size(index)
        return None if size is None else self.pixels[index, :, : size[0], : size[1]]

    def has_room_for(self, height: int, width: int) -> bool:
        """Whether an image of this size fits a slot."""
        return height <= self.pixels.shape[2] and width <= self.pixels.shape[3]

    def put(self, index: int, pixels: Shaped[Tensor, "c h w"]) -> bool:
        """Hold an image, if there is room for it; returns whether there is."""
        if index >= self.count:
            return False
        height, width = pixels.shape[1:]
        if not self.has_room_for(height, width):
            self.refuse(index)
            return False
        self.pixels[index, :, :height, :width] = pixels
        self.sizes[index] = torch.tensor([height, width], dtype=torch.int16)  # the last thing: others believe it
        return True

    def refuse(self, index: int) -> None:
        """An image is not to be held."""
        if index < self.count:
            self.sizes[index] = -1

    def refuses(self, index: int) -> bool:
        """Whether that was said of it."""
        return index < self.count and bool(self.sizes[index, 0] < 0)


class _Pass:
    """Batches in memory, which count against the limit for as long as this is there."""

    def __init__(self, which: tuple[int, int, int]) -> None:
        self.which = which
        self.batches: list[Batch] = []
        self.is_whole = False


class KeptPass:
    """The batches of a pass over images, kept for the next one where they fit."""

    def __init__(self) -> None:
        self._pass: _Pass | None = None

    def batches(
        self, read: Callable[[], Generator[Batch, None, None]], which: tuple[int, int, int], images: int
    ) -> Generator[Batch, None, None]:
        """What `read` yields: the batches of this many images; the second time from memory.

        `which` are the batches' size, and which share of them (`contracts.Share`) is read.
        """
        if self._pass is not None and self._pass.is_whole and self._pass.which == which:
            yield from map(dict, self._pass.batches)
            return
        self._pass = None  # before the next one asks for room
        kept: _Pass | None = _Pass(which)
        with closing(read()) as stream:
            for batch in stream:
                if kept is not None and not kept.batches:
                    each = sum(value.nbytes + BESIDE for value in batch.values()) / len(batch["index"])
                    kept = kept if budget().taken(1, math.ceil(each * images), kept) else None
                if kept is not None:
                    kept.batches.append({name: _own(value) for name, value in batch.items()})
                yield batch
        if kept is not None:
            kept.is_whole, self._pass = True, kept


def _own(value: Tensor) -> Tensor:
    """The values in memory of this process: what a worker sent holds a file open, of which there may be a thousand."""
    return value.clone() if value.is_shared() else value


def _shared(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Zeros in memory that forked processes share; pages that nobody touches take no room."""
    count = math.prod(shape) * dtype.itemsize
    return torch.frombuffer(mmap.mmap(-1, count), dtype=dtype).view(shape) if count else torch.zeros(shape, dtype=dtype)
