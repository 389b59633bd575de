"""`beitkit finetune`: train a classifier from a pre-trained network, or from scratch in the same set-up."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from beitkit.configs.verbs import FinetuneRun
from beitkit.contracts import Batch
from beitkit.data.files import PictureList
from beitkit.data.labelled import as_csv, few_per_class, train_and_val
from beitkit.data.stream import (
    PictureDataset,
    counted_broken,
    evaluation_batches,
    evaluation_dataset,
    normalized,
    to_device,
    training_stream,
)
from beitkit.data.views import TrainView
from beitkit.errors import UserError
from beitkit.evaluate.classification import Accuracy, collect_logits, per_class, top_k
from beitkit.interop.load import load
from beitkit.interop.native import save_native
from beitkit.nn.models import Classifier
from beitkit.objectives.classify import Classify
from beitkit.report.charts import Dots, dot_chart
from beitkit.report.document import Report
from beitkit.report.journal import read_journal
from beitkit.report.normal import finetuning_lines
from beitkit.report.sections import curve, last, normal_training, pace_figures
from beitkit.system import quoted, write_atomically
from beitkit.tokenizers.fingerprint import digest_of
from beitkit.train.folder import RunFolder
from beitkit.train.journal import Journal, WaitMeter
from beitkit.train.loop import Best, fit
from beitkit.train.optim import layered_groups
from beitkit.train.runtime import Runtime, start_runtime
from beitkit.train.schedule import make_plan

DEFAULT_EPOCHS = 100
PRETRAINED_LAYER_DECAY = 0.65
"""The paper's, for the base size (arXiv 2106.08254, table 13)."""


class Result(NamedTuple):
    """What a fine-tuning run found out."""

    folder: Path
    accuracy: float
    """Top-1 share on the validation pictures."""


def run(config: FinetuneRun) -> Result:
    """Fine-tune or continue; the run folder is what `beitkit.load` reads."""
    runtime = start_runtime(config.machine)
    config = replace(config, loop=config.loop.shared_by(runtime.world))
    train, val = train_and_val(config.images, config.val, config.train.seed)
    if config.labels is not None:
        train = few_per_class(train, config.labels, config.train.seed)
    model = load(config.model, task="classify", classes=train.classes, drop_path=config.drop_path)
    assert isinstance(model, Classifier)
    compared = None if config.compare is None else _result_of(config.compare, val.digest)
    folder = RunFolder(config.out, "finetune", config, runtime.processes)
    journal = Journal(folder.journal, is_main=runtime.is_main)
    if folder.is_finished():
        journal.say(f"{folder.path} holds this run, finished; its report.html stays as it is")
        return _result_of(folder.path, val.digest)
    folder.pin(
        pictures=train.digest,
        **{"validation pictures": val.digest, "model": digest_of(model.config, model.backbone.state_dict())},
    )
    if runtime.is_main:
        write_atomically(folder.path / "val.csv", as_csv(val).encode("utf-8", "surrogateescape"))
    if config.optim.layer_decay is None:
        # Layer decay spares what is already good; fresh weights have nothing to spare and would only learn more slowly.
        optim = replace(config.optim, layer_decay=1.0 if config.scratch else PRETRAINED_LAYER_DECAY)
    else:
        optim = config.optim
    plan = make_plan(config.train, config.loop, optim, len(train), default_epochs=DEFAULT_EPOCHS)
    torch.manual_seed(config.train.seed)
    if config.scratch:
        model = Classifier(model.config)
    elif _has_fresh_head(model):
        model.reset_head()  # drawn again, now that the seed is set
    objective = Classify(model, config.label_smoothing).to(runtime.device)
    start = "from scratch" if config.scratch else f"from {config.model}"
    journal.say(
        f"fine-tuning {start}: {len(train)} labelled pictures of {len(train.classes)} classes, {len(val)} to validate; "
        f"{plan.steps} steps of {plan.pictures_per_step}, warm-up {plan.warmup}, lr {plan.lr:.3g}, "
        f"layer decay {optim.layer_decay:g}; {runtime.describe()}"
    )

    backbone, preprocessing = model.config.backbone, model.config.preprocessing
    dataset = PictureDataset(
        train,
        TrainView(config.view, backbone.image_size),
        channels=backbone.channels,
        seed=config.train.seed,
        smallest=backbone.patch,
    )
    waited = WaitMeter()

    def batches(first: int) -> Iterator[Batch]:
        stream = training_stream(
            dataset,
            config.train.batch_size,
            start_batch=first,
            workers=config.machine.workers,
            rank=runtime.rank,
            world=runtime.world,
        )
        stream = counted_broken(stream, dataset, config.read.max_broken, folder.note_broken, folder.broken_list)
        return normalized(to_device(waited.metered(stream), runtime.device), preprocessing.mean, preprocessing.std)

    evaluation = evaluation_dataset(val, backbone, preprocessing)

    def val_batches() -> Iterator[Batch]:
        return evaluation_batches(
            evaluation,
            2 * config.train.batch_size,
            workers=config.machine.workers,
            device=runtime.device,
            preprocessing=preprocessing,
            max_broken=config.read.max_broken,
            report=folder.note_broken,
            list_file=folder.broken_list,
        )

    def predict(images: torch.Tensor) -> torch.Tensor:
        with runtime.precision():
            return model(images)

    fit(
        objective,
        batches,
        layered_groups(model, model, optim),
        plan=plan,
        loop=config.loop,
        optim=optim,
        runtime=runtime,
        journal=journal,
        checkpoints=folder.checkpoints,
        waited=waited,
        evaluators=[Accuracy(predict, val_batches)],
        best=Best("val/top1", lambda: save_native(model, folder.best)),
    )
    if runtime.is_main:
        logits, labels = collect_logits(predict, val_batches())
        accuracy = top_k(logits, labels, 1)
        result = {"top1": accuracy, "pictures": len(labels), "labels": len(train), "scratch": config.scratch}
        folder.write_json("result.json", result | {"val_digest": val.digest})
        _report(folder, config, model, train, per_class(logits, labels), accuracy, compared, runtime)
        save_native(model.cpu(), folder.path)
        journal.say(f"accuracy {accuracy:.1%} on {len(labels)} pictures")
        after = f"beitkit evaluate {quoted(config.images)} --model {quoted(folder.path)}"
        journal.say(f"done: {folder.path} (report.html shows it). Next: {after}")
    runtime.processes.wait()
    return _result_of(folder.path, val.digest)


