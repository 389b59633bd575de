"""Reliability diagram of a classifier."""

from __future__ import annotations

import math
from collections.abc import Sequence

from beitkit.report.charts.axes import Axis, draw_y_axis
from beitkit.report.charts.canvas import Canvas, format_value


def reliability_diagram(certainties: Sequence[float], accuracies: Sequence[float], images: Sequence[int], *, title: str) -> str:
    """An SVG of accuracy over certainty in bins of equal width over [0, 1]; on the dashed diagonal certainty comes true.

    Every bin with images is a bar as high as its accuracy, and a mark at its mean certainty that is the larger the more
    images it holds.
    """
    if not len(certainties) == len(accuracies) == len(images):
        raise ValueError(f"the bins are {len(certainties)}, {len(accuracies)} and {len(images)}; expected as many of each")
    bins = [
        (
            place,
            certainty,
            accuracy,
            count,
            f"certainty {format_value(certainty, 'percent')}: {format_value(accuracy, 'percent')} of {count:,} right",
        )
        for place, (certainty, accuracy, count) in enumerate(zip(certainties, accuracies, images, strict=True))
        if count
    ]
    canvas = Canvas(title, " ".join([f"{title}.", *(f"{words}." for *_, words in bins)]))
    axis = Axis(0.0, 1.0, [tick / 5 for tick in range(6)], 0.2, is_log=False)
    frame = draw_y_axis(canvas, axis, "named right", "percent")
    frame.draw_x_axis(axis, "certainty")
    canvas.path(f"M{frame.left:.1f} {frame.bottom:.1f}L{frame.right:.1f} {frame.top:.1f}", "reference")
    for place, certainty, accuracy, count, words in bins:
        left, right, top = frame.x(place / len(images)), frame.x((place + 1) / len(images)), frame.y(accuracy)
        canvas.box(left + 1, top, right - left - 2, frame.bottom - top, 0.18)
        canvas.mark(frame.x(certainty), top, 0, hint=words, size=0.5 + 1.2 * math.sqrt(count / max(images)))
    return canvas.svg()
