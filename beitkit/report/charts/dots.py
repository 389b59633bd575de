"""Dot chart over categories: one dot per seed, with the mean and the range."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from beitkit.report.charts.axes import Axis, Frame, Reference, describe_references, draw_legend, draw_y_axis, linear_axis
from beitkit.report.charts.canvas import Canvas, Number, Unit, color, format_value, stroke

_WIDEST_SLOT = 90.0
_LABEL = 34.0
"""User units that a value over its dots needs."""
_LEAST_SHARES = 0.05
"""An axis of shares is at least five points long, so that a chance difference does not fill the chart."""


@dataclass(frozen=True)
class Dots:
    """A named set of measurements: for each category of the chart the values of all seeds (none if it was not measured)."""

    name: str
    values: Sequence[Sequence[Number]]
    intervals: Sequence[tuple[Number, Number] | None] = ()
    """How far the one value of each category can be trusted, from and to; none for several seeds, whose range is drawn."""


def dot_chart(
    dots: Sequence[Dots],
    categories: Sequence[str],
    *,
    title: str,
    x_label: str,
    y_label: str,
    y_reference: Sequence[Reference] = (),
    unit: Unit = "percent",
    connect: bool = False,
    from_zero: bool = False,
) -> str:
    """An SVG with a dot for every seed, a bar from the worst to the best, and the mean as a stroke with its value.

    With `from_zero` the axis begins at 0, so that a distance is seen for what it is.

    `connect` joins the means by a line, for categories that have an order such as the blocks of a network; the values are then
    left out, and categories that do not fit keep their place but lose their name.
    """
    for one in dots:
        if len(one.values) != len(categories):
            raise ValueError(f"{one.name!r} has values for {len(one.values)} categories, the chart has {len(categories)}")
    measured = [value for one in dots for values in one.values for value in values]
    trusted = [end for one in dots for interval in one.intervals if interval is not None for end in interval]
    zero = [0.0] if from_zero else []
    y_axis = linear_axis(
        [*zero, *measured, *trusted, *(value for _, value in y_reference)],
        padding=0.1,
        least=_LEAST_SHARES if unit == "percent" else 0.0,
    )
    canvas = Canvas(title, _description(title, dots, categories, y_reference, unit))
    legend_height = draw_legend(canvas, [one.name for one in dots], marker=True)
    frame = draw_y_axis(canvas, y_axis, y_label, unit, legend_height)
    frame.draw_references(y_axis, y_reference)
    frame.draw_categories(categories, x_label)
    band = (frame.right - frame.left) / max(1, len(categories))
    slot = 0.0 if connect else min(_WIDEST_SLOT, 0.8 * band / max(1, len(dots)))
    for index, one in enumerate(dots):
        shift = (index - (len(dots) - 1) / 2) * slot
        groups = [(frame.left + (place + 0.5) * band + shift, values) for place, values in enumerate(one.values) if values]
        if connect and len(groups) > 1:
            means = (f"{center:.1f} {frame.y(y_axis.place(fmean(values))):.1f}" for center, values in groups)
            canvas.path(f"M{'L'.join(means)}", stroke(index))
        for place, interval in enumerate(one.intervals):
            if interval is not None:
                center = frame.left + (place + 0.5) * band + shift
                low, high = (frame.y(y_axis.place(end)) for end in interval)
                canvas.path(f"M{center - 6:.1f} {high:.1f}h12m-6 0V{low:.1f}m-6 0h12", f"interval {color(index)}")
        for place, (center, values) in zip((place for place, values in enumerate(one.values) if values), groups, strict=True):
            _draw_group(frame, y_axis, center, values, index, unit)
            if not connect and slot >= _LABEL:
                interval = one.intervals[place] if place < len(one.intervals) else None
                top = frame.y(y_axis.place(max(*values, interval[1]) if interval else max(values)))
                canvas.text(center, top - 9, format_value(fmean(values), unit), "middle", f"value {color(index)}")
    return canvas.svg()


def _draw_group(frame: Frame, axis: Axis, center: float, values: Sequence[Number], series: int, unit: Unit) -> None:
    """The seeds of one category: range, mean and dots."""
    if len(values) > 1:
        lowest, mean, highest = (frame.y(axis.place(value)) for value in (min(values), fmean(values), max(values)))
        frame.canvas.path(f"M{center:.1f} {lowest:.1f}V{highest:.1f}", f"range {color(series)}")
        frame.canvas.path(f"M{center - 12:.1f} {mean:.1f}h24", f"mean {color(series)}")
    for seed, value in enumerate(values):
        # Seeds stand side by side, or equal ones would hide each other.
        x = center + (seed - (len(values) - 1) / 2) * min(8.0, 20 / len(values))
        frame.canvas.mark(x, frame.y(axis.place(value)), series, hint=format_value(value, unit))


def _description(title: str, dots: Sequence[Dots], categories: Sequence[str], references: Sequence[Reference], unit: Unit) -> str:
    sentences = [f"{title}."]
    for one in dots:
        intervals = [*one.intervals, *([None] * (len(categories) - len(one.intervals)))]
        for category, values, interval in zip(categories, one.values, intervals, strict=True):
            if values:
                low, mean, high = (format_value(value, unit) for value in (min(values), fmean(values), max(values)))
                spread = f", {len(values)} seeds from {low} to {high}" if len(values) > 1 else ""
                if interval is not None:
                    spread += f" (interval {' to '.join(format_value(end, unit) for end in interval)})"
                sentences.append(f" {one.name}, {category}: {mean}{spread}.")
    return "".join(sentences) + describe_references(references, unit)
