"""Classifiers: the same fine-tuning from every start, a probe of every frozen start, and the floors, on the same labels.

`beitkit demo` and others use `classifier_contests` with fine-tunings of their own.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Shaped
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from beitkit.configs.data import Preprocessing, ReadConfig
from beitkit.configs.segmentation import InferenceConfig
from beitkit.configs.train import MachineConfig
from beitkit.contracts import Batch
from beitkit.data.dataset import ImageDataset
from beitkit.data.sources.image_list import ImageList
from beitkit.data.sources.split import few_indices
from beitkit.data.stream import Reading, evaluation_batches, evaluation_dataset, evaluation_stream, with_limit_on_broken
from beitkit.data.views.image import EvaluationView
from beitkit.errors import UserError
from beitkit.evaluation.classification import collect_answers
from beitkit.evaluation.floors import SIDE, PatchDictionary, logistic_answers, neighbor_answers, pixels, without_copies
from beitkit.evaluation.probe import BlockFeatures, frozen_features, linear_probe
from beitkit.evaluation.verdict import Contest, contest
from beitkit.interop.load import load
from beitkit.nn.averaged import averaged_logits, check_views
from beitkit.nn.models import Classifier
from beitkit.runs.finetune import run as finetune
from beitkit.runs.finetune.config import FinetuneRun
from beitkit.runs.training.pixels import decided_pixels
from beitkit.runs.training.reader import median_side
from beitkit.runs.verdict.measured import Kept, NamedStart, Outcome, entry, training_seconds, twice_the_steps
from beitkit.train.journal import say_skipped
from beitkit.train.machine.runtime import start_runtime

MakeRun = Callable[[NamedStart, int, int], FinetuneRun]
"""A start, a number of labels and a seed to the fine-tuning of them."""
Answer = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""Features (n, f), labels (n,), features that are asked for (q, f) and the number of classes to classes (q,)."""
NEIGHBORS, PIXELS, DICTIONARY = "k-NN on pixels", "logistic regression on pixels", "patch dictionary"
FLOORS: dict[str, tuple[str, Answer]] = {
    NEIGHBORS: ("floor-neighbors", neighbor_answers),
    PIXELS: ("floor-pixels", logistic_answers),
    DICTIONARY: ("floor-dictionary", logistic_answers),
}
"""Names of the floors, of their files, and how they answer."""
DICTIONARY_IMAGES = 10_000
"""Training images, spread evenly over the list, that the dictionary is learned from; no label is used."""
PROBE_LABELS = 10_000
"""Most labeled images of a probe (as `beitkit probe`)."""
EVALUATION_BATCH = 64


@dataclass(frozen=True)
class LabeledImages:
    """Images to train on and to compare on, and how they are read."""

    train: ImageList
    val: ImageList
    machine: MachineConfig = MachineConfig()
    read: ReadConfig = ReadConfig()
    inference: InferenceConfig = InferenceConfig()
    """Views of each validation image whose logits a fine-tuned network averages."""
    noted: set[object] = field(default_factory=set)
    """Files that were already reported as unreadable."""
    said: set[str] = field(default_factory=set)
    """Choices of fine-tunings that were already printed."""

    def reading(self) -> Reading:
        """Evaluation batches on the device, unreadable files being named once."""
        return Reading(
            batch_size=EVALUATION_BATCH,
            workers=self.machine.workers,
            device=start_runtime(self.machine).device,
            max_broken=self.read.max_broken,
            report=self._note,
            list_file=None,
        )

    def _note(self, file: object, reason: str) -> None:
        if file not in self.noted:
            self.noted.add(file)
            say_skipped(file, reason)  # type: ignore[arg-type]

    def drawn(self, labels: int, seed: int) -> NDArray[np.int64]:
        """Which training images a fine-tuning with these labels and this seed sees."""
        return few_indices(self.train, labels, seed)


def classifier_contests(
    images: LabeledImages,
    starts: Sequence[NamedStart],
    labels: Sequence[int],
    seeds: Sequence[int],
    make: MakeRun,
    kept: Kept,
    *,
    has_probe: bool = True,
    has_floors: bool = True,
) -> tuple[Contest, ...]:
    """A contest for each number of labels; what `kept` has is not measured again.

    Args:
        images: the lists that the fine-tunings of `make` read.
        starts: whose names and files differ.
        labels: numbers of labeled images.
        seeds: of the fine-tunings and of the draw of the labels.
        make: start, labels and seed to the fine-tuning; each has a folder of its own.
        kept: where results are kept.
        has_probe: whether to probe each start that has weights.
        has_floors: whether to measure the floors.

    Raises:
        UserError: what fine-tuning raises.
    """
    say = Console(stderr=True, highlight=False, soft_wrap=True).print
    floors = {}
    if has_floors:
        say("\n[bold]floors[/]: what simple methods reach with the same labels")
        floors = measured_floors(images, labels, seeds, kept)
    probes: dict[str, dict[int, list[float]]] = {}
    reached: dict[str, dict[int, list[Outcome]]] = {}
    for number, start in enumerate(starts, 1):
        say(f"\n[bold]{number} of {len(starts)}[/] {start.name}", markup=True)
        if has_probe and start.path is not None:
            probes[start.name] = _probes(images, start, labels, seeds, kept)
        reached[start.name] = {
            count: [
                kept.get(start.slug, count, seed, lambda at=(start, count, seed): _finetuned(images, make, *at)) for seed in seeds
            ]
            for count in labels
        }
    return tuple(
        contest(
            count,
            [
                *(
                    entry(start.name, reached[start.name][count], is_floor=False, probe=probes.get(start.name, {}).get(count))
                    for start in starts
                ),
                *(entry(name, found[count], is_floor=True) for name, found in floors.items()),
            ],
        )
        for count in labels
    )


