"""Segmenters: the same training from every start, and the floors, on the same images with masks."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from beitkit.configs.data import Preprocessing, ReadConfig, ValueRange
from beitkit.configs.train import MachineConfig
from beitkit.data.scenes.audit import audit
from beitkit.data.scenes.reading import NumberedScene, readable_scenes
from beitkit.data.scenes.scenes import Scenes
from beitkit.evaluation.floors import PixelClassifier
from beitkit.evaluation.segmentation import ConfusionTable
from beitkit.evaluation.verdict import Contest, contest
from beitkit.interop.load import load
from beitkit.nn.segmentation.label_map import predict_label_map
from beitkit.nn.segmentation.segmenter import Segmenter
from beitkit.runs.segment import run as segment
from beitkit.runs.segment.config import SegmentRun
from beitkit.runs.training.pixels import decided_pixels
from beitkit.runs.verdict.measured import Kept, NamedStart, Outcome, entry, training_seconds
from beitkit.train.journal import say_skipped
from beitkit.train.machine.runtime import start_runtime

MakeRun = Callable[[NamedStart, int], SegmentRun]
"""A start and a seed to the training of a segmenter."""
COMMONEST, COLOR = "commonest class", "linear head on color and position"
FLOORS = {COMMONEST: "floor-commonest", COLOR: "floor-color"}
"""Names of the floors, and of their files."""
FLOOR_SCENES = 1_000
"""Most training images that the linear head learns from, spread evenly over the list."""


@dataclass(frozen=True)
class LabeledScenes:
    """Scenes to train on and to compare on, and how they are read."""

    train: Scenes
    val: Scenes
    machine: MachineConfig = MachineConfig()
    read: ReadConfig = ReadConfig()
    noted: set[Path] = field(default_factory=set)
    """Files that were already reported as unreadable."""
    said: set[str] = field(default_factory=set)
    """Choices of trainings that were already printed."""

    def shown(self, scenes: Scenes, channels: int, value_range: ValueRange | None) -> Iterator[NumberedScene]:
        """The scenes that can be read; others are named once."""
        return readable_scenes(scenes, channels, self.read.max_broken, self._note, value_range)

    def _note(self, file: Path, reason: str) -> None:
        if file not in self.noted:
            self.noted.add(file)
            say_skipped(file, reason)


def scene_contest(
    scenes: LabeledScenes,
    starts: Sequence[NamedStart],
    seeds: Sequence[int],
    make: MakeRun,
    kept: Kept,
    *,
    has_floors: bool = True,
) -> Contest:
    """The contest of all starts with all scenes; what `kept` has is not measured again.

    Raises:
        UserError: what segmentation raises.
    """
    say = Console(stderr=True, highlight=False, soft_wrap=True).print
    count = len(scenes.train)
    entries = []
    if has_floors:
        say("\n[bold]floors[/]: what simple methods reach with the same images")
        entries += [
            entry(
                name,
                [kept.get(slug, count, seed, lambda at=(name, seed): _floor(scenes, *at)) for seed in seeds],
                is_floor=True,
            )
            for name, slug in FLOORS.items()
        ]
    for number, start in enumerate(starts, 1):
        say(f"\n[bold]{number} of {len(starts)}[/] {start.name}")
        found = [kept.get(start.slug, count, seed, lambda at=(start, seed): _segmented(scenes, make, *at)) for seed in seeds]
        entries.append(entry(start.name, found, is_floor=False))
    return contest(count, entries)


def _segmented(scenes: LabeledScenes, make: MakeRun, start: NamedStart, seed: int) -> Outcome:
    """Train, and measure every validation image."""
    run = make(start, seed)
    segment.run(run, said=scenes.said)
    model = load(run.out)
    assert isinstance(model, Segmenter)
    runtime = start_runtime(scenes.machine)
    model.to(runtime.device)

    def predict(image: Tensor) -> Tensor:
        return predict_label_map(model, image, model.config.inference, runtime.precision)

    shown = scenes.shown(scenes.val, model.config.backbone.channels, model.config.preprocessing.value_range)
    return _scored(scenes, predict, shown, training_seconds(run.out, len(scenes.train)))


def _floor(scenes: LabeledScenes, name: str, seed: int) -> Outcome:
    start_runtime(scenes.machine)  # sets the number of threads
    found = decided_pixels(scenes.train.files, Preprocessing(), 3)
    channels, value_range = found.channels, found.preprocessing.value_range
    began = time.perf_counter()
    if name == COMMONEST:
        pixels = audit(scenes.train).pixels
        predict = partial(_filled, max(range(len(pixels)), key=pixels.__getitem__))
    else:
        total = len(scenes.train)
        used = min(FLOOR_SCENES, total)
        learned = scenes.train.subset([index * total // used for index in range(used)])
        pairs = ((scene.image, scene.label_map) for scene in scenes.shown(learned, channels, value_range))
        predict = PixelClassifier(pairs, len(scenes.train.classes), seed)
    seconds = time.perf_counter() - began
    return _scored(scenes, predict, scenes.shown(scenes.val, channels, value_range), seconds)


def _filled(label: int, image: Tensor) -> Tensor:
    """The label map of one class everywhere."""
    return torch.full(image.shape[1:], label, dtype=torch.uint8)


def _scored(
    scenes: LabeledScenes, predict: Callable[[Tensor], Tensor], shown: Iterator[NumberedScene], seconds: float
) -> Outcome:
    table = ConfusionTable(len(scenes.train.classes))
    images = [math.nan] * len(scenes.val)
    for scene in shown:
        images[scene.place] = table.add(predict(scene.image), scene.label_map)
    scores = table.scores()
    return Outcome(
        score=scores.mean_iou,
        images=images,
        seconds=seconds,
        pixel_accuracy=scores.pixel_accuracy,
        class_iou=list(scores.iou),
    )
