"""Charts as inline SVG: lines over the steps of a run, dots for accuracies with one dot per seed, and what a classifier
confuses and how far its probabilities can be believed.

A chart carries no colors of its own: its elements have classes (`s0`, `s1`, ... for the series) that `style.css` colors for a
light page, a dark page and paper. Its `aria-label` says in words what it shows. Coordinates are user units of a 480 wide
drawing that scales with the page.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal, NamedTuple

Number = int | float
Unit = Literal["plain", "percent"]
Reference = tuple[str, Number]

WIDTH = 480.0
HEIGHT = 300.0
NUM_COLORS = 6
MOST_POINTS = 400

_CHARACTER = 7.2  # width of a character; generous at 12 units, so that the larger text of a phone fits as well
_LINE = 16.0
_LONGEST_NAME = 16
_MARKERS = (  # one shape per series, so that a print in grey can be read
    "M-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0 -7 0z",
    "M0 -4.6L4.6 0L0 4.6L-4.6 0z",
    "M-3.2 -3.2h6.4v6.4h-6.4z",
    "M0 -4.4L4.2 3.2h-8.4z",
)


@dataclass(frozen=True)
class Series:
    """A named line: y over x. Values that are not finite break the line and are marked at the top edge."""

    name: str
    x: Sequence[Number]
    y: Sequence[Number]

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y):
            raise ValueError(f"series {self.name!r} has {len(self.x)} x values but {len(self.y)} y values")


@dataclass(frozen=True)
class Dots:
    """A named set of measurements: for each category of the chart the values of all seeds (none if it was not measured)."""

    name: str
    values: Sequence[Sequence[Number]]


class _Axis(NamedTuple):
    """Maps values to [0, 1] of an axis; `ticks` are values inside it, `step` is their distance (0 on a log axis)."""

    low: float
    high: float
    ticks: list[float]
    step: float
    is_log: bool

    def place(self, value: Number) -> float:
        if self.is_log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


class _Frame(NamedTuple):
    """The rectangle the data is drawn in."""

    left: float
    top: float
    right: float
    bottom: float

    def y(self, share: float) -> float:
        return self.bottom - share * (self.bottom - self.top)

    def x(self, share: float) -> float:
        return self.left + share * (self.right - self.left)


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
    shown = [(line, *_showable(line, log_y)) for line in lines]
    references = [(name, float(value)) for name, value in y_reference if math.isfinite(value) and (value > 0 or not log_y)]
    xs = [x for _, points, gaps in shown for x in [*(x for x, _ in points), *gaps]]
    ys = [y for _, points, _ in shown for _, y in points]
    starts = [0.0] if xs and 0 < min(xs) < 0.1 * max(xs) else []  # the first logged step is a little after the beginning
    x_axis = _linear_axis([*starts, *xs], padding=0.0)
    y_axis = (_log_axis if log_y else _linear_axis)([*ys, *(value for _, value in references)])
    legend, legend_height = _legend([line.name for line in lines], marker=False)
    frame = _frame(y_axis, unit, legend_height)
    parts = [_heading(title, legend), _y_grid(frame, y_axis, unit, y_label), _x_ticks(frame, x_axis, x_label)]
    parts.append(_references(frame, y_axis, references))
    if not ys:
        parts.append(_text((frame.left + frame.right) / 2, (frame.top + frame.bottom) / 2, "no values yet", "middle", "quiet"))
    for index, (line, points, gaps) in enumerate(shown):
        parts.append(_line(frame, x_axis, y_axis, thin(points), gaps, index))
        lost = [x for x, y in zip(line.x, line.y, strict=True) if not math.isfinite(y)]
        parts += [_lost(frame, frame.x(x_axis.place(x)), f"{line.name} is not finite at {x:g}") for x in lost[:MOST_POINTS]]
    return _svg(_describe_lines(title, lines, references, unit), parts)


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
) -> str:
    """An SVG with a dot for every seed, a bar from the worst to the best, and the mean as a stroke with its value.

    `connect` joins the means by a line, for categories that have an order such as the blocks of a network; the values are then
    left out, and categories that do not fit keep their place but lose their name.
    """
    for one in dots:
        if len(one.values) != len(categories):
            raise ValueError(f"{one.name!r} has values for {len(one.values)} categories, the chart has {len(categories)}")
    references = [(name, float(value)) for name, value in y_reference]
    measured = [value for one in dots for values in one.values for value in values]
    y_axis = _linear_axis([*measured, *(value for _, value in references)], padding=0.1)
    legend, legend_height = _legend([one.name for one in dots], marker=True)
    frame = _frame(y_axis, unit, legend_height)
    band = (frame.right - frame.left) / max(1, len(categories))
    parts = [_heading(title, legend), _y_grid(frame, y_axis, unit, y_label), _references(frame, y_axis, references)]
    parts += [_category_names(frame, categories, band), _axis_name(frame, x_label)]
    slot = 0.0 if connect else min(90.0, 0.8 * band / max(1, len(dots)))
    for index, one in enumerate(dots):
        shift = (index - (len(dots) - 1) / 2) * slot
        centers = [frame.left + (place + 0.5) * band + shift for place in range(len(categories))]
        groups = [
            (center, [float(value) for value in values]) for center, values in zip(centers, one.values, strict=True) if values
        ]
        parts.append(_dot_series(frame, y_axis, groups, index, unit, connect, is_labeled=not connect and slot >= 34))
    return _svg(_describe_dots(title, dots, categories, references, unit), parts)


def heat_map(counts: Sequence[Sequence[int]], names: Sequence[str], *, title: str, x_label: str, y_label: str) -> str:
    """An SVG of a square table of counts, one row per name from the top down; a cell is as dark as its share of its row.

    Counts are written where they fit; names that do not fit are left out, and long ones are cut.
    """
    if [len(row) for row in counts] != [len(names)] * len(names):
        raise ValueError(f"a heat map of {len(names)} names needs as many rows and columns of counts")
    short = [name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…" for name in names]
    frame = _Frame(left=12 + max(map(len, short)) * _CHARACTER, top=46, right=WIDTH - 12, bottom=HEIGHT - 40)
    wide, high = (frame.right - frame.left) / len(names), (frame.bottom - frame.top) / len(names)
    parts = [_heading(title, ""), _text(frame.left, frame.top - 8, y_label, style="quiet")]
    parts += [_category_names(frame, short, wide), _axis_name(frame, x_label)]
    for row, (name, values) in enumerate(zip(names, counts, strict=True)):
        top = frame.top + row * high
        if row % math.ceil(12 / high) == 0:
            parts.append(_text(frame.left - 6, top + high / 2 + 4, short[row], "end"))
        for column, count in enumerate(values):
            if count:
                hint = f"{name}, {x_label} {names[column]}: {count:,}"
                parts.append(_cell(frame.left + column * wide, top, wide, high, count, count / sum(values), hint))
    right = sum(row[place] for place, row in enumerate(counts))
    total = sum(map(sum, counts))
    return _svg(f"{title}. {len(names)} rows; {right:,} of {total:,} lie on the diagonal.", parts)


def reliability_diagram(certainties: Sequence[float], accuracies: Sequence[float], pictures: Sequence[int], *, title: str) -> str:
    """An SVG of accuracy over certainty in bins of equal width over [0, 1]; on the dashed diagonal certainty comes true.

    Every bin with pictures is a bar as high as its accuracy, and a mark at its mean certainty that is the larger the more
    pictures it holds.
    """
    if not len(certainties) == len(accuracies) == len(pictures):
        raise ValueError(f"the bins are {len(certainties)}, {len(accuracies)} and {len(pictures)}; expected as many of each")
    axis = _Axis(0.0, 1.0, [tick / 5 for tick in range(6)], 0.2, is_log=False)
    frame = _frame(axis, "percent", 0.0)
    parts = [_heading(title, ""), _y_grid(frame, axis, "percent", "named right"), _x_ticks(frame, axis, "certainty")]
    parts.append(f'<path class="reference" d="M{frame.left:.1f} {frame.bottom:.1f}L{frame.right:.1f} {frame.top:.1f}"/>')
    sentences = [f"{title}."]
    bars: list[str] = []
    for place, (certainty, accuracy, count) in enumerate(zip(certainties, accuracies, pictures, strict=True)):
        if not count:
            continue
        words = f"certainty {format_value(certainty, 'percent')}: {format_value(accuracy, 'percent')} of {count:,} right"
        sentences.append(f" {words}.")
        left, right = frame.x(place / len(pictures)), frame.x((place + 1) / len(pictures))
        size = 0.5 + 1.2 * math.sqrt(count / max(pictures))
        transform = f"translate({frame.x(certainty):.1f} {frame.y(accuracy):.1f}) scale({size:.2f})"
        bars.append(
            f'<rect fill="currentColor" fill-opacity="0.18" x="{left + 1:.1f}" y="{frame.y(accuracy):.1f}" '
            f'width="{right - left - 2:.1f}" height="{frame.bottom - frame.y(accuracy):.1f}"/>'
            f'<path class="mark" transform="{transform}" d="{_MARKERS[0]}"><title>{escape(words)}</title></path>'
        )
    parts.append(f'<g class="s0">{"".join(bars)}</g>')
    return _svg("".join(sentences), parts)


def thin(points: Sequence[tuple[float, float]], limit: int = MOST_POINTS) -> list[tuple[float, float]]:
    """At most `limit` of the points, in order: the first, the last, and the lowest and highest of equal stretches between."""
    if len(points) <= limit:
        return list(points)
    stretches = (limit - 2) // 2
    inner = range(1, len(points) - 1)
    kept = {0, len(points) - 1}
    for stretch in range(stretches):
        part = inner[stretch * len(inner) // stretches : (stretch + 1) * len(inner) // stretches]
        kept |= {min(part, key=lambda index: points[index][1]), max(part, key=lambda index: points[index][1])}
    return [points[index] for index in sorted(kept)]


def format_value(value: Number, unit: Unit = "plain") -> str:
    """A number as people write it: 71.3%, 0.00125, 6.30, 1,250."""
    if not math.isfinite(value):
        return str(value)
    if unit == "percent":
        return f"{100 * value:.1f}%"
    if value == 0 or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 1 else f"{value:.2f}"


def _showable(line: Series, log_y: bool) -> tuple[list[tuple[float, float]], list[float]]:
    """The points that can be drawn, and the x of those that cannot."""
    points, gaps = [], []
    for x, y in zip(line.x, line.y, strict=True):
        if math.isfinite(y) and (y > 0 or not log_y):
            points.append((float(x), float(y)))
        else:
            gaps.append(float(x))
    return points, gaps


def _linear_axis(values: Sequence[Number], padding: float = 0.05) -> _Axis:
    low, high = (float(min(values)), float(max(values))) if values else (0.0, 1.0)
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # one value only: give it room
        room = abs(low) * 0.1 or 0.5
        low, high = low - room, high + room
        padding = 0.0
    # Nothing that cannot be negative gets a negative end from the padding.
    low, high = (
        (max(0.0, low - padding * (high - low)) if low >= 0 else low - padding * (high - low)),
        high + padding * (high - low),
    )
    rough = (high - low) / 6
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1.0, 2.0, 5.0, 10.0) if factor * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return _Axis(low, high, [index * step for index in range(first, last + 1)], step, is_log=False)


def _log_axis(values: Sequence[float]) -> _Axis:
    low, high = (min(values), max(values)) if values else (0.1, 1.0)
    if high / low < 1.1:
        low, high = low / 2, high * 2
    low, high = low * (low / high) ** 0.04, high * (high / low) ** 0.04
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1,) if high / low >= 1e3 else (1, 2, 5)
    every = max(1, math.ceil(len(powers) / 7))
    ticks = [factor * 10.0**power for power in powers[::every] for factor in factors]
    return _Axis(low, high, [tick for tick in ticks if low <= tick <= high], 0.0, is_log=True)


def _tick_label(value: float, axis: _Axis, unit: Unit) -> str:
    if axis.is_log and unit == "plain":
        return f"{value:g}" if 1e-3 <= value < 1e5 else f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    scale = 100.0 if unit == "percent" else 1.0
    value, step = value * scale, (axis.step or axis.ticks[0]) * scale
    ending = "%" if unit == "percent" else ""
    if step >= 1000 or (abs(value) >= 10_000 and step >= 100):
        return f"{value / 1000:.{0 if step >= 1000 else 1}f}k{ending}" if value else f"0{ending}"
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    if decimals > 4:
        return f"{value:.1e}" if value else "0"
    return f"{value:.{decimals}f}{ending}"


def _frame(y_axis: _Axis, unit: Unit, legend_height: float) -> _Frame:
    widest = max((len(_tick_label(tick, y_axis, unit)) for tick in y_axis.ticks), default=1)
    return _Frame(left=10 + widest * _CHARACTER, top=46 + legend_height, right=WIDTH - 12, bottom=HEIGHT - 40)


def _svg(description: str, parts: Sequence[str]) -> str:
    body = "".join(parts)
    size = f'viewBox="0 0 {WIDTH:g} {HEIGHT:g}"'
    return (
        f'<svg class="chart" xmlns="http://www.w3.org/2000/svg" role="img" {size} aria-label="{escape(description)}">{body}</svg>'
    )


def _text(x: Number, y: Number, text: str, anchor: str = "start", style: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{style}">{escape(text)}</text>'


def _heading(title: str, legend: str) -> str:
    return _text(0, 14, title, style="title") + legend


def _legend(names: Sequence[str], *, marker: bool) -> tuple[str, float]:
    """Swatches with names, as many rows as they need, and their height; nothing for a single line, which the title names."""
    if len(names) < 2:
        return "", 0.0
    parts, x, row = [], 0.0, 0
    for index, name in enumerate(names):
        width = 30 + len(name) * _CHARACTER
        if x and x + width > WIDTH:
            x, row = 0.0, row + 1
        y = 34 + row * _LINE
        swatch = f'<path class="mark" transform="translate({x + 6:.1f} {y - 4:.1f})" d="{_MARKERS[index % len(_MARKERS)]}"/>'
        stroke = f'<path class="line d{index % NUM_COLORS}" d="M{x:.1f} {y - 4:.1f}h18"/>'
        parts.append(
            f'<g class="s{index % NUM_COLORS}">{swatch if marker else stroke}</g>' + _text(x + (16 if marker else 24), y, name)
        )
        x += width + 8
    return "".join(parts), (row + 1) * _LINE + 4


def _y_grid(frame: _Frame, axis: _Axis, unit: Unit, label: str) -> str:
    parts = [_text(frame.left, frame.top - 8, label, style="quiet")]
    for tick in axis.ticks:
        y = frame.y(axis.place(tick))
        parts.append(f'<path class="grid" d="M{frame.left:.1f} {y:.1f}H{frame.right:.1f}"/>')
        parts.append(_text(frame.left - 6, y + 4, _tick_label(tick, axis, unit), "end", "quiet"))
    return "".join(parts)


def _x_ticks(frame: _Frame, axis: _Axis, label: str) -> str:
    parts = [f'<path class="axis" d="M{frame.left:.1f} {frame.bottom:.1f}H{frame.right:.1f}"/>', _axis_name(frame, label)]
    for tick in axis.ticks:
        x = frame.x(axis.place(tick))
        parts.append(f'<path class="axis" d="M{x:.1f} {frame.bottom:.1f}v4"/>')
        name = _tick_label(tick, axis, "plain")
        half = len(name) * _CHARACTER / 2
        parts.append(_text(min(x, WIDTH - half), frame.bottom + 17, name, "middle", "quiet"))
    return "".join(parts)


def _axis_name(frame: _Frame, label: str) -> str:
    return _text((frame.left + frame.right) / 2, HEIGHT - 6, label, "middle", "quiet")


def _references(frame: _Frame, axis: _Axis, references: Sequence[tuple[str, float]]) -> str:
    """Dashed lines with their names at the right; names of neighboring lines are pushed apart so that both can be read."""
    parts: list[str] = []
    lowest_name = math.inf  # y grows downwards: names are set from the bottom up
    for name, value in sorted(references, key=lambda reference: reference[1]):
        y = frame.y(axis.place(value))
        name_y = min(y - 4, lowest_name - 14)
        lowest_name = name_y
        parts.append(f'<path class="reference" d="M{frame.left:.1f} {y:.1f}H{frame.right:.1f}"/>')
        parts.append(_text(frame.right, name_y, name, "end", "reference-name"))
    return "".join(parts)


def _line(
    frame: _Frame, x_axis: _Axis, y_axis: _Axis, points: Sequence[tuple[float, float]], gaps: Sequence[float], index: int
) -> str:
    commands: list[str] = []
    previous: float | None = None
    for x, y in points:
        place = f"{frame.x(x_axis.place(x)):.1f} {frame.y(y_axis.place(y)):.1f}"
        is_joined = previous is not None and bisect_left(gaps, previous) == bisect_left(gaps, x)
        # A stretch starts with a stroke of no length: with round ends a point that stands alone is then a visible dot.
        commands.append(f"L{place}" if is_joined else f"M{place}h0")
        previous = x
    color = index % NUM_COLORS
    if len(points) == 1:
        x, y = frame.x(x_axis.place(points[0][0])), frame.y(y_axis.place(points[0][1]))
        return f'<circle class="s{color}" fill="currentColor" cx="{x:.1f}" cy="{y:.1f}" r="3"/>'
    return f'<path class="line s{color} d{color}" d="{"".join(commands)}"/>' if commands else ""


def _lost(frame: _Frame, x: float, text: str) -> str:
    cross = f"M{x - 3.5:.1f} {frame.top + 1:.1f}l7 7m0 -7l-7 7"
    return f'<path class="lost" d="{cross}"><title>{escape(text)}</title></path>'


def _cell(x: float, y: float, width: float, height: float, count: int, share: float, hint: str) -> str:
    """A cell of a heat map, with its number where it fits and can be read on the shade."""
    number = f"{count:,}"
    is_written = height >= 13 and width >= len(number) * _CHARACTER
    place = f'x="{x + 0.5:.1f}" y="{y + 0.5:.1f}" width="{width - 1:.1f}" height="{height - 1:.1f}"'
    shade = 0.06 + 0.54 * share  # never so dark that the number drowns
    rectangle = f'<rect class="s0" fill="currentColor" fill-opacity="{shade:.2f}" {place}><title>{escape(hint)}</title></rect>'
    return rectangle + (_text(x + width / 2, y + height / 2 + 4, number, "middle") if is_written else "")


def _category_names(frame: _Frame, names: Sequence[str], band: float) -> str:
    longest = max((len(name) for name in names), default=0)
    every = max(1, math.ceil((longest + 1) * _CHARACTER / band))
    parts = [f'<path class="axis" d="M{frame.left:.1f} {frame.bottom:.1f}H{frame.right:.1f}"/>']
    for place, name in enumerate(names):
        if place % every == 0:
            parts.append(_text(frame.left + (place + 0.5) * band, frame.bottom + 17, name, "middle"))
    return "".join(parts)


def _dot_series(
    frame: _Frame,
    axis: _Axis,
    groups: Sequence[tuple[float, list[float]]],
    index: int,
    unit: Unit,
    connect: bool,
    is_labeled: bool,
) -> str:
    parts: list[str] = []
    means = [(center, frame.y(axis.place(sum(values) / len(values)))) for center, values in groups]
    if connect and len(means) > 1:
        parts.append(f'<path class="line d{index % NUM_COLORS}" d="M{"L".join(f"{x:.1f} {y:.1f}" for x, y in means)}"/>')
    for (center, values), (_, mean_y) in zip(groups, means, strict=True):
        top, bottom = frame.y(axis.place(max(values))), frame.y(axis.place(min(values)))
        if len(values) > 1:
            parts.append(f'<path class="range" d="M{center:.1f} {bottom:.1f}V{top:.1f}"/>')
            parts.append(f'<path class="mean" d="M{center - 12:.1f} {mean_y:.1f}h24"/>')
        for seed, value in enumerate(values):
            # Seeds stand side by side, or equal ones would hide each other.
            x = center + (seed - (len(values) - 1) / 2) * min(8.0, 20 / len(values))
            place = f"translate({x:.1f} {frame.y(axis.place(value)):.1f})"
            name = f"<title>{format_value(value, unit)}</title>"
            parts.append(f'<path class="mark" transform="{place}" d="{_MARKERS[index % len(_MARKERS)]}">{name}</path>')
        if is_labeled:
            parts.append(_text(center, top - 9, format_value(sum(values) / len(values), unit), "middle", "value"))
    return f'<g class="s{index % NUM_COLORS}">{"".join(parts)}</g>'


def _describe_references(references: Sequence[tuple[str, float]], unit: Unit) -> str:
    return "".join(f" Reference line: {name} ({format_value(value, unit)})." for name, value in references)


def _describe_lines(title: str, lines: Sequence[Series], references: Sequence[tuple[str, float]], unit: Unit) -> str:
    sentences = [f"{title}."]
    for line in lines:
        values = [float(y) for y in line.y if math.isfinite(y)]
        if values:
            first, last, low, high = (format_value(value, unit) for value in (values[0], values[-1], min(values), max(values)))
            sentences.append(f" {line.name}: from {first} to {last}, lowest {low}, highest {high}.")
    return "".join(sentences) + _describe_references(references, unit)


def _describe_dots(
    title: str, dots: Sequence[Dots], categories: Sequence[str], references: Sequence[tuple[str, float]], unit: Unit
) -> str:
    sentences = [f"{title}."]
    for one in dots:
        for category, values in zip(categories, one.values, strict=True):
            if values:
                low, mean, high = (format_value(value, unit) for value in (min(values), sum(values) / len(values), max(values)))
                spread = f", {len(values)} seeds from {low} to {high}" if len(values) > 1 else ""
                sentences.append(f" {one.name}, {category}: {mean}{spread}.")
    return "".join(sentences) + _describe_references(references, unit)
