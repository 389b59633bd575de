"""`beitkit evaluate` for segmenters: one or several on the same images and masks."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table
from torch import Tensor

from beitkit.configs.segmentation import InferenceConfig
from beitkit.data.scenes.label_codes import LabelMapping, read_classes
from beitkit.data.scenes.layout import scene_splits
from beitkit.data.scenes.reading import readable_scenes
from beitkit.data.scenes.scenes import CLASSES_FILE, Scenes, find_scenes
from beitkit.errors import UserError
from beitkit.evaluation.comparison import SeedGroup, seed_groups
from beitkit.evaluation.scene_sheets import SceneScores, evaluate_scenes, scene_sections
from beitkit.interop.kinds import numbered
from beitkit.nn.segmentation.label_map import predict_label_map
from beitkit.nn.segmentation.segmenter import Segmenter
from beitkit.report.charts import Dots, dot_chart
from beitkit.report.document import Report
from beitkit.report.overlays import palette_of
from beitkit.runs.evaluate.config import EvaluateRun
from beitkit.runs.evaluate.model_paths import run_config, run_on, short_names
from beitkit.system import quoted, write_atomically
from beitkit.train.folder import RunFolder
from beitkit.train.journal import say_skipped
from beitkit.train.machine.runtime import start_runtime

SPLITS_FILE = "scenes.csv"


class SceneResult(NamedTuple):
    """One network's scores."""

    name: str
    """What tells it apart: the last part of its path, or all of it."""
    path: Path
    scene_scores: SceneScores

    @property
    def headline(self) -> float:
        """Mean intersection over union."""
        return self.scene_scores.scores.mean_iou


class SceneEvaluation(NamedTuple):
    """What was measured, of one network or of several on the same images; all values are shares."""

    where: str
    """What the images are, in words."""
    images: int
    broken: int
    """Pairs that could not be read and do not count."""
    models: tuple[SceneResult, ...]
    seeds: tuple[SeedGroup, ...]

    @property
    def mean_iou(self) -> float:
        """Mean intersection over union, of the only network.

        Raises:
            UserError: there are several.
        """
        first, *others = self.models
        if others:
            raise UserError(f"{len(self.models)} models were evaluated; ask models[0].headline, models[1].headline and so on")
        return first.headline


def evaluate_segmenters(config: EvaluateRun, models: list[Segmenter]) -> SceneEvaluation:
    """Measure, and print tables on stdout (or JSON with `json`)."""
    if config.crop_share is not None:
        raise UserError(f"--crop-share is for classifiers, but {config.model[0]} labels whole images; leave it out")
    _check_same_classes(config.model, models)
    scenes, where = _scenes(config, models[0].config.classes)
    folder = None if config.out is None else RunFolder(config.out, "evaluate", config)
    runtime = start_runtime(config.machine)
    broken: set[Path] = set()

    def note(file: Path, reason: str) -> None:
        if file not in broken:  # every model reads the images anew
            broken.add(file)
            say_skipped(file, reason)

    results = []
    for name, path, model in zip(short_names(config.model), config.model, models, strict=True):
        model.to(runtime.device)

        def predict(image: Tensor, model: Segmenter = model) -> Tensor:
            return predict_label_map(model, image, config.inference.over(model.config.inference), runtime.precision)

        passed = readable_scenes(scenes, model.config.backbone.channels, config.read.max_broken, note)
        classes = model.config.classes
        results.append(
            SceneResult(name, path, evaluate_scenes(predict, passed, classes, palette_of(classes, model.config.palette)))
        )
        model.cpu()
    result = SceneEvaluation(
        where=where,
        images=len(results[0].scene_scores.indices),
        broken=len(broken),
        models=tuple(results),
        seeds=seed_groups(results, [run_config(path) for path in config.model]),
    )
    if folder is not None:
        folder.write_json("evaluation.json", _as_json(result))
        write_atomically(folder.path / "images.csv", _images_table(scenes, result).encode("utf-8", "surrogateescape"))
        inferences = {model.config.inference for model in models}
        _write_report(folder.path / "report.html", result, [config.inference.over(one) for one in inferences])
    if config.json:
        print(json.dumps(_as_json(result)))
    else:
        _print(result)
        after = f"beitkit predict IMAGES --model {quoted(config.model[0])} --out masks/"
        print(f"written: {config.out} (report.html shows it). Next: {after}" if folder is not None else f"Next: {after}")
    return result


