"""Conventions and small types that the whole package shares.

Conventions: masks are bool and True means hidden; sizes are (height, width); images are uint8 (c, h, w) in the
data layer (float in [0, 1] where 8 bits do not hold them), float in [0, 1] for tokenizers and normalized float for backbones;
token ids are int64 in raster order; an ignored label in a label map is 255; the class token is never among the patches.

Axis letters: b batch, c channel, h w pixels, gh gw grid, n patches (gh * gw), d width, k heads, v vocabulary, m masked.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, TypeVar, get_args, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from beitkit.errors import UserError

Part = TypeVar("Part")

IGNORED = 255
"""Ignore index of label maps: such pixels count neither in the loss nor in metrics."""
Batch = dict[str, Tensor]
"""What a stream yields and an objective takes, by key; a stage that has no more use for a key leaves it out.

| key            | what                                                | made by                 | read by                       |
|----------------|-----------------------------------------------------|-------------------------|-------------------------------|
| `images`       | uint8 (b, c, h, w), after `normalized` float32      | views                   | nearly everything             |
| `token_images` | uint8 (b, c, h', w'), same crop at tokenizer's size | PretrainView            | tokenized, CachedTokens       |
| `tokens`       | int64 (b, n), in place of `token_images`            | tokenized, CachedTokens | MaskedTokens                  |
| `mask`         | bool (b, n), True where hidden                      | ImageDataset            | MaskedTokens, MaskedPixels    |
| `positions`    | int64 (m,), what is predicted, in the flat (b, n)   | with_positions          | MaskedTokens, MaskedPixels    |
| `labels`       | int64 (b,), the class                               | ImageDataset            | Classify, mixed, LinearProbes |
| `targets`      | float32 (b, classes), shares of the classes         | ImageDataset, mixed     | Classify, mixed               |
| `erased`       | int64 (b, 5): top, left, height, width, noise seed  | TrainView               | erased                        |
| `label_map`    | uint8 (b, h, w), 255 where nothing counts           | SceneTrainView          | Segment                       |
| `extent`       | int64 (b, 2): height and width without padding      | SceneTrainView          | with_zeroed_padding           |
| `features`     | float32 (blocks, b, f), in place of `images`        | featured                | LinearProbes                  |
| `held_out`     | bool (b,), whether the image chooses the block      | featured                | LinearProbes                  |
| `index`        | int64 (b,), the image's place in the list           | ImageDataset            | CachedTokens, evaluators      |
| `view`         | int64 (b,), which of the stored views               | ImageDataset            | CachedTokens, tokenize        |
| `broken`       | int64 (b,), unreadable image replaced here, else -1 | ImageDataset            | streams, evaluators           |
"""

ImageInput = str | bytes | os.PathLike[str] | Image.Image | NDArray[np.generic] | Tensor
"""One image: a path, a Pillow image, or an array or tensor (see `data.reader` for shapes and ranges)."""

Precision = Literal["float32", "bfloat16", "float16"]
"""Precision of matrix products."""


Autocast = Callable[[], AbstractContextManager[object]]
"""Makes the autocast context of a run, such as `Runtime.precision`."""


def in_unit_range(images: Tensor, dtype: torch.dtype = torch.float32) -> Float[Tensor, "*b c h w"]:
    """Views in [0, 1] as new floats: those of 8-bit images are divided by 255, those of others are in it already."""
    return images.to(dtype).div_(255) if images.dtype == torch.uint8 else images.to(dtype, copy=True)


AUTOCAST: dict[Precision, torch.dtype | None] = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""The autocast type of each `Precision`."""


def precision_name(autocast: torch.dtype | None) -> Precision:
    """Name of the autocast type; float32 without autocast."""
    return next(name for name, kind in AUTOCAST.items() if kind == autocast)


def autocast_type(precision: Precision) -> torch.dtype | None:
    """The autocast type of a precision; None: no autocast. The inverse of `precision_name`."""
    return AUTOCAST[precision]


