"""Line chart over the steps of a run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from beitkit.report.charts.axes import (
    Axis,
    Frame,
    Reference,
    describe_references,
    draw_legend,
    draw_y_axis,
    linear_axis,
    log_axis,
)
from beitkit.report.charts.canvas import Canvas, Number, Unit, format_value, stroke

MOST_POINTS = 400
MARKED = 12
"""Up to so many points each has a mark: a line through a few measurements must not look like a course."""


@dataclass(frozen=True)
class Series:
    """A named line: y over x. Values that are not finite break the line and are marked at the top edge."""

    name: str
    x: Sequence[Number]
    y: Sequence[Number]

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y):
            raise ValueError(f"series {self.name!r} has {len(self.x)} x values but {len(self.y)} y values")


def line_chart(
    lines: Sequence[Series],
    *,
    title: str,
    x_label: str,
    y_label: str,
    y_reference: Sequence[Reference] = (),
    unit: Unit = "plain",
    log_y: bool = False,
) -> str:
    """An SVG of lines, with dashed reference lines such as ("chance = ln 64", 4.16).

    With `unit="percent"` values are shares in [0, 1]. With `log_y` values of zero or less cannot be shown and leave a gap.
    Every line is thinned to at most 400 points, keeping its spikes.
    """
    shown = [_showable(line, log_y) for line in lines]
    references = [(name, float(value)) for name, value in y_reference if math.isfinite(value) and (value > 0 or not log_y)]
    xs = [float(x) for line in lines for x in line.x]
    ys = [y for points in shown for _, y, _ in points]
    starts = [0.0] if xs and 0 < min(xs) < 0.1 * max(xs) else []  # the first logged step is a little after the beginning
    x_axis = linear_axis([*starts, *xs], padding=0.0)
    y_axis = (log_axis if log_y else linear_axis)([*ys, *(value for _, value in references)])
    canvas = Canvas(title, _description(title, lines, references, unit))
    legend_height = draw_legend(canvas, [line.name for line in lines], marker=False)
    frame = draw_y_axis(canvas, y_axis, y_label, unit, legend_height)
    frame.draw_x_axis(x_axis, x_label)
    frame.draw_references(y_axis, references)
    if not ys:
        canvas.text(frame.x(0.5), frame.y(0.5), "no values yet", "middle", "quiet")
    for index, (line, points) in enumerate(zip(lines, shown, strict=True)):
        _draw_line(frame, x_axis, y_axis, thin(points), index)
        lost = [x for x, y in zip(line.x, line.y, strict=True) if not math.isfinite(y)]
        for x in lost[:MOST_POINTS]:
            canvas.cross(frame.x(x_axis.place(x)), frame.top + 1, f"{line.name} is not finite at {x:g}")
    return canvas.svg()


def thin(points: Sequence[tuple[Number, ...]], limit: int = MOST_POINTS) -> list[tuple[Number, ...]]:
    """At most `limit` of the points (x, y, ...), in order.

    The first, the last, and the lowest and highest of equal stretches between stay.
    """
    if len(points) <= limit:
        return list(points)
    stretches = (limit - 2) // 2
    inner = range(1, len(points) - 1)
    kept = {0, len(points) - 1}
    for stretch in range(stretches):
        part = inner[stretch * len(inner) // stretches : (stretch + 1) * len(inner) // stretches]
        kept |= {min(part, key=lambda index: points[index][1]), max(part, key=lambda index: points[index][1])}
    return [points[index] for index in sorted(kept)]


def _showable(line: Series, log_y: bool) -> list[tuple[float, float, int]]:
    """The points that can be drawn: x, y, and how many that cannot come before. The line is broken where this number changes."""
    points, lost = [], 0
    for x, y in zip(line.x, line.y, strict=True):
        if math.isfinite(y) and (y > 0 or not log_y):
            points.append((float(x), float(y), lost))
        else:
            lost += 1
    return points


def _draw_line(frame: Frame, x_axis: Axis, y_axis: Axis, points: Sequence[tuple[Number, ...]], series: int) -> None:
    commands, previous = "", None
    for x, y, stretch in points:
        place = f"{frame.x(x_axis.place(x)):.1f} {frame.y(y_axis.place(y)):.1f}"
        # A stretch starts with a stroke of no length: with round ends a point that stands alone is then a visible dot.
        commands += f"L{place}" if stretch == previous else f"M{place}h0"
        previous = stretch
    if len(points) > 1:
        frame.canvas.path(commands, stroke(series))
    if len(points) <= MARKED:
        for x, y, _ in points:
            frame.canvas.mark(frame.x(x_axis.place(x)), frame.y(y_axis.place(y)), series)


def _description(title: str, lines: Sequence[Series], references: Sequence[Reference], unit: Unit) -> str:
    sentences = [f"{title}."]
    for line in lines:
        values = [float(y) for y in line.y if math.isfinite(y)]
        if values:
            first, last, low, high = (format_value(value, unit) for value in (values[0], values[-1], min(values), max(values)))
            sentences.append(f" {line.name}: from {first} to {last}, lowest {low}, highest {high}.")
    return "".join(sentences) + describe_references(references, unit)
