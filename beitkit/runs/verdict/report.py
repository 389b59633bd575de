"""Output of `beitkit verdict`: the table on stdout, JSON, and the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from beitkit.command.options import with_options
from beitkit.evaluation.statistics import Interval
from beitkit.evaluation.verdict import RULE, Claim, Contest, Entrant, Paired, claim, probability
from beitkit.report.charts import Dots, dot_chart
from beitkit.report.document import Report
from beitkit.report.normal import unseen_hint
from beitkit.report.table import Column, Table, percent, thousands
from beitkit.runs.verdict.config import VerdictRun
from beitkit.train.journal import duration

PROBED = "Probe: logistic regression on the frozen start, at the block that held-out training images choose."


class Verdict(NamedTuple):
    """What was found out about all starts and floors."""

    measure: str
    """top-1 or mIoU."""
    unit: str
    """What is counted for training: labels or images."""
    seeds: tuple[int, ...]
    images: int
    """Images that all are compared on."""
    contests: tuple[Contest, ...]
    """One for each number of labels."""
    classes: tuple[str, ...] = ()
    """Whose IoU is told; none for classifiers."""
    is_weighed: bool = False
    """Whether rare classes counted more, by weights or a dice loss."""

    @property
    def claim(self) -> Claim:
        """The verdict in a sentence."""
        return claim(self.contests)

    @property
    def best(self) -> str | None:
        """The start that is clearly best with every number of labels; None if there is none."""
        return self.claim.best


def as_json(verdict: Verdict) -> dict[str, Any]:
    """The whole result, without the scores of single images."""
    return {
        "verdict": verdict.claim.text,
        "best": verdict.best,
        "measure": verdict.measure,
        "seeds": verdict.seeds,
        "images": verdict.images,
        "rule": RULE,
        "contests": [
            {
                verdict.unit: contest.labels,
                "winner": contest.winner,
                "sentence": contest.sentence,
                "floor_sentence": contest.floor_sentence,
                "probe_sentences": contest.probe_sentences,
                "unfound_sentence": _unfound(contest, verdict),
                "floor_is_above": contest.floor_is_above,
                "starts": [_row(entry, verdict.classes) for entry in contest.starts],
                "floors": [_row(entry, verdict.classes) for entry in contest.floors],
                "pairs": [pair._asdict() | {"is_clear": pair.is_clear} for pair in contest.pairs],
                "floor": None if contest.floor is None else contest.floor._asdict() | {"is_clear": contest.floor.is_clear},
            }
            for contest in verdict.contests
        ],
    }


def _row(entry: Entrant, classes: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": entry.name,
        "mean": entry.mean,
        "scores": entry.scores,
        "deviation": entry.deviation,
        "probe": entry.probe,
        "seconds": mean(entry.seconds),
    }
    if entry.twice is not None:
        found["twice_the_steps"] = entry.twice._asdict()
    if entry.pixel_accuracy is not None:
        found["pixel_accuracy"] = entry.pixel_accuracy
    if entry.class_iou is not None:
        found["class_iou"] = dict(zip(classes, zip(*entry.class_iou, strict=True), strict=True))
    return found


def print_result(verdict: Verdict, out: Path, following: str) -> None:
    """The table and what to take from it, on stdout; `following` is the command to go on with."""
    table(verdict).print()
    if verdict.classes:
        print()
        by_class(verdict).print()
        print()
    print_sentences(verdict)
    print(f"done: {out} (report.html shows it). Next: {following}")


def print_sentences(verdict: Verdict) -> None:
    """What to take from the table, on stdout."""
    for contest in verdict.contests:
        for sentence in (contest.sentence, *_sentences(contest, verdict)):
            print(f"{_where(contest, verdict)}{sentence}")
    print(f"{verdict.claim.text}.")


def _sentences(contest: Contest, verdict: Verdict) -> list[str]:
    """What is to be said besides which start is best."""
    sentences = (contest.floor_sentence, *contest.probe_sentences, _unfound(contest, verdict))
    return [with_options(sentence, VerdictRun) for sentence in sentences if sentence is not None]


def _unfound(contest: Contest, verdict: Verdict) -> str | None:
    """Which classes no start finds, and what to do about it."""
    return unseen_hint([verdict.classes[number] for number in contest.unfound], is_weighed=verdict.is_weighed)


def _where(contest: Contest, verdict: Verdict) -> str:
    return f"{contest.labels:,} {verdict.unit}: " if len(verdict.contests) > 1 else ""


def table(verdict: Verdict) -> Table:
    """A row for every start and floor with every number of labels."""
    rows = [
        [contest.labels, *_cells(entry, contest, verdict)]
        for contest in verdict.contests
        for entry in (*contest.starts, *contest.floors)
    ]
    has_probe = any(entry.probe is not None for contest in verdict.contests for entry in contest.starts)
    is_dense = verdict.measure == "mIoU"
    columns = [
        Column(verdict.unit, thousands),
        Column("start or floor", align="left"),
        verdict.measure,
        *(["pixels right"] if is_dense else []),
        "by seed",
        "spread",
        *(["probe"] if has_probe else []),
        "to the best",
        "p",
        "time",
        *(["twice the steps"] if _has_twice(verdict) else []),
    ]
    return Table(columns, rows, caption(verdict, has_probe=has_probe))


def _has_twice(verdict: Verdict) -> bool:
    return any(entry.twice is not None for contest in verdict.contests for entry in contest.starts)


def by_class(verdict: Verdict) -> Table:
    """A row for every class: its mean IoU from each start and of each floor, in brackets the standard deviation over seeds."""
    (contest,) = verdict.contests
    entries = (*contest.starts, *contest.floors)
    rows = [
        [name, *(_iou_cell([seed[number] for seed in entry.class_iou or ()]) for entry in entries)]
        for number, name in enumerate(verdict.classes)
    ]
    columns = ["class", *(f"floor: {entry.name}" if entry.is_floor else entry.name for entry in entries)]
    return Table(
        columns, rows, "IoU of each class, mean over the seeds; in brackets the standard deviation over them, in points."
    )


def _iou_cell(values: Sequence[float]) -> str:
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return "-"
    return percent(mean(known)) + (f" ({100 * stdev(known):.1f})" if len(known) > 1 else "")


def caption(verdict: Verdict, *, has_probe: bool) -> str:
    """How to read the table."""
    return (
        f"Means over {len(verdict.seeds)} seed{'s' if len(verdict.seeds) > 1 else ''} on the same {verdict.images:,} images; "
        "spread (standard deviation) and differences to the best start in points; p of the paired test with it; time of one "
        "training"
        f"{'; what twice the steps would bring' if _has_twice(verdict) else ''}{'. ' + PROBED if has_probe else '.'}"
    )


def _cells(entry: Entrant, contest: Contest, verdict: Verdict) -> list[str]:
    pair = _against_best(entry, contest)
    has_probe = any(one.probe is not None for each in verdict.contests for one in each.starts)
    return [
        f"floor: {entry.name}" if entry.is_floor else entry.name,
        percent(entry.mean),
        *([percent(mean(entry.pixel_accuracy or [float("nan")]))] if verdict.measure == "mIoU" else []),
        " ".join(f"{100 * score:.1f}" for score in entry.scores),
        "-" if entry.deviation is None else f"{100 * entry.deviation:.1f}",
        *([percent(mean(entry.probe)) if entry.probe else "-"] if has_probe else []),
        f"{100 * (entry.mean - contest.best.mean):+z.1f}" if entry is not contest.best else "",
        "" if pair is None else probability(pair.p_value).removeprefix("= "),
        duration(mean(entry.seconds)),
        *(["" if entry.twice is None else str(entry.twice)] if _has_twice(verdict) else []),
    ]


def _against_best(entry: Entrant, contest: Contest) -> Paired | None:
    if contest.floor is not None and contest.floors[0] is entry:
        return contest.floor
    return contest.against(entry.name) if not entry.is_floor else None


def write_report(path: Path, verdict: Verdict, facts: Sequence[tuple[str, str]]) -> None:
    """One self-contained HTML file."""
    report = Report("Which start is best?", str(path.parent))
    report.facts([*facts, ("Compared on", f"{verdict.images:,} images")])
    add_verdict(report, verdict)
    report.paragraph("Every training left a report of its own, in the folders of finetune/.")
    report.write(path)


def add_verdict(report: Report, verdict: Verdict) -> None:
    """The verdict, the chart, the table and the differences, as blocks of a report."""
    found = verdict.claim
    report.verdict(
        found.text, found.is_good, " ".join(_where(contest, verdict) + contest.sentence for contest in verdict.contests)
    )
    report.figure(
        chart(verdict, is_floor=False), "Each dot is one seed: other labels, other first weights of the head, other order."
    )
    if verdict.contests[0].floors:
        shown = chart(verdict, is_floor=True)
        report.figure(shown, "The best start, and simple methods with the same labels that need no network at all.")
    for contest in verdict.contests:
        for sentence in _sentences(contest, verdict):
            report.paragraph(_where(contest, verdict) + sentence)
    report.table(table(verdict))
    if verdict.classes:
        report.table(by_class(verdict))
    report.section("Luck or not?", RULE)
    report.table(differences(verdict))


def chart(verdict: Verdict, *, is_floor: bool) -> str:
    """Scores of all starts, or of the best of them and all floors, by number of labels."""
    names: list[str] = []
    for contest in verdict.contests:
        shown = (contest.best, *contest.floors) if is_floor else contest.starts
        names += [entry.name for entry in shown if entry.name not in names]
    by_name = [{entry.name: entry for entry in (*contest.starts, *contest.floors)} for contest in verdict.contests]
    title = f"{'The best start and the floors' if is_floor else 'Starts'}, after {_training(verdict)}"
    return dot_chart(
        [Dots(name, [list(found[name].scores) for found in by_name]) for name in names],
        [f"{contest.labels:,} {verdict.unit}" for contest in verdict.contests],
        title=title,
        x_label=f"training {verdict.unit}",
        y_label=verdict.measure,
    )


def _training(verdict: Verdict) -> str:
    return "fine-tuning" if verdict.measure == "top-1" else "training"


def differences(verdict: Verdict) -> Table:
    """The best start against every other start and the best floor, with interval and test."""
    rows = []
    for contest in verdict.contests:
        for pair in (*contest.pairs, *([] if contest.floor is None else [contest.floor])):
            rows.append(
                [
                    contest.labels,
                    f"{pair.first} over {pair.second}",
                    f"{100 * pair.difference:+z.1f}",
                    str(Interval(*pair.image_interval)) if verdict.measure == "top-1" else "-",
                    "-" if pair.deviation is None else f"{100 * pair.deviation:.1f}",
                    f"{pair.ahead:,} to {pair.behind:,}",
                    probability(pair.p_value).removeprefix("= "),
                    f"{pair.seeds_ahead} of {pair.seeds}",
                    "yes" if pair.is_clear else "no",
                ]
            )
    columns = [
        Column(verdict.unit, thousands),
        Column("pair", align="left"),
        "difference",
        "interval",
        "spread",
        "ahead to behind",
        "p",
        "seeds ahead",
        "clear",
    ]
    caption = (
        "Differences in points; images on which the first is ahead, or behind. Intervals: 95%, for other images of the same kind "
        "(normal approximation of paired differences); what another seed would change is the spread, the larger one of the two."
    )
    return Table(columns, rows, caption)
