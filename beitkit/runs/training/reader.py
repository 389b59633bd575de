"""Batches of a training run on this rank: limits on unreadable images, waiting time, transfer to the device."""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator

from beitkit.configs.data import Preprocessing
from beitkit.configs.model import Pair
from beitkit.contracts import Batch
from beitkit.data.dataset import ImageDataset
from beitkit.data.decoding.decode import BrokenImage
from beitkit.data.decoding.reading import header_of, size_of
from beitkit.data.sources.image_list import ImageList
from beitkit.data.stream import Reading, training_stream, with_limit_on_broken
from beitkit.data.transfer import pinned, to_device
from beitkit.data.views.framing import cut_away
from beitkit.errors import UserError
from beitkit.train.journal import WaitMeter
from beitkit.train.machine.runtime import Runtime

SAMPLE = 64
"""Images whose headers are read."""
MUCH, OFTEN = 0.5, 0.1
"""Share of an image that is much to cut away, and of the images for which that is worth a note."""
FIT_ADVICE = "; --fit squeeze or --fit letterbox shows them whole"


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
    return to_device(waited.metered(pinned(stream, reading.device)), reading.device)


def note_on_cut(files: ImageList, image_size: Pair, preprocessing: Preprocessing, advice: str = FIT_ADVICE) -> str | None:
    """That evaluation cuts much of the images away, judged by the headers of a sample; None where it does not."""
    is_square = image_size[0] == image_size[1]
    lost = []
    for index in random.Random(0).sample(range(len(files)), min(SAMPLE, len(files))):
        try:
            source = files.source(index)
            width, height = size_of(source) if is_square else header_of(source).upright
        except BrokenImage:
            continue
        lost.append(cut_away((height, width), image_size, preprocessing))
    much = sum(share >= MUCH for share in lost)
    if much < OFTEN * len(lost) or not much:
        return None
    return (
        f"note: the center that evaluation shows leaves out half or more of {much} of the {len(lost)} images looked at (median "
        f"over all: {statistics.median(lost):.0%} of the pixels){advice}"
    )


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
