"""`beitkit probe`: judge frozen features by nearest neighbors and by a linear probe on every block."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table

from beitkit.configs.verbs import ProbeRun
from beitkit.data.files import PictureList
from beitkit.data.labelled import few_per_class, train_and_val
from beitkit.data.stream import evaluation_batches, evaluation_dataset
from beitkit.errors import UserError
from beitkit.evaluate.probe import BlockFeatures, ProbeResult, block_features, linear_probe, nearest_neighbors
from beitkit.interop.load import load
from beitkit.nn.models import Classifier, MaskedImageModel
from beitkit.report.charts import Dots, dot_chart
from beitkit.report.document import Report
from beitkit.system import quoted
from beitkit.train.folder import RunFolder
from beitkit.train.runtime import Runtime, start_runtime


class Probe(NamedTuple):
    """Both probes of one network."""

    neighbors: ProbeResult
    linear: ProbeResult
    train_pictures: int
    test_pictures: int
    classes: int


def run(config: ProbeRun) -> Probe:
    """Probe, and print a table on stdout (or JSON with `json`)."""
    model = load(config.model)
    if not isinstance(model, MaskedImageModel | Classifier):
        raise UserError(f"{config.model} holds a {type(model).__name__}; probe a pre-trained model or a classifier")
    train, test = train_and_val(config.images, config.val, config.seed)
    if len(train) > config.limit:
        train = few_per_class(train, config.limit, config.seed, option="--limit")
    folder = None if config.out is None else RunFolder(config.out, "probe", config)
    runtime = start_runtime(config.machine)
    model.to(runtime.device)
    fit = _features(config, model, train, runtime, folder)
    ask = _features(config, model, test, runtime, folder)
    classes = len(train.classes)
    result = Probe(nearest_neighbors(fit, ask, classes), linear_probe(fit, ask, classes), len(train), len(test), classes)
    if folder is not None:
        folder.write_json("probe.json", _jsonable(result))
        _report(folder.path, config, result)
    if config.json:
        print(json.dumps(_jsonable(result)))
    else:
        _print(config, result)
        where = f"written: {folder.path} (report.html shows it)" if folder is not None else "give --out to keep a report"
        print(f"{where}. Next: beitkit finetune {quoted(config.images)} --model {quoted(config.model)} --out ...")
    return result


def _features(
    config: ProbeRun, model: MaskedImageModel | Classifier, files: PictureList, runtime: Runtime, folder: RunFolder | None
) -> BlockFeatures:
    backbone, preprocessing = model.config.backbone, model.config.preprocessing
    dataset = evaluation_dataset(files, backbone, preprocessing)

    def note(file: Path, reason: str) -> None:
        print(f"skipped {file}: {reason}", file=sys.stderr)

    stream = evaluation_batches(
        dataset,
        config.batch_size or 64,
        workers=config.machine.workers,
        device=runtime.device,
        preprocessing=preprocessing,
        max_broken=config.read.max_broken,
        report=note if folder is None else folder.note_broken,
        list_file=None if folder is None else folder.broken_list,
    )
    with torch.no_grad():
        return block_features(model.backbone, stream, runtime.precision)


def chart(result: Probe) -> str:
    """Accuracy of both probes by block."""
    blocks = range(1, len(result.linear.test) + 1)
    return dot_chart(
        [
            Dots("linear probe", [[value] for value in result.linear.test]),
            Dots("nearest neighbors", [[value] for value in result.neighbors.test]),
        ],
        [str(block) for block in blocks],
        title="Frozen features, block by block",
        x_label="block",
        y_label="top-1",
        y_reference=[("chance", 1 / result.classes)],
        connect=True,
    )


def _jsonable(result: Probe) -> dict[str, object]:
    return {
        "neighbors": result.neighbors._asdict(),
        "linear": result.linear._asdict(),
        "train_pictures": result.train_pictures,
        "test_pictures": result.test_pictures,
    }


def _print(config: ProbeRun, result: Probe) -> None:
    table = Table("block", "nearest neighbors", "linear probe", box=None)
    for block, (neighbors, linear) in enumerate(zip(result.neighbors.test, result.linear.test, strict=True)):
        marks = [" *" if block == one.chosen else "  " for one in (result.neighbors, result.linear)]
        table.add_row(str(block + 1), f"{neighbors:.1%}{marks[0]}", f"{linear:.1%}{marks[1]}")
    Console(highlight=False).print(table)
    best = result.linear.test[result.linear.chosen]
    print(
        f"{config.model}: linear probe {best:.1%} at block {result.linear.chosen + 1}, nearest neighbors "
        f"{result.neighbors.test[result.neighbors.chosen]:.1%} at block {result.neighbors.chosen + 1} "
        f"({result.train_pictures} training and {result.test_pictures} test pictures; * chosen on training pictures held out)"
    )


def _report(path: Path, config: ProbeRun, result: Probe) -> None:
    report = Report("Probe", str(config.model))
    report.facts(
        [
            ("Training pictures", f"{result.train_pictures:,}"),
            ("Test pictures", f"{result.test_pictures:,}"),
            ("Classes", f"{result.classes}"),
        ]
    )
    report.section(
        "Frozen features",
        "The last block of a BEiT is busy predicting tokens; what names things best sits before it. The block is chosen on "
        "held-out training pictures, never on the test pictures.",
    )
    report.figure(chart(result), "Test accuracy of a linear classifier and of weighted nearest neighbors on each block's output.")
    rows = [
        [str(block + 1), f"{neighbors:.1%}", f"{linear:.1%}"]
        for block, (neighbors, linear) in enumerate(zip(result.neighbors.test, result.linear.test, strict=True))
    ]
    chosen = f"Chosen: block {result.linear.chosen + 1} (linear), block {result.neighbors.chosen + 1} (neighbors)."
    report.table(["block", "nearest neighbors", "linear probe"], rows, f"Test accuracy. {chosen}")
    report.write(path / "report.html")
