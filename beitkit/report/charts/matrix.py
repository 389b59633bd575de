"""Heat map of a square table of counts, such as a confusion matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence

from beitkit.report.charts.axes import CLOSEST_SLANTED, Frame
from beitkit.report.charts.canvas import CHARACTER, HEIGHT, WIDTH, Canvas

_LONGEST_NAME = 16
_CLOSEST = 13.0
"""User units between names: the height of a letter, and a gap."""
_TOP, _RIGHT, _BELOW = 46.0, 12.0, 24.0
"""User units around the cells and names: title and y axis' name, margin, x axis' name."""


def heat_map(counts: Sequence[Sequence[int]], names: Sequence[str], *, title: str, x_label: str, y_label: str) -> str:
    """An SVG of a square table of counts, one row per name from the top down; a cell is as dark as its share of its row.

    Every row and column has its name, turned where it would not fit; long ones are cut. With many names the chart grows. Counts
    are written where they fit.
    """
    if [len(row) for row in counts] != [len(names)] * len(names):
        raise ValueError(f"a heat map of {len(names)} names needs as many rows and columns of counts")
    right, total = sum(row[place] for place, row in enumerate(counts)), sum(map(sum, counts))
    short = [name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…" for name in names]
    longest = max(map(len, short)) * CHARACTER
    left = 12 + longest
    width = max(WIDTH, left + _RIGHT + _CLOSEST * len(names))
    wide = (width - _RIGHT - left) / len(names)
    is_turned = longest + CHARACTER > wide
    slope = math.sqrt(0.5) if wide >= CLOSEST_SLANTED else 1.0
    below = _BELOW + (12 + longest * slope if is_turned else 16)
    height = _TOP + max(HEIGHT - _TOP - 40, _CLOSEST * len(names)) + below
    description = f"{title}. {len(names)} rows; {right:,} of {total:,} lie on the diagonal."
    canvas = Canvas(title, description, width, height)
    frame = Frame(canvas, left=left, top=_TOP, right=width - _RIGHT, bottom=height - below)
    high = (frame.bottom - frame.top) / len(names)
    canvas.text(frame.left, frame.top - 8, y_label, style="quiet")
    (frame.draw_turned_categories if is_turned else frame.draw_categories)(short, x_label)
    for row, (name, values) in enumerate(zip(names, counts, strict=True)):
        top = frame.top + row * high
        canvas.text(frame.left - 6, top + high / 2 + 4, short[row], "end")
        for column, count in enumerate(values):
            if not count:
                continue
            left = frame.left + column * wide
            shade = 0.06 + 0.54 * count / sum(values)  # never so dark that the number drowns
            hint = f"{name}, {x_label} {names[column]}: {count:,}"
            canvas.box(left + 0.5, top + 0.5, wide - 1, high - 1, shade, hint)
            if high >= 13 and wide >= len(f"{count:,}") * CHARACTER:
                canvas.text(left + wide / 2, top + high / 2 + 4, f"{count:,}", "middle")
    return canvas.svg()