def _has_fresh_head(model: Classifier) -> bool:
    """Whether the head is new, because the checkpoint had none or one for other classes."""
    assert model.load_report is not None
    return any(record.name == "head.weight" and record.fate == "fresh" for record in model.load_report.records)


def _result_of(folder: Path, val_digest: str) -> Result:
    """What a finished run found out, on the same validation pictures."""
    path = folder / "result.json"
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        accuracy, measured_on = float(result["top1"]), result["val_digest"]
    except (OSError, ValueError, KeyError):
        raise UserError(f"{folder} holds no finished fine-tuning run (expected {path})") from None
    if measured_on != val_digest:
        raise UserError(f"{folder} was measured on other validation pictures, so the two runs cannot be compared")
    return Result(folder, accuracy)


def _report(
    folder: RunFolder,
    config: FinetuneRun,
    model: Classifier,
    train: PictureList,
    classes: list[tuple[int, float]],
    accuracy: float,
    compared: Result | None,
    runtime: Runtime,
) -> None:
    events = read_journal(folder.journal)
    pictures = sum(count for count, _ in classes)
    backbone = model.config.backbone
    report = Report("Fine-tuning", str(folder.path))
    report.facts(
        [
            ("Start", "fresh weights" if config.scratch else str(config.model)),
            ("Network", f"width {backbone.width}, {backbone.depth} blocks, {backbone.image_size[0]} pixels"),
            ("Labels", f"{len(train):,} of {len(train.classes)} classes"),
            ("Device", runtime.describe()),
            *folder.broken_facts(),
        ]
    )
    if compared is not None:
        difference = accuracy - compared.accuracy
        report.verdict(
            f"{accuracy:.1%} here, {compared.accuracy:.1%} in {compared.folder}: {100 * difference:+.1f} points",
            None,
            "One run each. Repeat both with other values of --seed before you believe a small difference.",
        )
        report.figure(
            dot_chart(
                [Dots("top-1", [[accuracy], [compared.accuracy]])],
                [folder.path.name, compared.folder.name],
                title="Accuracy side by side",
                x_label="run",
                y_label="top-1",
            ),
            f"This run and {compared.folder}, on {pictures:,} pictures.",
        )
    report.section("Is this normal?")
    lines = finetuning_lines(
        classes=len(classes),
        accuracy=accuracy,
        commonest_share=max(count for count, _ in classes) / pictures,
        pictures=pictures,
        train_accuracy=last(events, "accuracy"),
    )
    report.normal_lines([*lines, *normal_training(events)])
    report.section("Learning")
    report.figure(
        curve(
            events, {"training": ("train", "loss"), "validation": ("evaluate", "val/loss")}, title="Loss", y_label="cross-entropy"
        ),
        "Cross-entropy; with label smoothing the training loss does not reach 0.",
    )
    report.figure(
        curve(
            events,
            {"training": ("train", "accuracy"), "validation": ("evaluate", "val/top1")},
            title="Accuracy",
            y_label="top-1",
            unit="percent",
        ),
        "Share of pictures named right.",
    )
    report.section("Classes")
    rows = [
        [name, f"{count:,}", f"{share:.1%}" if count else "-"]
        for name, (count, share) in zip(train.classes, classes, strict=True)
    ]
    report.table(["class", "pictures", "named right"], rows, "Validation pictures of each class.")
    pace_figures(report, events)
    report.write(folder.path / "report.html")
