"""What trainings' reports share: a curve needs three values, and a result beside another has its interval."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from beitkit.report.normal import Line
from beitkit.report.sections import TrainingReport


@pytest.fixture
def report(tmp_path: Path) -> TrainingReport:
    events = [{"kind": "train", "step": 100 * step, "loss": 3.0 - step, "lr": 0.1} for step in (1, 2)]
    events += [{"kind": "evaluate", "step": 100 * step, "val/top1": 0.5 + step / 10} for step in (1, 2, 3)]
    (tmp_path / "journal.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return TrainingReport("Training", tmp_path)


def test_two_values_are_named_and_three_are_a_curve(report: TrainingReport) -> None:
    report.curves({"training": "loss"}, "caption", title="Loss", y_label="nats")
    assert "<svg" not in report.html()
    assert "Loss: training 2.00 at step 100, 1.00 at step 200." in report.html()
    report.curves({"training": "loss", "validation": "val/top1"}, "caption", title="Both", y_label="share")
    assert report.html().count("<svg") == 1


def test_what_was_never_logged_is_said(report: TrainingReport) -> None:
    report.curves({"branch": "branch_loss"}, "caption", title="Branch", y_label="nats")
    assert "no values yet" in report.html()


def test_another_run_is_beside_this_one_from_zero_and_with_intervals(report: TrainingReport) -> None:
    report.beside_another_run("top-1", 0.36, Path("runs/other"), 0.33, [(0.3, 0.42), (0.27, 0.39)])
    html = report.html()
    assert "top-1 36.0% here, 33.0% in runs/other: +3.0 points" in html
    assert html.count('class="interval s0"') == 2
    assert ">0%<" in html
    assert "95% intervals" in html
    assert report.comparison is not None
    assert report.comparison.cells == [["top-1", "36.0%", "33.0%", "+3.0"]]
    assert report.comparison.header[2] == "other"


def test_warnings_are_kept_for_the_terminal(report: TrainingReport) -> None:
    report.normal([Line("warn", "Lower `lr`."), Line("ok", "Fine.")])
    assert report.warnings[0] == "Lower `lr`."
    assert "Fine." not in report.warnings
