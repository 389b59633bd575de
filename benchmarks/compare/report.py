"""Report of a benchmark: tables on the terminal, and a page with a chart for every job."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table as TerminalTable

from beitkit.report.charts import Dots, dot_chart
from beitkit.report.document import Report
from beitkit.report.table import Table
from benchmarks.compare.result import BenchResult, Comparison, JobResult, Measured

HEADER = ("", "images/s", "s/step", "quartiles", "matrix rate", "memory")
COMPARED = ("", "times as fast", "by round", "range")
WIDTH = 120
"""Columns that the widest table needs."""
CAPTION = (
    "Medians over rounds. Matrix rate: the share of the time that the matrix products alone would take at the measured rate. "
    "Memory: the peak above what the imports take."
)


def print_result(result: BenchResult) -> None:
    """The tables of all jobs on stdout."""
    console = Console(highlight=False, markup=False)
    console.width = max(console.width, WIDTH)  # a number that is cut misleads; a narrow terminal wraps lines
    console.print(result.device)
    for precision, rate in result.matrix_rate.items():
        console.print(f"matrix product, {precision}: {rate / 1e9:,.0f} GFLOP/s ({_best_product(result, precision)})")
    for job in result.jobs:
        console.print(f"\n{title(job)}")
        console.print(_on_terminal(_speeds(job)))
        if job.comparisons:
            console.print(_on_terminal(_ratios(job)))


def write_page(result: BenchResult, path: Path) -> None:
    """A self-contained page."""
    report = Report("Bench", result.device)
    report.facts(
        [
            *result.software.items(),
            *((f"{name} matrix product", f"{rate / 1e9:,.0f} GFLOP/s") for name, rate in result.matrix_rate.items()),
        ]
    )
    for job in result.jobs:
        _add_job(report, job)
    report.write(path)


def _add_job(report: Report, job: JobResult) -> None:
    report.section(title(job), "The candidates take turns in one process; a dot is a round.")
    dots = [Dots(one.name, [[job.batch_size / seconds for seconds in one.seconds]]) for one in job.contestants]
    chart = dot_chart(dots, [f"{job.batch_size} images a step"], title="Speed", x_label="", y_label="images/s", unit="plain")
    report.figure(chart, "Images a second; higher is better. Numbers over the dots are means, the table has medians.")
    report.table(_speeds(job))
    report.table(_ratios(job))
    for rival, difference in job.parity.items():
        report.paragraph(f"The same network: float32 outputs of {rival} differ from ours by {difference:.1e} of the largest.")
    if job.products:
        rates = [(name, f"{rate / 1e9:,.0f}") for name, rate in job.products.items()]
        report.table(Table(["matrix product", "GFLOP/s"], rates, "Measured in the same rounds."))


def title(job: JobResult) -> str:
    """What was done, with which network."""
    return f"{job.job}, {job.size}/{job.patch} at {job.image_size}, {job.batch_size} images a step"


def row(one: Measured) -> tuple[str, ...]:
    """A candidate under `HEADER`."""
    summary = one.summary
    return (
        one.name,
        f"{one.images_per_second:.3g}" if one.images_per_second < 100 else f"{one.images_per_second:,.0f}",
        f"{summary.median:.3g}",
        f"{summary.lower_quartile:.3g} to {summary.upper_quartile:.3g}",
        "" if one.share is None else f"{one.share:.0%}",
        "" if one.peak_bytes is None else f"{one.peak_bytes / 1e9:.2f} GB",
    )


def compared_row(one: Comparison) -> tuple[str, ...]:
    """A comparison under `COMPARED`."""
    ratio = one.ratio
    return (
        f"{one.first} against {one.second}",
        f"{ratio.of_medians:.2f}",
        f"{ratio.median_by_round:.2f}",
        f"{ratio.least:.2f} to {ratio.most:.2f}",
    )


def _best_product(result: BenchResult, precision: str) -> str:
    rates = {name: rate for job in result.jobs for name, rate in job.products.items() if name.endswith(precision)}
    return max(rates, key=lambda name: rates[name]).rpartition(", ")[0]


def _speeds(job: JobResult) -> Table:
    return Table(HEADER, [row(one) for one in job.contestants], CAPTION)


def _ratios(job: JobResult) -> Table:
    rows = [compared_row(one) for one in job.comparisons]
    return Table(COMPARED, rows, "Ratio of the medians, and median and range of the ratios within a round.")


def _on_terminal(table: Table) -> TerminalTable:
    """With numbers set right, in wide lines."""
    shown = TerminalTable(box=None, padding=(0, 2, 0, 0))
    for place, name in enumerate(table.header):
        shown.add_column(name, justify="right" if place else "left", no_wrap=True)
    for cells in table.cells:
        shown.add_row(*cells)
    return shown
