"""Heat map of a square table of counts, such as a confusion matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence

from beitkit.report.charts.axes import Frame
from beitkit.report.charts.canvas import CHARACTER, Canvas

_LONGEST_NAME = 16


def heat_map(counts: Sequence[Sequence[int]], names: Sequence[str], *, title: str, x_label: str, y_label: str) -> str:
    """An SVG of a square table of counts, one row per name from the top down; a cell is as dark as its share of its row.

    Counts are written where they fit; names that do not fit are left out, and long ones are cut.
    """
    if [len(row) for row in counts] != [len(names)] * len(names):
        raise ValueError(f"a heat map of {len(names)} names needs as many rows and columns of counts")
    right, total = sum(row[place] for place, row in enumerate(counts)), sum(map(sum, counts))
    canvas = Canvas(title, f"{title}. {len(names)} rows; {right:,} of {total:,} lie on the diagonal.")
    short = [name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…" for name in names]
    frame = Frame(canvas, left=12 + max(map(len, short)) * CHARACTER)
    wide, high = (frame.right - frame.left) / len(names), (frame.bottom - frame.top) / len(names)
    canvas.text(frame.left, frame.top - 8, y_label, style="quiet")
    frame.draw_categories(short, x_label)
    for row, (name, values) in enumerate(zip(names, counts, strict=True)):
        top = frame.top + row * high
        if row % math.ceil(12 / high) == 0:
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
