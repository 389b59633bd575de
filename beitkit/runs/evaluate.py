"""`beitkit evaluate`: measure a classifier on labelled pictures."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table

from beitkit.configs.verbs import EvaluateRun
from beitkit.contracts import Batch
from beitkit.data.files import Split, find_labelled, split_folders
from beitkit.data.stream import PictureDataset, counted_broken, evaluation_stream, normalized, to_device
from beitkit.data.views import EvaluationView
from beitkit.errors import UserError
from beitkit.evaluate.classification import collect_logits, per_class, top_k
from beitkit.interop.load import load
from beitkit.nn.models import Classifier
from beitkit.train.runtime import start_runtime

REPORTED: tuple[Split, ...] = ("val", "test", "train")
"""Which part of a split folder is measured: the first of these that is there."""


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
    splits = split_folders(config.images)
    split: Split | None = next((name for name in REPORTED if name in splits), None) if "train" in splits else None
    files = find_labelled(config.images, split, classes=model.config.classes)
    runtime = start_runtime(config.machine)
    model.to(runtime.device)
    backbone, preprocessing = model.config.backbone, model.config.preprocessing
    dataset = PictureDataset(
        files,
        EvaluationView(preprocessing, backbone.image_size),
        channels=backbone.channels,
        kind="evaluate",
        smallest=backbone.patch,
    )
    broken: list[str] = []
    console = Console(stderr=True)

    def note(file, reason: str) -> None:
        broken.append(str(file))
        console.print(f"skipped {file}: {reason}", highlight=False, markup=False)

    def batches() -> Iterator[Batch]:
        stream = evaluation_stream(dataset, config.batch_size, workers=config.machine.workers)
        stream = counted_broken(stream, dataset, config.read.max_broken, note, None)
        return normalized(to_device(stream, runtime.device), preprocessing.mean, preprocessing.std)

    def predict(images: torch.Tensor) -> torch.Tensor:
        with runtime.precision():
            return model(images)

    logits, labels = collect_logits(predict, batches())
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
        _print(result, split, config)
    return result


def _jsonable(result: Evaluation) -> dict[str, Any]:
    classes = {name: {"pictures": count, "top1": share if count else None} for name, (count, share) in result.classes.items()}
    return result._asdict() | {"classes": classes}


def _print(result: Evaluation, split: Split | None, config: EvaluateRun) -> None:
    table = Table("class", "pictures", "named right", box=None)
    for name, (count, share) in result.classes.items():
        table.add_row(name, str(count), f"{share:.1%}" if count else "-")
    console = Console(highlight=False)
    console.print(table, markup=False)
    top5 = "" if result.top5 is None else f", top-5 {result.top5:.1%}"
    where = f" ({split}/)" if split else ""
    skipped = f", {result.broken} unreadable left out" if result.broken else ""
    print(f"{config.images}{where}: top-1 {result.top1:.1%}{top5}, loss {result.loss:.4f} on {result.pictures} pictures{skipped}")
