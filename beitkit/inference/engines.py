"""Inference engines: this process with its readers, or the actors of a Ray cluster, with equal rows in equal order."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch

from beitkit.configs.parts import EngineName
from beitkit.data.sources.image_list import ImageList
from beitkit.data.stream import evaluation_dataset, evaluation_stream, normalized
from beitkit.data.transfer import to_device
from beitkit.errors import Interrupted
from beitkit.inference.networks import Computation, cast_weights_, source_of
from beitkit.inference.pace import Pacing, Spent, Way
from beitkit.inference.part import Rows, in_blocks
from beitkit.inference.predictor import BatchComputation
from beitkit.inference.ray_engine import import_ray, ray_results
from beitkit.inference.result import PartedOutput, Written
from beitkit.interop.kinds import Network
from beitkit.nn.prediction import check_outputs
from beitkit.train.machine.runtime import Runtime, start_runtime

BATCHES_PER_BLOCK = 16
"""Images per part of a result, the unit that is written, resumed and sharded."""

Engine = Callable[[ImageList], Iterator[Rows]]
"""From images to their results, in input order."""


def chosen_engine(name: EngineName, computation: BatchComputation, model: Network, pacing: Pacing) -> Engine:
    """The engine of this name for a computation, whose network `model` has been read; Ray leaves nothing to be found out.

    Raises:
        UserError: Ray is not installed, or the machine lacks the device or precision.
    """
    if name == "ray":
        import_ray()
        return lambda files: ray_results(files, computation, batch_size=pacing.read)
    runtime = start_runtime(computation.machine)
    model.to(runtime.device)
    return lambda files: local_results(files, model, computation.compute, runtime, pacing)


def complete(result: PartedOutput, files: ImageList, block: int, engine: Engine, report: Callable[[int, int], None]) -> Written:
    """Compute the missing parts of a result, of `block` images each, and join them.

    `report(done, total)` is called after each part with the numbers of parts.

    Raises:
        Interrupted: after Ctrl-C; the complete parts are kept.
    """
    if result.written is not None:
        return result.written
    missing = result.missing()
    if missing:
        rest = blocks_of(files, block, missing)
        done = result.parts - len(missing)
        try:
            for number, part in zip(missing, in_blocks(engine(rest), block), strict=True):
                result.write(number, part)
                done += 1
                report(done, result.parts)
        except KeyboardInterrupt:
            done = result.parts - len(result.missing())  # a part may have been written and not been counted
            kept = f"they are kept in {result.folder}, the same command continues"
            raise Interrupted(done, result.parts, signal.SIGINT, kept, unit="part") from None
    return result.finish()


def blocks_of(files: ImageList, block: int, numbers: list[int]) -> ImageList:
    """The images of some blocks of consecutive ones."""
    places = np.arange(len(files))
    return files.subset(np.concatenate([places[:0], *(places[number * block : (number + 1) * block] for number in numbers)]))


def shard(files: ImageList, block: int, number: int, shards: int) -> ImageList:
    """The images of shard `number` (from 1) of `shards`: every `shards`-th block, so that shards are of equal size."""
    return blocks_of(files, block, list(range(number - 1, -(-len(files) // block), shards)))


def local_results(files: ImageList, model: Network, compute: Computation, runtime: Runtime, pacing: Pacing) -> Iterator[Rows]:
    """Results computed in this process, batch by batch; `model` is on the runtime's device, its weights are cast for it."""
    cast_weights_(model, runtime.autocast)
    preprocessing = model.config.preprocessing
    dataset = evaluation_dataset(files, model.config.backbone, preprocessing)
    cores = torch.get_num_threads()

    def batches(first: int, ways: Iterable[Way], workers: int) -> Iterator[tuple[Rows, Spent]]:
        stream = evaluation_stream(dataset, pacing.read, workers=workers, first=first)
        stream = normalized(to_device(stream, runtime.device), preprocessing.mean, preprocessing.std)
        began = time.perf_counter()
        for way, batch in zip(ways, stream, strict=False):
            read = time.perf_counter()
            torch.set_num_threads(way.threads)
            with torch.no_grad(), runtime.precision():
                parts = [compute(model, part).float().cpu() for part in batch["images"].split(way.batch_size)]
            outputs, indices = torch.cat(parts), batch["index"].tolist()
            ended = time.perf_counter()
            is_broken = batch["broken"].cpu() >= 0
            check_outputs(outputs[~is_broken], source_of(model))
            outputs[is_broken] = np.nan
            errors = [dataset.reason(index) if broken else "" for index, broken in zip(indices, is_broken.tolist(), strict=True)]
            rows = Rows([files.path(index) for index in indices], errors, outputs.numpy())
            yield rows, Spent((read - began) / len(indices), (ended - read) / len(indices))
            began = time.perf_counter()

    try:
        yield from pacing.results(batches, len(files), cores, is_tried=runtime.kind == "cpu")
    finally:
        torch.set_num_threads(cores)
