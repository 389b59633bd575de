from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

TOOL = Path(__file__).parents[2] / "tools" / "screenshot.py"
PAGE = """<!DOCTYPE html><style>body { margin: 0; background: #ffffff } div { height: 700px; background: #0000ff }
@media (max-width: 400px) { div { background: #00ff00 } }
@media (prefers-color-scheme: dark) { div { background: #ff0000 } }</style><div></div>"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(TOOL), *arguments], capture_output=True, text=True, check=False)


def test_a_missing_browser_is_one_clear_line(tmp_path: Path) -> None:
    result = run(str(tmp_path / "report.html"), str(tmp_path / "a.png"), "--browser", "no-such-browser")
    assert result.returncode == 2
    assert result.stderr == "screenshot: found no Chromium (no-such-browser); install one, or name it with --browser\n"


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs a chromium to take images")
@pytest.mark.parametrize(
    ("options", "size", "color"),
    [
        (["--width", "600"], (600, 732), (0, 0, 255)),  # the page and a margin
        (["--width", "390", "--height", "500"], (390, 500), (0, 255, 0)),
        (["--width", "600", "--height", "500", "--dark"], (600, 500), (255, 0, 0)),
    ],
)
def test_the_image_shows_the_page(tmp_path: Path, options: list[str], size: tuple[int, int], color: tuple[int, ...]) -> None:
    page = tmp_path / "report.html"
    page.write_text(PAGE)
    result = run(str(page), str(tmp_path / "a.png"), *options)
    assert result.returncode == 0, result.stderr
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == size
        assert image.getpixel((300, 400)) == color


def test_a_missing_page_is_one_clear_line(tmp_path: Path) -> None:
    result = run(str(tmp_path / "report.html"), str(tmp_path / "a.png"), "--browser", sys.executable)
    assert result.returncode == 2
    assert "is not a file; expected the report.html of a run" in result.stderr
