"""From a list of images to batches on a device, as a chain of generators.

    dataset = ImageDataset(files, view, masker=masker, channels=3, seed=0)
    stream = training_stream(dataset, batch_size=64, workers=2, start_batch=step)
    stream = with_limit_on_broken(stream, dataset, limit_share=0.01, report=..., list_file=...)
    stream = normalized(tokenized(to_device(stream, device), encode, grid), mean, std)

A sample depends on (seed, epoch, image, repeat) only, and batch i of a stream on (seed, i) only: not on the number of workers,
on what was read before, or on where a run was interrupted. Resuming is an index, not a replay.

The keys of a batch are listed at `contracts.Batch`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Int64, Shaped
from torch import Tensor

from beitkit.configs.data import Preprocessing
from beitkit.configs.model import BackboneConfig, Pair
from beitkit.contracts import WHOLE, Batch, Share, in_unit_range, pixel_statistics
from beitkit.data.dataset import ImageDataset
from beitkit.data.sources.image_list import ImageList
from beitkit.data.transfer import to_device
from beitkit.data.views.image import EvaluationView
from beitkit.data.workers import Key, read_batches
from beitkit.errors import UserError

CHECKED_BEFORE_STOPPING = 2000  # images that are tried before a run stops for too many unreadable ones


class Reading(NamedTuple):
    """How images are read, whatever they are read for."""

    batch_size: int
    workers: int
    """Processes that read; -1 are `workers.default_workers()`."""
    device: torch.device
    """Where the batches go."""
    max_broken: float
    """Share of the images that may be unreadable."""
    report: Callable[[Path, str], None]
    """Called once for each of these, with its file and the reason."""
    list_file: Path | None
    """Where `report` lists them; None where it prints them."""


def training_stream(
    dataset: ImageDataset, batch_size: int, *, start_batch: int = 0, workers: int = 0, rank: int = 0, world: int = 1
) -> Generator[Batch, None, None]:
    """Endless batches; the first is number `start_batch`. Batch i of a process depends only on (seed, i, rank, world).

    The processes of a step share positions i * batch_size * world and following, in the order of their ranks, so that
    `world` processes see together what one process with `world` times the batch would see. Close the generator to stop
    the workers; -1 workers are `default_workers()`. A stream is read by the process itself.

    Raises:
        UserError: a run of unreadable images, or a worker process that died.
    """

    def keys() -> Iterator[list[Key]]:
        position = (start_batch * world + rank) * batch_size
        while True:
            yield [dataset.locate(position + place) for place in range(batch_size)]
            position += batch_size * world

    dataset.hold()
    # Every worker would have to go through all of a stream.
    return read_batches(dataset.read_batch, keys(), 0 if dataset.files.is_stream else workers)


def evaluation_stream(
    dataset: ImageDataset, batch_size: int, *, workers: int = 0, share: Share = WHOLE, first: int = 0
) -> Generator[Batch, None, None]:
    """One pass in the list's order from batch `first` on, or a share of these; the last one may be smaller. Otherwise as
    `training_stream`.

    Of a dataset whose passes are repeated, the batches are kept in memory where they fit.
    """
    total = len(dataset)

    def read() -> Generator[Batch, None, None]:
        keys = ([dataset.locate(place) for place in range(at, min(at + batch_size, total))] for at in places)
        return read_batches(dataset.read_batch, keys, workers)

    places = range(first * batch_size, total, batch_size)[share.rank :: share.of]
    workers = 0 if dataset.files.is_stream else workers
    if dataset.kept is not None and not first:
        return dataset.kept.batches(read, (batch_size, share.rank, share.of), sum(min(batch_size, total - at) for at in places))
    dataset.hold()
    return read()


def stored_views_stream(
    dataset: ImageDataset, batch_size: int, is_wanted: Callable[[int, int], bool], indices: Iterable[int], *, workers: int = 0
) -> Generator[Batch, None, None]:
    """The wanted stored views `is_wanted(index, number)` of these images, once, one image after the other."""
    assert dataset.views is not None
    # In the first `views` epochs an image has each of its views once.
    epochs = range(dataset.views)
    keys = ((e, index, 0) for index in indices for e in epochs if is_wanted(index, dataset.view_number(e, index)))
    dataset.hold()
    return read_batches(dataset.read_batch, iter(lambda: list(itertools.islice(keys, batch_size)), []), workers)


def normalized(stream: Iterable[Batch], mean: Sequence[float], std: Sequence[float]) -> Iterator[Batch]:
    """Batches whose `images` are float32, (x - mean) / std per channel, with values x in [0, 1]: of 8-bit images those / 255."""
    statistics: tuple[Tensor, Tensor] | None = None
    for batch in stream:
        images = in_unit_range(batch["images"])
        if statistics is None:
            statistics = pixel_statistics(mean, std, images.shape[1], images)
        yield batch | {"images": images.sub_(statistics[0]).div_(statistics[1])}


def tokenized(stream: Iterable[Batch], encode: Callable[[Tensor], Tensor], patch_grid: Pair) -> Iterator[Batch]:
    """Batches with `tokens` (b, n), the ids that `encode` makes of `token_images`, in place of these.

    Raises:
        UserError: the tokenizer's grid is not the patch grid.
    """
    for batch in stream:
        ids = token_ids(batch["token_images"], encode, patch_grid)
        yield {key: value for key, value in batch.items() if key != "token_images"} | {"tokens": ids}


def token_ids(images: Shaped[Tensor, "b c h w"], encode: Callable[[Tensor], Tensor], patch_grid: Pair) -> Int64[Tensor, "b n"]:
    """The ids (b, gh, gw) that `encode` makes of token views, in raster order.

    Raises:
        UserError: the tokenizer's grid is not the patch grid.
    """
    ids = encode(images)
    if ids.shape[1:] != patch_grid:
        raise UserError(_grids_differ(patch_grid, (ids.shape[1], ids.shape[2]), images.shape[2] // ids.shape[1]))
    return ids.flatten(1)


def with_limit_on_broken(
    stream: Iterable[Batch],
    dataset: ImageDataset,
    limit_share: float,
    report: Callable[[Path, str], None],
    list_file: Path | None,
) -> Iterator[Batch]:
    """The same batches; `report(path, reason)` is called once for each image of `dataset` that could not be read.

    Put it before `to_device`, so that reading `broken` does not synchronize with the device.

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
                f"{len(seen)} of {len(files)} images cannot be read, more than the {limit_share:.2%} allowed; "
                f"{where}: remove or repair them, or raise `read.max_broken`"
            )
        yield batch


