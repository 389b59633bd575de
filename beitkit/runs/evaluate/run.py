"""`beitkit evaluate`: measure classifiers on labeled images, one or several side by side."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from beitkit.configs.data import Preprocessing
from beitkit.configs.segmentation import InferenceConfig
from beitkit.contracts import Batch
from beitkit.data.sources.find import LabeledList, labeled_source
from beitkit.data.sources.image_list import ImageList
from beitkit.data.sources.split import set_aside_before
from beitkit.data.stream import Reading, evaluation_batches, evaluation_dataset
from beitkit.errors import UserError
from beitkit.evaluation.comparison import Evaluation, ModelResult, collect_answers, compared, seed_groups
from beitkit.evaluation.scores import THRESHOLD, MultilabelScores, Scores, multilabel_scores, single_label_scores
from beitkit.interop.load import load
from beitkit.nn.models import Classifier
from beitkit.nn.segmentation.segmenter import Segmenter
from beitkit.runs.evaluate.config import EvaluateRun
from beitkit.runs.evaluate.model_paths import run_config, run_on, short_names
from beitkit.runs.evaluate.report import Answers, as_json, predictions_table, print_result, write_report
from beitkit.runs.evaluate.segmenters import SceneEvaluation, evaluate_segmenters
from beitkit.system import quoted, write_atomically
from beitkit.train.folder import RunFolder
from beitkit.train.journal import say_skipped
from beitkit.train.machine.runtime import Runtime, start_runtime

NAMED_IN_A_REFUSAL = 3


def run(config: EvaluateRun) -> Evaluation | SceneEvaluation:
    """Measure, and print tables on stdout (or JSON with `json`)."""
    networks = [load(path, image_size=config.image_size) for path in config.model]
    segmenters = [network for network in networks if isinstance(network, Segmenter)]
    if segmenters and len(segmenters) == len(networks):
        return evaluate_segmenters(config, segmenters)
    if (config.inference, config.classes) != (InferenceConfig(), None):
        raise UserError(f"--inference and --classes are for segmentation, but {config.model[0]} is not; leave them out")
    return _evaluate_classifiers(config, _classifiers(config.model, networks))


def _evaluate_classifiers(config: EvaluateRun, models: list[Classifier]) -> Evaluation:
    classes = models[0].config.classes
    files, where = _images(config, classes)
    is_multilabel = models[0].config.multilabel
    if files.targets is not None and not is_multilabel:
        raise UserError(f"{config.images} has several labels an image, but {config.model[0]} was trained for one")
    folder = None if config.out is None else RunFolder(config.out, "evaluate", config)
    runtime = start_runtime(config.machine)
    broken: set[Path] = set()

    def note(file: Path, reason: str) -> None:
        if file not in broken:  # models of several sizes read an image several times
            broken.add(file)
            say_skipped(file, reason)

    reading = Reading(
        batch_size=config.batch_size,
        workers=config.machine.workers,
        device=runtime.device,
        max_broken=config.read.max_broken,
        report=note,
        list_file=None,
    )
    logits, index = _answers(models, files, reading, runtime, config.crop_share)
    targets = _targets(files)[index]
    names = short_names(config.model)
    results, right = [], []
    for name, path, answer in zip(names, config.model, logits, strict=True):
        scores, is_right = _scored(answer, targets, classes, is_multilabel)
        results.append(ModelResult(name, path, scores))
        right.append(is_right)
    result = Evaluation(
        where=where,
        images=len(index),
        broken=len(broken),
        models=tuple(results),
        pairs=compared(names, right),
        seeds=seed_groups(results, [run_config(path) for path in config.model]),
    )
    if folder is not None:
        answers = Answers([files.path(place) for place in index.tolist()], targets, dict(zip(names, logits, strict=True)))
        folder.write_json("evaluation.json", as_json(result))
        table = predictions_table(answers, classes, is_multilabel=is_multilabel)
        write_atomically(folder.path / "predictions.csv", table.encode("utf-8", "surrogateescape"))
        write_report(folder.path / "report.html", result)
    if config.json:
        print(json.dumps(as_json(result)))
    else:
        print_result(result)
        print(_next_step(config))
    return result


def _next_step(config: EvaluateRun) -> str:
    first = quoted(config.model[0])
    after = f"beitkit export --model {first} --format onnx --out model.onnx"
    if config.out is not None:
        return f"written: {config.out} (report.html shows it). Next: {after}"
    return f"give --out to keep a report. Next: {after}"


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
            lacking = _listed(set(first.classes) - set(network.config.classes))
            surplus = _listed(set(network.config.classes) - set(first.classes))
            raise UserError(
                f"{path} and {paths[0]} name other classes (only the second: {lacking}; only the first: {surplus}); "
                "compare models with the same classes"
            )
        models.append(network)
    return models


def _listed(names: set[str]) -> str:
    more = f" and {len(names) - NAMED_IN_A_REFUSAL} more" if len(names) > NAMED_IN_A_REFUSAL else ""
    return (", ".join(sorted(names)[:NAMED_IN_A_REFUSAL]) or "none") + more


def _answers(
    models: Sequence[Classifier], files: ImageList, reading: Reading, runtime: Runtime, crop_share: float | None
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
        stream = _stream(members[0], files, reading, crop_share)
        answers, index = collect_answers([_predict(member, runtime.precision) for member in members], stream)
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


def _stream(model: Classifier, files: ImageList, reading: Reading, crop_share: float | None) -> Iterator[Batch]:
    preprocessing: Preprocessing = model.config.preprocessing
    if crop_share is not None:
        preprocessing = replace(preprocessing, crop_share=crop_share)
    dataset = evaluation_dataset(files, model.config.backbone, preprocessing)
    return evaluation_batches(dataset, preprocessing, reading)


def _predict(model: Classifier, precision: Callable[[], AbstractContextManager[None]]) -> Callable[[Tensor], Tensor]:
    def predict(images: Tensor) -> Tensor:
        with precision():
            return model(images)

    return predict


def _targets(files: ImageList) -> Bool[Tensor, "n classes"]:
    """Which classes each image shows."""
    if files.targets is not None:
        return torch.from_numpy(files.targets)
    assert files.labels is not None
    targets = torch.zeros(len(files), len(files.classes), dtype=torch.bool)
    targets[torch.arange(len(files)), torch.from_numpy(files.labels)] = True
    return targets


def _scored(
    logits: Float[Tensor, "n classes"], targets: Bool[Tensor, "n classes"], classes: tuple[str, ...], is_multilabel: bool
) -> tuple[Scores | MultilabelScores, Bool[Tensor, " n"]]:
    """Scores, and which images are right altogether."""
    if is_multilabel:
        return multilabel_scores(logits, targets, classes), ((logits.sigmoid() > THRESHOLD) == targets).all(1)
    labels: Int[Tensor, " n"] = targets.int().argmax(1)
    return single_label_scores(logits, labels, classes), logits.argmax(1) == labels


def _images(config: EvaluateRun, classes: tuple[str, ...]) -> tuple[ImageList, str]:
    """What to measure, and its name: never images the model was trained on without saying so."""
    source = labeled_source(config.images)
    if "train" in source.splits or isinstance(source, LabeledList):
        for split in ("val", "test"):
            if split in source.splits:
                return source.read(split, classes), f"the {split} part of {config.images}"
    runs = {model: run for model in config.model if (run := run_on(model, config.images)) is not None}
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
