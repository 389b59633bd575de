"""SVG canvas of fixed size, which escapes all text, and number formats."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal
from xml.etree import ElementTree

Number = int | float
Unit = Literal["plain", "percent"]

WIDTH = 480.0
"""User units; the drawing scales with the page."""
HEIGHT = 300.0
CHARACTER = 7.2
"""Width of a character; generous at 12 units, so that the larger text of a phone fits as well."""
NUM_COLORS = 6
MARKERS = (  # one shape per series, so that a print in gray can be read
    "M-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0 -7 0z",
    "M0 -4.6L4.6 0L0 4.6L-4.6 0z",
    "M-3.2 -3.2h6.4v6.4h-6.4z",
    "M0 -4.4L4.2 3.2h-8.4z",
)


class Canvas:
    """The SVG of one chart under its title; `description` is what a screen reader says in its place.

    `style` is the classes of an element in `style.css`. A `hint` is shown when the mouse rests on the element.
    """

    def __init__(self, title: str, description: str, width: float = WIDTH, height: float = HEIGHT) -> None:
        """A chart that is wider than `WIDTH` takes a row of the page for itself."""
        self.width, self.height = width, height
        attributes = {"viewBox": f"0 0 {width:g} {height:g}", "role": "img", "aria-label": description}
        style = "chart wide" if width > WIDTH else "chart"
        self._root = ElementTree.Element("svg", {"class": style, "xmlns": "http://www.w3.org/2000/svg"} | attributes)
        self.text(0, 14, title, style="title")

    def text(self, x: Number, y: Number, text: str, anchor: str = "start", style: str = "", turned: int = 0) -> None:
        """One line of text, whose start, middle or end is at x and whose base line is at y; `turned` by degrees around there."""
        attributes = {"x": f"{x:.1f}", "y": f"{y:.1f}", "text-anchor": anchor, "class": style}
        if turned:
            attributes["transform"] = f"rotate({turned} {x:.1f} {y:.1f})"
        ElementTree.SubElement(self._root, "text", attributes).text = text

    def path(self, commands: str, style: str) -> None:
        """A stroke along an SVG path."""
        ElementTree.SubElement(self._root, "path", {"class": style, "d": commands})

    def mark(self, x: Number, y: Number, series: int, hint: str = "", size: float = 1.0) -> None:
        """The marker of a series."""
        transform = f"translate({x:.1f} {y:.1f})" + (f" scale({size:.2f})" if size != 1 else "")
        attributes = {"class": f"mark {color(series)}", "transform": transform, "d": MARKERS[series % len(MARKERS)]}
        self._hinted("path", attributes, hint)

    def box(self, x: Number, y: Number, width: float, height: float, opacity: float, hint: str = "") -> None:
        """A rectangle filled with the first color."""
        corner = {"x": f"{x:.1f}", "y": f"{y:.1f}", "width": f"{width:.1f}", "height": f"{height:.1f}"}
        self._hinted("rect", {"class": color(0), "fill": "currentColor", "fill-opacity": f"{opacity:.2f}"} | corner, hint)

    def cross(self, x: Number, y: Number, hint: str) -> None:
        """A warning that something cannot be shown here."""
        self._hinted("path", {"class": "lost", "d": f"M{x - 3.5:.1f} {y:.1f}l7 7m0 -7l-7 7"}, hint)

    def svg(self) -> str:
        """The element as it stands in a page."""
        return ElementTree.tostring(self._root, encoding="unicode")

    def _hinted(self, tag: str, attributes: Mapping[str, str], hint: str) -> None:
        element = ElementTree.SubElement(self._root, tag, dict(attributes))
        if hint:
            ElementTree.SubElement(element, "title").text = hint


def color(series: int) -> str:
    """The class with the color of a series."""
    return f"s{series % NUM_COLORS}"


def stroke(series: int) -> str:
    """The classes of the line of a series: its color, and dashes of its own; where colors come again, with other dashes."""
    return f"line {color(series)} d{(series + 2 * (series // NUM_COLORS)) % NUM_COLORS}"


def format_value(value: Number, unit: Unit = "plain") -> str:
    """A number as people write it: 71.3%, 0.00125, 6.30, 1,250."""
    if not math.isfinite(value):
        return str(value)
    if unit == "percent":
        return f"{100 * value:.1f}%"
    if value == 0 or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 1 else f"{value:.2f}"
