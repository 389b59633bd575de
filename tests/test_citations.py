"""Every citation of docs/method.md and of a decision, in code, tests and pages, leads somewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest

from beitkit.runs.recipes.table import RECIPES

ROOT = Path(__file__).parents[1]
METHOD = ROOT / "docs" / "method.md"
FOLDERS = ("beitkit", "benchmarks", "docs", "tests", "tools")

# A citation may go on in the next line, of a docstring or of a comment.
GAP, NUMBER = r"\s+(?:#\s+)?", r"\d+(?:\.\d+)?"
SECTIONS = re.compile(rf"\b[Mm]ethod{GAP}({NUMBER}(?:(?:, | and ){NUMBER})*)")
DECISIONS = re.compile(rf"\b[Dd]ecisions?{GAP}(\d{{3}}(?:(?:, | and )\d{{3}})*)")
OLD = re.compile(rf"\b[Ff]acts{GAP}{NUMBER}")  # a document that is not in the repository
LINK = re.compile(r"\]\((?!https?:)([^()\s]*(?:method\.md|decisions/)[^()\s]*)\)")

HEADING = re.compile(rf"^#{{2,3}} ({NUMBER}) (.+)$", re.MULTILINE)


def headings() -> dict[str, str]:
    """Title of every numbered section of docs/method.md."""
    found = HEADING.findall(METHOD.read_text(encoding="utf-8"))
    assert len(found) == len(dict(found)), "a number names two sections"
    return dict(found)


def anchor(number: str, title: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", f"{number} {title}".lower()).replace(" ", "-")


def decisions() -> set[str]:
    return {path.name[:3] for path in (ROOT / "docs" / "decisions").glob("*.md")}


def wrong(text: str, folder: Path) -> list[str]:
    """The citations in a text that lead nowhere; `folder` is where its relative links start."""
    sections, known = headings(), decisions()
    found = OLD.findall(text)
    for match in SECTIONS.finditer(text):
        found += [f"method {number}" for number in re.findall(NUMBER, match.group(1)) if number not in sections]
    for match in DECISIONS.finditer(text):
        found += [f"decision {number}" for number in re.findall(r"\d{3}", match.group(1)) if number not in known]
    anchors = {anchor(*heading) for heading in sections.items()}
    for match in LINK.finditer(text):
        target, _, part = match.group(1).partition("#")
        path = (folder / target).resolve() if target else METHOD
        if not path.exists() or (path == METHOD and part and part not in anchors):
            found.append(match.group(1))
    return found


def files() -> Iterator[Path]:
    """Everything that may cite, but for this file, which holds wrong citations on purpose."""
    paths = chain(*((ROOT / folder).rglob("*") for folder in FOLDERS), ROOT.glob("*.md"))
    return (path for path in paths if path.suffix in {".py", ".md", ".html", ".css"} and path != Path(__file__).resolve())


def test_every_citation_leads_somewhere() -> None:
    lost = {str(path.relative_to(ROOT)): wrong(path.read_text(encoding="utf-8"), path.parent) for path in files()}
    assert {name: found for name, found in lost.items() if found} == {}


def test_there_are_citations_to_look_up() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in files() if path != METHOD)
    assert len(SECTIONS.findall(text)) > 40
    assert len(DECISIONS.findall(text)) > 10


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("the pyramid (method 7.1), its heads (method 7.2; decision 001)", []),
        ("groups (method 4.1, 4.2) and method 1.1 and 1.2", []),
        ("its loss (method 99.1)", ["method 99.1"]),
        ("Method 4.1, 99.2 and 99.3: rates", ["method 99.2", "method 99.3"]),
        ('"""Its loss (method\n    99.1)."""', ["method 99.1"]),
        ("# its loss, method\n    # 99.1", ["method 99.1"]),
        ("as measured (decision 999)", ["decision 999"]),
        ("as decisions 001 and 998 say", ["decision 998"]),
        ("its loss (facts 2.1)", ["facts 2.1"]),
        ("[method 6.1](docs/method.md#61-the-papers-probe)", []),
        ("[method 6.1](docs/method.md#61-a-probe)", ["docs/method.md#61-a-probe"]),
        ("[decision 001](docs/decisions/001-something-else.md)", ["docs/decisions/001-something-else.md"]),
    ],
)
def test_a_wrong_citation_is_found(text: str, expected: list[str]) -> None:
    assert wrong(text, ROOT) == expected


def test_links_inside_the_method_lead_to_its_chapters() -> None:
    anchors = {anchor(*heading) for heading in headings().items()}
    linked = re.findall(r"\]\(#([^)]+)\)", METHOD.read_text(encoding="utf-8"))
    assert linked
    assert set(linked) <= anchors


def test_recipes_cite_papers_and_official_files() -> None:
    """`beitkit recipes` is read without this repository at hand, so our own section numbers would say nothing there."""
    for recipe in RECIPES.values():
        assert re.search(r"arXiv \d{4}\.\d{5}|microsoft/unilm beit2?/", recipe.source), recipe.name
        assert not SECTIONS.search(f"{recipe.source} {recipe.hardware} {recipe.published}"), recipe.name