def evaluation_dataset(
    files: ImageList, backbone: BackboneConfig, preprocessing: Preprocessing, *, is_repeated: bool = False
) -> ImageDataset:
    """Images as a network is evaluated on them: whole or their center, in its size and channels."""
    return ImageDataset(
        files,
        EvaluationView(preprocessing, backbone.image_size),
        channels=backbone.channels,
        value_range=preprocessing.value_range,
        kind="evaluate",
        smallest=backbone.patch,
        is_repeated=is_repeated,
    )


def evaluation_batches(
    dataset: ImageDataset, preprocessing: Preprocessing, reading: Reading, share: Share = WHOLE
) -> Iterator[Batch]:
    """One ordered pass of normalized batches on a device, or a share; unreadable images are reported, and marked in `broken`."""
    stream = evaluation_stream(dataset, reading.batch_size, workers=reading.workers, share=share)
    stream = with_limit_on_broken(stream, dataset, reading.max_broken, reading.report, reading.list_file)
    return normalized(to_device(stream, reading.device), preprocessing.mean, preprocessing.std)


def _grids_differ(patch_grid: Pair, token_grid: Pair, stride: int) -> str:
    needed = patch_grid[0] * stride, patch_grid[1] * stride
    return (
        f"the patch grid is {patch_grid[0]}x{patch_grid[1]} but the token grid {token_grid[0]}x{token_grid[1]}; "
        f"with a tokenizer of stride {stride} the token view must be {needed[0]}x{needed[1]} pixels"
    )
