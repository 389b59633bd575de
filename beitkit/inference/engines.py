"""Inference engines: this process with its readers, or the actors of a Ray cluster, with equal rows in equal order."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator

import numpy as np
import torch

from beitkit.configs.parts import EngineName
from beitkit.data.sources.image_list import ImageList
from beitkit.data.stream import evaluation_dataset, evaluation_stream, normalized
from beitkit.data.transfer import to_device
from beitkit.errors import Interrupted
from beitkit.inference.networks import Computation, cast_weights_, source_of
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


def chosen_engine(name: EngineName, computation: BatchComputation, model: Network, batch_size: int) -> Engine:
    """The engine of this name for a computation, whose network `model` has been read.

    Raises:
        UserError: Ray is not installed, or the machine lacks the device or precision.
    """
    if name == "ray":
        import_ray()
        return lambda files: ray_results(files, computation, batch_size=batch_size)
    machine = computation.machine
    runtime = start_runtime(machine)
    model.to(runtime.device)
    return lambda files: local_results(files, model, computation.compute, runtime, batch_size=batch_size, workers=machine.workers)


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


def local_results(
    files: ImageList, model: Network, compute: Computation, runtime: Runtime, *, batch_size: int, workers: int
) -> Iterator[Rows]:
    """Results computed in this process, batch by batch; `model` is on the runtime's device, its weights are cast for it."""
    cast_weights_(model, runtime.autocast)
    preprocessing = model.config.preprocessing
    dataset = evaluation_dataset(files, model.config.backbone, preprocessing)
    stream = evaluation_stream(dataset, batch_size, workers=workers)
    for batch in normalized(to_device(stream, runtime.device), preprocessing.mean, preprocessing.std):
        with torch.no_grad(), runtime.precision():
            outputs = compute(model, batch["images"]).float().cpu()
        is_broken, indices = batch["broken"].cpu() >= 0, batch["index"].tolist()
        check_outputs(outputs[~is_broken], source_of(model))
        outputs[is_broken] = np.nan
        errors = [dataset.reason(index) if broken else "" for index, broken in zip(indices, is_broken.tolist(), strict=True)]
        yield Rows([files.path(index) for index in indices], errors, outputs.numpy())
