"""Map-style dataset: position to sample (image, view and mask)."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Int64
from PIL import Image
from torch import Tensor

from beitkit.configs.data import ValueRange
from beitkit.configs.model import Pair
from beitkit.contracts import IGNORED
from beitkit.data.decoding.decode import BrokenImage, StoredImage
from beitkit.data.decoding.reading import AnyImage, blank, is_deep, readable_image
from beitkit.data.seeds import derived_seed, stored_view_generator
from beitkit.data.sources.image_list import ImageList
from beitkit.data.views.image import View
from beitkit.data.views.masking import Masker
from beitkit.data.workers import Key
from beitkit.errors import UserError

MAX_REPLACEMENTS = 100  # unreadable images in a row before we take the whole list for unreadable
CACHED_PIXELS = 128 * 128  # only images up to this size are worth keeping decoded
CACHE_BYTES = 512 * 2**20  # decoded images kept per process


class ImageDataset:
    """Samples of an image list: read, viewed, masked and labeled.

    For training the order is endless: position p is the (p mod N)-th image of a permutation drawn for epoch p // N, and
    an image that cannot be read is replaced by the next one in the list that can. With `repeats` each image of the
    permutation fills that many positions, and an epoch still ends after N positions (repeated augmentation). With
    `balanced` every class fills the same number of positions. For evaluation position p is image p,
    and an image that cannot be read is black, so that the batch keeps its shape; evaluators drop samples whose `broken` is not
    -1.
    """

    def __init__(
        self,
        files: ImageList,
        view: View,
        *,
        masker: Masker | None = None,
        channels: int = 3,
        value_range: ValueRange | None = None,
        seed: int = 0,
        kind: Literal["train", "evaluate"] = "train",
        smallest: Pair = (1, 1),
        label_map: Callable[[int], Image.Image] | None = None,
        repeats: int = 1,
        balanced: bool = False,
        views: int | None = None,
    ) -> None:
        """A dataset of `files`.

        Args:
            files: the images.
            view: the transform.
            masker: draws the mask; None for no mask.
            channels: 1 (gray), 3 (RGB), or any other number.
            value_range: which values are shown as 0 and as 1; None reads images of 8 bits.
            seed: of order, views and masks.
            kind: an endless shuffled order, or one ordered pass.
            smallest: a patch, (height, width): an image that could not fill one counts as unreadable.
            label_map: the label map of an image by its index; the view is then called as `view(image, label_map, rng)`. It
                may raise `BrokenImage`, which makes the pair count as unreadable.
            repeats: how many positions in a row an image of the order fills.
            balanced: whether every class gets the same number of positions; needs single labels.
            views: number of stored views per image (decision 005); None draws a new view every epoch.
        """
        if not len(files):
            raise UserError(f"the list of images in {files.root} is empty")
        self.files = files
        self.view = view
        self.masker = masker
        self.channels = channels
        self.value_range = value_range
        self.seed = seed
        self.kind = kind
        self.smallest = smallest
        self.label_map = label_map
        self.repeats = repeats
        self.balanced = balanced
        self.views = views
        self._orders: dict[int, Tensor] = {}
        self._decoded: dict[int, AnyImage] = {}
        self._decoded_bytes = 0
        self._last: tuple[int, AnyImage | StoredImage] | None = None

    def __len__(self) -> int:
        """Images in the list, which is the number of samples in an epoch."""
        return len(self.files)

    def locate(self, position: int) -> Key:
        """Epoch of a position, its image, and how often the epoch has shown that image before."""
        if self.kind == "evaluate":
            return 0, position, 0
        epoch, place = divmod(position, len(self))
        if epoch not in self._orders:
            # A batch may span two epochs; more than two orders would only take memory.
            self._orders = {known: order for known, order in self._orders.items() if abs(known - epoch) == 1}
            self._orders[epoch] = self._drawn_order(epoch)
        occurrence, index = divmod(int(self._orders[epoch][place // self.repeats]), len(self))
        return epoch, index, occurrence * self.repeats + place % self.repeats

    def _drawn_order(self, epoch: int) -> Tensor:
        """An epoch's images (n,): index + n * how often it has occurred before."""
        generator = torch.Generator().manual_seed(derived_seed(self.seed, "order", epoch))
        if not self.balanced:
            return torch.randperm(len(self), generator=generator)
        assert self.files.labels is not None
        return balanced_order(torch.from_numpy(self.files.labels), generator)

    def sample(self, position: int) -> dict[str, Tensor]:
        """The sample at a position."""
        return self.read(*self.locate(position))

    def read(self, epoch: int, index: int, repeat: int = 0) -> dict[str, Tensor]:
        """Sample of one image in an epoch, or of its replacement."""
        shown_before = (repeat,) if repeat else ()
        shown, sample = self._viewed(epoch, index, shown_before)
        is_broken = shown != index or sample is None
        if sample is None:
            sample = self._view_of(self._blank(), epoch, index, index, shown_before)
        if self.masker is not None:
            sample["mask"] = self.masker(random.Random(derived_seed(self.seed, "mask", epoch, index, *shown_before))).flatten()
        if self.files.labels is not None:
            sample["labels"] = torch.tensor(int(self.files.labels[shown]))
        if self.files.targets is not None:
            sample["targets"] = torch.tensor(self.files.targets[shown], dtype=torch.float32)
        return sample | {"index": torch.tensor(shown), "broken": torch.tensor(index if is_broken else -1)}

    def view_number(self, epoch: int, index: int) -> int:
        """Number of the stored view in an epoch: all of them in turn, in a new order every `views` epochs."""
        assert self.views is not None
        turn, place = divmod(epoch, self.views)
        return random.Random(derived_seed(self.seed, "views", turn, index)).sample(range(self.views), self.views)[place]

    def _view_of(
        self, inputs: tuple[Any, ...], epoch: int, index: int, shown: int, shown_before: tuple[int, ...]
    ) -> dict[str, Tensor]:
        """The view of the image `shown` in place of `index`; of stored views also its number.

        The view has a generator of its own: a stored view recurs, each time with a new mask.
        """
        if self.views is None:
            return self.view(*inputs, random.Random(derived_seed(self.seed, "view", epoch, index, *shown_before)))
        number = self.view_number(epoch, shown)
        sample = self.view(*inputs, stored_view_generator(self.seed, shown, number))
        return {"view": torch.tensor(number)} | sample

    def _viewed(self, epoch: int, index: int, shown_before: tuple[int, ...]) -> tuple[int, dict[str, Tensor] | None]:
        """The index of the image that is shown for this one, and its view; None where there is no replacement."""
        attempts = 1 if self.kind == "evaluate" else min(MAX_REPLACEMENTS, len(self))
        for candidate in ((index + step) % len(self) for step in range(attempts)):
            try:
                # Pixels are decoded in the view, so only it finds out; every candidate is viewed by the same numbers.
                return candidate, self._view_of(self._inputs(candidate), epoch, index, candidate, shown_before)
            except BrokenImage:
                continue
        if self.kind == "evaluate":
            return index, None
        last = (index + attempts - 1) % len(self)
        raise UserError(f"{attempts} images in a row cannot be read, the last one {self.files.path(last)}: {self.reason(last)}")

    def is_readable(self, index: int) -> bool:
        """Whether an image can be read."""
        try:
            self._decode(index)
        except BrokenImage:
            return False
        return True

    def reason(self, index: int) -> str:
        """Why an image cannot be read, by trying again: batches carry numbers only."""
        try:
            self._decode(index)
        except BrokenImage as error:
            return error.reason
        return "could be read at the second attempt"

    def _decode(self, index: int) -> None:
        for part in self._inputs(index):
            if isinstance(part, StoredImage):
                part.decoded()

    def _inputs(self, index: int) -> tuple[AnyImage | StoredImage, ...]:
        """Arguments of the view: the image and, if there are label maps, its label map."""
        image = self._image(index)
        if self.label_map is None:
            return (image,)
        return image.decoded() if isinstance(image, StoredImage) else image, self.label_map(index)

    def _blank(self) -> tuple[AnyImage, ...]:
        """Replacement for an unreadable image: black, with every pixel of its label map ignored."""
        image = blank(self.channels, self.value_range)
        return (image,) if self.label_map is None else (image, Image.new("L", (8, 8), IGNORED))

    def _image(self, index: int) -> AnyImage | StoredImage:
        known = self._decoded.get(index)
        if known is not None:
            return known
        if self._last is not None and self._last[0] == index:  # another view of the same image
            return self._last[1]
        self._last = None  # before the next one takes its memory
        image = readable_image(self.files.source(index), self.channels, self.value_range, self.smallest)
        pixels = image.width * image.height
        if pixels > CACHED_PIXELS:
            self._last = index, image
            return image
        image = image.decoded() if isinstance(image, StoredImage) else image
        taken = pixels * self.channels * (4 if is_deep(self.channels, self.value_range) else 1)
        if self._decoded_bytes + taken <= CACHE_BYTES:
            self._decoded[index] = image
            self._decoded_bytes += taken
        return image


def balanced_order(labels: Int64[Tensor, " n"], generator: torch.Generator) -> Int64[Tensor, " n"]:
    """A permutation-like order of n images with the same number from every class (one more for some if n is not divisible).

    Within a class no image comes again before all others came. An entry is index + n * how often the image came before.
    """
    total = len(labels)
    present = labels.unique()
    shares = torch.full((len(present),), total // len(present))
    shares[torch.randperm(len(present), generator=generator)[: total % len(present)]] += 1
    parts = []
    for label, share in zip(present.tolist(), shares.tolist(), strict=True):
        members = (labels == label).nonzero().flatten()
        for occurrence in range(-(-share // len(members))):
            shuffled = members[torch.randperm(len(members), generator=generator)]
            parts.append(shuffled[: share - occurrence * len(members)] + occurrence * total)
    order = torch.cat(parts)
    return order[torch.randperm(total, generator=generator)]
