"""What `beitkit evaluate` tells: tables on stdout, JSON, and the report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from beitkit.evaluation.calibration import NUM_BINS
from beitkit.evaluation.comparison import AnyScores, Evaluation
from beitkit.evaluation.scores import FITTED, INTERVALS, Scores, largest_confusions
from beitkit.evaluation.sheets.classes import score_sections
from beitkit.evaluation.sheets.scenes import SceneScores, scene_sections
from beitkit.report.charts import Dots, dot_chart
from beitkit.report.document import Report
from beitkit.report.table import Column, Table, percent, plain
from beitkit.runs.evaluate.config import EvaluateRun

CALIBRATION = (
    f"Calibration error (ECE): images are put into {NUM_BINS} bins of equal width by the probability of the class they were "
    "given; the difference of mean probability and accuracy, without sign, is averaged over the images."
)
DECISIONS = (
    "F1, and whether all labels are right, count a class as named from its threshold on, 0.5 where none is stored. Calibration "
    f"error (ECE): as for one label, of the probability of every class of every image. {FITTED}"
)


def answer(_: EvaluateRun, result: Evaluation) -> dict[str, Any]:
    """What `--json` prints."""
    return as_json(result)


def as_json(result: Evaluation) -> dict[str, Any]:
    """The evaluation as plain JSON, NaN as null; of a single network its scores stand at the top as well."""
    if any(isinstance(model.scores, SceneScores) for model in result.models):
        return _scenes_as_json(result)
    content = plain(result)
    return content if len(result.models) > 1 else content["models"][0]["scores"] | content


def _scenes_as_json(result: Evaluation) -> dict[str, Any]:
    models = [
        {
            "name": name,
            "path": path,
            "miou": found.scores.mean_iou,
            "macc": found.scores.mean_accuracy,
            "aacc": found.scores.pixel_accuracy,
            "fwiou": found.scores.weighted_iou,
            "class_iou": found.class_iou,
            "confusion": found.confusion.tolist(),
        }
        for name, path, found in result.models
        if isinstance(found, SceneScores)
    ]
    content = {"where": result.where, "images": result.images, "broken": result.broken, "models": models}
    content["seeds"] = [{"models": group.models, "seeds": group.seeds, **group.spread._asdict()} for group in result.seeds]
    return plain(models[0] | content if len(models) == 1 else content)


def print_result(result: Evaluation) -> None:
    """Tables and sentences on stdout."""
    images = f"{result.images} images" + (f", {result.broken} unreadable left out" if result.broken else "")
    first = result.models[0].scores
    if len(result.models) > 1:
        _model_table(result).print()
        print(f"{result.where}: {len(result.models)} models on the same {images}")
    else:
        first.class_table.print()
        print(f"{result.where}: {_summary(first)} on {images}")
        if isinstance(first, Scores) and (mistakes := largest_confusions(first, 3)):
            listed = "; ".join(f"{one.label} named {one.named} {one.images} times" for one in mistakes)
            print(f"largest confusions: {listed}")
    for sentence in (*_calibrations(result), *_comparisons(result)):
        print(sentence)


def write_report(path: Path, result: Evaluation, facts: Sequence[tuple[str, str]]) -> None:
    """One self-contained HTML file; `facts` are for its head, beside those that every evaluation has."""
    report = Report("Evaluation", result.where)
    first = result.models[0].scores
    is_alone = len(result.models) == 1
    report.facts(
        [
            ("Images", f"{result.images:,}"),
            ("Classes", f"{len(first.class_table.rows):,}"),
            ("Models", ", ".join(model.name for model in result.models)),
            *facts,
            *([("Unreadable files", f"{result.broken:,}, left out")] if result.broken else []),
        ]
    )
    if is_alone:
        report.verdict(f"{_summary(first)} on {result.images:,} images", None)
    else:
        report.section("Side by side", "All models saw the same images.")
        trust = " The whiskers are the 95% intervals of the table." if first.measures[0].interval is not None else ""
        report.figure(_headlines(result), f"{first.measures[0].name} of every model.{trust}")
    if not is_alone or not isinstance(first, SceneScores):
        report.table(_model_table(result))
    if sentences := _comparisons(result):
        report.section("Luck or not?", "Other images, or another seed of the training, give another number.")
        for sentence in sentences:
            report.paragraph(sentence)
    shown = result.models
    if isinstance(first, SceneScores) and not is_alone:
        best = max(shown, key=lambda model: model.headline)
        report.paragraph(f"What follows is of {best.name}.")
        shown = (best,)
    for model in shown:
        if isinstance(model.scores, SceneScores):
            scene_sections(report, model.scores)
        else:
            score_sections(report, model.scores, "" if is_alone else f"{model.name}: ")
    report.write(path)


def _model_table(result: Evaluation) -> Table:
    """One row per classifier; one column per segmenter, whose classes are below the means."""
    first = result.models[0].scores
    if not isinstance(first, SceneScores):
        columns = ["model", *(measure.name for measure in first.measures)]
        rows = [[model.name, *(measure.with_interval for measure in model.scores.measures)] for model in result.models]
        return Table(columns, rows, f"{INTERVALS} {CALIBRATION if isinstance(first, Scores) else DECISIONS}")
    found = [model.scores for model in result.models if isinstance(model.scores, SceneScores)]
    means = [[same[0].name, *(one.value for one in same)] for same in zip(*(one.measures for one in found), strict=True)]
    classes = [[f"IoU of {name}", *(one.class_iou[name] for one in found)] for name in first.class_iou]
    columns = ["", *(Column(model.name, percent) for model in result.models)]
    return Table(columns, [*means, *classes], "Summed over all images before anything is divided.")


def _summary(scores: AnyScores) -> str:
    first, *rest = scores.measures
    text = f"{first.name} {first.with_interval}"
    if isinstance(scores, SceneScores) and (unseen := scores.scores.unseen):
        text += f" ({unseen} of {len(scores.class_iou)} classes never occur)"
    return ", ".join([text, *(f"{one.name} {one.short}" for one in rest)])


def _calibrations(result: Evaluation) -> list[str]:
    """What the temperatures changed, a sentence for each network that has one."""
    scores = {model.name: model.scores for model in result.models if not isinstance(model.scores, SceneScores)}
    prefix = "{}: " if len(result.models) > 1 else ""
    return [prefix.format(name) + one.calibrated for name, one in scores.items() if one.calibrated]


def _comparisons(result: Evaluation) -> list[str]:
    """What pairs and seeds say, one sentence each."""
    sentences = [pair.sentence for pair in result.pairs]
    if len(result.pairs) > 1:
        sentences.append(f"These are {len(result.pairs)} tests, and nothing was corrected for that: one in 20 says so by luck.")
    name = result.models[0].scores.measures[0].name
    return sentences + [group.sentence(name) for group in result.seeds]


def _headlines(result: Evaluation) -> str:
    """Networks side by side; the runs of a group of seeds are dots of one place."""
    value = {model.name: model.headline for model in result.models}
    grouped = {name for group in result.seeds for name in group.models}
    places = [(f"{group.models[0]} and {len(group.models) - 1} more", list(group.models)) for group in result.seeds]
    places += [(name, [name]) for name in value if name not in grouped]
    name = result.models[0].scores.measures[0].name
    trust = {model.name: model.scores.measures[0].interval for model in result.models}
    dots = Dots(
        name,
        [[value[member] for member in members] for _, members in places],
        [trust[members[0]] if len(members) == 1 else None for _, members in places],
    )
    return dot_chart([dots], [place for place, _ in places], title=name, x_label="model", y_label=name, from_zero=True)