def pixel_statistics(
    mean: Sequence[float], std: Sequence[float], channels: int, like: Tensor
) -> tuple[Float[Tensor, "c 1 1"], Float[Tensor, "c 1 1"]]:
    """Mean and standard deviation per channel, on the device of `like`.

    Images of another number of channels than these, such as gray ones with the statistics of RGB, take the average.
    """
    # Filled on the device: a tensor made of Python numbers would be copied from memory that the copy has to wait for.
    statistics = torch.stack([like.new_full((), value) for value in (*mean, *std)]).view(2, -1)
    if channels != statistics.shape[1]:
        statistics = statistics.mean(1, keepdim=True)
    return statistics[0, :, None, None], statistics[1, :, None, None]


class Loss(NamedTuple):
    """What an objective returns: `total` is backpropagated, `parts` are detached and logged."""

    total: Tensor
    parts: dict[str, Tensor]


class ShardingUnit(nn.Module):
    """A part of a network whose weights are gathered together where they are sharded, such as a block of a Transformer."""


def sharding_units(module: nn.Module) -> list[ShardingUnit]:
    """The sharding units of a module."""
    return [part for part in module.modules() if isinstance(part, ShardingUnit)]


@runtime_checkable
class RewritesParameters(Protocol):
    """A module whose forward pass writes some of its own parameters, so that a skipped step can put them back."""

    def rewritten(self) -> Sequence[Tensor]:
        """Those parameters."""
        ...


@runtime_checkable
class MapDataset(Protocol):
    """What `images` of a Python function takes besides a path: any dataset with a length and items by number.

    An item is an image, a pair (image, label), or a mapping with `image` and `label`. An image is a Pillow image, an array (h, w)
    or (h, w, c), or a tensor (h, w) or (c, h, w): uint8, or other numbers of 1 to 16 channels, whose value range is found or
    given as for files. A label is a whole number or a name; class names come from `classes`, where the dataset has them, and all
    labels at once from `targets`. For segmentation a label map has the label's place (`label_map` in a mapping): a Pillow image,
    or whole numbers (h, w), of the image's size. Item i is the same image whenever it is read: the global generators of Python,
    NumPy and PyTorch are seeded by i before. An item that raises counts as a file that cannot be read.
    """

    def __len__(self) -> int:
        """Number of items."""
        ...

    def __getitem__(self, index: int, /) -> Any:
        """An item, from 0 on."""
        ...


@runtime_checkable
class Augmentation(Protocol):
    """What `augmentation` of a Python function takes: a change of one decoded training image.

    It is called in the process that reads, on the whole upright image, before crop, flips, color jitter and resize, which follow
    as their options say. An image of 8 bits is a Pillow image of mode "RGB" or "L", which it may change in place; one of other
    depth or channels a float32 array (h, w, c) in [0, 1]. It returns such an image, or anything that an item of a `MapDataset`
    may be, of the same channels. What it draws from the global generators of Python, NumPy and PyTorch depends on seed, epoch and
    image alone.
    """

    def __call__(self, image: Any, /) -> Any:
        """The image as it is to be shown."""
        ...


@runtime_checkable
class PatchTokenizer(Protocol):
    """What `tokenizer` of `pretrain` takes besides a path: float32 images (b, c, h, w) in [0, 1] to an id for each patch.

    Ids are whole numbers (b, rows, columns) or (b, n), in raster order, below an attribute `vocabulary`. The images have the
    network's size, or with an attribute `stride` that many pixels for each id along a side. They lie on the run's device, where a
    module is moved, and no gradient is kept. An attribute `fingerprint`, a text, says that equal ones give equal ids.
    """

    def __call__(self, images: Any, /) -> Tensor:
        """The ids."""
        ...


