"""One self-contained `report.html`: everything inside the file, nothing fetched, readable in light, dark, print and on a phone.

    report = Report("Pre-training", "CIFAR-10, nano backbone")
    report.facts([("Pictures", "50,000"), ("Device", "cpu")])
    report.section("Is this normal?")
    report.normal_lines(lines)
    report.write(out / "report.html")

Blocks appear in the order of the calls; `section` begins a part that the page's navigation can jump to. All text is escaped.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Literal, NamedTuple

from jaxtyping import Float
from torch import Tensor

from beitkit.report.normal import Line, State
from beitkit.report.pictures import CELL, check_columns, fit, png_bytes
from beitkit.system import write_atomically

Align = Literal["left", "right"]

_STATES: dict[State, tuple[str, str]] = {"ok": ("✓", "Normal"), "note": ("i", "Note"), "warn": ("!", "Warning")}
_COLUMNS_SIDE_BY_SIDE = 8
# The browser is told to fetch nothing at all, so a report stays private and complete wherever it is opened.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


class _Section(NamedTuple):
    anchor: str
    title: str
    lead: str
    blocks: list[str]


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
        more = f"<p>{_prose(detail)}</p>" if detail else ""
        self._add(f'<div class="verdict {tone}"><p class="claim">{escape(text)}</p>{more}</div>')

    def paragraph(self, text: str) -> None:
        """Running text."""
        self._add(f'<p class="text">{_prose(text)}</p>')

    def command(self, text: str) -> None:
        """Something to type into a terminal."""
        self._add(f"<pre><code>{escape(text)}</code></pre>")

    def normal_lines(self, lines: Sequence[Line | tuple[State, str]]) -> None:
        """The answers of `report.normal`: each with a sign for normal, note or warning."""
        items = [f'<li class="{state}">{_sign(state)}<span>{_prose(sentence)}</span></li>' for state, sentence in lines]
        self._add(f'<ul class="normal">{"".join(items)}</ul>')

    def figure(self, svg: str, caption: str) -> None:
        """A chart of `report.charts`; neighbors share a row where the page is wide enough."""
        self._add(f'<figure class="plot">{svg}<figcaption>{escape(caption)}</figcaption></figure>')

    def legend(self, colors: Mapping[str, tuple[int, int, int]]) -> None:
        """Which color stands for what; colors are (red, green, blue), 0 to 255."""
        items = [f'<li><i style="background:rgb{color}"></i>{escape(name)}</li>' for name, color in colors.items()]
        self._add(f'<ul class="legend">{"".join(items)}</ul>')

    def pictures(self, columns: Mapping[str, Float[Tensor, "r c h w"]], caption: str, *, cell: int = CELL) -> None:
        """Pictures in [0, 1] in labeled columns, one row per example, such as original | masked | reconstruction.

        `cell` is the most pixels that a picture's long side is shown with.
        """
        rows = check_columns(columns)
        # Few columns are set in two halves side by side, so that the page does not become needlessly long.
        num_parts = 2 if rows >= 4 and len(columns) * 2 * cell <= _COLUMNS_SIDE_BY_SIDE * CELL else 1
        per_part = -(-rows // num_parts)
        heads = "".join(f'<th scope="col">{escape(name)}</th>' for name in columns)
        tables = []
        for start in range(0, rows, per_part):
            body = [
                f"<tr>{''.join(_picture_cell(name, column[row], row, cell) for name, column in columns.items())}</tr>"
                for row in range(start, min(rows, start + per_part))
            ]
            style = f"--columns:{len(columns)};--cell:{cell - 4}px"
            tables.append(f'<table style="{style}"><thead><tr>{heads}</tr></thead><tbody>{"".join(body)}</tbody></table>')
        self._add(
            f'<figure class="pictures"><div class="sheets">{"".join(tables)}</div>'
            f"<figcaption>{escape(caption)}</figcaption></figure>"
        )

    def table(
        self, header: Sequence[str], rows: Sequence[Sequence[str]], caption: str, align: Sequence[Align] | None = None
    ) -> None:
        """A table of text; `align` per column is left for the first and right for all others unless given."""
        sides = align or [_first_left(place) for place in range(len(header))]
        for row in [*rows, sides]:
            if len(row) != len(header):
                raise ValueError(f"the table has {len(header)} columns, but a row or the alignment has {len(row)}: {list(row)}")
        head = "".join(f'<th scope="col" class="{side}">{escape(name)}</th>' for name, side in zip(header, sides, strict=True))
        body = "".join(_table_row(row, sides) for row in rows)
        self._add(
            f'<div class="scroll" tabindex="0"><table class="data"><caption>{escape(caption)}</caption>'
            f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        )

    def key_values(self, pairs: Sequence[tuple[str, str]], caption: str = "") -> None:
        """Names and values, such as the settings of a run."""
        title = f"<h3>{escape(caption)}</h3>" if caption else ""
        self._add(f'<div class="settings">{title}{_pairs(pairs)}</div>')

    def html(self) -> str:
        """The whole page."""
        style = Path(__file__).with_name("style.css").read_text(encoding="utf-8")
        named = [section for section in self._sections if section.anchor]
        links = "".join(f'<a href="#{section.anchor}">{escape(section.title)}</a>' for section in named)
        subtitle = f'<p class="subtitle">{escape(self._subtitle)}</p>' if self._subtitle else ""
        facts = _pairs(self._facts) if self._facts else ""
        navigation = f'<nav aria-label="Sections">{links}</nav>' if len(named) > 1 else ""
        return (
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
            f"<title>{escape(self._title)}</title><style>{style}</style></head>\n<body>\n"
            f'<header><p class="brand">beitkit</p><h1>{escape(self._title)}</h1>{subtitle}{facts}{navigation}</header>\n<main>\n'
            f"{''.join(_section(section) for section in self._sections if section.anchor or section.blocks)}"
            "</main>\n</body></html>\n"
        )

    def write(self, path: Path) -> None:
        """Write the page; a reader sees the old file or the new one, never half of it."""
        write_atomically(path, self.html().encode())

    def _add(self, block: str) -> None:
        self._sections[-1].blocks.append(block)


def _first_left(place: int) -> Align:
    return "right" if place else "left"


def _prose(text: str) -> str:
    """Escaped text in which options such as --lr are set as code, and stay on one line."""
    return re.sub(r"(?<![\w-])--[a-z][a-z.-]*[a-z]", r'<code class="option">\g<0></code>', escape(text))


def _section(section: _Section) -> str:
    heading = f'<h2><a href="#{section.anchor}">{escape(section.title)}</a></h2>' if section.title else ""
    lead = f'<p class="lead">{escape(section.lead)}</p>' if section.lead else ""
    anchor = f' id="{section.anchor}"' if section.anchor else ""
    return f'<section{anchor}>{heading}{lead}<div class="blocks">{"".join(section.blocks)}</div></section>\n'


def _sign(state: State) -> str:
    sign, word = _STATES[state]
    return f'<span class="sign" role="img" aria-label="{word}">{sign}</span>'


def _pairs(pairs: Sequence[tuple[str, str]]) -> str:
    items = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in pairs)
    return f"<dl>{items}</dl>"


def _table_row(row: Sequence[str], sides: Sequence[Align]) -> str:
    first = f'<th scope="row" class="{sides[0]}">{escape(row[0])}</th>' if row else ""
    cells = (f'<td class="{side}">{escape(cell)}</td>' for cell, side in zip(row[1:], sides[1:], strict=True))
    return f"<tr>{first}{''.join(cells)}</tr>"


def _picture_cell(column: str, picture: Float[Tensor, "c h w"], row: int, cell: int) -> str:
    shown = fit(picture, cell)
    source = base64.b64encode(png_bytes(shown)).decode("ascii")
    size = f'width="{shown.shape[2]}" height="{shown.shape[1]}"'
    return f'<td><img src="data:image/png;base64,{source}" {size} alt="{escape(column)}, example {row + 1}"></td>'
