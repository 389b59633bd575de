"""`beitkit show-load`: what becomes of every tensor when a checkpoint is loaded."""

from __future__ import annotations

from beitkit.contracts import LoadReport
from beitkit.interop.load import load
from beitkit.runs.checkpoints.config import ShowLoadRun


def run(config: ShowLoadRun) -> LoadReport:
    """Load a checkpoint the way `beitkit.load` would, and print the table on stdout."""
    model = load(config.path, task=config.task, num_classes=config.num_classes, image_size=config.image_size)
    report = model.load_report
    assert report is not None
    print(report.table())
    return report
