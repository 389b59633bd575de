"""Charts as inline SVG: lines over steps, dots with one per seed, confusion matrices and reliability diagrams.

A chart carries no colors of its own: its elements have classes (`s0`, `s1`, ... for the series) that `style.css` colors for a
light page, a dark page and paper. Its `aria-label` says in words what it shows. Why matplotlib does not draw them: decision 010.
"""

from beitkit.report.charts.axes import Reference
from beitkit.report.charts.canvas import Unit
from beitkit.report.charts.dots import Dots, dot_chart
from beitkit.report.charts.lines import Series, line_chart
from beitkit.report.charts.matrix import heat_map
from beitkit.report.charts.reliability import reliability_diagram

__all__ = ["Dots", "Reference", "Series", "Unit", "dot_chart", "heat_map", "line_chart", "reliability_diagram"]
