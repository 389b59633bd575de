"""From a list of pictures to batches on a device, as a chain of plain generators.

    dataset = PictureDataset(files, view, masker=masker, channels=3, seed=0)
    stream = training_stream(dataset, batch_size=64, workers=2, start_batch=step)
    stream = counted_broken(stream, dataset, limit_share=0.01, report=..., list_file=...)
    stream = normalized(tokenized(to_device(stream, device), encode, grid), mean, std)

What a sample looks like depends on (seed, epoch, picture, repeat) only, and batch i of a stream on (seed, i) only: never on the
number of worker processes, on what was read before, or on where a run was cut. Resuming is an index, not a replay.

Keys of a batch: `images` uint8 (b, c, h, w), from `normalized` on float32; `token_images` uint8 (b, c, h', w'), in `tokenized`
replaced by `tokens` int64 (b, n); `mask` bool (b, n), True where hidden; `labels` int64 (b), or `targets` float32 (b, classes),
1 where a picture has the class and else 0; `erased` int64 (b, 5), see `augment`; `label_map` uint8 (b, h, w) and `extent`
int64 (b, 2), see `scene_views`; `index` int64 (b), which picture; `broken` int64 (b), the picture that should have been there
but cannot be read, else -1; `view` int64 (b), with stored views which of them it is.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Int64, UInt8
from PIL import Image
from torch import Tensor

from beitkit.configs.data import Preprocessing, Triple
from beitkit.configs.model import BackboneConfig, Pair
from beitkit.contracts import IGNORED, Batch
from beitkit.data.decoding.decode import BrokenPicture, StoredPicture, picture_mode, picture_to_crop
from beitkit.data.order import balanced_order
from beitkit.data.seeds import derived_seed, stored_view_generator
from beitkit.data.sources.find import PictureList
from beitkit.data.views.image import EvaluationView, View
from beitkit.data.views.masking import Masker
from beitkit.data.workers import Key, read_batches
from beitkit.errors import UserError

MAX_REPLACEMENTS = 100  # unreadable pictures in a row before we take the whole list for unreadable
CACHED_PIXELS = 128 * 128  # only pictures up to this size are worth keeping decoded
CHECKED_BEFORE_STOPPING = 2000  # pictures that are tried before a run stops for too many unreadable ones
CACHE_BYTES = 512 * 2**20  # decoded pictures kept per process


class PictureDataset:
    """Samples of a picture list: read, viewed, masked and labelled.

    For training the order is endless: position p is the (p mod N)-th picture of a permutation drawn for epoch p // N, and
    a picture that cannot be read is replaced by the next one in the list that can. With `repeats` each picture of the
    permutation fills that many positions, and an epoch ends after N positions all the same (repeated augmentation). With
    `balanced` the epoch's pictures are drawn so that every class fills as many positions. For evaluation position p is picture p,
    and a picture that cannot be read is black, so that the batch keeps its shape; whoever evaluates drops samples whose
    `broken` is not -1.
    """

    def __init__(
        self,
        files: PictureList,
        view: View,
        *,
        masker: Masker | None = None,
        channels: int = 3,
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
            files: the pictures.
            view: what is shown of a picture.
            masker: draws the mask, where there is one.
            channels: 1 (grey) or 3 (RGB).
            seed: of order, views and masks.
            kind: an endless shuffled order, or one ordered pass.
            smallest: a patch, (height, width): a picture that could not fill one counts as unreadable.
            label_map: the label map of a picture by its index; the view is then called as `view(image, label_map, rng)`. It
                may raise `BrokenPicture`, which makes the pair count as unreadable.
            repeats: how many positions in a row a picture of the order fills.
            balanced: whether every class gets as many positions of an epoch; needs one label a picture.
            views: how many views a picture has (decision 005); None draws another one every epoch.
        """
        if not len(files):
            raise UserError(f"the list of pictures in {files.root} is empty")
        self.files = files
        self.view = view
        self.masker = masker
        self.channels = channels
        self.seed = seed
        self.kind = kind
        self.smallest = smallest
        self.label_map = label_map
        self.repeats = repeats
        self.balanced = balanced
        self.views = views
        self._mode = picture_mode(channels)
        self._orders: dict[int, Tensor] = {}
        self._decoded: dict[int, Image.Image] = {}
        self._decoded_bytes = 0
        self._last: tuple[int, Image.Image | StoredPicture] | None = None

    def __len__(self) -> int:
        """Pictures in the list, and so samples in an epoch."""
        return len(self.files)

    def locate(self, position: int) -> Key:
        """Which epoch a position lies in, which picture is there, and how often the epoch has shown it before."""
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
        """An epoch's pictures (n,): index + n * how often it has occurred before."""
        generator = torch.Generator().manual_seed(derived_seed(self.seed, "order", epoch))
        if not self.balanced:
            return torch.randperm(len(self), generator=generator)
        assert self.files.labels is not None
        return balanced_order(torch.from_numpy(self.files.labels), generator)

    def sample(self, position: int) -> dict[str, Tensor]:
        """The sample at a position of the order."""
        return self.read(*self.locate(position))

    def read(self, epoch: int, index: int, repeat: int = 0) -> dict[str, Tensor]:
        """One picture as an epoch shows it for the first or a repeated time, or its replacement."""
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
        """Which of its stored views a picture has in an epoch: all of them, in another order every `views` epochs."""
        assert self.views is not None
        turn, place = divmod(epoch, self.views)
        return random.Random(derived_seed(self.seed, "views", turn, index)).sample(range(self.views), self.views)[place]

    def _view_of(
        self, inputs: tuple[Any, ...], epoch: int, index: int, shown: int, shown_before: tuple[int, ...]
    ) -> dict[str, Tensor]:
        """The view of the picture `shown` in place of `index`; of stored views also its number.

        The view has its own generator: a stored view comes again, each time under another mask.
        """
        if self.views is None:
            return self.view(*inputs, random.Random(derived_seed(self.seed, "view", epoch, index, *shown_before)))
        number = self.view_number(epoch, shown)
        sample = self.view(*inputs, stored_view_generator(self.seed, shown, number))
        return {"view": torch.tensor(number)} | sample

    def _viewed(self, epoch: int, index: int, shown_before: tuple[int, ...]) -> tuple[int, dict[str, Tensor] | None]:
        """The index of the picture that is shown for this one, and its view; None where there is no replacement."""
        attempts = 1 if self.kind == "evaluate" else min(MAX_REPLACEMENTS, len(self))
        for candidate in ((index + step) % len(self) for step in range(attempts)):
            try:
                # Pixels are decoded in the view, so only it finds out; every candidate is viewed by the same numbers.
                return candidate, self._view_of(self._inputs(candidate), epoch, index, candidate, shown_before)
            except BrokenPicture:
                continue
        if self.kind == "evaluate":
            return index, None
        last = (index + attempts - 1) % len(self)
        raise UserError(f"{attempts} pictures in a row cannot be read, the last one {self.files.path(last)}: {self.reason(last)}")

    def is_readable(self, index: int) -> bool:
        """Whether a picture can be read."""
        try:
            self._decode(index)
        except BrokenPicture:
            return False
        return True

    def reason(self, index: int) -> str:
        """Why a picture cannot be read, found by trying once more: batches carry numbers only."""
        try:
            self._decode(index)
        except BrokenPicture as error:
            return error.reason
        return "could be read at the second attempt"

    def _decode(self, index: int) -> None:
        for part in self._inputs(index):
            if isinstance(part, StoredPicture):
                part.decoded()

    def _inputs(self, index: int) -> tuple[Image.Image | StoredPicture, ...]:
        """What the view takes: the picture, and, decoded as it is, its label map where there is one."""
        image = self._picture(index)
        if self.label_map is None:
            return (image,)
        return image.decoded() if isinstance(image, StoredPicture) else image, self.label_map(index)

    def _blank(self) -> tuple[Image.Image, ...]:
        """In place of what cannot be read: black, and a label map in which every pixel is ignored."""
        image = Image.new(self._mode, (8, 8))
        return (image,) if self.label_map is None else (image, Image.new("L", (8, 8), IGNORED))

    def _picture(self, index: int) -> Image.Image | StoredPicture:
        known = self._decoded.get(index)
        if known is not None:
            return known
        if self._last is not None and self._last[0] == index:  # another view of the same picture
            return self._last[1]
        self._last = None  # before the next one takes its memory
        image = picture_to_crop(self.files.source(index), self.channels, smallest=self.smallest)
        pixels = image.width * image.height
        if pixels > CACHED_PIXELS:
            self._last = index, image
            return image
        image = image.decoded() if isinstance(image, StoredPicture) else image
        if self._decoded_bytes + pixels * self.channels <= CACHE_BYTES:
            self._decoded[index] = image
            self._decoded_bytes += pixels * self.channels
        return image


