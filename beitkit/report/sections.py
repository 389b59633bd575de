"""What trainings' reports share: curves, what holds of any training, and another run beside this one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from beitkit.report.charts import Dots, Reference, Series, Unit, dot_chart, line_chart
from beitkit.report.charts.canvas import Number, format_value
from beitkit.report.document import Report
from beitkit.report.journal import Points, read_journal, series
from beitkit.report.normal import Line, Scaled, training_lines
from beitkit.report.table import Column, Table, percent, points

FEWEST = 2
"""Values of a line that are no curve."""


class TrainingReport(Report):
    """The report of a training run, which knows what its journal holds.

    Values are named as in the journal: those of evaluations have the evaluator's name and a slash before them.
    """

    def __init__(self, title: str, folder: Path, subtitle: str = "") -> None:
        super().__init__(title, subtitle or str(folder))
        self.folder = folder
        self.events = read_journal(folder / "journal.jsonl")
        self.warnings: tuple[str, ...] = ()
        """What "Is this normal?" warns about."""
        self.comparison: Table | None = None
        """This run and another one side by side."""

    def last(self, key: str) -> float:
        """The last logged value of a key; NaN if there is none."""
        values = self._points(key).values
        return values[-1] if values else float("nan")

    def curves(
        self,
        lines: Mapping[str, str],
        caption: str,
        *,
        title: str,
        y_label: str,
        references: Sequence[Reference] = (),
        unit: Unit = "plain",
        log_y: bool = False,
    ) -> None:
        """A chart over optimizer steps; `lines` maps the names of its lines to the keys of their values.

        Where no line has more than two values there is no curve to be seen, and the values are named instead.
        """
        shown = [Series(name, *points) for name, key in lines.items() if (points := self._points(key)).steps]
        if shown and all(len(line.x) <= FEWEST for line in shown):
            named = [f"{line.name} {_named_values(line, unit)}" for line in shown]
            self.paragraph(f"{title}: {'; '.join(named)}.")
            return
        svg = line_chart(shown, title=title, x_label="step", y_label=y_label, y_reference=references, unit=unit, log_y=log_y)
        self.figure(svg, caption)

    def normal(self, lines: Sequence[Line]) -> None:
        """The section "Is this normal?": these lines, and those that hold for any training."""
        waits = series(self.events, "data_wait").values
        course = training_lines(
            losses=series(self.events, "loss").values,
            grad_norms=series(self.events, "grad_norm").values,
            data_wait=sum(waits) / len(waits) if waits else 0.0,
            bad_steps=sum("not applied" in event.texts.get("text", "") for event in self.events),
            scaled=self._scaled(),
        )
        self.section("Is this normal?")
        self.normal_lines([*lines, *course])
        self.warnings = tuple(line.sentence for line in (*lines, *course) if line.state == "warn")

    def _scaled(self) -> Scaled | None:
        """How it went with the scale of float16's gradients."""
        refused, scales = series(self.events, "refused"), series(self.events, "loss_scale").values
        return Scaled(round(refused.values[-1]), round(refused.steps[-1]), scales[-1]) if scales and refused.values else None

    def beside_another_run(
        self,
        measure: str,
        share: float,
        other: Path,
        other_share: float,
        intervals: Sequence[tuple[Number, Number] | None] = (),
        more: Sequence[tuple[str, float | None, float | None]] = (),
    ) -> None:
        """The result of this run and that of another, by the same measure; `intervals` say how far each can be trusted.

        `more` are other measures of both, by name; they are listed, not judged.
        """
        self.verdict(
            f"{measure} {share:.1%} here, {other_share:.1%} in {other}: {100 * (share - other_share):+z.1f} points",
            None,
            "One run each. Repeat both with other values of `seed` before you believe a small difference.",
        )
        dots, names = [Dots(measure, [[share], [other_share]], intervals)], [self.folder.name, other.name]
        chart = dot_chart(dots, names, title="Side by side", x_label="run", y_label=measure, from_zero=True)
        trust = " The whiskers are 95% intervals: how far other images could move it." if any(intervals) else ""
        self.figure(chart, f"This run and {other}.{trust}")
        rows = [
            [name, one, another, None if one is None or another is None else one - another]
            for name, one, another in [(measure, share, other_share), *more]
        ]
        columns = [
            Column(self.folder.name, percent),
            Column(_other_name(self.folder, other), percent),
            Column("difference", points),
        ]
        self.comparison = Table(["", *columns], rows, "Difference in points.")
        self.table(self.comparison)

    def finish(self) -> None:
        """Add what one looks at when something is wrong, and write `report.html`."""
        self.section("Course of the run", "What one looks at when something is wrong.")
        self.curves({"learning rate": "lr"}, "Learning rate at its peak group.", title="Learning rate", y_label="rate")
        norm = "Total gradient norm before clipping."
        self.curves({"gradient norm": "grad_norm"}, norm, title="Gradient norm", y_label="norm", log_y=True)
        self.curves({"images/s": "images_per_second"}, "Images per second.", title="Speed", y_label="images/s")
        self.write(self.folder / "report.html")

    def _points(self, key: str) -> Points:
        return series(self.events, key, "evaluate" if "/" in key else "train")


def _other_name(folder: Path, other: Path) -> str:
    return str(other) if other.name == folder.name else other.name


def _named_values(line: Series, unit: Unit) -> str:
    """The values of a line in words: 71.3% at step 100, 75.0% at step 200."""
    return ", ".join(f"{format_value(y, unit)} at step {x:,.0f}" for x, y in zip(line.x, line.y, strict=True))
