"""`beitkit finetune --folds K`: k-fold cross-validation, in which every fold is an ordinary run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console

from beitkit.command.following import command, kept
from beitkit.data.own.images import OwnImages
from beitkit.data.sources.find import labeled_source
from beitkit.errors import UserError
from beitkit.evaluation.classification import Decisions
from beitkit.evaluation.scores import nats
from beitkit.evaluation.sheets.classes import confusion_figure
from beitkit.evaluation.statistics import Spread, spread, wilson
from beitkit.files import read_json
from beitkit.report.charts import Dots, dot_chart
from beitkit.report.document import Report
from beitkit.report.table import Column, Table, percent, plain, thousands
from beitkit.runs.finetune.config import FinetuneRun
from beitkit.train.folder import RunFolder
from beitkit.train.machine.runtime import start_runtime

SCORES = "scores.json"
"""What a finished run scores on its validation images."""
EXPLANATION = (
    "Mean and standard deviation over the folds, each measured on the images that its network was not trained on. The networks "
    "share most of their training images, so the deviation is not that of independent repetitions."
)


class FoldMeasure(NamedTuple):
    """A number of every fold."""

    name: str
    values: tuple[float, ...]
    """By fold; NaN where it is not defined."""

    @property
    def spread(self) -> Spread:
        """Mean and deviation; NaN unless it is defined in every fold."""
        return Spread(math.nan, math.nan, 0) if any(map(math.isnan, self.values)) else spread(self.values)


class CrossValidation(NamedTuple):
    """What a cross-validation found out."""

    folder: Path
    measures: tuple[FoldMeasure, ...]
    """The first is the one to compare."""

    @property
    def accuracy(self) -> float:
        """Mean over the folds of the top-1 share; where images have several labels, of the mean average precision."""
        return self.measures[0].spread.mean


def cross_validate(config: FinetuneRun, fine_tune: Callable[[FinetuneRun], Any], images: Path | OwnImages) -> CrossValidation:
    """Run or continue every fold by `fine_tune`, in `fold-1` and so on below `out`; then write the report and print the table."""
    assert config.folds is not None
    runtime = start_runtime(config.machine)
    folder = RunFolder(config.out, "finetune", config, runtime.processes)
    say = Console(stderr=True, highlight=False, soft_wrap=True, quiet=not runtime.is_main).print
    unused = [split for split in ("val", "test") if split in labeled_source(images, config.columns).splits]
    if unused:
        say(f"the {unused[0]} part of {config.images} is left alone: folds are of the training images", markup=False)
    names = [f"fold-{number}" for number in range(1, config.folds + 1)]
    for number, name in enumerate(names, start=1):
        say(f"\nfold {number} of {config.folds}")
        fine_tune(replace(config, folds=None, fold=f"{number}/{config.folds}", out=config.out / name))
    scores = [_scores_of(config.out / name) for name in names]
    measures = [
        FoldMeasure(name, tuple(math.nan if one["measures"][name] is None else one["measures"][name] for one in scores))
        for name in scores[0]["measures"]
    ]
    result = CrossValidation(config.out, tuple(measures))
    if runtime.is_main:
        numbers = {one.name: one.spread._asdict() | {"folds": one.values} for one in measures}
        folder.write_json("folds.json", plain({"folds": config.folds, "measures": numbers}))
        _write_report(folder.path, config, result, scores)
        _table(result).print()
        print(f"{_sentence(result)}. {EXPLANATION}")
        following = command("evaluate", config.images, model=config.out / names[0], **kept(config, "columns"))
        print(f"done: {config.out} (report.html shows it). Next: {following}")
    return result


def _scores_of(folder: Path) -> dict[str, Any]:
    path = folder / SCORES
    try:
        content = read_json(path)
        content["measures"].items()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{folder} holds no finished fine-tuning run (expected {path})") from None
    return content


def _text(measure: FoldMeasure) -> Callable[[float], str]:
    return nats if measure.name == "loss" else percent


def _table(result: CrossValidation) -> Table:
    """One row per measure."""
    folds = len(result.measures[0].values)
    rows = []
    for one in result.measures:
        text, (mean, deviation, _) = _text(one), one.spread
        rows.append([one.name, *("-" if math.isnan(value) else text(value) for value in (mean, deviation, *one.values))])
    return Table(["", "mean", "deviation", *(f"fold {number}" for number in range(1, folds + 1))], rows, EXPLANATION)


def _sentence(result: CrossValidation) -> str:
    first = result.measures[0]
    mean, deviation, _ = first.spread
    low, high = min(first.values), max(first.values)
    shown = f"standard deviation {100 * deviation:.2f} points over {len(first.values)} folds ({low:.1%} to {high:.1%})"
    return f"{first.name} {mean:.1%} on average, {shown}"


def _write_report(folder: Path, config: FinetuneRun, result: CrossValidation, scores: Sequence[dict[str, Any]]) -> None:
    report = Report("Cross-validation", str(folder))
    report.facts(
        [
            ("Images", f"{config.images}, in {config.folds} folds by seed {config.train.seed}"),
            ("Start", "fresh weights" if config.scratch else str(config.model)),
            ("Validated", f"{sum(one['images'] for one in scores):,} images, each once"),
        ]
    )
    report.verdict(_sentence(result), None, EXPLANATION)
    shares = [one for one in result.measures if one.name != "loss" and not any(map(math.isnan, one.values))]
    dots = Dots("folds", [list(one.values) for one in shares])
    chart = dot_chart([dots], [one.name for one in shares], title="Folds", x_label="measure", y_label="share")
    report.figure(chart, "Each dot is one fold.")
    report.table(_table(result))
    if all("confusion" in one for one in scores):
        _pooled_sections(report, scores)
    report.paragraph(f"Every fold is a run with a report of its own, in fold-1/ to fold-{config.folds}/.")
    report.write(folder / "report.html")


def _pooled_sections(report: Report, scores: Sequence[dict[str, Any]]) -> None:
    """The decisions of all folds together: every image was named once, by a network that was not trained on it."""
    confusion = torch.tensor([one["confusion"] for one in scores]).sum(0)
    right, shown, named = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    names, of_class = list(scores[0]["classes"]), zip(*(one.tolist() for one in Decisions.of(right, shown, named)), strict=True)
    report.section("All folds together", "Every image is named once, by a network that was not trained on it.")
    total = wilson(int(right.sum()), int(shown.sum()))
    report.paragraph(f"{int(right.sum()):,} of {int(shown.sum()):,} images are named right {total}.")
    columns = ["class", Column("images", thousands), *(Column(name, percent) for name in ("precision", "recall", "F1"))]
    rows = [[name, images, *three] for name, images, three in zip(names, shown.tolist(), of_class, strict=True)]
    report.table(Table(columns, rows))
    confusion_figure(report, confusion.tolist(), names)
