"""Classes, confusions and reliability of a classifier in a report, for `finetune` and `evaluate`."""

from __future__ import annotations

from beitkit.evaluation.scores import FITTED, MultilabelScores, Scores, largest_confusions
from beitkit.report.charts import heat_map, reliability_diagram
from beitkit.report.document import Report
from beitkit.report.table import Column, Table, percent, thousands

CONFUSIONS = 10
"""Largest confusions that are listed."""
MOST_ON_A_MAP = 60
"""Classes up to which the confusion matrix is drawn; more could not be told apart."""


def score_sections(report: Report, scores: Scores | MultilabelScores, prefix: str = "") -> None:
    """Classes, and what is taken for what; `prefix` begins the titles: a network's name where there are several."""
    report.section(_title(prefix, "classes"))
    report.table(scores.class_table)
    if scores.calibrated:
        report.paragraph(f"{scores.calibrated[0].upper()}{scores.calibrated[1:]}. {FITTED}")
    if isinstance(scores, MultilabelScores):
        return
    report.section(_title(prefix, "confusions"), "What is taken for what, and how certainly.")
    confusion_figure(report, scores.confusion, list(scores.classes))
    filled = [(one.certainty, one.accuracy, one.images) for one in scores.bins]
    report.figure(
        reliability_diagram(*map(list, zip(*filled, strict=True)), title="Reliability"),
        f"Below the diagonal the model is too sure of itself, above it too careful. ECE {scores.calibration_error:.1%}.",
    )
    if mistakes := largest_confusions(scores, CONFUSIONS):
        named = Column("named", align="left")
        columns = ["label", named, Column("images", thousands), Column("share of the label", percent)]
        report.table(Table(columns, mistakes, "The largest confusions."))


def confusion_figure(report: Report, confusion: list[list[int]], names: list[str]) -> None:
    """The confusion matrix (rows are true classes), if it is not too large to be read."""
    if len(names) <= MOST_ON_A_MAP:
        report.figure(
            heat_map(confusion, names, title="Confusion matrix", x_label="named", y_label="label"),
            "Rows are labels, columns the names that were given; the darker, the larger the share of its row.",
        )


def _title(prefix: str, title: str) -> str:
    return f"{prefix}{title}" if prefix else title.capitalize()
