"""Axes of a chart: scales, ticks, labels, reference lines and the legend."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from beitkit.report.charts.canvas import CHARACTER, HEIGHT, WIDTH, Canvas, Number, Unit, format_value, stroke

Reference = tuple[str, Number]
"""Name and value of a dashed line, such as ("chance = ln 64", 4.16)."""

_TOP = 46.0
"""User units: height of the title and the y axis' name, which stand above the data."""
CLOSEST_SLANTED = 20.0
"""User units between labels that are turned by 45 degrees."""
_ROW = 16.0
"""User units: height of a row of the legend."""


class Axis(NamedTuple):
    """Maps values to [0, 1] of an axis; `ticks` are values inside it, `step` is their distance (0 on a log axis)."""

    low: float
    high: float
    ticks: list[float]
    step: float
    is_log: bool

    def place(self, value: Number) -> float:
        """The share of the axis at which a value lies."""
        if self.is_log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def label(self, value: float, unit: Unit) -> str:
        """A tick's value with as many digits as the ticks differ in: 0.25, 20%, 8k, 1e-4."""
        if self.is_log and unit == "plain":
            return f"{value:g}" if 1e-3 <= value < 1e5 else f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
        scale = 100.0 if unit == "percent" else 1.0
        value, step = value * scale, (self.step or self.ticks[0]) * scale
        ending = "%" if unit == "percent" else ""
        if step >= 1000 or (abs(value) >= 10_000 and step >= 100):
            return f"{value / 1000:.{0 if step >= 1000 else 1}f}k{ending}" if value else f"0{ending}"
        decimals = max(0, -math.floor(math.log10(step) + 1e-9))
        if decimals > 4:
            return f"{value:.1e}" if value else "0"
        return f"{value:.{decimals}f}{ending}"


def linear_axis(values: Sequence[Number], padding: float = 0.05, least: float = 0.0) -> Axis:
    """An axis around the values, at least `least` long, with about six round ticks; `padding` is the share of room at both ends."""
    low, high = (float(min(values)), float(max(values))) if values else (0.0, 1.0)
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # one value only: give it room
        room = abs(low) * 0.1 or 0.5
        low, high = low - room, high + room
        padding = 0.0
    # Nothing that cannot be negative gets a negative end from the padding.
    room = max(padding * (high - low), (least - (high - low)) / 2)
    low, high = max(0.0, low - room) if low >= 0 else low - room, high + room
    rough = (high - low) / 6
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1.0, 2.0, 5.0, 10.0) if factor * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return Axis(low, high, [index * step for index in range(first, last + 1)], step, is_log=False)


def log_axis(values: Sequence[float]) -> Axis:
    """A logarithmic axis around positive values, with ticks at powers of ten, and 2 and 5 times these on a short one."""
    low, high = (min(values), max(values)) if values else (0.1, 1.0)
    if high / low < 1.1:
        low, high = low / 2, high * 2
    low, high = low * (low / high) ** 0.04, high * (high / low) ** 0.04
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1,) if high / low >= 1e3 else (1, 2, 5)
    every = max(1, math.ceil(len(powers) / 7))
    ticks = [factor * 10.0**power for power in powers[::every] for factor in factors]
    return Axis(low, high, [tick for tick in ticks if low <= tick <= high], 0.0, is_log=True)


