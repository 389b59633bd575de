from __future__ import annotations

import math
import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beitkit.report.charts import Dots, Series, dot_chart, heat_map, line_chart, reliability_diagram
from beitkit.report.charts.canvas import HEIGHT, WIDTH, format_value
from beitkit.report.charts.lines import thin

SVG = "{http://www.w3.org/2000/svg}"
LABELS = {"title": "Loss", "x_label": "step", "y_label": "nats"}
finite = st.floats(-1e6, 1e6).map(lambda value: value if abs(value) > 1e-30 else 0.0)


def paths(svg: str, style: str) -> list[str]:
    root = ElementTree.fromstring(svg)
    return [path.get("d", "") for path in root.iter(f"{SVG}path") if style in path.get("class", "").split()]


def texts(svg: str) -> list[str]:
    return [text.text or "" for text in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def points(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", path)]


def test_a_line_is_drawn_to_scale() -> None:
    (path,) = paths(line_chart([Series("a", [0, 1, 4], [0, 10, 5])], **LABELS), "line")
    (x0, y0), (x1, y1), (x2, y2) = points(path)
    assert (x1 - x0) / (x2 - x0) == pytest.approx(1 / 4, abs=1e-3)
    assert (y0 - y2) / (y0 - y1) == pytest.approx(1 / 2, abs=1e-2)  # SVG's y grows downwards
    assert y1 < y0


def test_a_log_axis_gives_equal_ratios_equal_distances() -> None:
    svg = line_chart([Series("lr", [0, 1, 2], [1e-4, 1e-3, 1e-2])], log_y=True, **LABELS)
    (_, y0), (_, y1), (_, y2) = points(paths(svg, "line")[0])
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.2)
    assert {"1e-4", "0.001", "0.01"} <= set(texts(svg))


def test_zero_on_a_log_axis_leaves_a_gap_and_no_cross() -> None:
    svg = line_chart([Series("lr", [0, 1, 2], [0.0, 1e-3, 1e-2])], log_y=True, **LABELS)
    assert len(points(paths(svg, "line")[0])) == 2
    assert paths(svg, "lost") == []


def test_values_that_are_not_finite_break_the_line_and_are_marked() -> None:
    svg = line_chart([Series("a", list(range(7)), [1, 2, math.nan, 3, math.inf, 1, 2])], **LABELS)
    (path,) = paths(svg, "line")
    assert path.count("M") == 3
    assert len(points(path)) == 5
    assert len(paths(svg, "lost")) == 2
    assert "nan" not in svg.replace("a is not finite", "").lower()


def test_a_reference_line_lies_at_its_value_and_inside() -> None:
    svg = line_chart([Series("a", [0, 1], [1.0, 3.0])], y_reference=[("chance = ln 64", math.log(64)), ("low", 2.0)], **LABELS)
    heights = [float(path.split()[1].split("H")[0]) for path in paths(svg, "reference")]
    (_, y_one), (_, y_three) = points(paths(svg, "line")[0])
    assert heights[0] == pytest.approx((y_one + y_three) / 2, abs=0.2)  # 2.0 is half-way between 1 and 3
    assert 0 < heights[1] < y_three  # 4.16 is above 3
    assert "chance = ln 64" in texts(svg)


def test_names_of_equal_references_do_not_cover_each_other() -> None:
    svg = line_chart([Series("a", [0, 1], [0, 9])], y_reference=[("one", 5.0), ("two", 5.0), ("three", 5.01)], **LABELS)
    root = ElementTree.fromstring(svg)
    heights = sorted(float(text.get("y", "")) for text in root.iter(f"{SVG}text") if text.get("class") == "reference-name")
    assert min(b - a for a, b in pairwise(heights)) >= 12


def test_the_legend_names_several_lines_but_not_a_single_one() -> None:
    one = Series("training", [0, 1], [1, 2])
    assert "training" not in texts(line_chart([one], **LABELS))
    names = texts(line_chart([one, Series("held out", [0, 1], [2, 3])], **LABELS))
    assert {"training", "held out"} <= set(names)


def test_text_is_escaped() -> None:
    svg = line_chart([Series("<b>&", [0], [1]), Series('"x"', [0], [1])], title="<script>", x_label="&", y_label="'")
    assert "<script>" not in svg
    assert {"<script>", "<b>&", '"x"'} <= set(texts(svg))


@pytest.mark.parametrize("lines", [[], [Series("a", [], [])], [Series("a", [1], [math.nan])]])
def test_no_values_are_said(lines: list[Series]) -> None:
    assert "no values yet" in texts(line_chart(lines, **LABELS))


@settings(max_examples=60, deadline=None)
@given(st.lists(finite, min_size=1, max_size=30), st.booleans())
def test_any_values_give_a_readable_axis_and_stay_inside(values: list[float], log_y: bool) -> None:
    svg = line_chart([Series("a", list(range(len(values))), values)], log_y=log_y, **LABELS)
    for path in paths(svg, "line"):
        for x, y in points(path):
            assert 0 <= x <= WIDTH
            assert 0 <= y <= HEIGHT
    assert len(paths(svg, "grid")) <= 16
    if not log_y:
        assert len(paths(svg, "grid")) >= 2
        ticks = [path.split()[1].split("H")[0] for path in paths(svg, "grid")]
        assert len(set(ticks)) == len(ticks)


@pytest.mark.parametrize(
    ("top", "expected"),
    [
        (8000, ["0", "2k", "4k", "6k", "8k"]),
        (1, ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        (60, ["0", "10", "20", "30", "40", "50", "60"]),
    ],
)
def test_ticks_are_round_numbers(top: int, expected: list[str]) -> None:
    svg = line_chart([Series("a", [0, top], [0, 1])], title="t", x_label="x", y_label="y", unit="percent")
    root = ElementTree.fromstring(svg)
    quiet = [text for text in root.iter(f"{SVG}text") if text.get("class") == "quiet" and text.get("text-anchor") == "middle"]
    assert [text.text for text in quiet if text.text != "x"] == expected
    assert "20%" in texts(svg)


def test_thinning_keeps_ends_and_spikes() -> None:
    line = [(float(x), math.sin(x / 500)) for x in range(10_000)]
    line[4321] = (4321.0, 50.0)
    line[4322] = (4322.0, -50.0)
    thinned = thin(line, 400)
    assert len(thinned) <= 400
    assert thinned == sorted(set(thinned))
    assert {line[0], line[-1], line[4321], line[4322]} <= set(thinned)
    assert thin(line[:400], 400) == line[:400]


def test_a_long_line_is_thinned_in_the_chart() -> None:
    svg = line_chart([Series("a", list(range(5000)), [x % 7 for x in range(5000)])], **LABELS)
    assert 300 < len(points(paths(svg, "line")[0])) <= 400


def test_every_seed_is_a_dot_and_means_are_labeled() -> None:
    dots = [Dots("scratch", [[0.30, 0.32, 0.34], []]), Dots("pre-trained", [[0.40, 0.42, 0.41], [0.7]])]
    svg = dot_chart(dots, ["50", "500"], title="t", x_label="labels", y_label="top-1")
    assert len(paths(svg, "mark")) == 7 + 2  # and two in the legend
    assert len(paths(svg, "range")) == 2  # a single seed has no spread
    assert {"32.0%", "41.0%", "70.0%"} <= set(texts(svg))
    description = ElementTree.fromstring(svg).get("aria-label", "")
    assert "scratch, 50: 32.0%, 3 seeds from 30.0% to 34.0%." in description
    assert "pre-trained, 500: 70.0%." in description


def test_an_interval_is_drawn_where_it_lies_and_said() -> None:
    dots = Dots("top-1", [[0.4], [0.5], [0.3, 0.6]], [(0.2, 0.6), None, None])
    svg = dot_chart([dots], ["a", "b", "c"], title="t", x_label="run", y_label="top-1", from_zero=True)
    (interval,) = paths(svg, "interval")
    found = re.fullmatch(r"M[\d.]+ ([\d.]+)h12m-6 0V([\d.]+)m-6 0h12", interval)
    assert found is not None
    high, low = map(float, found.groups())
    grid = dict(zip(("0%", "20%", "40%", "60%"), grid_heights(svg), strict=True))
    assert (low, high) == (pytest.approx(grid["20%"], abs=0.2), pytest.approx(grid["60%"], abs=0.2))
    assert "top-1, a: 40.0% (interval 20.0% to 60.0%). top-1, b: 50.0%." in ElementTree.fromstring(svg).get("aria-label", "")


def grid_heights(svg: str) -> list[float]:
    return [float(path.split()[1].split("H")[0]) for path in paths(svg, "grid")]


def test_a_chart_from_zero_shows_a_distance_for_what_it_is() -> None:
    charts = [
        dot_chart([Dots("a", [[0.33], [0.35]])], ["x", "y"], title="t", x_label="x", y_label="y", from_zero=from_zero)
        for from_zero in (False, True)
    ]
    assert ["0%" in texts(svg) for svg in charts] == [False, True]


def test_a_chance_difference_does_not_fill_the_chart() -> None:
    """Shares 0.03 points apart stand as far apart as on an axis of five points; other numbers have no such scale."""
    apart, per_point = {}, {}
    for unit in ("percent", "plain"):
        svg = dot_chart([Dots("a", [[0.2094], [0.2097]])], ["x", "y"], title="t", x_label="x", y_label="y", unit=unit)
        low, high = (float(y) for y in re.findall(r"translate\([\d.]+ ([\d.]+)\)", svg))
        apart[unit], per_point[unit] = low - high, grid_heights(svg)[0] - grid_heights(svg)[1]
    assert apart["percent"] == pytest.approx(0.03 * per_point["percent"], abs=0.2)
    assert apart["plain"] > 100


def test_a_few_measurements_are_marked_and_many_are_a_line() -> None:
    few, many = (line_chart([Series("a", list(range(count)), list(range(count)))], **LABELS) for count in (5, 50))
    assert (len(paths(few, "mark")), len(paths(few, "line"))) == (5, 1)
    assert (len(paths(many, "mark")), len(paths(many, "line"))) == (0, 1)


def test_connected_means_are_one_line_per_set() -> None:
    svg = dot_chart(
        [Dots("probe", [[0.3], [0.5], [0.4]])], ["1", "2", "3"], title="t", x_label="block", y_label="y", connect=True
    )
    (path,) = paths(svg, "line")
    (_, y1), (_, y2), (_, y3) = points(path)
    assert y2 < y3 < y1


def test_the_description_says_what_is_shown() -> None:
    svg = line_chart([Series("train", [0, 1, 2], [4.0, 1.0, 2.0])], y_reference=[("chance", 4.16)], **LABELS)
    description = ElementTree.fromstring(svg).get("aria-label")
    assert description == "Loss. train: from 4.00 to 2.00, lowest 1.00, highest 4.00. Reference line: chance (4.16)."


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="3 x values but 2 y"):
        Series("a", [1, 2, 3], [1, 2])
    with pytest.raises(ValueError, match="1 categories, the chart has 2"):
        dot_chart([Dots("a", [[1.0]])], ["1", "2"], title="t", x_label="x", y_label="y")


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (0.00125, "0.00125"), (6.2994, "6.30"), (1250.4, "1,250"), (-0.5, "-0.5"), (math.nan, "nan")]
)
def test_values_are_written_as_people_do(value: float, text: str) -> None:
    assert format_value(value) == text


