"""One self-contained `report.html`: everything inside the file, nothing fetched, readable in light, dark, print and on a phone.

    report = Report("Pre-training", "CIFAR-10, nano backbone")
    report.facts([("Images", "50,000"), ("Device", "cpu")])
    report.section("Is this normal?")
    report.normal_lines(lines)
    report.write(out / "report.html")

Blocks appear in the order of the calls; `section` begins a part that the page's navigation can jump to. What the page looks
like is in `page.html.jinja`, `blocks.html.jinja` and `style.css`; the templates escape all text.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from jaxtyping import Float
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from PIL.Image import Image
from torch import Tensor

from beitkit.report.images import CELL, check_columns, fit, png_bytes
from beitkit.report.normal import Level, Line
from beitkit.report.table import Table
from beitkit.system import write_atomically
from beitkit.terminal import with_slashes

_COLUMNS_SIDE_BY_SIDE = 8


class _Section(NamedTuple):
    anchor: str
    title: str
    lead: str
    blocks: list[Markup]


class Tile(NamedTuple):
    """An image of a gallery."""

    image: Image
    """RGB, at the size at which it is shown."""
    name: str
    note: str = ""
    """A word or two below the name."""


class Report:
    """Collects the blocks of a report and writes them as one HTML file."""

    def __init__(self, title: str, subtitle: str = "") -> None:
        self._title = title
        self._subtitle = subtitle
        self._facts: list[tuple[str, str]] = []
        self._sections = [_Section("", "", "", [])]

    def facts(self, pairs: Sequence[tuple[str, str]]) -> None:
        """What one must know of the run at a glance, for the page's head: data, network, device, time."""
        self._facts += pairs

    def section(self, title: str, lead: str = "") -> None:
        """Begin a section; `lead` is a sentence or two that says how to read it."""
        taken = {section.anchor for section in self._sections}
        wanted = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "section"
        anchor, count = wanted, 1
        while anchor in taken:
            count += 1
            anchor = f"{wanted}-{count}"
        self._sections.append(_Section(anchor, title, lead, []))

    def verdict(self, text: str, good: bool | None, detail: str = "") -> None:
        """The one sentence to take away; `good` None means that the numbers do not decide."""
        tone = {True: "good", False: "bad", None: "open"}[good]
        self._add("verdict", text=text, tone=tone, detail=detail)

    def paragraph(self, text: str) -> None:
        """Running text."""
        self._add("paragraph", text=text)

    def links(self, pages: Mapping[str, str]) -> None:
        """Other pages by name, as paths from this one."""
        self._add("links", pages=[(name, quote(page)) for name, page in pages.items()])

    def command(self, text: str) -> None:
        """Something to type into a terminal."""
        self._add("command", text=text)

    def normal_lines(self, lines: Sequence[Line | tuple[Level, str]]) -> None:
        """The answers of `report.normal`: each with a sign for normal, note or warning."""
        self._add("normal_lines", lines=lines)

    def figure(self, svg: str, caption: str) -> None:
        """A chart of `report.charts`; neighbors share a row where the page is wide enough."""
        self._add("figure", svg=Markup(svg), caption=caption)

    def legend(self, colors: Mapping[str, tuple[int, int, int]]) -> None:
        """Which color stands for what; colors are (red, green, blue), 0 to 255."""
        self._add("legend", colors=colors.items())

    def images(self, columns: Mapping[str, Float[Tensor, "r c h w"]], caption: str, *, cell: int = CELL) -> None:
        """Images in [0, 1] in labeled columns, one row per example, such as original | masked | reconstruction.

        `cell` is the most pixels that an image's long side is shown with.
        """
        rows = check_columns(columns)
        # Few columns are set in two halves side by side, so that the page does not become needlessly long.
        num_parts = 2 if rows >= 4 and len(columns) * 2 * cell <= _COLUMNS_SIDE_BY_SIDE * CELL else 1
        per_part = -(-rows // num_parts)
        cells = [[_image(name, images[row], row, cell) for name, images in columns.items()] for row in range(rows)]
        tables = [cells[start : start + per_part] for start in range(0, rows, per_part)]
        self._add("images", columns=columns, tables=tables, width=cell - 4, caption=caption)

    def gallery(self, tiles: Sequence[Tile], caption: str) -> None:
        """Images of any size side by side, in as many rows as it takes, with a name below each."""
        shown = []
        for tile in tiles:
            buffer = io.BytesIO()
            tile.image.save(buffer, "JPEG", quality=90, subsampling=0)
            source = f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
            shown.append({"source": source, "width": tile.image.width, "height": tile.image.height, "tile": tile})
        self._add("gallery", tiles=shown, caption=caption)

    def table(self, table: Table) -> None:
        """A table with its caption."""
        sides = ["left", *(column.align for column in table.whole_columns[1:])]
        self._add("table", header=table.header, rows=table.cells, sides=sides, caption=table.caption)

    def html(self) -> str:
        """The whole page."""
        page = _templates().get_template("page.html.jinja")
        return page.render(title=self._title, subtitle=self._subtitle, facts=self._facts, sections=self._sections)

    def write(self, path: Path) -> None:
        """Write the page; a reader sees the old file or the new one, never half of it."""
        write_atomically(path, with_slashes(self.html()).encode())

    def _add(self, macro: str, **content: object) -> None:
        """Append what a macro of `blocks.html.jinja` makes of the content."""
        blocks = _templates().get_template("blocks.html.jinja").module
        self._sections[-1].blocks.append(getattr(blocks, macro)(**content))


@cache
def _templates() -> Environment:
    here = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=here, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, auto_reload=False
    )
    environment.filters["prose"] = _prose
    return environment


def _prose(text: str) -> Markup:
    """Escaped text in which names in backticks, such as `optim.clip`, are set as code and stay on one line."""
    return Markup(re.sub(r"`([^`]+)`", r'<code class="option">\1</code>', str(escape(text))))


def _image(column: str, image: Float[Tensor, "c h w"], row: int, cell: int) -> dict[str, str | int]:
    shown = fit(image, cell)
    source = f"data:image/png;base64,{base64.b64encode(png_bytes(shown)).decode('ascii')}"
    return {"source": source, "width": shown.shape[2], "height": shown.shape[1], "alt": f"{column}, example {row + 1}"}
