"""`beitkit convert`: a checkpoint from one format into another."""

from __future__ import annotations

from beitkit.contracts import LoadReport
from beitkit.errors import UserError
from beitkit.interop.save import convert
from beitkit.runs.checkpoints.config import ConvertRun


def run(config: ConvertRun) -> LoadReport:
    """Convert, and print what became of every tensor (one line, or the whole table with --dry-run or --verbose)."""
    if config.out.exists() and not config.dry_run and (config.out.is_file() or any(config.out.iterdir())):
        raise UserError(f"--out {config.out} is already there; choose another name, or remove it yourself")
    report = convert(config.path, config.to, config.out, dry_run=config.dry_run)
    print(report.table() if config.dry_run or config.verbose else report.summary())
    print("nothing was written (--dry-run)" if config.dry_run else f"written: {config.out}. Next: beitkit inspect {config.out}")
    return report
