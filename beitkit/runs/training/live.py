"""The report of a run that still goes on: renewed after evaluations and saves, with a strip of reconstructions that grows.

The finished run's report takes its place. Rendering takes no random numbers of the run and no noticeable part of its time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from beitkit.data.decoding.decode import to_tensor
from beitkit.report.images import png_bytes
from beitkit.report.sections import TrainingReport
from beitkit.system import write_atomically
from beitkit.train.loop import Training

SPARED = 50
"""A page is written again after so many times the seconds that the last one took, so 2% of the time go to it at most."""
SHOWN_STEPS = 6
"""Columns of a strip, besides the image and what it is compared with."""
GROWTH = 1.25
"""The images of a step are kept if it is so many times the last kept one: some dozen, however long the run is."""
STRIP_IMAGES = 4
NOT_SHOWN = ("lr", "grad_norm", "epoch", "images_per_second", "data_wait")
"""Numbers of the journal that are no metric, or have a chart of their own."""

Columns = dict[str, Float[Tensor, "r c h w"]]


class Strip:
    """What a network made of the same few images, step by step; kept in `strip/` of the run folder, one file a step."""

    def __init__(self, folder: Path, draw: Callable[[], Columns]) -> None:
        """`draw` returns the columns of now for a report, the last one being what the network makes of the images; none where
        that cannot be drawn."""
        self.folder = folder / "strip"
        self._draw = draw
        self._columns: Columns = {}

    def grow(self, step: int) -> None:
        """Draw the images of now; those of the last time are kept for good if they are old enough."""
        self._columns = self._draw()
        if not self._columns:
            return
        last = next(reversed(self._columns.values()))
        self.folder.mkdir(exist_ok=True)
        before = [one for one in self.steps() if one < step]
        if len(before) > 1 and before[-1] < GROWTH * before[-2]:
            self._path(before[-1]).unlink()
        write_atomically(self._path(step), png_bytes(torch.cat(list(last), dim=1)))

    def steps(self) -> list[int]:
        """Those whose images are kept."""
        return sorted(int(path.stem) for path in self.folder.glob("*.png"))

    def show(self, report: TrainingReport, step: int) -> None:
        """The section of a report: the images, and what the network made of them up to this step, which was drawn last."""
        if not self._columns:
            return
        steps = [one for one in self.steps() if one <= step]
        count = min(SHOWN_STEPS, len(steps))
        chosen = dict.fromkeys(steps[round(index * (len(steps) - 1) / max(1, count - 1))] for index in range(count))
        *fixed, _ = self._columns
        columns = {name: self._columns[name] for name in fixed}
        columns |= {f"step {one:,}": _parted(self._path(one), len(columns[fixed[0]])) for one in chosen}
        report.section(
            "How it learned", "The same images all the way; a column is what the network made of them after that step."
        )
        report.images(columns, "Not chosen: the first images that evaluations look at.")

    def _path(self, step: int) -> Path:
        return self.folder / f"{step:08d}.png"


class Renewal:
    """Writes the page of a run that goes on."""

    def __init__(self, training: Training, title: str, facts: Sequence[tuple[str, str]], strip: Strip | None) -> None:
        self._training, self._title, self._facts, self._strip = training, title, facts, strip
        self._took, self._ended = 0.0, float("-inf")

    def __call__(self, step: int) -> None:
        """Write it, if the last time was long enough ago; a page that cannot be written ends no run."""
        began = time.perf_counter()
        if began - self._ended < SPARED * self._took or not self._training.journal.path.exists():
            return  # or nothing was logged yet
        try:
            self._write(step)
        except OSError as error:
            self._training.journal.say(f"the report is not renewed ({error.strerror or error})")
        self._ended = time.perf_counter()
        self._took = self._ended - began

    def _write(self, step: int) -> None:
        folder, steps = self._training.journal.path.parent, self._training.schedule.steps
        if self._strip is not None:
            self._strip.grow(step)
        report = TrainingReport(self._title, folder)
        report.facts([*self._facts, ("State", f"step {step:,} of {steps:,}, going on; reload the page for a newer one")])
        if self._strip is not None:
            self._strip.show(report, step)
        report.section("Learning")
        logged = {name: None for event in report.events for name in event.numbers if name not in NOT_SHOWN}  # in order, once each
        evaluators = dict.fromkeys(name.rpartition("/")[0] for name in logged if "/" in name)
        for name in dict.fromkeys(name.rpartition("/")[2] for name in logged):
            lines = {"training": name} | {kind: f"{kind}/{name}" for kind in evaluators}
            report.curves(lines, f"Of {folder.name}, so far.", title=name, y_label=name)
        report.finish()


def renewing(training: Training, title: str, facts: Sequence[tuple[str, str]], strip: Strip | None = None) -> Training:
    """The settings of a training that renews its report as it goes."""
    return replace(training, renew=Renewal(training, title, facts, strip))


def _parted(path: Path, rows: int) -> Float[Tensor, "r c h w"]:
    """The images of a file that holds so many, one above the other."""
    with Image.open(path) as image:
        pixels = to_tensor(image).float() / 255
    return pixels.unflatten(1, (rows, -1)).transpose(0, 1)
