"""The images that are looked at: all of a gallery in batches, and some of them to be shown."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from beitkit.configs.data import Preprocessing
from beitkit.configs.model import Pair
from beitkit.contracts import in_unit_range, pixel_statistics
from beitkit.data.decoding.decode import BrokenImage
from beitkit.data.decoding.reading import AnyImage, as_tensor, whole_image
from beitkit.data.sources.image_list import ImageList
from beitkit.data.views.image import EvaluationView
from beitkit.errors import UserError
from beitkit.terminal import one_line


class ShownImages(NamedTuple):
    """Images that can be read, as the network is shown them."""

    places: list[int]
    """In the gallery."""
    names: list[str]
    pixels: Float[Tensor, "r c h w"]
    """In [0, 1]."""


@dataclass
class Gallery:
    """A list of images, and how a network is shown them; what cannot be read is named once, on stderr, and left out."""

    files: ImageList
    preprocessing: Preprocessing
    image_size: Pair
    patch: Pair
    channels: int
    _broken: set[int] = field(default_factory=set)

    @cached_property
    def _has_folders(self) -> bool:
        return len({self.files.path(place).parent for place in range(len(self.files))}) > 1

    def name(self, place: int) -> str:
        """What an image is called on the page: its file's name, after its folder's where there are several."""
        path = self.files.path(place)
        return one_line(f"{path.parent.name}/{path.name}" if self._has_folders else path.name)

    def opened(self, place: int) -> AnyImage | None:
        """An image at its own size; None for one that cannot be read."""
        if place in self._broken:
            return None
        try:
            return whole_image(self.files.source(place), self.channels, self.preprocessing.value_range, self.patch)
        except BrokenImage as broken:
            print(one_line(f"unreadable: {self.files.path(place)}: {broken.reason}"), file=sys.stderr)
            self._broken.add(place)
            return None

    def pixels(self, place: int, size: Pair | None = None) -> Float[Tensor, "c h w"] | None:
        """An image as the network is shown it, in [0, 1]; `size` is another one for the same part of the image."""
        image = self.opened(place)
        if image is None:
            return None
        return in_unit_range(EvaluationView(self.preprocessing, size or self.image_size)(image, random.Random(0))["images"])

    def whole(self, place: int) -> Shaped[Tensor, "c h w"] | None:
        """An image at its own size."""
        image = self.opened(place)
        return None if image is None else as_tensor(image)

    def normalized(self, pixels: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """What the network takes of pixels in [0, 1]."""
        mean, std = pixel_statistics(self.preprocessing.mean, self.preprocessing.std, pixels.shape[1], pixels)
        return (pixels - mean) / std

    def shown(self, count: int) -> ShownImages:
        """Up to `count` images, evenly spread; one that cannot be read is replaced by the next that can.

        Raises:
            UserError: not one image can be read.
        """
        count, places = min(count, len(self.files)), list[int]()
        pixels: list[Tensor] = []
        for number in range(count):
            place = number * len(self.files) // count
            last = (number + 1) * len(self.files) // count
            while place < last and (found := self.pixels(place)) is None:
                place += 1
            if place < last:
                places.append(place)
                pixels.append(found)  # type: ignore[arg-type] - not None here
        if not places:
            raise UserError(f"not one of {count:,} images can be read; the first: {self.files.path(0)}")
        return ShownImages(places, [self.name(place) for place in places], torch.stack(pixels))

    def batches(
        self, batch_size: int, size: Pair | None = None
    ) -> Iterator[tuple[Int64[Tensor, " b"], Float[Tensor, "b c h w"]]]:
        """All images that can be read, in order: their places, and their pixels in [0, 1]."""
        for first in range(0, len(self.files), batch_size):
            read = [(place, self.pixels(place, size)) for place in range(first, min(first + batch_size, len(self.files)))]
            kept = [(place, pixels) for place, pixels in read if pixels is not None]
            if kept:
                yield torch.tensor([place for place, _ in kept]), torch.stack([pixels for _, pixels in kept])
