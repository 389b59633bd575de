"""`beitkit evaluate`: measure a classifier on labelled pictures."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table

from beitkit.configs.verbs import EvaluateRun
from beitkit.data.files import LabelledList, PictureList, find_labelled, labelled_source
from beitkit.data.stream import evaluation_batches, evaluation_dataset
from beitkit.errors import UserError
from beitkit.evaluate.classification import collect_logits, per_class, top_k
from beitkit.interop.load import load
from beitkit.nn.models import Classifier
from beitkit.system import quoted
from beitkit.train.runtime import start_runtime


class Evaluation(NamedTuple):
    """What was measured; accuracies are shares."""

    pictures: int
    top1: float
    top5: float | None
    """None with five classes or fewer."""
    loss: float
    classes: dict[str, tuple[int, float]]
    """Class name to its number of pictures and the share named right (NaN for none)."""
    broken: int
    """Pictures that could not be read and do not count."""


def run(config: EvaluateRun) -> Evaluation:
    """Measure, and print a table on stdout (or JSON with `json`)."""
    model = load(config.model)
    if not isinstance(model, Classifier):
        raise UserError(f"{config.model} holds a {type(model).__name__}, not a classifier; make one with beitkit finetune")
    files, where = _pictures(config, model.config.classes)
    runtime = start_runtime(config.machine)
    model.to(runtime.device)
    backbone, preprocessing = model.config.backbone, model.config.preprocessing
    dataset = evaluation_dataset(files, backbone, preprocessing)
    broken: list[str] = []

    def note(file: Path, reason: str) -> None:
        broken.append(str(file))
        print(f"skipped {file}: {reason}", file=sys.stderr)

    stream = evaluation_batches(
        dataset,
        config.batch_size,
        workers=config.machine.workers,
        device=runtime.device,
        preprocessing=preprocessing,
        max_broken=config.read.max_broken,
        report=note,
        list_file=None,
    )

    def predict(images: torch.Tensor) -> torch.Tensor:
        with runtime.precision():
            return model(images)

    logits, labels = collect_logits(predict, stream)
    result = Evaluation(
        pictures=len(labels),
        top1=top_k(logits, labels, 1),
        top5=top_k(logits, labels, 5) if logits.shape[1] > 5 else None,
        loss=F.cross_entropy(logits, labels).item(),
        classes=dict(zip(model.config.classes, per_class(logits, labels), strict=True)),
        broken=len(broken),
    )
    if config.json:
        print(json.dumps(_jsonable(result)))
    else:
        _print(result, where)
        print(f"Next: beitkit export --model {quoted(config.model)} --format onnx --out model.onnx")
    return result


def _jsonable(result: Evaluation) -> dict[str, Any]:
    classes = {name: {"pictures": count, "top1": share if count else None} for name, (count, share) in result.classes.items()}
    return result._asdict() | {"classes": classes}


def _pictures(config: EvaluateRun, classes: tuple[str, ...]) -> tuple[PictureList, str]:
    """What to measure, and its name: never pictures the model was trained on without saying so."""
    source = labelled_source(config.images)
    if "train" in source.splits or isinstance(source, LabelledList):
        for split in ("val", "test"):
            if split in source.splits:
                return source.read(split, classes), f"the {split} part of {config.images}"
    run = _run_on(config)
    if run is not None and run["val"] is None:
        stored = find_labelled(config.model / "split.csv", "val", classes=classes)
        return stored, f"the part of {config.images} that was set aside for validation"
    is_for_training = run is not None or "train" in source.splits
    files = source.read("train" if "train" in source.splits else None, classes)
    return files, str(config.images) + (" (training pictures)" if is_for_training else "")


def _run_on(config: EvaluateRun) -> dict[str, Any] | None:
    """The configuration of the model's run, if these very pictures were given to it."""
    try:
        run = json.loads((config.model / "config.json").read_text(encoding="utf-8"))
        return run if Path(run["images"]).resolve() == config.images.resolve() and "val" in run else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _print(result: Evaluation, where: str) -> None:
    table = Table("class", "pictures", "named right", box=None)
    for name, (count, share) in result.classes.items():
        table.add_row(name, str(count), f"{share:.1%}" if count else "-")
    Console(highlight=False, markup=False).print(table)
    top5 = "" if result.top5 is None else f", top-5 {result.top5:.1%}"
    skipped = f", {result.broken} unreadable left out" if result.broken else ""
    print(f"{where}: top-1 {result.top1:.1%}{top5}, loss {result.loss:.4f} on {result.pictures} pictures{skipped}")
