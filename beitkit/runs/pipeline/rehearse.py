"""How fast this machine trains on these images: some steps of the real run, in a folder that is removed again."""

from __future__ import annotations

import contextlib
import io
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch

from beitkit.configs.data import ReadConfig
from beitkit.configs.model import SizeName
from beitkit.configs.train import LoopConfig, resolved
from beitkit.data.memory import SMALL_PIXELS
from beitkit.data.sources.image_list import ImageList
from beitkit.data.sources.split import list_table
from beitkit.data.views.masking import masker
from beitkit.files import MOST_OWN, read_json
from beitkit.planning.rates import glance
from beitkit.planning.workload import Workload
from beitkit.report.journal import read_journal
from beitkit.runs.finetune import run as finetune
from beitkit.runs.finetune.config import FinetuneRun
from beitkit.runs.pipeline.choose import LEAST_STEPS, Pace, Shape, pretrain_run
from beitkit.runs.pipeline.config import PipelineRun
from beitkit.runs.pretrain import run as pretrain
from beitkit.runs.pretrain.setup import network_of
from beitkit.runs.segment import run as segment
from beitkit.runs.segment.config import SegmentRun
from beitkit.runs.verdict.classifiers import LabeledImages, measured_floors
from beitkit.runs.verdict.measured import Kept
from beitkit.system import write_atomically
from beitkit.train.machine.runtime import Runtime

SAMPLE = 4
"""Batches of images that are shown again and again."""
PASSES = {True: 6, False: 2}
"""How often the sample is shown, where images are held in memory once they were seen, and where they are not."""
STEPS = {FinetuneRun: 16, SegmentRun: 6}
PART = 4
"""The floors are timed on a quarter of the images: what they take grows as the images do."""
LEAST_TIMED = 400
"""Labels from which on they are."""
WINDOW = 2
"""Steps that are timed together; the first ones, which wait for much that comes once, are left out."""


def images_per_second(config: PipelineRun, shape: Shape, size: SizeName, batch: int, runtime: Runtime) -> float:
    """Of pre-training a network of this size, timed on a few images of noise, without tokens and reading."""
    run = pretrain_run(config, shape, size, batch, LEAST_STEPS)
    model = network_of(run, 3, vocabulary=512)
    workload = Workload(network=model, predicted=masker(run.mask, model.backbone.grid).count)
    with torch.random.fork_rng():
        rates = glance(workload, resolved(run.train.batch_size), runtime, recompute=False)
    return 1 / (model.backbone.depth * rates.block + rates.rest)


def pretraining_pace(config: PipelineRun, shape: Shape, size: SizeName | None, batch: int, files: ImageList, side: int) -> Pace:
    """Of a pre-training; where images are held in memory once they were seen, a sample is shown several times."""
    run = pretrain_run(config, shape, size, batch, LEAST_STEPS)
    sample = files.evenly_spread(SAMPLE * batch)
    held = _held_share(config.read, len(files), side)
    steps = PASSES[held > 0] * max(1, len(sample) // batch)
    folder = run.out.parent / "rehearsal"
    with _removed(folder):
        images = run.images
        if files.members is None:
            images = folder / "sample.csv"
            write_atomically(images, as_table(sample))
        short = replace(
            run,
            images=images,
            out=folder / "run",
            train=replace(run.train, steps=steps),
            optim=replace(run.optim, warmup_epochs=None, warmup_steps=1),
            loop=LoopConfig(log_every=WINDOW, evaluate_every=steps, save_every=0),
            columns=type(run.columns)() if images != run.images else run.columns,
        )
        return _timed(lambda: pretrain.run(short), short.out, len(sample) / batch, held=held)


def as_table(files: ImageList) -> bytes:
    """A list of these images, without labels."""
    return list_table({"": files}).encode("utf-8", "surrogateescape")


def finetuning_pace(run: FinetuneRun | SegmentRun) -> Pace:
    """Of a fine-tuning, from a start on the images that it will be of; all of them are read as if for the first time."""
    folder = run.out.parent.parent.parent / "rehearsal"
    with _removed(folder):
        short = replace(
            run,
            out=folder / "run",
            train=replace(run.train, steps=STEPS[type(run)], epochs=None),
            optim=replace(run.optim, warmup_epochs=None, warmup_steps=1),
            loop=LoopConfig(log_every=WINDOW, save_every=0, ema=run.loop.ema),
        )
        go = (lambda: finetune.run(short)) if isinstance(short, FinetuneRun) else (lambda: segment.run(short))
        return _timed(go, short.out, float("inf"), held=0.0)


def floors_pace(images: LabeledImages, labels: int, out: Path) -> float | None:
    """Seconds of the floors of one seed with so many labels, timed on a part of all images; None where there are too few."""
    if labels < max(LEAST_TIMED, 2 * PART * len(images.train.classes)):
        return None
    folder = out / "rehearsal"
    some = replace(images, train=_part(images.train), val=_part(images.val))
    began = time.monotonic()
    with _removed(folder), contextlib.redirect_stderr(io.StringIO()):
        measured_floors(some, (labels // PART,), (0,), Kept(folder, len(some.val)))
    return PART * (time.monotonic() - began)


def _part(files: ImageList) -> ImageList:
    return files.evenly_spread(max(1, len(files) // PART))


def seconds_a_step(folder: Path) -> float:
    """Of a run that is there, by its journal."""
    speeds = [event.numbers["images_per_second"] for event in read_journal(folder / "journal.jsonl") if event.kind == "train"]
    return _images_a_step(folder) / statistics.median(speeds[len(speeds) > 1 :])


def _timed(go: Callable[[], object], out: Path, per_pass: float, *, held: float) -> Pace:
    """Run it in silence; its images are seen again after `per_pass` steps, and of the real run's this share will be held."""
    began = time.monotonic()
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        go()
    total = time.monotonic() - began
    events = [event for event in read_journal(out / "journal.jsonl") if event.kind == "train"]
    batch = _images_a_step(out)
    seconds = {event.step: batch / event.numbers["images_per_second"] for event in events}
    settled = [each for step, each in seconds.items() if step > WINDOW] or list(seconds.values())
    seen = [each for step, each in seconds.items() if step > per_pass + WINDOW]
    first = statistics.median([each for step, each in seconds.items() if WINDOW < step <= per_pass] or settled)
    later = statistics.median(seen) if seen else first
    spent, before = 0.0, 0
    for step, each in seconds.items():
        spent, before = spent + each * (step - before), step
    return Pace(first, held * later + (1 - held) * first, max(0.0, total - spent), batch)


def _images_a_step(folder: Path) -> int:
    """Of a run, by its config."""
    config = read_json(folder / "config.json", MOST_OWN)
    return int(config["train"]["batch_size"]) * int(config["loop"]["accumulate"] or 1)


def _held_share(read: ReadConfig, images: int, side: int) -> float:
    """Share of the images that are held in memory after the first pass."""
    return min(1.0, read.cache * 2**20 / (images * 3 * side * side)) if side * side <= SMALL_PIXELS else 0.0


@contextlib.contextmanager
def _removed(folder: Path) -> Iterator[None]:
    """A folder that is new before the block, and gone after it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)
