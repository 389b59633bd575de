"""`beitkit predict`: classify images."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

from beitkit.configs.parts import shard_of
from beitkit.configs.segmentation import InferenceConfig
from beitkit.data.sources.image_list import ImageList
from beitkit.errors import UserError
from beitkit.inference.command import command_of, shard_path
from beitkit.inference.engines import BATCHES_PER_BLOCK, Engine, chosen_engine, complete, shard
from beitkit.inference.networks import Probabilities
from beitkit.inference.part import Rows
from beitkit.inference.predictions import JsonPredictions, Naming, prediction_table
from beitkit.inference.predictor import BatchComputation
from beitkit.inference.result import PartedOutput, Written
from beitkit.interop.load import load
from beitkit.nn.models import Classifier
from beitkit.nn.segmentation.segmenter import Segmenter
from beitkit.runs.predict.config import PredictRun
from beitkit.runs.predict.inputs import gather_images
from beitkit.runs.predict.segmenters import predict_scenes
from beitkit.system import quoted


def run(config: PredictRun) -> Written:
    """Predict what a model of this kind can; write a table, or print."""
    model = load(config.model)
    if isinstance(model, Segmenter):
        return predict_scenes(config, model)
    if isinstance(model, Classifier):
        if config.inference != InferenceConfig():
            raise UserError(f"--inference is for segmentation, but {config.model} holds a classifier; leave it out")
        return _predict_classes(config, model)
    raise UserError(
        f"{config.model} holds a {type(model).__name__}, which names nothing in images; make a classifier of it with "
        "beitkit finetune or a segmenter with beitkit segment, or take its features with beitkit embed"
    )


def _predict_classes(config: PredictRun, model: Classifier) -> Written:
    """Probabilities of the classes of each image."""
    naming = Naming.of(model.config, config.top)
    sheet = None if config.out is None else prediction_table(config.out, naming)
    block = config.batch_size * BATCHES_PER_BLOCK
    number, shards = shard_of(config.shard)
    found = gather_images(config.inputs)
    files = shard(found, block, number, shards)
    settings = {"top": naming.top, "batch_size": config.batch_size, "shard": config.shard, "engine": config.engine}
    command = command_of("predict", model, found, config.machine, settings)
    computation = BatchComputation(model=config.model, compute=Probabilities(), machine=config.machine)
    engine = reported(chosen_engine(config.engine, computation, model, config.batch_size))
    if config.out is None or sheet is None:
        return _print(config, naming, engine(files))
    out = shard_path(config.out, number, shards, is_whole=config.shard is None)
    result = PartedOutput({out: sheet}, command, -(-len(files) // block))
    outcome = complete(result, files, block, engine, progress)
    if config.json:
        print(json.dumps({"images": outcome.images, "unreadable": outcome.unreadable, "out": str(out)}))
    else:
        print(f"written: {counted(outcome)}. Next, with labels: beitkit evaluate LABELED --model {quoted(config.model)}")
    return outcome


def reported(engine: Engine) -> Engine:
    """The same engine, which names the images that cannot be read on stderr."""

    def results(files: ImageList) -> Iterator[Rows]:
        for part in engine(files):
            for path, error in zip(part.paths, part.errors, strict=True):
                if error:
                    print(f"unreadable: {path}: {error}", file=sys.stderr)
            yield part

    return results


def progress(done: int, total: int) -> None:
    """Say on stderr how far it is."""
    print(f"{done} of {total} parts", file=sys.stderr)


def counted(outcome: Written) -> str:
    """The file and its rows in words."""
    rows = f"{outcome.images} image{'' if outcome.images == 1 else 's'}"
    return f"{outcome.out} ({rows}{f', {outcome.unreadable} of them unreadable' if outcome.unreadable else ''})"


def _print(config: PredictRun, naming: Naming, results: Iterator[Rows]) -> Written:
    """Print a line for each image on stdout."""
    images = unreadable = 0
    for part in results:
        images += len(part.paths)
        unreadable += sum(map(bool, part.errors))
        if config.json:
            print(JsonPredictions(naming).encode(part).decode(), end="")
            continue
        for row in naming.rows(part, naming.top):
            if not row.error:
                print(f"{row.path}: {', '.join(f'{name} {share:.1%}' for name, share in row.best)}")
    if unreadable and unreadable == images:
        raise UserError(f"none of the {images} images can be read; the reasons are named above")
    if not config.json:
        skipped = f", {unreadable} of them unreadable" if unreadable else ""
        print(f"{images} image{'' if images == 1 else 's'}{skipped}. Next: keep the predictions with --out predictions.csv")
    return Written(images, unreadable, None)
