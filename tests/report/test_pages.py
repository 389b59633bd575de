"""The pages of every verb that writes one, opened in a real headless Chromium: light, dark, and as wide as a phone."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import beitkit
from beitkit.configs.train import MachineConfig
from beitkit.runs.pipeline import run as pipeline
from beitkit.runs.pipeline.config import PipelineRun
from tests.report.chromium import Chromium
from tests.runs.finetune.test_finetune import draw_red_and_blue
from tools.screenshot import BROWSERS

BROWSER = next((name for name in BROWSERS if shutil.which(name)), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason=f"needs a Chromium ({', '.join(BROWSERS)}) to open pages in")
CPU: dict[str, Any] = {"device": "cpu", "threads": 1}
LOOKS = {"light": (1200, False), "dark": (1200, True), "phone": (390, False), "phone, dark": (390, True)}
STAGES = ("audit", "tokenizer", "pretrain", "probe", "verdict", "finetune")
FAULTS = """(() => {
  const faults = [], wide = window.innerWidth;
  if (!document.querySelector("meta[name=viewport][content*='width=device-width']")) faults.push("phones show it small");
  if (document.documentElement.scrollWidth > wide) faults.push(`the page is ${document.documentElement.scrollWidth} wide`);
  for (const element of document.body.querySelectorAll("*")) {
    const style = getComputedStyle(element), box = element.getBoundingClientRect();
    const name = `${element.tagName}.${element.getAttribute("class")} ${(element.textContent || "").trim().slice(0, 40)}`;
    if (!box.width || !box.height || style.visibility === "hidden") continue;
    const scroll = element.closest(".scroll");
    if (scroll === null && !element.closest("svg") && box.right > wide + 1) faults.push(`${name} ends at ${box.right}`);
    if (element.scrollWidth <= element.clientWidth + 1 || style.display === "inline" || element.closest("svg")) continue;
    if (style.overflowX === "hidden" || style.overflowX === "clip") faults.push(`${name} is cut`);
    const hasSign = element.matches(".scroll") && style.backgroundImage.includes("gradient");
    if (["auto", "scroll"].includes(style.overflowX) && !hasSign) faults.push(`${name} scrolls without a sign`);
  }
  return {faults, height: document.documentElement.scrollHeight, background: getComputedStyle(document.body).backgroundColor};
})()"""
"""What is cut, or wider than the page and does not say so."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    assert BROWSER is not None
    with Chromium(BROWSER) as opened:
        yield opened


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Of `beitkit run` and all of its stages, of `show` and of `compare`."""
    room = tmp_path_factory.mktemp("pages")
    labeled = draw_red_and_blue(room / "images", 90, 70, 8)
    out = room / "run"
    pipeline.run(PipelineRun(labeled / "train", labels=labeled, out=out, budget="1s", machine=MachineConfig(**CPU, workers=0)))
    found = {stage: out / stage / "report.html" for stage in STAGES} | {"run": out / "report.html"}
    for model in ("pretrain", "finetune"):
        found[f"show, {model}"] = room / f"{model}.html"
        beitkit.show((labeled / "val",), model=out / model, out=room / f"{model}.html", count=2, gallery=8, **CPU)
    found["compare"] = room / "compare.html"
    beitkit.compare((out / "pretrain", out / "finetune"), out=room / "compare.html")
    return found


@needs_browser
def test_pages_of_every_verb_in_a_browser(pages: dict[str, Path], browser: Chromium) -> None:
    """Nothing is fetched, no script fails, nothing is cut or wider than the page without a sign."""
    kept = os.environ.get("BEITKIT_TEST_SHOTS")
    wrong: list[str] = []
    for name, page in pages.items():
        backgrounds = {}
        for look, (width, dark) in LOOKS.items():
            image = None if kept is None else Path(kept) / f"{name} {look}.png".replace(", ", "-").replace(" ", "-")
            shown = browser.open(page, FAULTS, width=width, dark=dark, image=image)
            wrong += [f"{name}, {look}: fetches {url}" for url in shown.requests]
            wrong += [f"{name}, {look}: {error}" for error in shown.errors]
            wrong += [f"{name}, {look}: {fault}" for fault in shown.value["faults"]]
            backgrounds[look] = shown.value["background"]
            assert shown.value["height"] > 300, f"{name}, {look} is empty"
        assert backgrounds["light"] != backgrounds["dark"], name
    assert not wrong, "\n".join(wrong)


BAD = """<!DOCTYPE html><body style="margin: 0"><p style="width: 500px">wide</p>
<div style="overflow-x: auto; width: 100px"><p style="width: 200px">no sign</p></div>
<div style="overflow: hidden; width: 100px"><p style="width: 200px">cut</p></div>
<img src="http://127.0.0.1:9/x.png" alt=""><script>nothing.there()</script>"""


@needs_browser
def test_what_is_wrong_with_a_page_is_found(browser: Chromium, tmp_path: Path) -> None:
    (tmp_path / "bad.html").write_text(BAD)
    shown = browser.open(tmp_path / "bad.html", FAULTS, width=390, image=tmp_path / "bad.png")
    assert shown.requests == ["http://127.0.0.1:9/x.png"]
    assert any("Uncaught" in error for error in shown.errors)
    for part in ("phones show it small", "the page is 5", "P.null wide ends at 500", "scrolls without a sign", "is cut"):
        assert any(part in fault for fault in shown.value["faults"]), (part, shown.value["faults"])
    assert (tmp_path / "bad.png").stat().st_size
