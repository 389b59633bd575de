"""How the training verbs read their images: this process's share of the batches, counted, timed and on the device."""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from beitkit.configs.data import ReadConfig
from beitkit.configs.train import MachineConfig, TrainConfig, resolved
from beitkit.contracts import Batch
from beitkit.data.dataset import ImageDataset
from beitkit.data.decoding.decode import BrokenImage, stored_size
from beitkit.data.sources.image_list import ImageList
from beitkit.data.stream import to_device, training_stream, with_limit_on_broken
from beitkit.errors import UserError
from beitkit.nn.blocks import Block
from beitkit.train.folder import RunFolder
from beitkit.train.journal import WaitMeter
from beitkit.train.machine.runtime import Runtime

SAMPLE = 64
"""Images whose headers are read."""


@dataclass(frozen=True)
class TrainingReader:
    """Reads a run's training images; unreadable ones are listed in its folder."""

    train: TrainConfig
    machine: MachineConfig
    read: ReadConfig
    runtime: Runtime
    folder: RunFolder
    waited: WaitMeter

    def batches(self, dataset: ImageDataset, first: int) -> Iterator[Batch]:
        """Endless batches, uint8 and on the device, from this process's number `first` on (`data.stream.training_stream`)."""
        stream = training_stream(
            dataset,
            resolved(self.train.batch_size),
            start_batch=first,
            workers=self.machine.workers,
            rank=self.runtime.rank,
            world=self.runtime.world_size,
        )
        folder = self.folder
        stream = with_limit_on_broken(stream, dataset, self.read.max_broken, folder.note_broken, folder.broken_list)
        return to_device(self.waited.metered(stream), self.runtime.device)


def blocks_of(network: nn.Module) -> list[Block]:
    """All Transformer blocks of a network, which are gathered one at a time where weights are sharded."""
    return [module for module in network.modules() if isinstance(module, Block)]


def median_side(files: ImageList, seed: int) -> int:
    """Median of the shorter sides, in pixels, of a sample drawn by `seed`.

    Raises:
        UserError: if none of the sample can be read.
    """
    sides = []
    for index in random.Random(seed).sample(range(len(files)), min(SAMPLE, len(files))):
        try:
            sides.append(min(stored_size(files.source(index))))
        except BrokenImage:
            continue  # training counts and names those
    if not sides:
        raise UserError(f"none of the first images looked at in {files.root} can be read; see what its files hold")
    return round(statistics.median(sides))
