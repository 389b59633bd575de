"""`beitkit inspect`, `show-load`, `convert` and `export`: inspect checkpoints and write them in other formats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from beitkit.command.following import command
from beitkit.configs.codec import to_json
from beitkit.contracts import LoadReport
from beitkit.data.views.framing import in_words
from beitkit.errors import UserError
from beitkit.interop import hub
from beitkit.interop.inspect import CheckpointSummary, inspect_checkpoint
from beitkit.interop.load import load
from beitkit.nn.segmentation.segmenter import Segmenter
from beitkit.runs.checkpoints.config import ConvertRun, ExportRun, InspectRun, ShowLoadRun

FOLDERS = ("huggingface", "native", "timm")
"""Formats that are folders, and so can be pushed with a model card."""


def inspect(config: InspectRun) -> CheckpointSummary:
    """Print what a checkpoint is, on stdout."""
    summary = inspect_checkpoint(config.path)
    lines = summary.lines()
    width = max(len(name) for name, _ in lines)
    for name, value in lines:
        print(f"{name.ljust(width)}  {value}")
    if config.verbose:
        for tensor in summary.tensors:
            reason = f"  ({tensor.reason})" if tensor.reason else ""
            print(f"{tensor.fate.ljust(8)}  {tensor.name}  {'x'.join(map(str, tensor.shape)) or 'scalar'}{reason}")
    return summary


def inspect_answer(_: InspectRun, summary: CheckpointSummary) -> dict[str, Any]:
    """What `--json` prints."""
    return {"layout": summary.layout, "task": summary.task, "config": to_json(summary.config)}


def show_load(config: ShowLoadRun) -> LoadReport:
    """Load a checkpoint the way `beitkit.load` would, and print the table on stdout."""
    model = load(
        config.path,
        task=config.task,
        num_classes=config.num_classes,
        image_size=config.image_size,
        vocabulary=config.vocabulary,
    )
    report = model.load_report
    assert report is not None
    print(report.table())
    return report


def show_load_answer(_: ShowLoadRun, report: LoadReport) -> dict[str, Any]:
    """What `--json` prints."""
    return {"source": report.source, "counts": report.counts(), "tensors": report.records, "notes": report.notes}


def convert(config: ConvertRun) -> LoadReport:
    """Convert, and print what became of every tensor (one line, or the whole table with --dry-run or --verbose)."""
    if config.out.exists() and not config.dry_run and (config.out.is_file() or any(config.out.iterdir())):
        raise UserError(f"`out` {config.out} is already there; choose another name, or remove it yourself")
    from beitkit.interop import save as saving  # here, because inspect and show-load do without

    report = saving.convert(config.path, config.to, config.out, dry_run=config.dry_run)
    print(report.table() if config.dry_run or config.verbose else report.summary())
    print(
        "nothing was written (--dry-run)" if config.dry_run else f"written: {config.out}. Next: {command('inspect', config.out)}"
    )
    return report


def convert_answer(config: ConvertRun, report: LoadReport) -> dict[str, Any]:
    """What `--json` prints."""
    return {"out": None if config.dry_run else config.out, "counts": report.counts(), "tensors": report.records}


def export_answer(config: ExportRun, out: Path) -> dict[str, Any]:
    """What `--json` prints."""
    return {"out": out, "format": config.format, "pushed": None if config.push is None else f"hf://{config.push}"}


def export(config: ExportRun) -> Path:
    """Export, and print the largest difference to the network; push it if that is asked for."""
    if config.out.exists():
        raise UserError(f"`out` {config.out} is already there; choose another name, or remove it yourself")
    if config.push is not None and config.format not in FOLDERS:
        raise UserError(f"`push` uploads folders ({', '.join(FOLDERS)}), and {config.format} is a file; upload it by yourself")
    if config.push is not None:
        hub.check_repository(config.push)
    from beitkit.interop import save as saving  # here, because inspect and show-load do without
    from beitkit.runs.checkpoints import programs
    from beitkit.runs.checkpoints.card import CARD, write_card

    model = load(config.model, image_size=config.image_size)
    if config.format in ("onnx", "torch"):
        difference = programs.export(model, config.out, format=config.format)
        print(f"written: {config.out}; its outputs differ from the network's by at most {difference:.1e}")
        if not isinstance(model, Segmenter):  # which takes images of any size in windows
            print(f"its images: {in_words(model.config.preprocessing, model.config.backbone.image_size)}")
    else:
        print(saving.save(model, config.out, format=config.format).summary())
        if config.format in FOLDERS:
            write_card(config.out, hub.on_disk(config.model), model)
        print(f"written: {config.out}. Next: {command('inspect', config.out)}")
    if config.push is not None:
        address = hub.push(config.out, config.push)
        print(f"pushed: {address}, with the model card {config.out / CARD}. Next: beitkit inspect {address}")
    return config.out
