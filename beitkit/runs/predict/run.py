"""`beitkit predict`: classify images."""

from __future__ import annotations

from typing import Any

from beitkit.command.following import command, kept
from beitkit.errors import UserError
from beitkit.inference.networks import Probabilities
from beitkit.inference.predictions import Naming, json_lines, prediction_table
from beitkit.inference.predictor import fitted
from beitkit.inference.result import Written
from beitkit.interop.load import load
from beitkit.nn.averaged import check_views
from beitkit.nn.models import Classifier
from beitkit.nn.segmentation.segmenter import Segmenter
from beitkit.runs.predict.config import EmbedRun, PredictRun
from beitkit.runs.predict.parts import block_of, engine_of, images_of, keep, pacing_of, shard_file, write_in_parts
from beitkit.runs.predict.segmenters import predict_scenes
from beitkit.runs.training.own import NONE, OwnParts
from beitkit.terminal import print_answer


def run(config: PredictRun, own: OwnParts = NONE) -> Written:
    """Predict what a model of this kind can; write a table, or print. `own` are the objects that the config describes."""
    model = fitted(load(config.model), config.fit)
    if isinstance(model, Segmenter):
        if config.fit is not None:
            raise UserError(f"`fit` is for classifiers, but {config.model} labels whole images; leave it out")
        config.inference.refuse_shift()
        return predict_scenes(config, model, own)
    if isinstance(model, Classifier):
        check_views(config.inference, model.config.backbone.image_size)
        return _predict_classes(config, model, own)
    raise UserError(
        f"{config.model} holds a {type(model).__name__}, which names nothing in images; make a classifier of it with "
        "beitkit finetune or a segmenter with beitkit segment, or take its features with beitkit embed"
    )


def _predict_classes(config: PredictRun, model: Classifier, own: OwnParts) -> Written:
    naming = Naming.of(model.config, config.top)
    if config.out is None:
        return _print(config, model, naming, own)
    out = shard_file(config, config.out)
    files = {out: prediction_table(config.out, naming)}
    settings = {"top": naming.top, "views": config.inference.view_words or None}
    outcome = write_in_parts(config, "predict", model, Probabilities(config.inference), files, settings, own)
    after = f"Next: {command('evaluate', 'LABELED', model=config.model, **kept(config, 'fit', 'inference'))}"
    print(f"written: {out} ({outcome.words}). {after}")
    return outcome


def answer(_: PredictRun | EmbedRun, outcome: Written) -> dict[str, Any] | None:
    """What `--json` prints at the end; nothing where every image had a line of its own."""
    return None if outcome.out is None else outcome._asdict()


def _print(config: PredictRun, model: Classifier, naming: Naming, own: OwnParts) -> Written:
    """Print a line for each image on stdout."""
    _, files = images_of(config, model, block_of(config), own)
    images = unreadable = 0
    for part in engine_of(config, model, Probabilities(config.inference), pacing_of(config))(files):
        images += len(part.paths)
        unreadable += sum(map(bool, part.errors))
        if config.json:
            print_answer(json_lines(part, naming).decode().rstrip("\n"))
            continue
        for row in naming.rows(part, naming.top):
            if not row.error:
                print(f"{row.path}: {', '.join(f'{name} {share:.1%}' for name, share in row.best)}")
    outcome = Written(images, unreadable, None)
    outcome.check()
    print(f"{outcome.words}. Next: {keep(config, 'predictions.csv')}")
    return outcome