@dataclass(frozen=True)
class Frame:
    """The rectangle of a canvas that the data is drawn in, in user units; y grows downwards."""

    canvas: Canvas
    left: float
    top: float = _TOP
    right: float = WIDTH - 12
    bottom: float = HEIGHT - 40

    def x(self, share: float) -> float:
        """Where a share of the x axis lies."""
        return self.left + share * (self.right - self.left)

    def y(self, share: float) -> float:
        """Where a share of the y axis lies."""
        return self.bottom - share * (self.bottom - self.top)

    def draw_x_axis(self, axis: Axis, name: str) -> None:
        """The axis with ticks and their values, over its name."""
        self._draw_base_line(name)
        for tick in axis.ticks:
            x, label = self.x(axis.place(tick)), axis.label(tick, "plain")
            self.canvas.path(f"M{x:.1f} {self.bottom:.1f}v4", "axis")
            self.canvas.text(min(x, WIDTH - len(label) * CHARACTER / 2), self.bottom + 17, label, "middle", "quiet")

    def draw_categories(self, labels: Sequence[str], name: str) -> None:
        """An axis of equal bands with a label under each, or under every second or third one if they do not fit."""
        self._draw_base_line(name)
        longest = max((len(label) for label in labels), default=0)
        every = max(1, math.ceil((longest + 1) * CHARACTER * len(labels) / (self.right - self.left)))
        for place in range(0, len(labels), every):
            self.canvas.text(self.x((place + 0.5) / len(labels)), self.bottom + 17, labels[place], "middle")

    def draw_turned_categories(self, labels: Sequence[str], name: str) -> None:
        """An axis of equal bands with a label under each, turned by 45 degrees, or upright where these would still collide."""
        self._draw_base_line(name)
        turn = -45 if (self.right - self.left) / max(1, len(labels)) >= CLOSEST_SLANTED else -90
        for place, label in enumerate(labels):
            shift = 4.0 if turn == -90 else 2.0  # half of a letter's height
            self.canvas.text(self.x((place + 0.5) / len(labels)) + shift, self.bottom + 12, label, "end", turned=turn)

    def draw_references(self, axis: Axis, references: Sequence[Reference]) -> None:
        """Dashed lines with their names at the right; names of neighboring lines are pushed apart so that both can be read."""
        lowest_name = math.inf  # y grows downwards: names are set from the bottom up
        for name, value in sorted(references, key=lambda reference: reference[1]):
            y = self.y(axis.place(value))
            lowest_name = min(y - 4, lowest_name - 14)
            self.canvas.path(f"M{self.left:.1f} {y:.1f}H{self.right:.1f}", "reference")
            self.canvas.text(self.right, lowest_name, name, "end", "reference-name")

    def _draw_base_line(self, name: str) -> None:
        self.canvas.path(f"M{self.left:.1f} {self.bottom:.1f}H{self.right:.1f}", "axis")
        self.canvas.text((self.left + self.right) / 2, self.canvas.height - 6, name, "middle", "quiet")


def draw_y_axis(canvas: Canvas, axis: Axis, name: str, unit: Unit, legend_height: float = 0.0) -> Frame:
    """Grid lines with their values, under the axis' name; the frame that these and the legend leave for the data."""
    labels = [axis.label(tick, unit) for tick in axis.ticks]
    frame = Frame(canvas, left=10 + max(map(len, labels), default=1) * CHARACTER, top=_TOP + legend_height)
    canvas.text(frame.left, frame.top - 8, name, style="quiet")
    for tick, label in zip(axis.ticks, labels, strict=True):
        y = frame.y(axis.place(tick))
        canvas.path(f"M{frame.left:.1f} {y:.1f}H{frame.right:.1f}", "grid")
        canvas.text(frame.left - 6, y + 4, label, "end", "quiet")
    return frame


def draw_legend(canvas: Canvas, names: Sequence[str], *, marker: bool) -> float:
    """Swatches with names, in as many rows as they need; their height. Nothing for a single series, which the title names."""
    if len(names) < 2:
        return 0.0
    x, row = 0.0, 0
    for index, name in enumerate(names):
        width = 30 + len(name) * CHARACTER
        if x and x + width > WIDTH:
            x, row = 0.0, row + 1
        y = 34 + row * _ROW
        if marker:
            canvas.mark(x + 6, y - 4, index)
        else:
            canvas.path(f"M{x:.1f} {y - 4:.1f}h18", stroke(index))
        canvas.text(x + (16 if marker else 24), y, name)
        x += width + 8
    return (row + 1) * _ROW + 4


def describe_references(references: Sequence[Reference], unit: Unit) -> str:
    """The reference lines as sentences."""
    return "".join(f" Reference line: {name} ({format_value(value, unit)})." for name, value in references)
