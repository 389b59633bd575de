"""`beitkit compare`: what sets runs apart, in what they were asked for and in what came out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from beitkit.command.following import command, unused
from beitkit.configs.codec import NOT_PART_OF_A_RUN
from beitkit.errors import writing_to
from beitkit.report.charts import Series, Unit, line_chart
from beitkit.report.charts.canvas import Number
from beitkit.report.document import Report
from beitkit.report.table import Column, Table
from beitkit.runs.compare.config import CompareRun
from beitkit.runs.compare.found import RunFacts, best_of, read_run
from beitkit.runs.evaluate.model_paths import short_names
from beitkit.terminal import one_line

NEVER_DIFFERENT = ("out", "command", "data_wait", "seconds", "epoch")
"""Options, facts and logged numbers that say nothing where they differ."""
COURSE = ("lr", "grad_norm", "images_per_second")
"""Logged numbers that are drawn last: one looks at them when something is wrong."""
UNSET = "default"
"""An option that a config.json does not have, as it came later or belongs to another verb."""
LONGEST = 60
"""Characters of a value in a table."""
ONE_RUN = "One run of each: repeat them with other values of `seed` before you believe a small difference."


class RunComparison(NamedTuple):
    """Runs side by side; every inner dict is by the names of the runs that have such a value."""

    runs: dict[str, Path]
    configuration: dict[str, dict[str, Any]]
    """Options that differ."""
    results: dict[str, dict[str, Number]]
    """What was logged last, the best of evaluations, and the numbers of the result files."""
    environment: dict[str, dict[str, Any]]
    """Versions and machines that differ."""


def run(config: CompareRun) -> RunComparison:
    """Compare; print tables, and write the page."""
    names = short_names(config.runs)
    runs = [read_run(path, name) for path, name in zip(config.runs, names, strict=True)]
    found = RunComparison(
        dict(zip(names, config.runs, strict=True)),
        _differences(runs, lambda one: one.config),
        _results(runs),
        _differences(runs, lambda one: one.environment),
    )
    if config.out is not None:
        with writing_to(config.out):
            _write_page(config.out, runs, found)
    for title, table in _tables(runs, found):
        print(title)
        if table is not None:
            table.print()
    again = command("compare", *config.runs, out=unused(Path("compare.html")))
    print(f"Next: {again} (the curves, in one chart each)" if config.out is None else f"written: {config.out}")
    return found


def _differences(runs: Sequence[RunFacts], of: Callable[[RunFacts], dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What is not the same in all runs, in the order of the first that has it."""
    keys = dict.fromkeys(key for one in runs for key in of(one) if key not in NEVER_DIFFERENT)
    found = {key: {one.name: of(one)[key] for one in runs if key in of(one)} for key in keys}
    return {
        key: values
        for key, values in found.items()
        if len(values) < len(runs) or any(value != next(iter(values.values())) for value in values.values())
    }


def _results(runs: Sequence[RunFacts]) -> dict[str, dict[str, Number]]:
    found, best = dict[str, dict[str, Number]](), dict[str, dict[str, Number]]()
    for one in runs:
        found.setdefault("last step", {})[one.name] = max((event.step for event in one.events), default=0)
    keys = [key for key in _logged(runs) if key not in COURSE]
    for key in keys:
        for one in runs:
            values = [value for value in one.points(key).values if math.isfinite(value)]
            if values:
                found.setdefault(key, {})[one.name] = values[-1]
                if "/" in key:
                    best.setdefault(key, {})[one.name] = best_of(key, values)
        if best.get(key) not in (None, found.get(key)):
            found[f"{key}, best"] = best[key]
    for key in dict.fromkeys(key for one in runs for key in one.results):
        found[f"result: {key}"] = {one.name: one.results[key] for one in runs if key in one.results}
    return found


def _logged(runs: Sequence[RunFacts]) -> list[str]:
    return [key for key in dict.fromkeys(key for one in runs for key in one.keys) if key not in NEVER_DIFFERENT]