def rectangles(svg: str) -> list[ElementTree.Element]:
    return list(ElementTree.fromstring(svg).iter(f"{SVG}rect"))


def test_a_heat_map_is_as_dark_as_the_share_of_its_row() -> None:
    svg = heat_map([[3, 1], [0, 8]], ["cat", "<dog>"], title="Confusion", x_label="named", y_label="label")
    cells = rectangles(svg)
    assert len(cells) == 3  # nothing is drawn for a zero
    shades = [float(cell.get("fill-opacity", "")) for cell in cells]
    assert shades[1] < shades[0] < shades[2]
    assert [cell[0].text for cell in cells] == ["cat, named cat: 3", "cat, named <dog>: 1", "<dog>, named <dog>: 8"]
    assert {"cat", "<dog>", "3", "1", "8"} <= set(texts(svg))
    assert float(cells[0].get("y", "")) < float(cells[2].get("y", ""))  # the first row is the top one
    assert "11 of 12 lie on the diagonal" in ElementTree.fromstring(svg).get("aria-label", "")
    with pytest.raises(ValueError, match="as many rows"):
        heat_map([[1, 2]], ["a", "b"], title="t", x_label="x", y_label="y")


def placed(text: ElementTree.Element) -> tuple[float, float]:
    return float(text.get("x", "")), float(text.get("y", ""))


