from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from beitkit.report.charts import Series, line_chart
from beitkit.report.document import Report, Tile
from beitkit.report.normal import Line
from beitkit.report.table import Column, Table, percent

VOID = {"meta", "link", "img", "path"}


class Page(HTMLParser):
    """Collects tags, attributes and text, and fails on tags that do not nest."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID or tag == "path":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def full_report(text: str = "plain") -> Report:
    report = Report(text, text)
    report.facts([(text, text)])
    report.verdict(text, True, text)
    report.section(text, text)
    report.normal_lines([Line("ok", text), ("warn", text), ("note", text)])
    report.paragraph(text)
    report.command(text)
    report.figure(line_chart([Series(text, [0, 1], [1, 2])], title=text, x_label=text, y_label=text), text)
    report.section(text)
    report.images({text: torch.rand(2, 3, 4, 4)}, text)
    report.table(Table([text, text], [[text, text]], text))
    return report


def test_the_page_is_well_formed_and_complete() -> None:
    page = Page(full_report("some words").html())
    assert page.text.count("some words") >= 20
    assert len(page.all("svg")) == 1
    assert len(page.all("img")) == 2


def test_nothing_is_fetched_and_nothing_runs() -> None:
    html = full_report().html()
    page = Page(html)
    assert page.all("script") == []
    sources = [value for _, attributes in page.tags for name, value in attributes.items() if name in {"src", "href"}]
    assert all(value is not None and value.startswith(("data:", "#")) for value in sources)
    assert "url(" not in html
    assert "@import" not in html
    (policy,) = [tag["content"] for tag in page.all("meta") if tag.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_all_text_is_escaped() -> None:
    evil = '<script>alert("1")</script>&\''
    page = Page(full_report(evil).html())
    assert page.all("script") == []
    assert page.text.count(evil) >= 15
    assert page.all("img")[0]["alt"] == f"{evil}, example 1"


def test_every_section_can_be_reached_by_its_own_anchor() -> None:
    report = Report("t")
    for title in ("Is this normal?", "Curves", "Curves", "表"):
        report.section(title)
    page = Page(report.html())
    anchors = [section["id"] for section in page.all("section")]
    assert anchors == ["is-this-normal", "curves", "curves-2", "section"]
    links = [link["href"] for link in page.all("a")]
    assert links[:4] == [f"#{anchor}" for anchor in anchors]


def test_states_are_said_in_words_too() -> None:
    page = Page(full_report().html())
    signs = [span["aria-label"] for span in page.all("span") if "aria-label" in span]
    assert signs == ["Normal", "Warning", "Note"]


@pytest.mark.parametrize(("good", "tone"), [(True, "good"), (False, "bad"), (None, "open")])
def test_a_verdict_has_its_tone(good: bool | None, tone: str) -> None:
    report = Report("t")
    report.verdict("it helps", good)
    assert {"class": f"verdict {tone}"} in Page(report.html()).all("div")


def test_images_arrive_unchanged() -> None:
    values = torch.randint(0, 256, (2, 3, 128, 128))
    report = Report("t")
    report.images({"original": values / 255, "gray": torch.rand(2, 1, 16, 16)}, "c")
    images = Page(report.html()).all("img")
    assert [image["alt"] for image in images] == [
        "original, example 1",
        "gray, example 1",
        "original, example 2",
        "gray, example 2",
    ]
    assert (images[1]["width"], images[1]["height"]) == ("128", "128")
    data = base64.b64decode((images[2]["src"] or "").removeprefix("data:image/png;base64,"))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), values[1].permute(1, 2, 0).numpy())


@pytest.mark.parametrize(("rows", "columns", "tables"), [(3, 4, 1), (4, 4, 2), (7, 2, 2), (8, 5, 1)])
def test_long_sheets_are_set_in_two_halves(rows: int, columns: int, tables: int) -> None:
    report = Report("t")
    report.images({f"column {index}": torch.rand(rows, 1, 2, 2) for index in range(columns)}, "c")
    page = Page(report.html())
    assert len(page.all("table")) == tables
    assert len(page.all("img")) == rows * columns


def test_tables_align_and_check_their_rows() -> None:
    report = Report("t")
    report.table(Table(["labels", Column("accuracy", percent)], [["50", 0.315]], "c"))
    page = Page(report.html())
    assert [cell["class"] for cell in page.all("td")] == ["right"]
    assert "31.5%" in page.text
    assert [cell["scope"] for cell in page.all("th")] == ["col", "col", "row"]
    with pytest.raises(ValueError, match="2 columns, but a row has 3"):
        report.table(Table(["a", "b"], [["1", "2", "3"]], "c"))


def test_names_in_backticks_are_set_as_code() -> None:
    report = Report("t")
    report.paragraph("lower `mask.min_block`, or <b> `lr`. Not --this")
    codes = re.findall(r'<code class="option">(.*?)</code>', report.html())
    assert codes == ["mask.min_block", "lr"]


def test_the_file_is_the_page(tmp_path: Path) -> None:
    report = full_report("größer")
    report.write(tmp_path / "runs" / "report.html")
    assert (tmp_path / "runs" / "report.html").read_text(encoding="utf-8") == report.html()
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["report.html"]


def test_a_legend_names_its_colors_escaped() -> None:
    report = Report("Legend")
    report.legend({"sky": (1, 2, 3), "<road>": (255, 0, 0)})
    html = report.html()
    assert 'style="background:rgb(1, 2, 3)"></i>sky</li>' in html
    assert "&lt;road&gt;" in html


def test_a_gallery_shows_its_images_with_their_names() -> None:
    report = Report("t")
    report.gallery([Tile(Image.new("RGB", (40, 20), (250, 10, 10)), "a<b>.png", "distance 0.1")], "1 of 3.")
    page = Page(report.html())
    (image,) = page.all("img")
    assert (image["width"], image["height"], image["alt"]) == ("40", "20", "a<b>.png")
    shown = Image.open(io.BytesIO(base64.b64decode((image["src"] or "").removeprefix("data:image/jpeg;base64,"))))
    assert np.abs(np.asarray(shown).astype(int) - (250, 10, 10)).max() < 5
    assert all(text in page.text for text in ("a<b>.png", "distance 0.1", "1 of 3."))


def test_facts_take_as_many_columns_as_they_need() -> None:
    report = Report("Run")
    report.facts([("Steps", "500"), ("Folder", "/home/ada/" + 3 * "long-name/"), ("Own images", "word " * 20)])
    widths = re.findall(r"<div( class=\"\w+\")?><dt>", report.html())
    assert widths == ["", ' class="wide"', ' class="widest"']
