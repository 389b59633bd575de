"""`beitkit verdict`: which of several starts is best on your images, and whether simple methods do as well.

Every training is an ordinary run in a folder of its own below `finetune/`; the same command again continues where it was cut.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from beitkit.command.following import command, kept
from beitkit.configs.parts import Task
from beitkit.configs.train import OptimConfig, TrainConfig
from beitkit.data.scenes.layout import looks_like_scenes, scene_splits
from beitkit.data.scenes.scenes import CLASSES_FILE, as_csv, train_and_val_scenes
from beitkit.data.sources.find import LabeledArchives, labeled_source
from beitkit.data.sources.split import split_table, train_and_val
from beitkit.errors import UserError
from beitkit.interop.load import load
from beitkit.nn.averaged import check_views
from beitkit.nn.models import Classifier
from beitkit.nn.segmentation.segmenter import Segmenter
from beitkit.report.table import plain
from beitkit.runs.finetune.config import FinetuneRun
from beitkit.runs.segment.config import SegmentRun
from beitkit.runs.verdict.classifiers import LabeledImages, check_labels, classifier_contests
from beitkit.runs.verdict.config import VerdictRun
from beitkit.runs.verdict.measured import Kept, NamedStart, named_starts
from beitkit.runs.verdict.report import Verdict, as_json, print_result, write_report
from beitkit.runs.verdict.scenes import LabeledScenes, scene_contest
from beitkit.system import write_atomically
from beitkit.tokenizers.fingerprint import digest_of
from beitkit.train.folder import RunFolder

ARCHIVES_DIVIDED = "{} holds archives that are not divided, so that every seed would compare on other images; give `val`"

SPLIT, SCENES = "split.csv", "scenes.csv"
"""Where the images are that the first seed set aside for validation, if none were given."""


def run(config: VerdictRun) -> Verdict:
    """Run or continue all of it; returns what was found."""
    is_segmentation = config.task == "segment" or (config.task == "auto" and looks_like_scenes(config.images))
    config.check_task("segment" if is_segmentation else "classify")
    verdict = _segmented(config) if is_segmentation else _classified(config)
    content = as_json(verdict)
    write_atomically(config.out / "verdict.json", (json.dumps(plain(content), indent=2) + "\n").encode())
    write_report(config.out / "report.html", verdict, _facts(config))
    best = _best_run(config, verdict)
    views = {} if is_segmentation else kept(config, "inference")  # which segmenters keep
    aside = next((config.out / name for name in (SPLIT, SCENES) if (config.out / name).is_file()), None)
    if aside is None:
        given = config.val or config.images
        following = command("evaluate", given, model=best, classes=config.classes, **views, **kept(config, "columns"))
    else:  # of the images themselves most were trained on
        following = command("evaluate", aside, model=best, **views)
    print_result(verdict, config.out, following)
    return verdict


def answer(_: VerdictRun, verdict: Verdict) -> dict[str, Any]:
    """What `--json` prints."""
    return as_json(verdict)


def _classified(config: VerdictRun) -> Verdict:
    train, val = train_and_val(config.images, config.val, config.seeds[0], config.columns)
    if train.labels is None:
        raise UserError(f"{config.images} has several labels an image; beitkit verdict takes one")
    labels = config.labels or (len(train),)
    check_labels(train, labels)
    starts, digests = _loaded(config, "classify", len(train.classes))
    source = labeled_source(config.images, config.columns)
    is_divided = config.val is not None or ("train" in source.splits and bool({"val", "test"} & set(source.splits)))
    if not is_divided and isinstance(source, LabeledArchives):
        raise UserError(ARCHIVES_DIVIDED.format(config.images))
    folder = RunFolder(config.out, "verdict", config)
    folder.pin(pictures=train.digest, **{"validation pictures": val.digest}, **digests)
    divided = config
    if not is_divided:  # by the first seed; left to the runs, every seed would set other images aside
        table = folder.path / SPLIT
        write_atomically(table, split_table(train, val).encode("utf-8", "surrogateescape"))
        divided = replace(config, images=table, columns=type(config.columns)())
    contests = classifier_contests(
        LabeledImages(train, val, config.machine, config.read, config.inference),
        starts,
        labels,
        config.seeds,
        lambda start, count, seed: finetune_run(divided, start, count, seed),
        Kept(folder.path, len(val)),
        has_probe=config.probe,
        has_floors=config.floors,
    )
    return Verdict("top-1", "labels", config.seeds, len(val), contests)


def _segmented(config: VerdictRun) -> Verdict:
    train, val = train_and_val_scenes(
        config.images,
        config.val,
        config.seeds[0],
        classes=config.classes,
        all_values=config.all_values,
        columns=config.columns,
    )
    starts, digests = _loaded(config, "segment", len(train.classes))
    splits = scene_splits(config.images, config.columns)
    is_divided = config.val is not None or ("train" in splits and bool({"val", "test"} & set(splits)))
    if not is_divided and train.files.members is not None:
        raise UserError(ARCHIVES_DIVIDED.format(config.images))
    folder = RunFolder(config.out, "verdict", config)
    folder.pin(pictures=train.digest, **{"validation pictures": val.digest}, **digests)
    divided = config
    if not is_divided:
        table = folder.path / SCENES
        write_atomically(table, as_csv({"train": train, "val": val}).encode("utf-8", "surrogateescape"))
        write_atomically(folder.path / CLASSES_FILE, train.code.as_json().encode())
        divided = replace(config, images=table, classes=None, all_values=False, columns=type(config.columns)())
    found = scene_contest(
        LabeledScenes(train, val, config.machine, config.read),
        starts,
        config.seeds,
        lambda start, seed: segment_run(divided, start, len(train), seed),
        Kept(folder.path, len(val), len(train.classes)),
        has_floors=config.floors,
    )
    return Verdict("mIoU", "images", config.seeds, len(val), (found,), tuple(train.classes), config.loss.is_weighed)


def _loaded(config: VerdictRun, task: Task, classes: int) -> tuple[tuple[NamedStart, ...], dict[str, str]]:
    """The starts by name, and a digest of the weights of each, which can all be started from.

    Raises:
        UserError: a start that is no network or cannot be one for this task, or one that is given twice.
    """
    seen: dict[Path, Path] = {}
    for path in config.trained_starts:
        if (same := seen.setdefault(path.resolve(), path)) != path:
            raise UserError(f"`starts` names {path} and {same}, which are the same; leave one out")
    starts, digests = named_starts(config.starts), {}
    for start in starts:
        if start.path is None:
            continue
        model = load(start.path, task=task, num_classes=classes, image_size=config.image_size)
        assert isinstance(model, Classifier | Segmenter)
        if isinstance(model, Classifier):
            check_views(config.inference, model.config.backbone.image_size)
        digests[f"model {start.name}"] = digest_of(model.config.backbone, model.backbone.state_dict())
    return starts, digests


def finetune_run(config: VerdictRun, start: NamedStart, labels: int, seed: int) -> FinetuneRun:
    """The fine-tuning of a start; what the command left out is chosen by the rules of fine-tuning."""
    return FinetuneRun(
        config.images,
        **_origin(config, start),  # type: ignore[arg-type]
        out=_out(config, start, labels, seed),
        pooling=config.pooling,
        image_size=config.image_size,
        val=config.val,
        labels=labels,
        drop_path=config.drop_path,
        label_smoothing=config.label_smoothing,
        train=_train(config, start, seed),
        machine=config.machine,
        augment=config.augment,
        view=config.view,
        optim=_optim(config, start, OPTIM["classify"]),
        loop=config.loop,
        speed=config.speed,
        read=config.read,
        columns=config.columns,
    )


def segment_run(config: VerdictRun, start: NamedStart, images: int, seed: int) -> SegmentRun:
    """The training of a segmenter from a start."""
    return SegmentRun(
        config.images,
        **_origin(config, start),  # type: ignore[arg-type]
        out=_out(config, start, images, seed),
        image_size=config.image_size,
        head=config.head,
        val=config.val,
        classes=config.classes,
        all_values=config.all_values,
        drop_path=config.drop_path,
        train=_train(config, start, seed),
        machine=config.machine,
        loss=config.loss,
        inference=config.inference,
        optim=_optim(config, start, OPTIM["segment"]),
        loop=config.loop,
        speed=config.speed,
        read=config.read,
        columns=config.columns,
    )


def training_of(config: VerdictRun, start: NamedStart, labels: int, seed: int) -> FinetuneRun | SegmentRun:
    """The training of a start for the task that the config names."""
    make = segment_run if config.task == "segment" else finetune_run
    return make(config, start, labels, seed)


OPTIM: Mapping[str, OptimConfig] = {
    "classify": FinetuneRun(Path(), out=Path(), model=Path()).optim,
    "segment": SegmentRun(Path(), out=Path(), model=Path()).optim,
}
"""What the two verbs take where nothing is said."""


def _origin(config: VerdictRun, start: NamedStart) -> dict[str, object]:
    """Weights or, from scratch, the network: that of the first other start, or the one that is described."""
    if start.path is not None:
        return {"model": start.path, "freeze": config.freeze, "light": config.light}
    if config.size is None:
        return {"model": config.trained_starts[0], "scratch": True}
    return {"scratch": True, "size": config.size, "patch": config.patch, "network": config.network}


def _out(config: VerdictRun, start: NamedStart, labels: int, seed: int) -> Path:
    return config.out / "finetune" / f"{start.slug}-{labels}-{seed}"


def _train(config: VerdictRun, start: NamedStart, seed: int) -> TrainConfig:
    lr = config.scratch_lr if start.path is None else config.lr
    return TrainConfig(epochs=config.epochs, steps=config.steps, batch_size=config.batch_size, lr=lr, seed=seed)


def _optim(config: VerdictRun, start: NamedStart, optim: OptimConfig) -> OptimConfig:
    """Fresh weights have nothing that layer decay could spare."""
    return replace(optim, layer_decay=config.layer_decay if start.path is not None else 1.0)


def _best_run(config: VerdictRun, verdict: Verdict) -> Path:
    """A run of the start with the largest mean, with the most labels."""
    last = max(verdict.contests, key=lambda contest: contest.labels)
    start = next(start for start in named_starts(config.starts) if start.name == last.best.name)
    return _out(config, start, last.labels, config.seeds[0])


def _facts(config: VerdictRun) -> list[tuple[str, str]]:
    length = "chosen by rule"
    if config.steps is not None or config.epochs is not None:
        length = f"{config.steps:,} steps" if config.steps is not None else f"{config.epochs:g} epochs"
    return [
        ("Images", str(config.images)),
        ("Starts", ", ".join(map(str, config.starts))),
        ("Training", length),
        ("Seeds", " ".join(map(str, config.seeds))),
        *([("Averaged over views", views)] if (views := config.inference.view_words) else []),
    ]
