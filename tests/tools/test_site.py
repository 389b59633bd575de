"""The documentation as a site: made from the pages that are there, strict on links, and nothing is fetched to show it."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType

import pytest

import beitkit
from beitkit.command.options import option_names
from beitkit.verbs import VERBS

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools" / "site" / "build.py"
NEEDED = ("sphinx", "furo", "myst_parser")


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("site_build", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def source(tool: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    tool.write_source(folder)
    return folder


@pytest.fixture(scope="module")
def site(tool: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    for name in NEEDED:
        pytest.importorskip(name, reason="the documentation's tools are not installed (pip install -e '.[docs]')")
    folder = tmp_path_factory.mktemp("site") / "docs"
    tool.build(folder)
    return folder


class _Fetched(HTMLParser):
    """What a browser fetches by itself when it shows a page; links that a reader may follow are not among it."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "srcset", "data", "poster") or (tag == "link" and name == "href"):
                self.found.append(value or "")


def fetched(site: Path) -> set[str]:
    """Every address outside of the site that its pages, style sheets and scripts would fetch."""
    found: set[str] = set()
    for page in site.rglob("*.html"):
        parser = _Fetched()
        parser.feed(page.read_text(encoding="utf-8"))
        found.update(parser.found)
    for sheet in site.rglob("*.css"):
        found.update(re.findall(r"(?:url\(|@import )\s*[\"']?([^\"')\s]+)", sheet.read_text(encoding="utf-8")))
    for script in site.rglob("*.js"):
        found.update(re.findall(r"(?:fetch|import|open)\(\s*[\"'`](\w+://[^\"'`]+)", script.read_text(encoding="utf-8")))
    return {address for address in found if re.match(r"(\w+:)?//", address)}


def test_the_site_is_whole_and_fetches_nothing(site: Path) -> None:
    pages = [path.relative_to(ROOT) for path in (ROOT / "docs").rglob("*.md")]
    assert len(pages) > 20
    assert [str(page) for page in pages if not (site / page.with_suffix(".html")).is_file()] == []
    assert (site / "index.html").read_text() == (site / "README.html").read_text()
    assert fetched(site) == set()
    assert len(list(site.rglob("*.css"))) > 1


def test_what_would_be_fetched_is_found(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(
        '<script src="//a.b/c.js"></script><link href="https://d"><a href="https://e">f</a><img src="g.png">'
    )
    (tmp_path / "style.css").write_text(
        "@import 'https://h'; a { background: url(//i/j.png) } b { background: url(data:image/png,k) }"
    )
    (tmp_path / "code.js").write_text("fetch('https://l'); // see https://m")
    assert fetched(tmp_path) == {"//a.b/c.js", "https://d", "https://h", "//i/j.png", "https://l"}


@pytest.mark.parametrize(
    "text", ["[a page](docs/nowhere.md)", "[a part](#nowhere)", "[a part](other.md#nowhere)", "![an image](nowhere.png)"]
)
def test_a_link_that_leads_nowhere_ends_the_build(text: str, tmp_path: Path) -> None:
    pytest.importorskip("myst_parser")
    (tmp_path / "README.md").write_text(f"# Title\n\n[fine](other.md#part-two)\n\n{text}\n\n```{{toctree}}\nother\n```\n")
    (tmp_path / "other.md").write_text("# Other\n\n## Part two\n")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "-b", "dummy", "-c", TOOL.parent, tmp_path, tmp_path / "out"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode != 0
    assert "nowhere" in result.stderr


def test_every_verb_has_a_page_with_all_its_options(source: Path) -> None:
    for verb, entry in VERBS.items():
        page = (source / "docs" / "verbs" / f"{verb}.md").read_text()
        names = [name for name in option_names(entry.config_class()).values() if "." not in name]
        assert [name for name in names if name not in page and name.replace("--", "--no-") not in page] == []
        assert page.count("```") % 2 == 0
        assert "│" not in page
    assert "(../guide/finetune.md)" in (source / "docs" / "verbs" / "finetune.md").read_text()


def test_the_python_page_has_every_public_name_and_its_docstring(source: Path) -> None:
    page = (source / "docs" / "api.md").read_text()
    for name in beitkit.__all__:
        assert f"\n### {name}\n" in page
    assert "- `num_classes`: number of classes; if other than the file's" in page
    assert "    path: str | pathlib.Path,\n" in page or "    path: 'str | Path',\n" in page
    assert "(verbs/pretrain.md)" in page


def test_new_pages_of_the_guide_are_found(tool: ModuleType, source: Path, tmp_path: Path) -> None:
    shutil.copytree(source, tmp_path / "source")
    (tmp_path / "source" / "docs" / "guide" / "zebra.md").write_text("# Zebra\n")
    assert "docs/guide/zebra\n" in tool.navigation(tmp_path / "source")
    assert "docs/guide/zebra" not in tool.navigation(source)
