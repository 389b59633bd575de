"""How fast this machine trains on these images: some steps of the real run, in a folder that is removed again."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch

from beitkit.configs.model import SizeName
from beitkit.configs.train import LoopConfig, resolved
from beitkit.data.memory import SMALL_PIXELS
from beitkit.data.sources.image_list import ImageList
from beitkit.data.views.masking import masker
from beitkit.files import MOST_OWN, read_json
from beitkit.planning.rates import glance
from beitkit.planning.workload import Workload
from beitkit.report.journal import read_journal
from beitkit.runs.finetune import run as finetune
from beitkit.runs.finetune.config import FinetuneRun
from beitkit.runs.pipeline.choose import Pace
from beitkit.runs.pretrain import run as pretrain
from beitkit.runs.pretrain.config import PretrainRun
from beitkit.runs.pretrain.setup import network_of
from beitkit.runs.segment import run as segment
from beitkit.runs.segment.config import SegmentRun
from beitkit.system import write_atomically
from beitkit.train.machine.runtime import Runtime

SAMPLE = 4
"""Batches of images that are shown again and again."""
PASSES = 6
STEPS = {FinetuneRun: 16, SegmentRun: 6}
WINDOW = 2
"""Steps that are timed together; the first ones, which wait for much that comes once, are left out."""


def images_per_second(run: PretrainRun, size: SizeName, runtime: Runtime) -> float:
    """Of pre-training a network of this size, timed on a few images of noise, without tokens and reading."""
    run = replace(run, size=size)
    model = network_of(run, 3, vocabulary=512)
    workload = Workload(network=model, predicted=masker(run.mask, model.backbone.grid).count)
    with torch.random.fork_rng():
        rates = glance(workload, resolved(run.train.batch_size), runtime, recompute=False)
    return 1 / (model.backbone.depth * rates.block + rates.rest)


def pretraining_pace(run: PretrainRun, files: ImageList, side: int) -> Pace:
    """Of a pre-training; where images are held in memory once they were seen, a sample is shown several times."""
    batch = resolved(run.train.batch_size)
    sample = files.evenly_spread(SAMPLE * batch)
    steps = PASSES * max(1, len(sample) // batch)
    folder = run.out.parent / "rehearsal"
    with _removed(folder):
        images = run.images
        if files.members is None and len(files.files(0)) == 1:
            images = folder / "sample.csv"
            text = io.StringIO()
            csv.writer(text, quoting=csv.QUOTE_ALL).writerows([["path"], *([os.fsdecode(path)] for path in sample.paths())])
            write_atomically(images, text.getvalue().encode("utf-8", "surrogateescape"))
        short = replace(
            run,
            images=images,
            out=folder / "run",
            train=replace(run.train, steps=steps),
            optim=replace(run.optim, warmup_epochs=None, warmup_steps=1),
            loop=LoopConfig(log_every=WINDOW, evaluate_every=steps, save_every=0),
            columns=type(run.columns)() if images != run.images else run.columns,
        )
        return _timed(lambda: pretrain.run(short), short.out, len(sample) / batch, held=_held_share(run, files, side))


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


def _held_share(run: PretrainRun, files: ImageList, side: int) -> float:
    """Share of the images that are held in memory after the first pass."""
    if side * side > SMALL_PIXELS:
        return 0.0
    return min(1.0, run.read.cache * 2**20 / (len(files) * 3 * side * side))


@contextlib.contextmanager
def _removed(folder: Path) -> Iterator[None]:
    """A folder that is new before the block, and gone after it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)
