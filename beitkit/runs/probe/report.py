"""Output of `beitkit probe`: the table on stdout, JSON, the chart of accuracy by block and the report."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from beitkit.evaluation.probe import ProbeResult
from beitkit.report.charts import Dots, dot_chart
from beitkit.report.document import Report
from beitkit.report.table import Table
from beitkit.runs.probe.config import Protocol
from beitkit.runs.probe.training import Optimistic

PROTOCOLS: dict[Protocol, str] = {
    "quick": "quick: logistic regression and nearest neighbors on class token and mean patch, computed once per image",
    "official": "official: a linear layer on class token and mean patch of every block, trained on random crops",
    "paper": "paper: a linear layer on the mean patch, trained on random crops",
}
GRID = "quick: logistic regression and nearest neighbors on the means over a grid of {}, computed once per image"


class Probe(NamedTuple):
    """What the probes of one network found."""

    protocol: Protocol
    cells: int | None
    """Rows and columns of the grid whose means are the features; None of class token and mean patch."""
    blocks: tuple[int, ...]
    """Which blocks the lists are of, counted from 1."""
    neighbors: ProbeResult | None
    """Weighted nearest neighbors; of the quick protocol only."""
    linear: ProbeResult
    optimistic: Optimistic | None
    """Best over blocks and epochs on the test images, as the official script reports; None where there are no epochs."""
    train_images: int
    test_images: int
    classes: int


def chart(result: Probe) -> str:
    """Accuracy on the test images by block."""
    dots = [Dots("linear probe", [[value] for value in result.linear.test])]
    if result.neighbors is not None:
        dots.append(Dots("nearest neighbors", [[value] for value in result.neighbors.test]))
    else:
        dots.append(Dots("linear probe, held-out images", [[value] for value in result.linear.held_out]))
    return dot_chart(
        dots,
        [str(block) for block in result.blocks],
        title="Frozen features, block by block",
        x_label="block",
        y_label="top-1",
        y_reference=[("chance", 1 / result.classes)],
        connect=True,
    )


def print_result(model: str, result: Probe) -> None:
    """The table and what to take from it, on stdout."""
    _table(result).print()
    grid = "" if result.cells is None else f"a grid of {result.cells}x{result.cells}; "
    print(
        f"{model}: {_chosen(result)} ({grid}{result.train_images} training and {result.test_images} test images; "
        "* chosen on training images held out)"
    )
    if result.optimistic is not None:
        print(_warning(result.optimistic))


def write_report(path: Path, model: str, result: Probe) -> None:
    """One self-contained HTML file."""
    report = Report("Probe", model)
    report.facts(
        [
            ("Protocol", PROTOCOLS[result.protocol] if result.cells is None else GRID.format(f"{result.cells}x{result.cells}")),
            ("Training images", f"{result.train_images:,}"),
            ("Test images", f"{result.test_images:,}"),
            ("Classes", f"{result.classes}"),
        ]
    )
    report.section(
        "Frozen features",
        "The last block of a BEiT specializes in predicting tokens; the features that classify best come before it. The block "
        "is chosen on held-out training images, never on the test images.",
    )
    what = "of a linear classifier" if result.neighbors is None else "of a linear classifier and of weighted nearest neighbors"
    report.figure(chart(result), f"Accuracy {what} on each block's output.")
    if result.optimistic is not None:
        report.paragraph(_warning(result.optimistic))
    report.table(_table(result))
    report.write(path)


def _table(result: Probe) -> Table:
    columns = [("linear, held out", result.linear.held_out, None), ("linear, test", result.linear.test, result.linear.chosen)]
    if result.neighbors is not None:
        columns.append(("neighbors, held out", result.neighbors.held_out, None))
        columns.append(("neighbors, test", result.neighbors.test, result.neighbors.chosen))
    rows = [
        [block, *(f"{values[place]:.1%}" + (" *" if place == chosen else "  ") for _, values, chosen in columns)]
        for place, block in enumerate(result.blocks)
    ]
    return Table(["block", *(name for name, _, _ in columns)], rows, f"{_chosen(result)}. * marks the chosen block.")


def _chosen(result: Probe) -> str:
    linear, neighbors = result.linear, result.neighbors
    text = f"linear probe {linear.test[linear.chosen]:.1%} at block {result.blocks[linear.chosen]}"
    if neighbors is None:
        return text
    return f"{text}, nearest neighbors {neighbors.test[neighbors.chosen]:.1%} at block {result.blocks[neighbors.chosen]}"


def _warning(optimistic: Optimistic) -> str:
    return (
        f"optimistic, chosen on the test images: {optimistic.accuracy:.1%}, the best over blocks and epochs (block "
        f"{optimistic.block}, step {optimistic.step}); this is what the official script reports"
    )