def _finetuned(images: LabeledImages, make: MakeRun, start: NamedStart, count: int, seed: int) -> Outcome:
    """Fine-tune, and look at which validation images the finished network names right."""
    run = make(start, count, seed)
    finetune.run(run, said=images.said)
    model = load(run.out)
    assert isinstance(model, Classifier)
    check_views(images.inference, model.config.backbone.image_size)
    runtime = start_runtime(images.machine)
    model.to(runtime.device)
    dataset = evaluation_dataset(images.val, model.config.backbone, model.config.preprocessing)
    batches = evaluation_batches(dataset, model.config.preprocessing, images.reading())
    predict = runtime.precision()(partial(averaged_logits, model, config=images.inference))
    (logits,), index = collect_answers([predict], batches, "index", [str(run.out)])
    labeled = len(images.train) if run.labels is None else run.labels
    found = _right(images.val, logits.argmax(1), index, training_seconds(run.out, labeled))
    return found._replace(twice=twice_the_steps(run.out, "val/top1", len(index)))


def _right(val: ImageList, answers: Tensor, index: Tensor, seconds: float) -> Outcome:
    """What answers for the images at these places of the list are worth."""
    assert val.labels is not None
    right = (answers == torch.from_numpy(val.labels)[index]).double()
    scores = torch.full((len(val),), math.nan, dtype=torch.float64)
    scores[index] = right
    return Outcome(score=float(right.mean()), images=scores.tolist(), seconds=seconds)


def _probes(
    images: LabeledImages, start: NamedStart, labels: Sequence[int], seeds: Sequence[int], kept: Kept
) -> dict[int, list[float]]:
    """Linear probe of a frozen start: for each number of labels the accuracy of every seed, at the block that is chosen."""
    slug = f"probe-{start.slug}"
    missing = [(count, seed) for count in labels for seed in seeds if not kept.has(slug, count, seed)]
    drawn = {at: images.drawn(min(at[0], PROBE_LABELS), at[1]) for at in missing}
    features: dict[str, _Features] = {}
    if missing:
        assert start.path is not None
        model = load(start.path, task="classify", num_classes=len(images.train.classes))
        assert isinstance(model, Classifier)
        model.to(start_runtime(images.machine).device).requires_grad_(False)
        features["train"] = _features(images, model, images.train, np.unique(np.concatenate(list(drawn.values()))))
        features["val"] = _features(images, model, images.val, np.arange(len(images.val)))

    def measure(count: int, seed: int) -> Outcome:
        began = time.perf_counter()
        fit, ask = features["train"].at(drawn[count, seed]), features["val"].at(np.arange(len(images.val)))
        result = linear_probe(fit, ask, len(images.train.classes))
        return Outcome(score=result.test[result.chosen], images=[], seconds=time.perf_counter() - began)

    return {
        count: [kept.get(slug, count, seed, lambda at=(count, seed): measure(*at)).score for seed in seeds] for count in labels
    }


@dataclass(frozen=True)
class _Features:
    """Features of some images of a list."""

    values: Float[Tensor, "blocks m f"]
    row_of: Tensor
    """For each image of the list where it stands among them; -1 where it could not be read, or was not asked for."""
    files: ImageList

    def at(self, index: NDArray[np.int64]) -> BlockFeatures:
        """The features of the images at these places that could be read, and their labels."""
        assert self.files.labels is not None
        wanted = torch.from_numpy(index)
        wanted = wanted[self.row_of[wanted] >= 0]
        return BlockFeatures(self.values[:, self.row_of[wanted]], torch.from_numpy(self.files.labels)[wanted])


def _features(images: LabeledImages, model: Classifier, files: ImageList, index: NDArray[np.int64]) -> _Features:
    preprocessing, precision = model.config.preprocessing, start_runtime(images.machine).precision
    dataset = evaluation_dataset(files.subset(index), model.config.backbone, preprocessing)
    blocks = range(model.backbone.depth)
    values, places = [], []
    for batch in evaluation_batches(dataset, preprocessing, images.reading()):
        readable = _readable(batch)
        values.append(frozen_features(model.backbone, batch["images"], blocks, precision).cpu()[:, readable])
        places.append(batch["index"].cpu()[readable])
    rows = torch.from_numpy(index)[torch.cat(places)]
    return _Features(torch.cat(values, dim=1), _places(rows, len(files)), files)


