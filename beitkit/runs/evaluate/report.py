"""Output of `beitkit evaluate`: tables on stdout, JSON, a table of predictions and the report."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from beitkit.evaluation.calibration import NUM_BINS
from beitkit.evaluation.comparison import Evaluation, ModelResult
from beitkit.evaluation.scores import THRESHOLD, ClassShare, MultilabelScores, Scores, largest_confusions
from beitkit.evaluation.statistics import Interval, wilson
from beitkit.report.charts import Dots, dot_chart, heat_map, reliability_diagram
from beitkit.report.document import Report

CONFUSIONS = 10
"""Largest confusions that are listed."""
MOST_ON_A_MAP = 60
"""Classes up to which the confusion matrix is drawn; more could not be told apart."""
INTERVALS = "Intervals are Wilson's score intervals at 95%."
DECISIONS = f"F1, and whether all labels are right, count a class as named above a probability of {THRESHOLD:g}."
CALIBRATION = (
    f"Calibration error (ECE): images are put into {NUM_BINS} bins of equal width by the probability of the class they were "
    "given; the difference of mean probability and accuracy, without sign, is averaged over the images."
)


class Answers(NamedTuple):
    """What every network answered on every image."""

    paths: Sequence[Path]
    targets: Tensor
    """Which classes each image shows, bool (n, classes)."""
    logits: Mapping[str, Tensor]
    """Name of a network to its logits, (n, classes)."""


def as_json(result: Evaluation) -> dict[str, Any]:
    """The evaluation as plain JSON, NaN as null; of a single network its scores stand at the top as well."""
    content = _plain(result)
    return content if len(result.models) > 1 else content["models"][0]["scores"] | content


def predictions_table(answers: Answers, classes: tuple[str, ...], *, is_multilabel: bool) -> str:
    """A CSV table with one row per network and image.

    One label an image: model, path, label, predicted, and the probabilities of the predicted class and of the label. Several:
    model, path, labels and predicted (joined by |), and one probability per class.
    """
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    if is_multilabel:
        table.writerow(["model", "path", "labels", "predicted", *(f"probability of {name}" for name in classes)])
    else:
        table.writerow(["model", "path", "label", "predicted", "probability", "label_probability"])
    for model, logits in answers.logits.items():
        probabilities = logits.sigmoid() if is_multilabel else logits.softmax(1)
        for path, shown, row in zip(answers.paths, answers.targets, probabilities, strict=True):
            if is_multilabel:
                table.writerow([model, path, _joined(classes, shown), _joined(classes, row > THRESHOLD), *map(_digits, row)])
                continue
            label, named = int(shown.int().argmax()), int(row.argmax())
            table.writerow([model, path, classes[label], classes[named], _digits(row[named]), _digits(row[label])])
    return text.getvalue()


def print_result(result: Evaluation) -> None:
    """Tables and sentences on stdout."""
    console = Console(highlight=False, markup=False, width=None if Console().is_terminal else 160)
    if len(result.models) == 1:
        console.print(_rich(*_class_table(result.models[0].scores)))
    else:
        console.print(_rich(*_model_table(result)))
    skipped = f", {result.broken} unreadable left out" if result.broken else ""
    images = f"{result.images} images{skipped}"
    if len(result.models) == 1:
        print(f"{result.where}: {_summary(result.models[0].scores)} on {images}")
    else:
        print(f"{result.where}: {len(result.models)} models on the same {images}")
    if len(result.models) == 1 and isinstance(scores := result.models[0].scores, Scores):
        listed = "; ".join(f"{one.label} named {one.named} {one.images} times" for one in largest_confusions(scores, 3))
        if listed:
            print(f"largest confusions: {listed}")
    for sentence in _comparisons(result):
        print(sentence)


def write_report(path: Path, result: Evaluation) -> None:
    """One self-contained HTML file."""
    report = Report("Evaluation", result.where)
    first = result.models[0].scores
    report.facts(
        [
            ("Images", f"{result.images:,}"),
            ("Classes", f"{len(first.classes):,}"),
            ("Models", ", ".join(model.name for model in result.models)),
            *([("Unreadable files", f"{result.broken:,}, left out")] if result.broken else []),
        ]
    )
    if len(result.models) == 1:
        report.verdict(f"{_summary(first)} on {result.images:,} images", None)
    else:
        report.section("Side by side", "All models saw the same images.")
        report.figure(_headlines(result), f"{_headline_name(first)} of every model.")
    header, rows = _model_table(result)
    report.table(header, rows, f"{INTERVALS} {CALIBRATION if isinstance(first, Scores) else DECISIONS}")
    if sentences := _comparisons(result):
        report.section("Luck or not?", "Other images, or another seed of the training, give another number.")
        for sentence in sentences:
            report.paragraph(sentence)
    for model in result.models:
        _model_sections(report, model, is_alone=len(result.models) == 1)
    report.write(path)


def _model_sections(report: Report, model: ModelResult, *, is_alone: bool) -> None:
    scores, names = model.scores, list(model.scores.classes)
    report.section("Classes" if is_alone else f"{model.name}: classes")
    header, rows = _class_table(scores)
    report.table(
        header, rows, INTERVALS if isinstance(scores, Scores) else "F1 counts a class as named above a probability of 0.5."
    )
    if isinstance(scores, MultilabelScores):
        return
    report.section("Confusions" if is_alone else f"{model.name}: confusions", "What is taken for what, and how certainly.")
    if len(names) <= MOST_ON_A_MAP:
        report.figure(
            heat_map(scores.confusion, names, title="Confusion matrix", x_label="named", y_label="label"),
            "Rows are labels, columns the names that were given; the darker, the larger the share of its row.",
        )
    filled = [(one.certainty, one.accuracy, one.images) for one in scores.bins]
    report.figure(
        reliability_diagram(*map(list, zip(*filled, strict=True)), title="Reliability"),
        f"Below the diagonal the model is too sure of itself, above it too careful. ECE {scores.calibration_error:.1%}.",
    )
    mistakes = largest_confusions(scores, CONFUSIONS)
    if mistakes:
        report.table(
            ["label", "named", "images", "share of the label"],
            [[one.label, one.named, f"{one.images:,}", f"{one.share:.1%}"] for one in mistakes],
            "The largest confusions.",
            align=["left", "left", "right", "right"],
        )


def _model_table(result: Evaluation) -> tuple[list[str], list[list[str]]]:
    """One row per network."""
    rows = []
    for model in result.models:
        scores = model.scores
        if isinstance(scores, MultilabelScores):
            shares = (scores.mean_average_precision, scores.micro_f1, scores.macro_f1)
            exact = f"{scores.subset_accuracy:.1%} {_ends(scores.subset_interval)}"
            rows.append([model.name, *map(_percent, shares), exact, f"{scores.loss:.4f}"])
        else:
            top5 = [] if scores.top5 is None or scores.top5_interval is None else [_with_ends(scores.top5, scores.top5_interval)]
            top1 = _with_ends(scores.top1, scores.top1_interval)
            balanced, error = _percent(scores.balanced), _percent(scores.calibration_error)
            rows.append([model.name, top1, *top5, balanced, f"{scores.loss:.4f}", error])
    if isinstance(result.models[0].scores, MultilabelScores):
        return ["model", "mAP", "micro F1", "macro F1", "all labels right", "loss"], rows
    top5_header = [] if result.models[0].scores.top5 is None else ["top-5"]
    return ["model", "top-1", *top5_header, "balanced accuracy", "loss", "calibration error"], rows


def _class_table(scores: Scores | MultilabelScores) -> tuple[list[str], list[list[str]]]:
    """One row per class."""
    if isinstance(scores, MultilabelScores):
        rows = [
            [name, f"{one.images:,}", _percent(one.average_precision), _percent(one.f1)] for name, one in scores.classes.items()
        ]
        return ["class", "images", "average precision", "F1"], rows
    return ["class", "images", "named right"], [
        [name, f"{one.images:,}", _class_share(one)] for name, one in scores.classes.items()
    ]


def _class_share(one: ClassShare) -> str:
    return _with_ends(one.top1, wilson(round(one.top1 * one.images), one.images)) if one.images else "-"


def _summary(scores: Scores | MultilabelScores) -> str:
    if isinstance(scores, MultilabelScores):
        return (
            f"mAP {_percent(scores.mean_average_precision)}, micro F1 {_percent(scores.micro_f1)}, "
            f"macro F1 {_percent(scores.macro_f1)}, all labels right {scores.subset_accuracy:.1%}, loss {scores.loss:.4f}"
        )
    top5 = "" if scores.top5 is None else f", top-5 {scores.top5:.1%}"
    top1 = f"top-1 {_with_ends(scores.top1, scores.top1_interval)}"
    balanced = f"balanced accuracy {scores.balanced:.1%}"
    return f"{top1}{top5}, {balanced}, loss {scores.loss:.4f}, calibration error {scores.calibration_error:.1%}"


def _comparisons(result: Evaluation) -> list[str]:
    """What pairs and seeds say, one sentence each."""
    sentences = [pair.sentence for pair in result.pairs]
    if len(result.pairs) > 1:
        sentences.append(f"These are {len(result.pairs)} tests, and nothing was corrected for that: one in 20 says so by luck.")
    name = _headline_name(result.models[0].scores)
    sentences += [group.sentence(name) for group in result.seeds]
    return sentences


def _headlines(result: Evaluation) -> str:
    """Networks side by side; the runs of a group of seeds are dots of one place."""
    value = {model.name: model.headline for model in result.models}
    grouped = {name for group in result.seeds for name in group.models}
    places = [(f"{group.models[0]} and {len(group.models) - 1} more", list(group.models)) for group in result.seeds]
    places += [(name, [name]) for name in value if name not in grouped]
    name = _headline_name(result.models[0].scores)
    dots = Dots(name, [[value[member] for member in members] for _, members in places])
    return dot_chart([dots], [place for place, _ in places], title=name, x_label="model", y_label=name)


def _headline_name(scores: Scores | MultilabelScores) -> str:
    return "mAP" if isinstance(scores, MultilabelScores) else "top-1"


def _plain(value: Any) -> Any:
    """A result as dicts, lists, numbers and strings; NaN, which JSON has not, as None."""
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {name: _plain(one) for name, one in value._asdict().items()}  # type: ignore[attr-defined]
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and math.isnan(value) else value


def _rich(header: list[str], rows: list[list[str]]) -> Table:
    table = Table(*header, box=None)
    for row in rows:
        table.add_row(*row)
    return table


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{share:.1%}"


def _with_ends(share: float, interval: Interval) -> str:
    return f"{share:.1%} {_ends(interval)}"


def _ends(interval: Interval) -> str:
    return f"({100 * interval.low:.1f} to {100 * interval.high:.1f})"


def _joined(classes: tuple[str, ...], shown: Tensor) -> str:
    return "|".join(classes[place] for place in torch.nonzero(shown).flatten().tolist())


def _digits(probability: Tensor) -> str:
    return f"{float(probability):.6g}"