def _check_same_classes(paths: Sequence[Path], models: Sequence[Segmenter]) -> None:
    first = models[0].config.classes
    for path, model in zip(paths, models, strict=True):
        if model.config.classes != first:
            raise UserError(
                f"{paths[0]} has the classes {_few(first)} and {path} has {_few(model.config.classes)}; compare models with the "
                "same classes in the same order"
            )


def _scenes(config: EvaluateRun, classes: tuple[str, ...]) -> tuple[Scenes, str]:
    """What to measure, and its name: never images the model was trained on without saying so.

    Raises:
        UserError: what `find_scenes` raises, or classes that are not the model's.
    """
    runs = {path: run for path in config.model if (run := run_on(path, config.images)) is not None}
    code = _code(config)
    splits = scene_splits(config.images) if config.images.exists() else ()
    aside = next((path / SPLITS_FILE for path, run in runs.items() if run["val"] is None), None)
    if "val" in splits or "test" in splits:
        split = "val" if "val" in splits else "test"
        scenes, where = find_scenes(config.images, split=split, classes=code), f"the {split} part of {config.images}"
    elif aside is not None and aside.exists():
        scenes = find_scenes(aside, split="val", classes=code)
        where = f"the part of {config.images} that was set aside for validation"
    else:
        split = "train" if "train" in splits else None
        scenes = find_scenes(config.images, split=split, classes=code)
        where = str(config.images) + (" (training images)" if split or runs else "")
    only_numbered = classes == numbered(len(classes)) and len(classes) == len(scenes.classes)
    if scenes.classes != classes and not only_numbered:
        raise UserError(
            f"{config.images} has the classes {_few(scenes.classes)} and {config.model[0]} knows {_few(classes)}; they must be "
            "the same in the same order: give --classes with a classes.json that says so"
        )
    return scenes, where


def _code(config: EvaluateRun) -> Path | LabelMapping | None:
    """What the masks mean: what the user gave or laid beside them, else what the model's run wrote down."""
    if config.classes is not None:
        return config.classes
    beside = (config.images.parent if config.images.is_file() else config.images) / CLASSES_FILE
    stored = next((path / CLASSES_FILE for path in config.model if (path / CLASSES_FILE).is_file()), None)
    if beside.is_file() or stored is None:
        return beside if beside.is_file() else None
    return read_classes(stored)


def _as_json(result: SceneEvaluation) -> dict[str, Any]:
    """Plain JSON, NaN as null; of a single network its scores stand at the top as well."""
    models = [
        {
            "name": model.name,
            "path": str(model.path),
            "miou": model.headline,
            "macc": _finite(model.scene_scores.scores.mean_accuracy),
            "aacc": model.scene_scores.scores.pixel_accuracy,
            "fwiou": model.scene_scores.scores.weighted_iou,
            "class_iou": model.scene_scores.class_iou,
            "confusion": model.scene_scores.confusion.tolist(),
        }
        for model in result.models
    ]
    content = {"where": result.where, "images": result.images, "broken": result.broken, "models": models}
    content["seeds"] = [{"models": group.models, "seeds": group.seeds, **group.spread._asdict()} for group in result.seeds]
    return models[0] | content if len(models) == 1 else content


