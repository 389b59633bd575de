"""Report sections shared by all training runs: curves and general checks."""

from __future__ import annotations

from collections.abc import Sequence

from beitkit.report.charts import Reference, Series, Unit, line_chart
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


def last(events: Sequence[Event], key: str, kind: str = "train") -> float:
    """The last logged value of a key; NaN if there is none."""
    values = series(events, key, kind).values
    return values[-1] if values else float("nan")
