"""Classifiers measured on labeled images."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from beitkit.command.following import command, unused
from beitkit.configs.model import ClassifierConfig
from beitkit.configs.segmentation import InferenceConfig
from beitkit.data.own.images import OwnImages
from beitkit.data.sources.find import LabeledList, find_labeled, labeled_source
from beitkit.data.sources.image_list import ImageList
from beitkit.data.sources.list_rows import SEPARATOR
from beitkit.data.sources.split import set_aside_before
from beitkit.data.stream import Reading, evaluation_batches, evaluation_dataset
from beitkit.data.survey import name_other_ranges
from beitkit.errors import UserError, few
from beitkit.evaluation.calibration import as_decided
from beitkit.evaluation.classification import collect_answers
from beitkit.evaluation.comparison import compared
from beitkit.evaluation.scores import MultilabelScores, Scores, multilabel_scores, single_label_scores
from beitkit.inference.networks import source_of
from beitkit.nn.averaged import averaged_logits, check_views
from beitkit.nn.models import Classifier
from beitkit.nn.prediction import class_probabilities
from beitkit.runs.evaluate.config import EvaluateRun
from beitkit.runs.evaluate.model_paths import run_on, short_names
from beitkit.runs.evaluate.prepared import Findings, Prepared, ReportBroken
from beitkit.runs.training.leaks import name_leaks
from beitkit.runs.training.reader import note_on_cut
from beitkit.train.machine.runtime import Runtime

NAMED_IN_A_REFUSAL = 3


def classification(config: EvaluateRun, networks: Sequence[object], images: Path | OwnImages) -> Prepared:
    """The measuring of classifiers with the same classes on `images`, which the config names or describes.

    Raises:
        UserError: networks that cannot be compared, options that are for segmenters, or no images for them.
    """
    if config.classes is not None:
        raise UserError(f"--classes is for segmentation, but {config.model[0]} is not; leave it out")
    models = _classifiers(config.model, networks)
    for model in models:
        check_views(config.inference, model.config.backbone.image_size)
        shown = model.config.preprocessing.shown(config.fit, config.crop_share)
        shown.check_share(config.crop_share, model.config.backbone.image_size)
        model.config = replace(model.config, preprocessing=shown)
    files, where = _images(config, images, models[0].config.classes)
    for ranges in {model.config.preprocessing.value_range for model in models}:
        name_other_ranges(files, ranges)
    name_leaks(_trained_on(config, images), files)
    if files.targets is not None and not models[0].config.multilabel:
        raise UserError(f"{config.images} has several labels an image, but {config.model[0]} was trained for one")
    views = config.inference.view_words
    return Prepared(
        where=where + (f" ({views})" if views else ""),
        measure=partial(_measure, config, models, files),
        file="predictions.csv",
        facts=[("Averaged over views", views)] if views else [],
        following=command("export", model=config.model[0], format="onnx", out=unused(Path("model.onnx"))),
    )


def _measure(
    config: EvaluateRun, models: Sequence[Classifier], files: ImageList, runtime: Runtime, note: ReportBroken
) -> Findings:
    configs = [_in_order(model.config, models[0].config.classes) for model in models]
    reading = Reading(
        batch_size=config.batch_size,
        workers=config.machine.workers,
        device=runtime.device,
        max_broken=config.read.max_broken,
        report=note,
        list_file=None,
    )
    shapes = dict.fromkeys((model.config.backbone.image_size, model.config.preprocessing) for model in models)
    for cut in dict.fromkeys(note_on_cut(files, *shape) for shape in shapes):
        if cut is not None:
            print(cut, file=sys.stderr)
    logits, index = _answers(models, files, reading, runtime, config.inference)
    targets = _targets(files)[index]
    names = short_names(config.model)
    scores, right = zip(*(_scored(answer, targets, one) for answer, one in zip(logits, configs, strict=True)), strict=True)
    paths = [files.path(place) for place in index.tolist()]
    rows = _predictions(dict(zip(names, zip(logits, configs, strict=True), strict=True)), paths, targets)
    return Findings(images=len(index), scores=scores, pairs=compared(names, right), rows=rows)


def _classifiers(paths: Sequence[Path], networks: Sequence[object]) -> list[Classifier]:
    """The networks, if all are classifiers of the same classes (in any order)."""
    models: list[Classifier] = []
    for path, network in zip(paths, networks, strict=True):
        if not isinstance(network, Classifier):
            raise UserError(f"{path} holds a {type(network).__name__}, not a classifier; make one with beitkit finetune")
        first = models[0].config if models else network.config
        if network.config.multilabel != first.multilabel:
            kinds = ["several labels" if one.multilabel else "one label" for one in (network.config, first)]
            raise UserError(f"{path} gives {kinds[0]} an image, {paths[0]} {kinds[1]}; evaluate them one by one")
        if set(network.config.classes) != set(first.classes):
            lacking = few(sorted(set(first.classes) - set(network.config.classes)), NAMED_IN_A_REFUSAL) or "none"
            surplus = few(sorted(set(network.config.classes) - set(first.classes)), NAMED_IN_A_REFUSAL) or "none"
            raise UserError(
                f"{path} and {paths[0]} name other classes (only the second: {lacking}; only the first: {surplus}); "
                "compare models with the same classes"
            )
        models.append(network)
    return models


def _answers(
    models: Sequence[Classifier], files: ImageList, reading: Reading, runtime: Runtime, inference: InferenceConfig
) -> tuple[list[Tensor], Tensor]:
    """Logits (n, classes) of every model, columns in the first one's order, and which n images they are of.

    Models that take the same input share one reading of the images. An image counts if every model can read it: one that
    is smaller than a patch is unreadable to that model.
    """
    groups: dict[tuple[object, ...], list[int]] = {}
    for place, model in enumerate(models):
        backbone = model.config.backbone
        key = backbone.image_size, backbone.channels, backbone.patch, model.config.preprocessing
        groups.setdefault(key, []).append(place)
    logits: dict[int, Tensor] = {}
    readable: dict[int, Tensor] = {}
    for places in groups.values():
        members = [models[place].to(runtime.device) for place in places]
        preprocessing = members[0].config.preprocessing
        dataset = evaluation_dataset(files, members[0].config.backbone, preprocessing)
        predicts = [runtime.precision()(partial(averaged_logits, member, config=inference)) for member in members]
        names = [source_of(member) for member in members]
        answers, index = collect_answers(predicts, evaluation_batches(dataset, preprocessing, reading), "index", names)
        for place, member, answer in zip(places, members, answers, strict=True):
            order = [member.config.classes.index(name) for name in models[0].config.classes]
            logits[place], readable[place] = answer[:, order], index
            member.cpu()
    common = readable[0]
    for index in readable.values():
        common = common[torch.isin(common, index)]
    if not len(common):
        raise UserError(f"none of the {len(files)} images can be read, so there is nothing to measure")
    return [logits[place][torch.isin(readable[place], common)] for place in range(len(models))], common


def _targets(files: ImageList) -> Bool[Tensor, "n classes"]:
    if files.targets is not None:
        return torch.from_numpy(files.targets)
    assert files.labels is not None
    targets = torch.zeros(len(files), len(files.classes), dtype=torch.bool)
    targets[torch.arange(len(files)), torch.from_numpy(files.labels)] = True
    return targets


def _scored(
    logits: Float[Tensor, "n classes"], targets: Bool[Tensor, "n classes"], config: ClassifierConfig
) -> tuple[Scores | MultilabelScores, Bool[Tensor, " n"]]:
    """Scores, and which images are right altogether."""
    if config.multilabel:
        named = as_decided(class_probabilities(logits, config), config.decisions)
        scores = multilabel_scores(logits, targets, config.classes, config.temperature, config.thresholds)
        return scores, (named == targets).all(1)
    labels: Int[Tensor, " n"] = targets.int().argmax(1)
    return single_label_scores(logits, labels, config.classes, config.temperature), logits.argmax(1) == labels


def _in_order(config: ClassifierConfig, classes: tuple[str, ...]) -> ClassifierConfig:
    """A network's config with its classes in another order."""
    order = [config.classes.index(name) for name in classes]
    thresholds = None if config.thresholds is None else tuple(config.thresholds[place] for place in order)
    return replace(config, classes=classes, thresholds=thresholds)


