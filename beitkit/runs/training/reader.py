"""Batches of a training run on this rank: limits on unreadable images, waiting time, transfer to the device."""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator

from beitkit.contracts import Batch
from beitkit.data.dataset import ImageDataset
from beitkit.data.decoding.decode import BrokenImage
from beitkit.data.decoding.reading import size_of
from beitkit.data.sources.image_list import ImageList
from beitkit.data.stream import Reading, to_device, training_stream, with_limit_on_broken
from beitkit.errors import UserError
from beitkit.train.journal import WaitMeter
from beitkit.train.machine.runtime import Runtime

SAMPLE = 64
"""Images in the sample for the median side."""


def training_batches(dataset: ImageDataset, first: int, reading: Reading, runtime: Runtime, waited: WaitMeter) -> Iterator[Batch]:
    """Endless batches, uint8 and on the device, from this process's number `first` on (`data.stream.training_stream`)."""
    stream = training_stream(
        dataset,
        reading.batch_size,
        start_batch=first,
        workers=reading.workers,
        rank=runtime.rank,
        world=runtime.world_size,
    )
    stream = with_limit_on_broken(stream, dataset, reading.max_broken, reading.report, reading.list_file)
    return to_device(waited.metered(stream), reading.device)


def median_side(files: ImageList, seed: int) -> int:
    """Median of the shorter sides, in pixels, of a sample drawn by `seed`.

    Raises:
        UserError: if none of the sample can be read.
    """
    sides = []
    for index in random.Random(seed).sample(range(len(files)), min(SAMPLE, len(files))):
        try:
            sides.append(min(size_of(files.source(index))))
        except BrokenImage:
            continue  # training counts and names those
    if not sides:
        raise UserError(f"none of the first images looked at in {files.root} can be read; see what its files hold")
    return round(statistics.median(sides))
