"""What `--json` prints of a run that trains."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from beitkit.report.journal import read_journal
from beitkit.report.table import plain
from beitkit.runs.training.session import TrainingRun


def answer(config: TrainingRun, found: Any) -> dict[str, Any]:
    """The run folder, the last step, the last value of every number that was logged, and the result where there is one."""
    journal = config.out / "journal.jsonl"
    events = read_journal(journal) if journal.is_file() else []  # a cross-validation has one for each fold
    logged = [event for event in events if event.kind in ("train", "evaluate")]
    last = {key: value for event in logged for key, value in event.numbers.items() if math.isfinite(value)}
    result = {} if isinstance(found, Path) else plain(found)
    return {"out": config.out, "step": max((event.step for event in logged), default=None), "last": last} | result
