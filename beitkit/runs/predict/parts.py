"""What `predict` and `embed` have in common: which images they take, and results of batches, written part by part."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from beitkit.command.following import command, kept, unused
from beitkit.configs.parts import shard_of
from beitkit.data.own.images import OwnImages
from beitkit.data.sources.image_list import ImageList
from beitkit.data.survey import name_other_ranges
from beitkit.errors import GIVEN, UserError
from beitkit.inference.engines import BATCHES_PER_BLOCK, Engine, chosen_engine, complete, shard
from beitkit.inference.networks import Computation
from beitkit.inference.pace import READ, Pacing
from beitkit.inference.part import OutputFile, Rows
from beitkit.inference.predictor import BatchComputation
from beitkit.inference.result import PartedOutput, Setting, Written, command_of, shard_path
from beitkit.interop.kinds import Network
from beitkit.nn.segmentation.segmenter import Segmenter
from beitkit.runs.predict.config import EmbedRun, PredictRun
from beitkit.runs.predict.inputs import gather_images
from beitkit.runs.training.own import OwnParts
from beitkit.runs.training.reader import note_on_cut
from beitkit.terminal import one_line


def images_of(config: PredictRun | EmbedRun, model: Network, block: int, own: OwnParts) -> tuple[ImageList, ImageList]:
    """All images that the command names, or that were given, and those of its shard, which takes blocks of `block` in turn.

    Images that are of another range than those of the model are named on stderr, and how much is cut off.

    Raises:
        UserError: as `gather_images` and `OwnImages.of`; or an object for Ray, whose processes open paths.
    """
    number, shards = shard_of(config.shard)
    if own.inputs is None:
        found = gather_images(config.inputs, config.columns.image)
    elif config.engine == "ray":
        raise UserError(
            f"`engine='ray'` opens images by their paths, but {config.inputs[0]} is an object of this program; leave `engine` out"
        )
    else:
        found = ImageList.of_items(OwnImages.of(own.inputs))
    files = shard(found, block, number, shards)
    name_other_ranges(files, model.config.preprocessing.value_range)
    if not isinstance(model, Segmenter):
        cut = note_on_cut(found, model.config.backbone.image_size, model.config.preprocessing)
        if cut is not None:
            print(cut, file=sys.stderr)
    return found, files


def block_of(config: PredictRun | EmbedRun) -> int:
    """Images of a part of the result."""
    return (config.batch_size or READ) * BATCHES_PER_BLOCK


def pacing_of(config: PredictRun | EmbedRun) -> Pacing:
    """What is found out about speed, and told on stderr."""
    return Pacing(config.machine, config.batch_size, say=lambda line: print(line, file=sys.stderr))


def engine_of(config: PredictRun | EmbedRun, model: Network, compute: Computation, pacing: Pacing) -> Engine:
    """The engine that was asked for; it names the images that cannot be read on stderr."""
    computation = BatchComputation(model=config.model, compute=compute, machine=config.machine, read=config.read, fit=config.fit)
    engine = chosen_engine(config.engine, computation, model, pacing)

    def results(files: ImageList) -> Iterator[Rows]:
        for part in engine(files):
            for path, error in zip(part.paths, part.errors, strict=True):
                if error:
                    print(one_line(f"unreadable: {path}: {error}"), file=sys.stderr)
            yield part

    return results


def shard_file(config: PredictRun | EmbedRun, out: Path) -> Path:
    """The file of the command's shard; `out` itself without one."""
    return shard_path(out, *shard_of(config.shard), is_whole=config.shard is None)


def write_in_parts(
    config: PredictRun | EmbedRun,
    verb: str,
    model: Network,
    compute: Computation,
    files: Mapping[Path, OutputFile],
    settings: dict[str, Setting],
    own: OwnParts,
) -> Written:
    """Compute what is missing of these files, the last of which the user named; `settings` are what else they depend on."""
    block = block_of(config)
    found, images = images_of(config, model, block, own)
    settings = settings | {"batch_size": config.batch_size or READ, "shard": config.shard, "engine": config.engine}
    command = command_of(verb, model, found, config.machine, settings)
    pacing = pacing_of(config)
    engine = engine_of(config, model, compute, pacing)
    result = PartedOutput(files, command, -(-len(images) // block))
    pacing.remember(result.way(), result.note_way)
    return complete(result, images, block, engine, _say_part)


def _say_part(done: int, total: int) -> None:
    if total > 1:
        print(f"{done} of {total} parts", file=sys.stderr)


MOST_INPUTS = 3
"""Inputs that a command names again; more of them, and an object of a Python program, are IMAGES."""


def keep(config: PredictRun, name: str) -> str:
    """The same command, with its predictions written to a file or folder of this name."""
    is_named = len(config.inputs) <= MOST_INPUTS and not str(config.inputs[0]).startswith(GIVEN)
    inputs = config.inputs if is_named else ("IMAGES",)
    return command("predict", *inputs, out=unused(Path(name)), **kept(config, *SAME))


SAME = ("model", "top", "batch_size", "fit", "shard", "engine", "inference", "read", "columns", "device", "precision")
"""Options that this command keeps."""