def _tables(runs: Sequence[RunFacts], found: RunComparison) -> list[tuple[str, Table | None]]:
    """Each with a sentence above it."""
    same = all(one.verb == runs[0].verb for one in runs)
    what = f"Runs of beitkit {runs[0].verb}" if same else f"Runs of {', '.join(f'beitkit {one.verb}' for one in runs)}"
    unfinished = [one.name for one in runs if not one.is_finished]
    notes = f", not finished: {', '.join(unfinished)}" if unfinished else ""
    words = "option differs" if len(found.configuration) == 1 else "options differ"
    differing = [key for key in found.configuration if key not in NOT_PART_OF_A_RUN]
    only_seed = ", only the seed" if differing and all(key in ("seed", "train.seed") for key in differing) else ""
    count = len(found.configuration) or "no"
    options = [_row(runs, key, values, UNSET) for key, values in found.configuration.items()]
    environment = [_row(runs, key, values, "-") for key, values in found.environment.items()]
    heads = [Column(one.name, align="left") for one in runs]
    return [
        (f"{what}{notes}: {count} {words}{only_seed}", Table(["option", *heads], options, _ignored(found)) if options else None),
        ("Results", _result_table(runs, found)),
        (
            "Environment" if environment else "Environment: no difference",
            Table(["environment", *heads], environment, "What differs of versions and machines.") if environment else None,
        ),
    ]


def _ignored(found: RunComparison) -> str:
    """Which of the options do not matter."""
    ignored = [f"`{key}`" for key in found.configuration if key in NOT_PART_OF_A_RUN]
    missing = f"{UNSET}: an option that the run's file does not name."
    return missing if not ignored else f"{missing} What comes out does not depend on {', '.join(ignored)}."


def _row(runs: Sequence[RunFacts], key: str, values: dict[str, Any], missing: str) -> list[str]:
    return [key, *(_short(values[one.name]) if one.name in values else missing for one in runs)]


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    text = " ".join(map(_short, value)) if isinstance(value, list) else "none" if value is None else str(value)
    return text if len(text) <= LONGEST else "…" + text[1 - LONGEST :]


def _result_table(runs: Sequence[RunFacts], found: RunComparison) -> Table:
    """A row for each number; of two runs with the difference."""
    pair = len(runs) == 2
    rows = []
    for key, values in found.results.items():
        row: list[object] = [key, *(values.get(one.name) for one in runs)]
        if pair:
            first, second = row[1], row[2]
            both = isinstance(first, int | float) and isinstance(second, int | float)
            row.append(second - first if both else None)  # type: ignore[operator] - numbers
        rows.append(row)
    columns: list[str | Column] = ["result", *(Column(one.name, _number) for one in runs)]
    caption = "The last logged value of each number; of evaluations the best as well, where another was better."
    return Table([*columns, *([Column("difference", _signed)] if pair else [])], rows, caption)


def _number(value: Number | None) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _signed(value: Number | None) -> str:
    return "-" if value is None else f"{value:+,}" if isinstance(value, int) else f"{value:+.3g}"


def _write_page(path: Path, runs: Sequence[RunFacts], found: RunComparison) -> None:
    report = Report("Runs side by side", one_line(", ".join(one.name for one in runs)))
    report.facts([(one.name, f"{one.verb}{'' if one.is_finished else ', not finished'}, {one.path}") for one in runs])
    configuration, results, environment = _tables(runs, found)
    report.section("Configuration")
    report.paragraph(f"{configuration[0]}.")
    if configuration[1] is not None:
        report.table(configuration[1])
    keys = _logged(runs)
    shown = [key for key in keys if key not in COURSE]
    for title, part in (("Curves", shown), ("Course of the runs", [key for key in keys if key in COURSE])):
        if part:
            report.section(title)
        for key in part:
            report.figure(*_chart(runs, key))
    report.section("Results", ONE_RUN)
    assert results[1] is not None
    report.table(results[1])
    report.section("Environment", "" if environment[1] is not None else "The same versions and the same kind of machine.")
    if environment[1] is not None:
        report.table(environment[1])
    report.write(path)


def _chart(runs: Sequence[RunFacts], key: str) -> tuple[str, str]:
    """The chart of a number, and its caption."""
    lines = [Series(one.name, *points) for one in runs if (points := one.points(key)).steps]
    values = [value for line in lines for value in line.y if math.isfinite(value)]
    is_share = bool(values) and min(values) >= 0 and max(values) <= 1 and _is_accuracy(key)
    unit: Unit = "percent" if is_share else "plain"
    without = [one.name for one in runs if one.name not in {line.name for line in lines}]
    caption = f"`{key}` of {', '.join(line.name for line in lines)}" + (
        f"; not logged by {', '.join(without)}." if without else "."
    )
    svg = line_chart(lines, title=key, x_label="step", y_label=key, unit=unit, log_y=key == "grad_norm")
    return svg, caption


def _is_accuracy(key: str) -> bool:
    return any(word in key for word in ("accuracy", "top1", "top5", "neighbors", "linear", "share", "iou", "explained"))
