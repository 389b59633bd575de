"""Turns a report.html into a PNG with a headless Chromium: `python tools/screenshot.py runs/pre/report.html report.png`.

By default the whole page is taken; `--height` cuts it. `--dark` shows the dark page, `--width 390` that of a phone.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageChops

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
TALLEST = 12_000
"""Pixels: the window that a whole page is drawn in before the empty rest is cut off."""
NARROWEST = 500
"""Pixels: Chromium makes no narrower window, so narrower pages are shown in a frame inside one."""
SECONDS = 120


def take(page: Path, out: Path, *, width: int, height: int | None, dark: bool, browser: str) -> None:
    """Write a PNG of the page; `height` None takes all of it."""
    with tempfile.TemporaryDirectory() as folder:
        shown = _framed(page, Path(folder), width, height or TALLEST) if width < NARROWEST else page
        raw = Path(folder) / "raw.png"
        command = [
            browser,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--no-first-run",
            f"--blink-settings=preferredColorScheme={0 if dark else 1}",
            f"--user-data-dir={folder}/profile",
            f"--window-size={max(width, NARROWEST)},{height or TALLEST}",
            f"--screenshot={raw}",
            shown.resolve().as_uri(),
        ]
        result = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
        if not raw.is_file():
            raise RuntimeError(f"{browser} took no screenshot (exit code {result.returncode}): {result.stderr.strip()[-500:]}")
        with Image.open(raw) as image:
            taken = image.convert("RGB").crop((0, 0, width, image.height))
    out.parent.mkdir(parents=True, exist_ok=True)
    (taken if height else _without_empty_end(taken)).save(out, optimize=True)


def _framed(page: Path, folder: Path, width: int, height: int) -> Path:
    frame = folder / "frame.html"
    style = f"border:0;display:block;width:{width}px;height:{height}px"
    frame.write_text(
        f'<body style="margin:0"><iframe style="{style}" src="{page.resolve().as_uri()}"></iframe>', encoding="utf-8"
    )
    return frame


def _without_empty_end(image: Image.Image) -> Image.Image:
    """The image down to its last row that differs from the page's color, and a margin."""
    background = Image.new("RGB", image.size, image.getpixel((image.width - 1, image.height - 1)))  # pyright: ignore[reportArgumentType]
    box = ImageChops.difference(image, background).getbbox()
    return image.crop((0, 0, image.width, min(image.height, (box[3] if box else 0) + 32)))


def main() -> int:
    """The command line; exit code 2 with one line when something is missing."""
    parser = argparse.ArgumentParser(description="Turn a report.html into a PNG.")
    parser.add_argument("page", type=Path, help="the report.html")
    parser.add_argument("image", type=Path, help="the PNG to write")
    parser.add_argument("--width", type=int, default=1200, help="pixels; a phone has about 390")
    parser.add_argument("--height", type=int, default=None, help="pixels; without it the whole page is taken")
    parser.add_argument("--dark", action="store_true", help="as somebody with a dark desktop sees it")
    parser.add_argument("--browser", default=None, help=f"Chromium's command; without it the first of {', '.join(BROWSERS)}")
    options = parser.parse_args()
    browser = options.browser or next((name for name in BROWSERS if shutil.which(name)), None)
    if browser is None or shutil.which(browser) is None:
        looked = options.browser or ", ".join(BROWSERS)
        print(f"screenshot: found no Chromium ({looked}); install one, or name it with --browser", file=sys.stderr)
        return 2
    if not options.page.is_file():
        print(f"screenshot: {options.page} is not a file; expected the report.html of a run", file=sys.stderr)
        return 2
    try:
        take(options.page, options.image, width=options.width, height=options.height, dark=options.dark, browser=browser)
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        print(f"screenshot: {error}", file=sys.stderr)
        return 1
    print(f"wrote {options.image}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
