"""Masking: which patches of an image are hidden.

`masker(config, grid)` checks a `MaskConfig` against the patch grid and returns a function from a `random.Random` to a mask.
BEiT hides blocks rather than single patches (arXiv 2106.08254, Algorithm 1), so that a hidden patch cannot be guessed from
its nearest neighbors. Masks are bool, True means hidden, and everything random comes from the generator that is passed in.

Inside this file a set of patches is one Python integer whose bit `row * gw + column` stands for a patch: union, overlap and
counting are then single operations, which keeps a mask well under 100 microseconds, cheap enough to draw per sample.
"""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from beitkit.configs.data import MaskConfig
from beitkit.configs.model import Pair
from beitkit.contracts import Batch
from beitkit.errors import UserError

ATTEMPTS = 10  # draws of one block before giving up on chance, as in the original code


class Masker(ABC):
    """Draws masks of one grid; `count` is how many patches a mask hides (for `OfficialMasking`, the most it hides)."""

    def __init__(self, grid: Pair, count: int) -> None:
        self.grid = grid
        self.count = count

    @abstractmethod
    def draw(self, rng: random.Random) -> int:
        """A random set of patches, as bits."""

    def __call__(self, rng: random.Random) -> Bool[Tensor, "gh gw"]:
        """A random mask, True where hidden; equal generators give equal masks."""
        return self.together([rng])[0].view(self.grid)

    def together(self, generators: Iterable[random.Random]) -> Bool[Tensor, "b n"]:
        """The mask of each generator, its patches in raster order."""
        num = self.grid[0] * self.grid[1]
        drawn = b"".join(self.draw(rng).to_bytes((num + 7) // 8, "little") for rng in generators)
        packed = np.frombuffer(drawn, dtype=np.uint8).reshape(-1, (num + 7) // 8)
        return torch.from_numpy(np.unpackbits(packed, axis=1, count=num, bitorder="little").view(np.bool_))


class RandomMasking(Masker):
    """Hides `count` patches chosen uniformly: the ablation of block-wise masking (BEiT, Table 4)."""

    def draw(self, rng: random.Random) -> int:
        """A uniform choice of `count` patches."""
        return sum(1 << patch for patch in rng.sample(range(self.grid[0] * self.grid[1]), self.count))


class NoMasking(Masker):
    """Hides nothing: the ablation of masking itself (BEiT, Table 4)."""

    def draw(self, rng: random.Random) -> int:
        """The empty set."""
        return 0


class OfficialMasking(Masker):
    """The original code's generator, bit for bit from an equally seeded `random.Random`.

    It places only blocks strictly smaller than the grid that fit into what is left to hide, and stops when ten draws in a
    row fail; so it often hides a few patches fewer than `count` (at 14x14 and 75: 74.5 on average, 64 at the least).
    """

    def __init__(self, grid: Pair, count: int, min_block: int, min_aspect: float) -> None:
        super().__init__(grid, count)
        self.min_block = min_block
        self.log_aspect = math.log(min_aspect), math.log(1 / min_aspect)

    def draw(self, rng: random.Random) -> int:
        """At most `count` patches in blocks."""
        masked = 0
        while (budget := self.count - masked.bit_count()) > 0:
            block = self._block(rng, masked, budget)
            if not block:
                break
            masked |= block
        return masked

    def _block(self, rng: random.Random, masked: int, budget: int) -> int:
        """A block that hides between 1 and `budget` new patches, or 0. The order of the draws is part of the result."""
        height, width = self.grid
        for _ in range(ATTEMPTS):
            # The bounds are reversed once the budget is below min_block; `uniform` then draws from the same interval.
            rows, columns = _sides(rng.uniform(self.min_block, budget), math.exp(rng.uniform(*self.log_aspect)))
            if rows < height and columns < width:
                top, left = rng.randint(0, height - rows), rng.randint(0, width - columns)
                block = _rectangle(rows, columns, width) << (top * width + left)
                if 0 < (block & ~masked).bit_count() <= budget:
                    return block
        return 0


class BlockMasking(Masker):
    """BEiT's Algorithm 1 with an exact count: blocks are drawn until `count` patches are hidden.

    Every block drawn covers at least `min_block` patches, has height / width in [min_aspect, 1 / min_aspect] and may span
    the grid. Blocks may overlap. Only the last one may lose patches, whole lines of it first, so that the count is met.
    """

    def __init__(self, grid: Pair, count: int, min_block: int, min_aspect: float) -> None:
        super().__init__(grid, count)
        self.min_block = min_block
        self.log_aspect = math.log(min_aspect), math.log(1 / min_aspect)
        shapes = _shapes(grid, min_block, grid[0] * grid[1], min_aspect)
        assert shapes, "masker() refuses settings without a block"
        self.bits = {(rows, columns): _rectangle(rows, columns, grid[1]) for rows, columns in shapes}
        # How far down and across each may begin, and its patches: looked up, as a block is drawn a dozen times for a mask.
        self.places = {
            (rows, columns): (grid[0] - rows + 1, grid[1] - columns + 1, bits) for (rows, columns), bits in self.bits.items()
        }
        area = min(rows * columns for rows, columns in shapes)
        self.smallest = [(rows, columns) for rows, columns in shapes if rows * columns == area]

    def draw(self, rng: random.Random) -> int:
        """Exactly `count` patches in blocks."""
        masked = 0
        while (budget := self.count - masked.bit_count()) > 0:
            masked |= self._gain(rng, masked, budget)
        return masked

    def _gain(self, rng: random.Random, masked: int, budget: int) -> int:
        """The patches that one more block hides: between 1 and `budget` of them, so that drawing always ends."""
        width, drawn, places = self.grid[1], rng.random, self.places
        smallest, more = self.min_block, max(budget, self.min_block) - self.min_block
        lowest, higher = self.log_aspect[0], self.log_aspect[1] - self.log_aspect[0]
        too_large: tuple[int, int] | None = None
        for _ in range(ATTEMPTS):
            # As `uniform` and `randint` draw, whose calls would take half of the time of a mask.
            area, aspect = smallest + more * drawn(), math.exp(lowest + higher * drawn())
            place = places.get((round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))))
            if place is None:
                continue
            down, across, bits = place
            block = bits << (_below(rng, down) * width + _below(rng, across))
            gain = block & ~masked
            if 0 < gain.bit_count() <= budget:
                return gain
            if gain:
                too_large = (block, gain)
        block, gain = too_large or self._forced(rng, masked)
        return gain if gain.bit_count() <= budget else self._trimmed(rng, block, gain, budget)

    def _forced(self, rng: random.Random, masked: int) -> tuple[int, int]:
        """A smallest block over a visible patch, for when ten draws hid nothing new: the block and the patches it gains."""
        height, width = self.grid
        row, column = divmod(rng.choice([patch for patch in range(height * width) if not masked >> patch & 1]), width)
        rows, columns = rng.choice(self.smallest)
        top = rng.randint(max(0, row - rows + 1), min(row, height - rows))
        left = rng.randint(max(0, column - columns + 1), min(column, width - columns))
        block = self.bits[rows, columns] << (top * width + left)
        return block, block & ~masked

    def _trimmed(self, rng: random.Random, block: int, gain: int, budget: int) -> int:
        """`budget` of the patches in `gain`, filled line by line from a random side of the block, along its short side."""
        width = self.grid[1]
        patches = [patch for patch in range(self.grid[0] * width) if gain >> patch & 1]
        first, last = (block & -block).bit_length() - 1, block.bit_length() - 1
        if last % width - first % width > last // width - first // width:
            patches.sort(key=lambda patch: (patch % width, patch // width))
        if rng.random() < 0.5:
            patches.reverse()
        return sum(1 << patch for patch in patches[:budget])


def masker(config: MaskConfig, grid: Pair) -> Masker:
    """The masker of a config on a patch grid (gh, gw).

    Raises:
        UserError: the setting cannot work on this grid; the message names the nearest that can.
    """
    num = grid[0] * grid[1]
    if num < 2:
        raise UserError(f"a grid of {grid[0]}x{grid[1]} patches cannot be masked in part; use smaller patches or larger images")
    if config.kind == "none":
        return NoMasking(grid, 0)
    count = round(config.ratio * num)
    if not 0 < count < num:
        nearest = (1 if count < 1 else num - 1) / num
        raise UserError(
            f"mask ratio {config.ratio:g} hides {count} of the {num} patches of a {grid[0]}x{grid[1]} grid; "
            f"hide at least 1 and leave at least 1 visible: the nearest ratio is {nearest:.4g}"
        )
    if config.kind == "random":
        return RandomMasking(grid, count)
    min_block = max(1, round(config.min_block * num))
    if min_block > count:
        raise UserError(
            f"the smallest block is {min_block} patches but only {count} of {num} are masked on a {grid[0]}x{grid[1]} grid; "
            f"lower min_block to {count / num:.4g} or raise the mask ratio to {min_block / num:.4g}"
        )
    if config.kind == "official":
        _check_official(config, grid, min_block, count)
        return OfficialMasking(grid, count, min_block, config.min_aspect)
    _check_block(config, grid, min_block)
    return BlockMasking(grid, count, min_block, config.min_aspect)


def predicted_patches(mask: Bool[Tensor, "b n"], recover_all: bool) -> Bool[Tensor, "b n"]:
    """The patches that are to be predicted: the masked ones, or every one."""
    return torch.ones_like(mask) if recover_all else mask


def with_positions(stream: Iterable[Batch], recover_all: bool) -> Iterator[Batch]:
    """Batches with `positions` int64 (m,): where something is predicted, as places in the flattened (b, n), ascending.

    Put it before `to_device`: on a GPU the network would have to wait to learn how many there are.
    """
    for batch in stream:
        yield batch | {"positions": predicted_patches(batch["mask"], recover_all).flatten().nonzero().flatten()}


def _check_block(config: MaskConfig, grid: Pair, min_block: int) -> None:
    if not _shapes(grid, min_block, grid[0] * grid[1], config.min_aspect):
        # Larger blocks than this do not fit, whatever their shape; a single patch always does, so there is a maximum.
        largest = max(rows * columns for rows, columns in _shapes(grid, 1, grid[0] * grid[1], config.min_aspect))
        raise UserError(
            f"no block of at least {min_block} patches with an aspect ratio between {config.min_aspect:g} and its inverse fits "
            f"a {grid[0]}x{grid[1]} grid; lower min_block to {largest / (grid[0] * grid[1]):.4g}"
        )


def _check_official(config: MaskConfig, grid: Pair, min_block: int, count: int) -> None:
    if min(grid) <= 2:
        raise UserError(
            f"official masking needs a grid of at least 3x3 patches, got {grid[0]}x{grid[1]}; "
            "use block masking, or smaller patches"
        )
    inner = grid[0] - 1, grid[1] - 1
    if not _shapes(inner, min_block, count, config.min_aspect):
        largest = max(rows * columns for rows, columns in _shapes(inner, 1, count, config.min_aspect))
        raise UserError(
            f"official masking has no block of {min_block} to {count} patches that is smaller than the {grid[0]}x{grid[1]} grid, "
            f"with an aspect ratio of at least {config.min_aspect:g}; lower min_block to {largest / (grid[0] * grid[1]):.4g}"
        )


def _shapes(grid: Pair, smallest: int, largest: int, min_aspect: float) -> list[Pair]:
    """All blocks (rows, columns) that fit a grid, cover `smallest` to `largest` patches and keep to the aspect bounds."""
    slack = 1 - 1e-9  # a block of exactly the extreme aspect is allowed, whatever the rounding of the quotient
    return [
        (rows, columns)
        for rows in range(1, grid[0] + 1)
        for columns in range(1, grid[1] + 1)
        if smallest <= rows * columns <= largest and min(rows, columns) / max(rows, columns) >= min_aspect * slack
    ]


def _below(rng: random.Random, count: int) -> int:
    """`rng.randrange(count)`, by the same draws."""
    bits = count.bit_length()
    number = rng.getrandbits(bits)
    while number >= count:
        number = rng.getrandbits(bits)
    return number


def _sides(area: float, aspect: float) -> Pair:
    """(rows, columns) of a block by its area and its height / width, rounded as the original does (half to even)."""
    return round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))


def _rectangle(rows: int, columns: int, width: int) -> int:
    """The patches of a block in the top left corner of a grid that is `width` patches wide."""
    line = (1 << columns) - 1
    return sum(line << (row * width) for row in range(rows))