def _readable(batch: Batch) -> Tensor:
    return (batch["broken"] < 0).cpu()


def _places(index: Tensor, total: int) -> Tensor:
    """For each of `total` images its place in `index`, or -1."""
    return torch.full((total,), -1).index_copy_(0, index, torch.arange(len(index)))


def measured_floors(
    images: LabeledImages, labels: Sequence[int], seeds: Sequence[int], kept: Kept
) -> dict[str, dict[int, list[Outcome]]]:
    """Every floor with every number of labels and every seed."""
    measured = _FloorImages(images)

    def measure(name: str, count: int, seed: int) -> Outcome:
        return measured.measure(name, images.drawn(count, seed))

    measured.wanted = [
        images.drawn(count, seed)
        for slug, _ in FLOORS.values()
        for count in labels
        for seed in seeds
        if not kept.has(slug, count, seed)
    ]
    return {
        name: {
            count: [kept.get(slug, count, seed, lambda at=(name, count, seed): measure(*at)) for seed in seeds]
            for count in labels
        }
        for name, (slug, _) in FLOORS.items()
    }


class _FloorImages:
    """Small images for the floors, which are read, and described by the dictionary, when they are first asked for."""

    def __init__(self, images: LabeledImages) -> None:
        self._images = images
        self.wanted: list[NDArray[np.int64]] = []
        """Training images that will be asked for."""
        self._train: tuple[Tensor, Tensor] | None = None
        self._val: tuple[Tensor, Tensor] | None = None
        self._described: tuple[Tensor, Tensor, float] | None = None

    def measure(self, name: str, index: NDArray[np.int64]) -> Outcome:
        """A floor that learns from the training images at these places."""
        train, places, val, asked = self._read()
        assert self._images.train.labels is not None
        wanted = torch.from_numpy(index)
        wanted = wanted[places[wanted] >= 0]
        rows, known = places[wanted], torch.from_numpy(self._images.train.labels)[wanted]
        seconds = 0.0
        if name == DICTIONARY:
            fit, ask, seconds = self._describe()
            fit = fit[rows]
        else:
            fit, ask = pixels(train[rows]), pixels(val)
        began = time.perf_counter()
        answers = FLOORS[name][1](fit, known, ask, len(self._images.train.classes))
        return _right(self._images.val, answers, asked, seconds + time.perf_counter() - began)

    def _read(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Training images, where each image of the list stands among them, validation images and which these are."""
        if self._train is None or self._val is None:
            start_runtime(self._images.machine)  # sets the number of threads
            learned = self._images.train.evenly_spread(DICTIONARY_IMAGES)
            spread = np.arange(len(learned)) * len(self._images.train) // len(learned)
            index = np.unique(np.concatenate([*self.wanted, spread]))
            look = small_reader(self._images)
            (train, rows), (val, asked) = (
                look(self._images.train, index),
                look(self._images.val, np.arange(len(self._images.val))),
            )
            train, val = without_copies(train, val)
            self._train, self._val = (train, _places(rows, len(self._images.train))), (val, asked)
        return *self._train, *self._val

    def _describe(self) -> tuple[Tensor, Tensor, float]:
        """The dictionary's features of training and validation images, and how long they took."""
        if self._described is None:
            train, _, val, _ = self._read()
            began = time.perf_counter()
            dictionary = PatchDictionary.learn(train[:: max(1, len(train) // DICTIONARY_IMAGES)], seed=0)
            self._described = dictionary.features(train), dictionary.features(val), time.perf_counter() - began
        return self._described


def small_reader(
    images: LabeledImages,
) -> Callable[[ImageList, NDArray[np.int64]], tuple[Shaped[Tensor, "n c h w"], Tensor]]:
    """A function from a list and places in it to the images there, in the floors' size, and which of them could be read."""
    side = min(SIDE, median_side(images.train, 0))
    found = decided_pixels(images.train, Preprocessing(), 3)
    reading = images.reading()

    def read(files: ImageList, index: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        view = EvaluationView(replace(found.preprocessing, crop_share=1.0), (side, side))
        chosen = files.subset(index)
        dataset = ImageDataset(
            chosen, view, channels=found.channels, value_range=found.preprocessing.value_range, kind="evaluate"
        )
        stream = evaluation_stream(dataset, reading.batch_size, workers=reading.workers)
        shown, places = [], []
        for batch in with_limit_on_broken(stream, dataset, reading.max_broken, reading.report, reading.list_file):
            readable = _readable(batch)
            shown.append(batch["images"][readable])
            places.append(batch["index"][readable])
        return torch.cat(shown), torch.from_numpy(index)[torch.cat(places)]

    return read


def check_labels(train: ImageList, labels: Sequence[int]) -> None:
    """Raise a `UserError` unless every number of labels can be drawn, and a part of them held out."""
    least = 2 * len(train.classes)
    for count in labels:
        if not least <= count <= len(train):
            raise UserError(
                f"`labels` {count} must lie between {least} (two images of each of {len(train.classes)} classes) and the "
                f"{len(train)} training images"
            )