@pytest.mark.parametrize(("count", "turn"), [(2, 0), (10, -45), (20, -90), (60, -90)])
def test_every_row_and_column_of_a_heat_map_has_its_name(count: int, turn: int) -> None:
    names = [f"automobile {index}" for index in range(count)]
    svg = heat_map([[1] * count] * count, names, title="t", x_label="x", y_label="y")
    root = ElementTree.fromstring(svg)
    width, height = map(float, root.get("viewBox", "").split()[2:])
    assert ("wide" in root.get("class", "").split()) == (width > WIDTH) == (count == 60)
    for cell in rectangles(svg):
        x, y, w, h = (float(cell.get(key, "")) for key in ("x", "y", "width", "height"))
        assert 0 <= x <= x + w <= width
        assert 0 <= y <= y + h <= height
    labels = [text for text in root.iter(f"{SVG}text") if text.text in names]
    assert len(labels) == 2 * count
    columns, rows = labels[:count], labels[count:]
    assert [text.text for text in columns] == [text.text for text in rows] == names
    assert min(b - a for (_, a), (_, b) in pairwise(map(placed, rows))) >= 12
    assert all(text.get("transform", "").startswith(f"rotate({turn} ") == bool(turn) for text in columns)
    across = min(b - a for (a, _), (b, _) in pairwise(map(placed, columns)))
    assert across * math.sin(math.radians(-turn)) >= 12 or not turn  # lines of text do not touch
    if turn == -45:
        assert max(y + 0.71 * 7.2 * len(names[0]) for _, y in map(placed, columns)) < height - 18  # clear of the axis' name


def test_a_heat_map_of_many_classes_drops_what_does_not_fit() -> None:
    names = [f"class with a long name {index}" for index in range(60)]
    shown = texts(heat_map([[1000] * 60] * 60, names, title="t", x_label="x", y_label="y"))
    assert "1,000" not in shown
    assert max(map(len, shown)) <= 16


def test_a_reliability_diagram_shows_the_bins_that_hold_images() -> None:
    svg = reliability_diagram([0.2, math.nan, 0.9], [0.5, math.nan, 1.0], [2, 0, 6], title="Reliability")
    low, high = rectangles(svg)
    assert float(high.get("height", "")) == pytest.approx(2 * float(low.get("height", "")), abs=0.2)
    assert len(paths(svg, "mark")) == 2
    assert "nan" not in svg
    assert "certainty 90.0%: 100.0% of 6 right" in ElementTree.fromstring(svg).get("aria-label", "")
    with pytest.raises(ValueError, match="expected as many"):
        reliability_diagram([0.1], [0.2, 0.3], [1], title="t")


def test_a_single_value_is_a_mark() -> None:
    svg = line_chart([Series("a", [20], [1.5])], **LABELS)
    assert paths(svg, "line") == []
    assert len(paths(svg, "mark")) == 1
