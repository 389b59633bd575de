"""Segmenters measured on images with masks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from torch import Tensor

from beitkit.command.following import command, unused
from beitkit.data.own.images import OwnImages
from beitkit.data.scenes.label_codes import LabelMapping, read_classes
from beitkit.data.scenes.layout import locate_scenes, scene_splits
from beitkit.data.scenes.reading import readable_scenes
from beitkit.data.scenes.scenes import CLASSES_FILE, Scenes, find_scenes, set_aside_before
from beitkit.data.sources.find import packed_at
from beitkit.data.sources.image_list import ImageList
from beitkit.data.survey import name_other_ranges
from beitkit.errors import UserError, few
from beitkit.evaluation.sheets.scenes import SceneScores, evaluate_scenes
from beitkit.interop.kinds import numbered
from beitkit.nn.segmentation.label_map import predict_label_map
from beitkit.nn.segmentation.segmenter import Segmenter
from beitkit.runs.evaluate.config import EvaluateRun
from beitkit.runs.evaluate.model_paths import run_on, short_names
from beitkit.runs.evaluate.prepared import Findings, Prepared, ReportBroken
from beitkit.runs.training.leaks import name_leaks
from beitkit.train.machine.runtime import Runtime

SPLITS_FILE = "scenes.csv"


def segmentation(config: EvaluateRun, models: Sequence[Segmenter], images: Path | OwnImages) -> Prepared:
    """The measuring of segmenters with the same classes.

    Raises:
        UserError: networks that cannot be compared, options that are for classifiers, or no images for them.
    """
    for option, value in (("--crop-share", config.crop_share), ("--fit", config.fit)):
        if value is not None:
            raise UserError(f"{option} is for classifiers, but {config.model[0]} labels whole images; leave it out")
    config.inference.refuse_shift()
    _check_same_classes(config.model, models)
    scenes, where = _scenes(config, images, models[0].config.classes)
    for ranges in {model.config.preprocessing.value_range for model in models}:
        name_other_ranges(scenes.files, ranges)
    name_leaks(_trained_on(config, images), scenes.files)
    inferences = {model.config.inference for model in models}
    return Prepared(
        where=where,
        measure=partial(_measure, config, models, scenes),
        file="images.csv",
        facts=[("Inference", "; ".join(config.inference.over(one).words for one in inferences))],
        following=command("predict", "IMAGES", model=config.model[0], out=unused(Path("masks"))),
    )


def _measure(config: EvaluateRun, models: Sequence[Segmenter], scenes: Scenes, runtime: Runtime, note: ReportBroken) -> Findings:
    found = []
    for model in models:
        model.to(runtime.device)

        def predict(image: Tensor, model: Segmenter = model) -> Tensor:
            return predict_label_map(model, image, config.inference.over(model.config.inference), runtime.precision)

        channels, value_range = model.config.backbone.channels, model.config.preprocessing.value_range
        passed = readable_scenes(scenes, channels, config.read.max_broken, note, value_range)
        found.append(evaluate_scenes(predict, passed, model.config.classes, model.config.colors))
        model.cpu()
    rows = _image_rows(scenes, dict(zip(short_names(config.model), found, strict=True)))
    return Findings(images=len(found[0].indices), scores=found, pairs=(), rows=rows)


def _check_same_classes(paths: Sequence[Path], models: Sequence[Segmenter]) -> None:
    first = models[0].config.classes
    for path, model in zip(paths, models, strict=True):
        if model.config.classes != first:
            raise UserError(
                f"{paths[0]} has the classes {few(first, 4)} and {path} has {few(model.config.classes, 4)}; "
                "compare models with the same classes in the same order"
            )


def _scenes(config: EvaluateRun, images: Path | OwnImages, classes: tuple[str, ...]) -> tuple[Scenes, str]:
    """What to measure, and its name: never images the model was trained on without saying so.

    Raises:
        UserError: what `find_scenes` raises, or classes that are not the model's.
    """
    runs = {path: run for path in config.model if (run := run_on(path, images)) is not None}
    code = _code(config, images)
    columns = config.columns
    splits = scene_splits(images, columns)
    aside = next((path / SPLITS_FILE for path, run in runs.items() if run["val"] is None), None)
    if "val" in splits or "test" in splits:
        split = "val" if "val" in splits else "test"
        scenes = find_scenes(images, split=split, classes=code, columns=columns)
        where = f"the {split} part of {config.images}"
    elif aside is not None and aside.exists():
        if isinstance(images, Path) and packed_at(images) is None:
            scenes = find_scenes(aside, split="val", classes=code)
        else:
            scenes = set_aside_before(aside, find_scenes(images, classes=code, columns=columns))
        where = f"the part of {config.images} that was set aside for validation"
    else:
        split = "train" if "train" in splits else None
        scenes = find_scenes(images, split=split, classes=code, columns=columns)
        where = str(config.images) + (" (training images)" if split or runs else "")
    only_numbered = classes == numbered(len(classes)) and len(classes) == len(scenes.classes)
    if scenes.classes != classes and not only_numbered:
        raise UserError(
            f"{config.images} has the classes {few(scenes.classes, 4)} and {config.model[0]} knows {few(classes, 4)}; "
            "they must be the same in the same order: give --classes with a classes.json that says so"
        )
    return scenes, where


def _trained_on(config: EvaluateRun, images: Path | OwnImages) -> Iterator[ImageList]:
    """What the models were trained on, as their runs wrote it down; else the train part of the images."""
    listed = [model / SPLITS_FILE for model in config.model if (model / SPLITS_FILE).is_file()]
    for table in listed:
        with suppress(UserError):  # images that have been moved, or lie in archives
            yield locate_scenes(table, "train").images
    if not listed and isinstance(images, Path) and "train" in scene_splits(images, config.columns):
        yield locate_scenes(images, "train", config.columns).images


def _code(config: EvaluateRun, images: Path | OwnImages) -> Path | LabelMapping | None:
    """What the masks mean: what the user gave or laid beside them, else what the model's run wrote down.

    None leaves it to `find_scenes`.
    """
    if config.classes is not None:
        return config.classes
    if isinstance(images, Path):
        beside = (images if images.is_dir() else images.parent) / CLASSES_FILE
        if beside.is_file():
            return beside
    elif images.classes:
        return None
    stored = next((path / CLASSES_FILE for path in config.model if (path / CLASSES_FILE).is_file()), None)
    return None if stored is None else read_classes(stored)


def _image_rows(scenes: Scenes, found: dict[str, SceneScores]) -> Iterator[list[object]]:
    """One row per network and image, each network's worst images first."""
    yield ["model", "path", "miou"]
    for name, scene_scores in found.items():
        scores = scene_scores.scores
        for place in scores.worst_first():
            yield [name, scenes.files.path(scene_scores.indices[place]), f"{scores.image_iou[place]:.6g}"]
