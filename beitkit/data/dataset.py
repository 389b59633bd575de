"""Map-style dataset: position to sample (image, view and mask)."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int64
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from beitkit.configs.data import ValueRange
from beitkit.configs.model import Pair
from beitkit.contracts import IGNORED, Batch
from beitkit.data.budget import MIB, budget
from beitkit.data.decoding.decode import BrokenImage, StoredImage
from beitkit.data.decoding.reading import AnyImage, as_tensor, blank, header_of, is_deep, readable_image
from beitkit.data.memory import SMALL_PIXELS, HeldImages, KeptPass
from beitkit.data.own.augmentation import OwnAugmentation
from beitkit.data.seeds import derived_seed, stored_view_generator
from beitkit.data.sources.image_list import ImageList
from beitkit.data.views.image import TogetherView, View, to_image
from beitkit.data.views.masking import Masker
from beitkit.data.workers import Key
from beitkit.errors import UserError

MAX_REPLACEMENTS = 100  # unreadable images in a row before we take the whole list for unreadable
LOOKED_AT = 64  # images whose headers say how large the images of a list are
CHECKED = 16  # samples that are drawn both ways before a view is trusted to draw batches


class ImageDataset:
    """Samples of an image list: read, viewed, masked and labeled.

    For training the order is endless: position p is the (p mod N)-th image of a permutation drawn for epoch p // N, and
    an image that cannot be read is replaced by the next one in the list that can. With `repeats` each image of the
    permutation fills that many positions, and an epoch still ends after N positions (repeated augmentation). With
    `balanced` every class fills the same number of positions. A stream keeps its own order. For evaluation position p is image p,
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
        is_repeated: bool = False,
        augmentation: OwnAugmentation | None = None,
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
            is_repeated: whether there will be several passes over it, for evaluation: they are then read once, where they fit
                into memory.
            augmentation: the caller's own change of every decoded image, before its view.
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
        self.augmentation = augmentation
        self._orders: dict[int, NDArray[np.int64]] = {}
        self.kept: KeptPass | None = KeptPass() if is_repeated else None
        """The batches of a pass, where passes are repeated."""
        self._held: HeldImages | None = None
        self._is_held_asked = False
        self._is_together = True
        self._is_checked = False
        self._reasons: dict[int, str] = {}  # of a stream, which would have to go back
        self._last: tuple[int, AnyImage | StoredImage] | None = None

    def __len__(self) -> int:
        """Images in the list, which is the number of samples in an epoch."""
        return len(self.files)

    def locate(self, position: int) -> Key:
        """Epoch of a position, its image, and how often the epoch has shown that image before."""
        if self.kind == "evaluate":
            return 0, position, 0
        if self.files.is_stream:
            return 0, position % len(self), 0
        epoch, place = divmod(position, len(self))
        if epoch not in self._orders:
            # A batch may span two epochs; more than two orders would only take memory.
            self._orders = {known: order for known, order in self._orders.items() if abs(known - epoch) == 1}
            self._orders[epoch] = self._drawn_order(epoch).numpy()
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

    def hold(self) -> None:
        """Make room for the decoded images, if they are small and shown more than once; before processes are started that are to
        share it.

        The first ones have to do where not all fit.
        """
        if self._is_held_asked:
            return
        self._is_held_asked = True
        if (self.kind == "evaluate" and self.views is None) or self.files.is_stream:
            return
        size = self._largest_size()
        if size is not None and size[0] * size[1] <= SMALL_PIXELS:
            dtype = torch.float32 if is_deep(self.channels, self.value_range) else torch.uint8
            held = HeldImages(len(self), (self.channels, *size), dtype)
            self._held = held if held.count else None

    def describe(self) -> str | None:
        """How its images are held in memory, in words; None for images that are too large to be."""
        self.hold()
        if self._held is not None:
            shape, how = "x".join(map(str, self._held.pixels.shape[2:])), ""
            if self._is_drawn_together:
                how = ", where their views are drawn batch by batch"
            return (
                f"{self._held.count} of {len(self)} images of up to {shape} pixels are decoded once and held in memory "
                f"({self._held.bytes / MIB:.3g} MiB of {budget().total / MIB:.3g}){how}"
            )
        if self.files.is_stream:
            return None
        sizes = self._sizes()
        if not any(height * width <= SMALL_PIXELS for height, width in sizes):
            return None
        why = "they are of mixed size" if len(set(sizes)) > 1 else f"`read.cache` holds {budget().total / MIB:.3g} MiB"
        return f"the images are not held in memory, each is decoded whenever it is shown: {why}"

    def showing(self, view: View) -> ImageDataset:
        """The same images, held together, in another view."""
        self.hold()
        other = copy.copy(self)
        other.view, other._is_checked, other._is_together = view, False, True
        return other

    def _sizes(self) -> list[Pair]:
        """(height, width) of some of the images, by their headers."""
        sizes = []
        for index in random.Random(0).sample(range(len(self)), min(LOOKED_AT, len(self))):
            try:
                width, height = header_of(self.files.source(index)).upright
            except BrokenImage:
                continue
            sizes.append((height, width))
        return sizes

    def _largest_size(self) -> Pair | None:
        sizes = self._sizes()
        return (max(height for height, _ in sizes), max(width for _, width in sizes)) if sizes else None

    @property
    def _is_drawn_together(self) -> bool:
        return (
            self._is_together
            and self._held is not None
            and self._held.pixels.dtype == torch.uint8
            and self.label_map is None
            and self.augmentation is None
            and isinstance(self.view, TogetherView)
        )

    def read_batch(self, keys: Sequence[Key]) -> Batch:
        """The samples of these keys, stacked: drawn together where images are held and the view can, which changes nothing."""
        if not self._is_drawn_together or (batch := self._drawn_together(keys)) is None:
            return _stacked([self.read(*key) for key in keys])
        if not self._is_checked:
            # Whatever rounds otherwise in another release of PyTorch or Pillow: no run may change by being read faster.
            self._is_checked = True
            alone = _stacked([self.read(*key) for key in keys[:CHECKED]])
            self._is_together = all(torch.equal(batch[name][:CHECKED], alone[name]) for name in alone)
            return batch if self._is_together else self.read_batch(keys)
        return batch

    def _drawn_together(self, keys: Sequence[Key]) -> Batch | None:
        """The same by `TogetherView.together`, but for images that are not to be had; None where the view cannot."""
        assert isinstance(self.view, TogetherView)
        pixels, sizes = self._pixels([index for _, index, _ in keys])
        rows = [row for row, size in enumerate(sizes) if size is not None]
        chosen, found = [keys[row] for row in rows], [size for size in sizes if size is not None]
        if not rows or not self.view.fits(found):
            return None
        if len(rows) < len(keys):
            pixels = pixels[rows]
        generators = [self._view_generator(epoch, index, index, (repeat,) if repeat else ()) for epoch, index, repeat in chosen]
        batch = self.view.together(pixels, found, generators)
        indices = torch.tensor([index for _, index, _ in chosen])
        if self.views is not None:
            batch["view"] = torch.tensor([self.view_number(epoch, index) for epoch, index, _ in chosen])
        if self.masker is not None:
            batch["mask"] = self.masker.together(self._mask_generator(*key) for key in chosen)
        if self.files.labels is not None:
            batch["labels"] = torch.from_numpy(self.files.labels[indices.numpy()])
        if self.files.targets is not None:
            batch["targets"] = torch.from_numpy(self.files.targets[indices.numpy()]).float()
        batch |= {"index": indices, "broken": torch.full((len(rows),), -1)}
        if len(rows) == len(keys):
            return batch
        place = {row: number for number, row in enumerate(rows)}
        samples = [
            {name: values[place[row]] for name, values in batch.items()} if row in place else self.read(*key)
            for row, key in enumerate(keys)
        ]
        return _stacked(samples)

    def _pixels(self, indices: Sequence[int]) -> tuple[Tensor, list[Pair | None]]:
        """Images (b, c, h, w) in equal frames, and their sizes; None for what cannot be read or is larger."""
        held = self._held
        assert held is not None
        at = torch.tensor(indices).clamp_(max=held.count - 1)
        sizes: list[Pair | None] = []
        beyond: dict[int, Tensor] = {}
        for row, (index, (height, width)) in enumerate(zip(indices, held.sizes[at].tolist(), strict=True)):
            size = (height, width) if height > 0 and index < held.count else None
            if size is None and not held.refuses(index):
                try:
                    pixels = as_tensor(self._decoded(index))
                except BrokenImage:
                    held.refuse(index)
                else:
                    height, width = pixels.shape[1:]
                    if held.put(index, pixels):
                        size = height, width
                    elif not held.refuses(index) and held.has_room_for(height, width):
                        size, beyond[row] = (height, width), pixels
            sizes.append(size)
        images = held.pixels[at]
        for row, pixels in beyond.items():
            images[row].zero_()[:, : pixels.shape[1], : pixels.shape[2]] = pixels
        return images, sizes

    def read(self, epoch: int, index: int, repeat: int = 0) -> dict[str, Tensor]:
        """Sample of one image in an epoch, or of its replacement."""
        shown_before = (repeat,) if repeat else ()
        shown, sample = self._viewed(epoch, index, shown_before)
        is_broken = shown != index or sample is None
        if sample is None:
            sample = self._view_of(self._blank(), epoch, index, index, shown_before)
        if self.masker is not None:
            sample["mask"] = self.masker(self._mask_generator(epoch, index, repeat)).flatten()
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
        if self.augmentation is not None:
            seed = derived_seed("augmentation", self._view_generator(epoch, index, shown, shown_before).getrandbits(63))
            image = inputs[0].decoded() if isinstance(inputs[0], StoredImage) else inputs[0]
            inputs = self.augmentation(image, seed, self.files.path(shown)), *inputs[1:]
        sample = self.view(*inputs, self._view_generator(epoch, index, shown, shown_before))
        return sample if self.views is None else {"view": torch.tensor(self.view_number(epoch, shown))} | sample

    def _view_generator(self, epoch: int, index: int, shown: int, shown_before: tuple[int, ...]) -> random.Random:
        if self.views is None:
            return random.Random(derived_seed(self.seed, "view", epoch, index, *shown_before))
        return stored_view_generator(self.seed, shown, self.view_number(epoch, shown))

    def _mask_generator(self, epoch: int, index: int, repeat: int) -> random.Random:
        return random.Random(derived_seed(self.seed, "mask", epoch, index, *((repeat,) if repeat else ())))

    def _viewed(self, epoch: int, index: int, shown_before: tuple[int, ...]) -> tuple[int, dict[str, Tensor] | None]:
        """The index of the image that is shown for this one, and its view; None where there is no replacement."""
        attempts = 1 if self.kind == "evaluate" else min(MAX_REPLACEMENTS, len(self))
        for candidate in ((index + step) % len(self) for step in range(attempts)):
            try:
                # Pixels are decoded in the view, so only it finds out; every candidate is viewed by the same numbers.
                return candidate, self._view_of(self._inputs(candidate), epoch, index, candidate, shown_before)
            except BrokenImage as broken:
                if self.files.is_stream:
                    self._reasons[candidate] = broken.reason
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
        if index in self._reasons:
            return self._reasons[index]
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
        self.hold()
        if self._held is not None and (pixels := self._held.get(index)) is not None:
            return to_image(pixels)
        if self._last is not None and self._last[0] == index:  # another view of the same image
            return self._last[1]
        self._last = None  # before the next one takes its memory
        image = readable_image(self.files.source(index), self.channels, self.value_range, self.smallest)
        if image.width * image.height <= SMALL_PIXELS:
            image = image.decoded() if isinstance(image, StoredImage) else image
            if self._held is not None and self._held.put(index, as_tensor(image)):
                return image
        self._last = index, image
        return image

    def _decoded(self, index: int) -> AnyImage:
        image = readable_image(self.files.source(index), self.channels, self.value_range, self.smallest)
        return image.decoded() if isinstance(image, StoredImage) else image


def _stacked(samples: Sequence[dict[str, Tensor]]) -> Batch:
    return {key: torch.stack([sample[key] for sample in samples]) for key in samples[0]}


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