@runtime_checkable
class Tokenizer(Protocol):
    """A frozen map between images and a grid of visual tokens."""

    @property
    def vocabulary(self) -> int:
        """Number of codes."""
        ...

    @property
    def stride(self) -> int:
        """Pixels per token along each axis."""
        ...

    @property
    def channels(self) -> int:
        """Of the images."""
        ...

    @property
    def fingerprint(self) -> str:
        """Digest of config and weights: equal fingerprints give equal ids."""
        ...

    def encode(self, images: Float[Tensor, "b c h w"]) -> Int[Tensor, "b gh gw"]:
        """Token ids of images in [0, 1]."""
        ...

    def decode(self, ids: Int[Tensor, "b gh gw"]) -> Float[Tensor, "b c h w"]:
        """Images in [0, 1] from token ids."""
        ...


@runtime_checkable
class Reader(Protocol):
    """Prepares images for one network, as in its evaluation."""

    def __call__(self, images: Sequence[ImageInput]) -> Float[Tensor, "b c h w"]:
        """Normalized images on the CPU."""
        ...


@dataclass(frozen=True)
class Share:
    """Which batches of an evaluation a process looks at: every `of`-th, from number `rank` on."""

    rank: int = 0
    of: int = 1
    gather: Callable[[Any], list[Any] | None] = lambda value: [value]
    """The values of all processes in rank 0, in the order of their ranks; None elsewhere. Collective."""

    def together(self, parts: Iterable[Part]) -> list[Part] | None:
        """The parts of all batches in their order, in rank 0; None elsewhere. Collective.

        Each process makes its own `parts`, one for each of its batches. What is added up in this order is to the last bit what
        one process alone would have come to. An error of one process is raised in all.
        """
        own, error = [], None
        try:
            own.extend(parts)
        except UserError as raised:
            if self.of == 1:
                raise
            error = raised
        if self.of == 1:
            return own
        found = self.gather((own, error))
        if error is None and found is not None:
            error = next((other for _, other in found if other is not None), None)
        if error is not None:
            raise error
        if found is None:
            return None
        every = [theirs for theirs, _ in found]
        return [every[place % self.of][place // self.of] for place in range(sum(map(len, every)))]


WHOLE = Share()
"""One process looks at everything."""


@runtime_checkable
class Evaluator(Protocol):
    """A metric and its data; it knows the model only as a prediction function."""

    name: str

    def run(self, share: Share = WHOLE) -> Iterator[tuple[str, float]]:
        """Yield (metric, value) pairs, in rank 0 where several processes have a share each; collective then."""
        ...


Fate = Literal["kept", "split", "merged", "expanded", "resized", "dropped", "fresh"]
"""What became of a tensor between two networks, or between a network and a file."""


class TensorRecord(NamedTuple):
    """How one tensor got from a file into a network, or from a network into a file."""

    name: str
    """Name at the destination; at the source if it was dropped."""
    fate: Fate
    sources: tuple[str, ...]
    """Names at the source; none for a fresh one."""
    shape: tuple[int, ...]
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """What happened to every tensor."""

    source: str
    """What was read: path and layout."""
    records: tuple[TensorRecord, ...]
    notes: tuple[str, ...] = ()
    """What was decided without a tensor, such as the pixel statistics, and why."""

    def counts(self) -> dict[Fate, int]:
        """Tensors per fate, those that occur, in the order of `Fate`."""
        found = Counter(record.fate for record in self.records)
        return {fate: found[fate] for fate in get_args(Fate) if found[fate]}

    def summary(self) -> str:
        """One line, such as `pre.pth (microsoft): 173 kept, 12 expanded, 4 dropped, 4 fresh`."""
        return f"{self.source}: " + ", ".join(f"{count} {fate}" for fate, count in self.counts().items())

    def table(self) -> str:
        """A text table, one line per tensor, then the notes."""
        rows = [
            (record.fate, record.name, "x".join(map(str, record.shape)) or "scalar", _origin(record)) for record in self.records
        ]
        widths = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
        lines = ["  ".join((*(row[i].ljust(widths[i]) for i in range(3)), row[3])).rstrip() for row in rows]
        return "\n".join((self.summary(), *lines, *self.notes))


def _origin(record: TensorRecord) -> str:
    renamed = [source for source in record.sources if source != record.name]
    return "; ".join(part for part in ("from " + ", ".join(renamed) if renamed else "", record.reason) if part)