def training_stream(
    dataset: PictureDataset, batch_size: int, *, start_batch: int = 0, workers: int = 0, rank: int = 0, world: int = 1
) -> Generator[Batch, None, None]:
    """Endless batches; the first is number `start_batch`. Batch i of a process depends only on (seed, i, rank, world).

    The processes of a step share positions i * batch_size * world and following, in the order of their ranks, so that
    `world` processes see together what one process with `world` times the batch would see. Close the generator to end
    the workers; -1 workers are `default_workers()`.

    Raises:
        UserError: a run of unreadable pictures, or a worker process that died.
    """

    def keys() -> Iterator[list[Key]]:
        position = (start_batch * world + rank) * batch_size
        while True:
            yield [dataset.locate(position + place) for place in range(batch_size)]
            position += batch_size * world

    return read_batches(dataset.read, keys(), workers)


def evaluation_stream(dataset: PictureDataset, batch_size: int, *, workers: int = 0) -> Generator[Batch, None, None]:
    """One pass in the list's order; the last batch may be smaller. Otherwise as `training_stream`."""
    total = len(dataset)
    keys = (
        [dataset.locate(place) for place in range(first, min(first + batch_size, total))] for first in range(0, total, batch_size)
    )
    return read_batches(dataset.read, keys, workers)


