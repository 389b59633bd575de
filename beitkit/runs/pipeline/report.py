"""The page of `beitkit run`: the verdict first, then the model, the stages and how their settings were chosen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from beitkit.report.document import Report
from beitkit.report.table import Column, Table
from beitkit.runs.pipeline.choose import WORDS
from beitkit.runs.pipeline.config import PipelineRun
from beitkit.runs.pipeline.ledger import Ledger
from beitkit.runs.verdict.report import Verdict, add_verdict
from beitkit.system import quoted
from beitkit.train.journal import duration


def write_page(config: PipelineRun, stages: Sequence[str], ledger: Ledger, verdict: Verdict | None, finetuned: str) -> None:
    """Write report.html, of as many stages as are finished."""
    report = Report("What did pre-training buy?", str(config.out))
    is_done = all(ledger.is_done(stage) for stage in stages)
    report.facts(
        [
            ("Images", str(config.images)),
            *([] if config.labels is None else [("Labels", str(config.labels))]),
            *([] if config.init is None else [("Went on from", str(config.init))]),
            ("Time", f"{duration(ledger.spent)} of {duration(config.seconds)}" + ("" if is_done else ", not finished yet")),
        ]
    )
    if verdict is not None:
        add_verdict(report, verdict)
    elif config.labels is None:
        report.paragraph(
            "Without labeled images there is no verdict: the reports of the stages say whether their numbers are normal."
        )
    else:
        report.paragraph("The verdict is not there yet.")
    _model(report, config, ledger, finetuned)
    report.section("Stages", "Each is an ordinary run, which `beitkit` goes on with, evaluates and compares like any other.")
    report.links({stage: link for stage in stages if (link := _page_of(config.out, stage, finetuned)) is not None})
    rows = [[stage, WORDS[stage], *_times(ledger.stages.get(stage, {}))] for stage in stages]
    report.table(Table(["stage", Column("what it does", align="left"), "time", "state"], rows, "Time of all starts together."))
    if lines := ledger.stages.get("audit", {}).get("lines"):
        report.section("The images", "What the audit found; its page shows which.")
        report.normal_lines([(level, text) for level, text in lines])
    why = [line for found in ledger.stages.values() for line in found.get("settings", {}).get("why", [])]
    if why:
        report.section(
            "How sizes and lengths were chosen", "From the time that was left when a stage began, and measured speeds."
        )
        for line in why:
            report.paragraph(line)
    report.write(config.out / "report.html")


def _model(report: Report, config: PipelineRun, ledger: Ledger, finetuned: str) -> None:
    found = ledger.stages.get("finetune", {})
    measured = next(((name, found[name]) for name in ("top-1", "mIoU") if name in found), None)
    if measured is None:
        return
    name, score = measured
    settings = found["settings"]
    report.section("The model")
    report.paragraph(
        f"{name} {score:.1%} on {settings['val']:,} images that it was not trained on, after fine-tuning "
        f"from {settings['start']} with all labels."
    )
    model = quoted(config.out / finetuned)
    report.command(
        f"beitkit predict new/ --model {model} --out {'p.csv' if finetuned == 'finetune' else 'masks/'}\n"
        f"beitkit evaluate {quoted(config.labels or Path())} --model {model}"
    )


def _times(found: dict[str, Any]) -> list[str]:
    state = "finished" if found.get("done") else "begun" if "settings" in found or "seconds" in found else "to come"
    return [duration(found["seconds"]) if "seconds" in found else "-", state]


def _page_of(out: Path, stage: str, finetuned: str) -> str | None:
    """Where the stage's own report is, from the page."""
    if stage == "export":
        return None
    name = finetuned if stage == "finetune" else stage
    return f"{name}/report.html" if (out / name / "report.html").exists() else None