def _images_table(scenes: Scenes, result: SceneEvaluation) -> str:
    """A CSV table with one row per network and image, each network's worst images first."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["model", "path", "miou"])
    for model in result.models:
        scores = model.scene_scores.scores
        for place in scores.worst_first():
            path = scenes.files.path(model.scene_scores.indices[place])
            table.writerow([model.name, path, f"{scores.image_iou[place]:.6g}"])
    return text.getvalue()


def _print(result: SceneEvaluation) -> None:
    console = Console(highlight=False, markup=False, width=None if Console().is_terminal else 160)
    skipped = f", {result.broken} unreadable left out" if result.broken else ""
    images = f"{result.images} images{skipped}"
    if len(result.models) == 1:
        console.print(_rich(["class", "share of pixels", "IoU", "named right"], result.models[0].scene_scores.rows()))
        print(f"{result.where}: {_summary(result.models[0].scene_scores)} on {images}")
        return
    console.print(_rich(*_side_by_side(result)))
    print(f"{result.where}: {len(result.models)} models on the same {images}")
    for sentence in (group.sentence("mIoU") for group in result.seeds):
        print(sentence)


def _summary(scene_scores: SceneScores) -> str:
    scores = scene_scores.scores
    unseen = f" ({scores.unseen} of {len(scores.iou)} classes never occur)" if scores.unseen else ""
    return (
        f"mIoU {scores.mean_iou:.1%}{unseen}, mean accuracy {scores.mean_accuracy:.1%}, pixels named right "
        f"{scores.pixel_accuracy:.1%}, IoU weighed by frequency {scores.weighted_iou:.1%}"
    )


def _side_by_side(result: SceneEvaluation) -> tuple[list[str], list[list[str]]]:
    """Header and rows: the means of every network, then each class."""
    header = ["", *(model.name for model in result.models)]
    scores = [model.scene_scores.scores for model in result.models]
    rows = [
        ["mIoU", *(f"{one.mean_iou:.1%}" for one in scores)],
        ["mean accuracy", *(f"{one.mean_accuracy:.1%}" for one in scores)],
        ["pixels named right", *(f"{one.pixel_accuracy:.1%}" for one in scores)],
        ["IoU weighed by frequency", *(f"{one.weighted_iou:.1%}" for one in scores)],
    ]
    for name in result.models[0].scene_scores.class_iou:
        values = [model.scene_scores.class_iou[name] for model in result.models]
        rows.append([f"IoU of {name}", *("-" if value is None else f"{value:.1%}" for value in values)])
    return header, rows


def _write_report(path: Path, result: SceneEvaluation, inferences: Sequence[InferenceConfig]) -> None:
    report = Report("Evaluation", result.where)
    report.facts(
        [
            ("Images", f"{result.images:,}"),
            ("Classes", f"{len(result.models[0].scene_scores.class_iou):,}"),
            ("Models", ", ".join(model.name for model in result.models)),
            ("Inference", "; ".join(one.words for one in inferences)),
            *([("Unreadable files", f"{result.broken:,}, left out")] if result.broken else []),
        ]
    )
    if len(result.models) == 1:
        report.verdict(f"{_summary(result.models[0].scene_scores)} on {result.images:,} images", None)
        scene_sections(report, result.models[0].scene_scores)
    else:
        report.section("Side by side", "All models saw the same images.")
        dots = Dots("mIoU", [[model.headline] for model in result.models])
        names = [model.name for model in result.models]
        report.figure(dot_chart([dots], names, title="mIoU", x_label="model", y_label="mIoU"), "mIoU of every model.")
        header, rows = _side_by_side(result)
        report.table(header, rows, "Summed over all images before anything is divided.")
        for sentence in (group.sentence("mIoU") for group in result.seeds):
            report.paragraph(sentence)
        best = max(result.models, key=lambda model: model.headline)
        report.paragraph(f"What follows is of {best.name}.")
        scene_sections(report, best.scene_scores)
    report.write(path)


def _rich(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(*header, box=None)
    for row in rows:
        table.add_row(*row)
    return table


def _few(classes: Sequence[str]) -> str:
    return ", ".join(classes[:4]) + (f" and {len(classes) - 4} more" if len(classes) > 4 else "")


def _finite(value: float) -> float | None:
    return None if math.isnan(value) else value
