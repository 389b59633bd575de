"""The sections that trainings' reports share: curves, what holds of any training, and another run beside this one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from beitkit.report.charts import Dots, Reference, Series, Unit, dot_chart, line_chart
from beitkit.report.document import Report
from beitkit.report.journal import Event, series
from beitkit.report.normal import Line, training_lines


def curve(
    events: Sequence[Event],
    keys: dict[str, tuple[str, str]],
    *,
    title: str,
    y_label: str,
    references: Sequence[Reference] = (),
    unit: Unit = "plain",
    log_y: bool = False,
) -> str:
    """A chart over optimizer steps; `keys` maps a line's name to the (kind, key) of the events it shows."""
    lines = []
    for name, (kind, key) in keys.items():
        points = series(events, key, kind)
        if points.steps:
            lines.append(Series(name, points.steps, points.values))
    return line_chart(lines, title=title, x_label="step", y_label=y_label, y_reference=references, unit=unit, log_y=log_y)


def pace_figures(report: Report, events: Sequence[Event]) -> None:
    """Learning rate, gradient norm and speed: what one looks at when something is wrong."""
    report.section("Course of the run", "What one looks at when something is wrong.")
    report.figure(
        curve(events, {"learning rate": ("train", "lr")}, title="Learning rate", y_label="rate"),
        "Learning rate at its peak group.",
    )
    report.figure(
        curve(events, {"gradient norm": ("train", "grad_norm")}, title="Gradient norm", y_label="norm", log_y=True),
        "Total gradient norm before clipping.",
    )
    report.figure(
        curve(events, {"images/s": ("train", "images_per_second")}, title="Speed", y_label="images/s"),
        "Images per second.",
    )


def normal_training(events: Sequence[Event]) -> list[Line]:
    """The "is this normal?" lines that hold for any training."""
    waits = series(events, "data_wait").values
    return training_lines(
        losses=series(events, "loss").values,
        grad_norms=series(events, "grad_norm").values,
        data_wait=sum(waits) / len(waits) if waits else 0.0,
        bad_steps=sum("not applied" in event.texts.get("text", "") for event in events),
    )


def beside_another_run(report: Report, measure: str, here: tuple[Path, float], other: tuple[Path, float]) -> None:
    """The result of this run and that of another, by the same measure: folder and share of each."""
    (folder, share), (other_folder, other_share) = here, other
    report.verdict(
        f"{measure} {share:.1%} here, {other_share:.1%} in {other_folder}: {100 * (share - other_share):+.1f} points",
        None,
        "One run each. Repeat both with other values of `seed` before you believe a small difference.",
    )
    dots = [Dots(measure, [[share], [other_share]])]
    names = [folder.name, other_folder.name]
    chart = dot_chart(dots, names, title="Side by side", x_label="run", y_label=measure)
    report.figure(chart, f"This run and {other_folder}.")


def last(events: Sequence[Event], key: str, kind: str = "train") -> float:
    """The last logged value of a key; NaN if there is none."""
    values = series(events, key, kind).values
    return values[-1] if values else float("nan")