def stored_views_stream(
    dataset: PictureDataset, batch_size: int, is_wanted: Callable[[int, int], bool], indices: Iterable[int], *, workers: int = 0
) -> Generator[Batch, None, None]:
    """The wanted stored views `is_wanted(index, number)` of these pictures, once, one picture after the other."""
    assert dataset.views is not None
    # In the first `views` epochs a picture has each of its views once.
    epochs = range(dataset.views)
    keys = ((e, index, 0) for index in indices for e in epochs if is_wanted(index, dataset.view_number(e, index)))
    return read_batches(dataset.read, iter(lambda: list(itertools.islice(keys, batch_size)), []), workers)


def to_device(stream: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """Batches moved to a device; to CUDA through page-locked memory, without waiting for the copy."""
    is_cuda = device.type == "cuda"
    for batch in stream:
        yield {key: (value.pin_memory() if is_cuda else value).to(device, non_blocking=is_cuda) for key, value in batch.items()}


def normalized(stream: Iterable[Batch], mean: Triple, std: Triple) -> Iterator[Batch]:
    """Batches whose `images` are float32, (x / 255 - mean) / std per channel; grey ones take the average over channels."""
    constants: tuple[Tensor, Tensor] | None = None
    for batch in stream:
        images = batch["images"]
        if constants is None:
            values = torch.tensor([mean, std], device=images.device)
            values = values.mean(dim=1, keepdim=True) if images.shape[1] == 1 else values
            constants = values[0].view(-1, 1, 1), values[1].view(-1, 1, 1)
        yield batch | {"images": images.float().div_(255).sub_(constants[0]).div_(constants[1])}


def tokenized(stream: Iterable[Batch], encode: Callable[[Tensor], Tensor], patch_grid: Pair) -> Iterator[Batch]:
    """Batches with `tokens` (b, n), the ids that `encode` makes of `token_images`, in place of these.

    Raises:
        UserError: the tokenizer's grid is not the patch grid.
    """
    for batch in stream:
        ids = token_ids(batch["token_images"], encode, patch_grid)
        yield {key: value for key, value in batch.items() if key != "token_images"} | {"tokens": ids}


def token_ids(images: UInt8[Tensor, "b c h w"], encode: Callable[[Tensor], Tensor], patch_grid: Pair) -> Int64[Tensor, "b n"]:
    """The ids (b, gh, gw) that `encode` makes of token views, in raster order.

    Raises:
        UserError: the tokenizer's grid is not the patch grid.
    """
    ids = encode(images)
    if ids.shape[1:] != patch_grid:
        raise UserError(_grids_differ(patch_grid, (ids.shape[1], ids.shape[2]), images.shape[2] // ids.shape[1]))
    return ids.flatten(1)


def counted_broken(
    stream: Iterable[Batch],
    dataset: PictureDataset,
    limit_share: float,
    report: Callable[[Path, str], None],
    list_file: Path | None,
) -> Iterator[Batch]:
    """The same batches; `report(path, reason)` is called once for each picture of `dataset` that could not be read.

    Put it before `to_device`, so that looking at `broken` does not make the device wait.

    Raises:
        UserError: more than `limit_share` of the files could not be read; names `list_file`, where `report` writes them
            (None where it prints them).
    """
    files = dataset.files
    seen: set[int] = set()
    where = "they are named above" if list_file is None else f"they are listed in {list_file}"
    for batch in stream:
        for index in batch["broken"].tolist():
            if index < 0 or index in seen:
                continue
            seen.add(index)
            report(files.path(index), dataset.reason(index))
        if len(seen) > limit_share * len(files):
            # Name the others too, so that one repair is enough; in a large list the first ones must do.
            for index in range(min(len(files), CHECKED_BEFORE_STOPPING)):
                if index not in seen and not dataset.is_readable(index):
                    seen.add(index)
                    report(files.path(index), dataset.reason(index))
            raise UserError(
                f"{len(seen)} of {len(files)} pictures cannot be read, more than the {limit_share:.2%} allowed; "
                f"{where}: remove or repair them, or raise --read.max-broken"
            )
        yield batch


def evaluation_dataset(files: PictureList, backbone: BackboneConfig, preprocessing: Preprocessing) -> PictureDataset:
    """Pictures as a network is evaluated on them: whole or their center, in its size and channels."""
    return PictureDataset(
        files,
        EvaluationView(preprocessing, backbone.image_size),
        channels=backbone.channels,
        kind="evaluate",
        smallest=backbone.patch,
    )


def evaluation_batches(
    dataset: PictureDataset,
    batch_size: int,
    *,
    workers: int,
    device: torch.device,
    preprocessing: Preprocessing,
    max_broken: float,
    report: Callable[[Path, str], None],
    list_file: Path | None,
) -> Iterator[Batch]:
    """One ordered pass of normalized batches on a device; unreadable pictures are reported, and marked in `broken`."""
    stream = evaluation_stream(dataset, batch_size, workers=workers)
    stream = counted_broken(stream, dataset, max_broken, report, list_file)
    return normalized(to_device(stream, device), preprocessing.mean, preprocessing.std)


def _grids_differ(patch_grid: Pair, token_grid: Pair, stride: int) -> str:
    needed = patch_grid[0] * stride, patch_grid[1] * stride
    return (
        f"the patch grid is {patch_grid[0]}x{patch_grid[1]} but the token grid {token_grid[0]}x{token_grid[1]}; "
        f"with a tokenizer of stride {stride} the token view must be {needed[0]}x{needed[1]} pixels"
    )
