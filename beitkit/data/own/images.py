"""Images that a caller of the Python functions has as an object: a dataset of any kind, or an iterable.

An item is an image, or an image and its label; images are turned into the bytes of a file (`data.own.encode`), so that all
that holds of files holds of them: what is broken is counted and named, sizes are limited, deep images find their range.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import IterableDataset, Subset

from beitkit.contracts import MapDataset
from beitkit.data.decoding.decode import BrokenImage, Encoded, Header, turn_of
from beitkit.data.decoding.reading import header_of
from beitkit.data.own.encode import EXPECTED, described, encoded, named, said
from beitkit.data.seeds import derived_seed, seeded
from beitkit.errors import UserError

Own = TypeVar("Own", bound="OwnImages")

PROBED = 16
"""Items, evenly spread, whose contents are part of the digest."""
HEAD = 64
"""First items of an iterable that are kept: what a run looks at before it begins, and is judged by."""
RECENT = 8
"""Last items of an iterable that are kept: those that were shown in place of broken ones come once more."""


class Repeated:
    """An iterable, one item after the other, begun again where it ends: item i is the i-th that comes.

    The first `HEAD` items are kept, and the last `RECENT`; going back to another begins the iterable anew.
    """

    def __init__(self, source: Iterable[Any], count: int) -> None:
        self.source, self.count = source, count
        self._head: list[Any] = []
        self._recent: deque[Any] = deque(maxlen=RECENT)
        self._at = 0
        self._items: Iterator[Any] | None = None

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        if index < len(self._head):
            return self._head[index]
        if self._at - len(self._recent) <= index < self._at:
            return self._recent[index - self._at]
        if index < self._at:
            self._recent.clear()
            self._items, self._at = None, 0
        while True:
            item = self._next()
            self._recent.append(item)
            if self._at - 1 == len(self._head) < HEAD:
                self._head.append(item)
            if self._at > index:
                return item

    def _next(self) -> Any:
        for _ in range(2):
            if self._items is None:
                self._items = iter(self.source)
            try:
                item = next(self._items)
            except StopIteration:
                self._items = None
                continue
            except Exception as error:
                raise UserError(
                    f"{named(self.source)} raised {said(error)} in place of item {self._at}, and cannot go on"
                ) from error
            self._at += 1
            return item
        raise UserError(f"{named(self.source)} gives no image")

    def __getstate__(self) -> dict[str, Any]:
        # Iterators do not go to another process.
        return self.__dict__ | {"_items": None, "_at": 0, "_recent": deque(maxlen=RECENT)}


class LastItem:
    """A dataset that keeps the item that was read last, for those who want several parts of it one after the other."""

    def __init__(self, dataset: MapDataset) -> None:
        self.dataset = dataset
        self._last: tuple[int, Any] | None = None

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        last = self._last
        if last is None or last[0] != index:
            last = self._last = index, self.dataset[index]
        return last[1]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_last": None}


@dataclass(frozen=True, eq=False)
class OwnImages:
    """A dataset of a caller, looked at; make one with `of`."""

    SECOND: ClassVar[str] = "label"
    """What an item has beside its image: the key of a mapping, and how messages call it."""

    dataset: MapDataset
    description: str
    """`<python: torchvision.datasets.cifar.CIFAR10, 50,000 images>`: what files and messages have in its place."""
    fingerprint: str
    """Digest of its class, its length, and the contents of some items where these can be relied on."""
    is_repeatable: bool
    """Whether these items were the same when they were read again."""
    is_stream: bool = False
    """Whether it is an iterable, whose order is that of the run."""

    @classmethod
    def of(cls: type[Own], given: object, steps_images: int | None = None) -> Own:
        """Look at an object that was given as images.

        Args:
            given: a dataset with `__len__` and `__getitem__`, or an iterable.
            steps_images: how many images the run shows, where an iterable has no length; None where one is needed.

        Raises:
            UserError: something else, nothing in it, items that are no images, or none of those looked at can be read.
        """
        name, is_stream = named(given), not is_map_style(given)
        dataset: Any = given
        if is_stream:
            if not isinstance(given, Iterable):
                raise UserError(f"{name} has no `__len__` and `__getitem__`, and is no iterable; give a dataset of images")
            if steps_images is None:
                raise UserError(
                    f"{name} has no length: pre-training takes it with `steps`, all else needs a dataset with `__len__` and "
                    "`__getitem__`"
                )
            if iter(given) is given:
                raise UserError(
                    f"{name} is an iterator, which can be read once only; give an iterable that begins anew, such as a class "
                    "with `__iter__`"
                )
            dataset = Repeated(given, steps_images)
        count = len(dataset)
        description = listed(given)
        if not count:
            raise UserError(f"{description} is empty")
        looked_at = min(count, PROBED)
        indices = [index if is_stream else index * count // looked_at for index in range(looked_at)]
        found = cls(dataset, description, "", is_repeatable=True, is_stream=is_stream)
        first = [found._content(index) for index in indices]
        if all(isinstance(content, str) for content in first):
            raise UserError(f"none of the {looked_at} items of {description} that were looked at can be read: {first[0]}")
        again = cls(Repeated(dataset.source, count), description, "", is_repeatable=True) if is_stream else found
        is_repeatable = first == [again._content(index) for index in indices]
        digest = hashlib.blake2b(f"{name}\0{'iterable' if is_stream else count}".encode(), digest_size=16)
        for content in first if is_repeatable else []:
            digest.update(b"\0" + (content.encode() if isinstance(content, str) else hashlib.blake2b(content).digest()))
        return cls(dataset, description, digest.hexdigest(), is_repeatable, is_stream)

    def __len__(self) -> int:
        return len(self.dataset)

    def path(self, index: int) -> Path:
        """What an item is called in messages."""
        return Path(f"{self.description}: item {index}")

    def source(self, index: int) -> Encoded:
        """The image of an item, as a file.

        Raises:
            BrokenImage: the dataset raised something.
            UserError: the item is not an image.
        """
        image, _ = self._parts(self._item(index), index)
        try:
            return Encoded(self.path(index), encoded(image))
        except TypeError as error:
            raise UserError(f"{self.path(index)} is {error}; expected {EXPECTED}") from None
        except Exception as error:
            raise BrokenImage(self.path(index), said(error)) from error

    def header(self, index: int) -> Header:
        """Size and orientation of an image as it was given; what `source` returns is upright.

        Raises:
            BrokenImage: the dataset raised something.
            UserError: the item is not an image.
        """
        image, _ = self._parts(self._item(index), index)
        return Header(image.size, turn_of(image)) if isinstance(image, Image.Image) else header_of(self.source(index))

    def label(self, index: int) -> Any:
        """The label of an item, which it is read for.

        Raises:
            UserError: there is none, or the item cannot be read.
        """
        try:
            _, label = self._parts(self._item(index), index)
        except BrokenImage as broken:
            raise UserError(
                f"{broken.path} cannot be read ({broken.reason}), and so its label is not known; give the dataset a list "
                "`targets` of all labels, or leave the item out"
            ) from None
        if label is None:
            raise UserError(f"{self.path(index)} has no label; expected a pair (image, label)")
        return label

    def labels(self) -> list[int | str]:
        """The label of every item: from the dataset's `targets`, else every item is read.

        Raises:
            UserError: labels that are neither whole numbers nor text.
        """
        targets = getattr(self.dataset, "targets", None)
        is_listed = targets is not None and hasattr(targets, "__len__") and len(targets) == len(self)
        return [self._plain(targets[index] if is_listed else self.label(index), index) for index in range(len(self))]  # type: ignore[index]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes by label, where the dataset (or that of which it is a `Subset`) has them."""
        dataset: Any = self.dataset
        while isinstance(dataset, Subset | LastItem):
            dataset = dataset.dataset
        names = getattr(dataset, "classes", None)
        return tuple(map(str, names)) if isinstance(names, list | tuple) else ()

    def _plain(self, label: Any, index: int) -> int | str:
        if isinstance(label, np.generic | np.ndarray | Tensor) and label.ndim == 0:
            label = label.item()
        if isinstance(label, str) or (isinstance(label, int) and not isinstance(label, bool)):
            return label
        hint = "; label maps are for segmentation" if isinstance(label, Image.Image) or getattr(label, "ndim", 0) > 1 else ""
        raise UserError(f"{self.path(index)} has a label of type {type(label).__name__}; expected a whole number or a name{hint}")

    def _item(self, index: int) -> Any:
        try:
            with seeded(derived_seed("own item", index)):
                return self.dataset[index]
        except UserError:
            raise
        except Exception as error:  # whatever the caller's code raises
            raise BrokenImage(self.path(index), said(error)) from error

    def _parts(self, item: Any, index: int) -> tuple[Any, Any]:
        """Image and label of an item; None for no label."""
        if isinstance(item, Mapping):
            if "image" not in item:
                raise UserError(f"{self.path(index)} is a mapping without `image`; it has {', '.join(map(str, item))}")
            return item["image"], item.get(self.SECOND)
        if isinstance(item, tuple | list):
            if len(item) != 2:
                raise UserError(
                    f"{self.path(index)} is a {type(item).__name__} of {len(item)}; expected a pair (image, {self.SECOND})"
                )
            return item[0], item[1]
        return item, None

    def _content(self, index: int) -> bytes | str:
        """The image as a file, or why it cannot be read."""
        try:
            return self.source(index).content
        except BrokenImage as broken:
            return broken.reason


def is_map_style(given: object) -> bool:
    """Whether an object has a length and items by number, as a `MapDataset` has."""
    return isinstance(given, MapDataset) and not isinstance(given, IterableDataset | Mapping | str | bytes)


def listed(given: Any) -> str:
    """What files and messages have in the place of images that were given as an object."""
    return described(given, f", {len(given):,} images" if is_map_style(given) else ", an iterable")
