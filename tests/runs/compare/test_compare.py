"""`beitkit compare`: what differs between run folders, and nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import beitkit
from beitkit.cli import main
from beitkit.errors import UserError

Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Write the folder of a run whose loss falls from 3 by `falls` at each of five steps."""

    def write(
        name: str, *, falls: float = 0.5, result: dict[str, Any] | None = None, torch: str = "2.13", **options: Any
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        config = {
            "verb": "finetune",
            "images": "photos",
            "train": {"lr": 0.001, "seed": 0},
            "out": name,
            "machine": {"threads": 1},
        }
        for option, value in options.items():
            group, _, field = option.partition("__")
            config[group] = config[group] | {field: value} if field else value  # type: ignore[operator] - a nested dict
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "environment.json").write_text(json.dumps({"torch": torch, "command": [name], "gpus": []}))
        events = [
            {"kind": "train", "step": step, "loss": 3 - falls * step, "lr": 0.1, "data_wait": step / 7} for step in range(5)
        ]
        events += [{"kind": "evaluate", "step": step, "val/top1": 0.4 - (step - 2) ** 2 / 50} for step in range(5)]
        (folder / "journal.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
        if result is not None:
            (folder / "result.json").write_text(json.dumps(result))
        return folder

    return write


def test_options_results_and_environment_that_differ(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    a = make("a", result={"top1": 0.5, "deep": {"er": 1}, "classes": [1, 2], "val_digest": "x"})
    b = make("b", falls=0.25, train__lr=0.01, machine__threads=8, extra=True, torch="2.14")
    found = beitkit.compare((a, b))
    assert found.configuration == {
        "train.lr": {"a": 0.001, "b": 0.01},
        "machine.threads": {"a": 1, "b": 8},
        "extra": {"b": True},
    }
    assert found.environment == {"torch": {"a": "2.13", "b": "2.14"}}
    assert found.results == {
        "last step": {"a": 4, "b": 4},
        "loss": {"a": 1.0, "b": 2.0},
        "val/top1": {"a": pytest.approx(0.32), "b": pytest.approx(0.32)},
        "val/top1, best": {"a": 0.4, "b": 0.4},
        "result: top1": {"a": 0.5},
        "result: deep.er": {"a": 1},
    }
    printed = capsys.readouterr().out
    assert "Runs of beitkit finetune, not finished: b: 3 options differ" in printed
    assert re.search(r"extra +default +True", printed)
    assert re.search(r"loss +1 +2 +\+1 ", printed)


def test_the_page_has_a_chart_of_all_runs_for_each_number(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [make(f"run{number}", train__seed=number, falls=number / 10) for number in range(8)]
    with pytest.raises(SystemExit) as stopped:
        main(["compare", *map(str, runs), "--out", str(tmp_path / "page.html"), "--json"])
    assert stopped.value.code == 0
    content = json.loads(capsys.readouterr().out)
    assert content["configuration"] == {"train.seed": {f"run{number}": number for number in range(8)}}
    assert content["runs"]["run3"] == str(runs[3])
    page = (tmp_path / "page.html").read_text()
    assert page.count("<svg") == 3
    assert "1 option differs, only the seed" in page
    (loss,) = re.findall(r"<svg[^>]*aria-label=\"loss\..*?</svg>", page, flags=re.DOTALL)
    lines = re.findall(r'<path class="(line [^"]*)" d="M[^"]*L', loss)
    assert len(lines) == len(set(lines)) == 8  # told apart by color and dashes


def test_a_run_without_journal_and_a_copy(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = make("a"), make("b")
    (b / "journal.jsonl").unlink()
    found = beitkit.compare((a, b))
    assert found.configuration == found.environment == {}
    assert found.results["loss"] == {"a": 1.0}
    assert "no options differ" in capsys.readouterr().out


def test_what_is_no_run(make: Make, tmp_path: Path) -> None:
    a = make("a")
    with pytest.raises(UserError, match=r"names one run, .*a; give two or more"):
        beitkit.compare((a,))
    with pytest.raises(UserError, match=f"{tmp_path} is no run folder: it has no config.json"):
        beitkit.compare((a, tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config.json cannot be read"):
        beitkit.compare((a, tmp_path))
    with pytest.raises(UserError, match=r"must end in .html, got x.png"):
        beitkit.compare((a, tmp_path), out="x.png")