def _images(config: EvaluateRun, images: Path | OwnImages, classes: tuple[str, ...]) -> tuple[ImageList, str]:
    """What to measure, and its name: never images the model was trained on without saying so."""
    source = labeled_source(images, config.columns)
    if "train" in source.splits or isinstance(source, LabeledList):
        for split in ("val", "test"):
            if split in source.splits:
                return source.read(split, classes), f"the {split} part of {config.images}"
    runs = {model: run for model in config.model if (run := run_on(model, images)) is not None}
    asides = [model / "split.csv" for model, run in runs.items() if run["val"] is None]
    if asides:
        lists = [set_aside_before(aside, source, classes) for aside in asides]
        other = next((aside for aside, one in zip(asides, lists, strict=True) if one.digest != lists[0].digest), None)
        if other is not None:
            raise UserError(
                f"{asides[0].parent} and {other.parent} set aside different images of {config.images} for validation; "
                "give images that neither was trained on, or evaluate them one by one"
            )
        return lists[0], f"the part of {config.images} that was set aside for validation"
    is_for_training = bool(runs) or "train" in source.splits
    files = source.read("train" if "train" in source.splits else None, classes)
    return files, str(config.images) + (" (training images)" if is_for_training else "")


def _trained_on(config: EvaluateRun, images: Path | OwnImages) -> Iterator[ImageList]:
    """What the models were trained on, as their runs wrote it down; else the train part of the images."""
    listed = [model / "split.csv" for model in config.model if (model / "split.csv").is_file()]
    for table in listed:
        with suppress(UserError):  # images that have been moved, or lie in archives
            yield find_labeled(table, "train")
    if not listed:
        with suppress(UserError):
            source = labeled_source(images, config.columns)
            if "train" in source.splits:
                yield source.read("train")


def _predictions(
    answers: Mapping[str, tuple[Tensor, ClassifierConfig]], paths: Sequence[Path], targets: Tensor
) -> Iterator[list[object]]:
    """One row per network and image.

    One label an image: model, path, label, predicted, and the probabilities of the predicted class and of the label. Several:
    model, path, labels and predicted (joined by |), and one probability per class.
    """
    first = next(iter(answers.values()))[1]
    if first.multilabel:
        yield ["model", "path", "labels", "predicted", *(f"probability of {name}" for name in first.classes)]
    else:
        yield ["model", "path", "label", "predicted", "probability", "label_probability"]
    for model, (logits, config) in answers.items():
        probabilities, classes = class_probabilities(logits, config), config.classes
        for path, shown, row in zip(paths, targets, probabilities, strict=True):
            if config.multilabel:
                named = as_decided(row[None], config.decisions)[0]
                yield [model, path, _joined(classes, shown), _joined(classes, named), *map(_digits, row)]
            else:
                label, named = int(shown.int().argmax()), int(row.argmax())
                yield [model, path, classes[label], classes[named], _digits(row[named]), _digits(row[label])]


def _joined(classes: tuple[str, ...], shown: Tensor) -> str:
    return SEPARATOR.join(classes[place] for place in torch.nonzero(shown).flatten().tolist())


def _digits(probability: Tensor) -> str:
    return f"{float(probability):.6g}"
