"""Linear probes of the official script and of the paper: a layer on every block, trained on random crops."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from beitkit.configs.train import LoopConfig, OptimConfig, TrainConfig
from beitkit.contracts import Batch
from beitkit.data.dataset import ImageDataset
from beitkit.data.sources.image_list import ImageList
from beitkit.data.stream import Reading, normalized
from beitkit.data.views.image import ProbeView
from beitkit.errors import Interrupted
from beitkit.evaluation.probe import (
    BlockFeatures,
    GridMeans,
    Pool,
    ProbeAccuracy,
    ProbeResult,
    block_accuracies,
    featured,
    mean_patch,
    token_and_mean,
)
from beitkit.nn.models import Classifier, FeatureNetwork, MaskedImageModel
from beitkit.objectives.probe import LinearProbes
from beitkit.report.journal import read_journal
from beitkit.runs.probe.config import ProbeRun
from beitkit.runs.training.reader import training_batches
from beitkit.train.checkpoints.checkpoint import Checkpoints
from beitkit.train.folder import RunFolder
from beitkit.train.journal import Journal
from beitkit.train.loop import Training, fit
from beitkit.train.machine.runtime import Runtime
from beitkit.train.optim import Group
from beitkit.train.schedule import Schedule, make_schedule

EPOCHS = {"official": 100, "paper": 50}
BATCH = 1024
"""The paper's, and of the official script's README (8 GPUs with 128)."""
BASE_LR = 1e-3
OPTIM = OptimConfig(lr_batch=256, lr_scaling="linear", min_lr=0.0, warmup_epochs=0.0, weight_decay=1e-4, clip=None)
"""AdamW of the official script (method 6.2)."""


def pool_of(config: ProbeRun) -> Pool:
    """The features that a probe sees."""
    if config.cells is not None:
        return GridMeans(config.cells)
    return mean_patch if config.protocol == "paper" else token_and_mean


class Optimistic(NamedTuple):
    """The official script's own number: the best over blocks and epochs on the test images, which it thereby chooses on."""

    accuracy: float
    block: int
    """Counted from 1."""
    step: int


class Images(NamedTuple):
    """What the probes learn from and are judged on."""

    train: ImageList
    held_out: Tensor
    """Which training images choose the block, bool (n,)."""
    choosing: BlockFeatures
    """Features of these."""
    test: BlockFeatures
    blocks: tuple[int, ...]
    """What the features are of, counted from 1."""


def train_probes(
    config: ProbeRun,
    model: MaskedImageModel | Classifier | FeatureNetwork,
    images: Images,
    reading: Reading,
    runtime: Runtime,
    folder: RunFolder | None,
) -> tuple[ProbeResult, Optimistic]:
    """Train one linear layer per block, or continue; without a folder nothing is kept."""
    if folder is not None:
        return _train(config, model, images, reading, runtime, folder.path)
    with tempfile.TemporaryDirectory() as name:
        try:
            return _train(config, model, images, reading, runtime, Path(name))
        except Interrupted as stop:
            what_now = "nothing was kept, give `out` for a run that can be continued"
            raise Interrupted(stop.step, stop.steps, stop.signal_number, what_now) from None


def probe_schedule(config: ProbeRun, images: int) -> Schedule:
    """Length and learning rate: 1e-3 x batch / 256 at first, then a cosine to 0 that takes a step per epoch (method 6.2)."""
    epochs = config.epochs or EPOCHS[config.protocol]
    batch_size = config.batch_size or min(BATCH, images)
    train = TrainConfig(epochs=float(epochs), batch_size=batch_size, lr=BASE_LR, seed=config.seed)
    schedule = make_schedule(train, LoopConfig(), OPTIM, images, default_epochs=epochs)
    return schedule._replace(epochs_held=epochs, lr=schedule.lr if config.lr is None else config.lr)


def probe_groups(probes: LinearProbes) -> list[Group]:
    """One group: the official script decays biases too."""
    return [Group(params=list(probes.parameters()), lr_scale=1.0, weight_decay=OPTIM.weight_decay)]


def _train(
    config: ProbeRun,
    model: MaskedImageModel | Classifier | FeatureNetwork,
    images: Images,
    reading: Reading,
    runtime: Runtime,
    path: Path,
) -> tuple[ProbeResult, Optimistic]:
    schedule = probe_schedule(config, len(images.train))
    torch.manual_seed(config.seed)
    blocks = images.blocks
    probes = LinearProbes(len(blocks), images.test.features.shape[2], len(images.train.classes)).to(runtime.device)
    epoch = max(1, round(schedule.steps_per_epoch))
    training = Training(
        schedule=schedule,
        loop=LoopConfig(evaluate_every=epoch, save_every=epoch),
        optim=OPTIM,
        runtime=runtime,
        journal=Journal(path / "journal.jsonl"),
        checkpoints=Checkpoints(path / "checkpoints"),
    )
    backbone, preprocessing = model.config.backbone, model.config.preprocessing
    view = ProbeView(backbone.image_size)
    dataset = ImageDataset(
        images.train,
        view,
        channels=backbone.channels,
        value_range=preprocessing.value_range,
        seed=config.seed,
        smallest=backbone.patch,
    )
    reading = reading._replace(batch_size=schedule.images_per_step)

    def batches(first: int) -> Iterator[Batch]:
        stream = training_batches(dataset, first, reading, runtime, training.waited)
        return featured(
            normalized(stream, preprocessing.mean, preprocessing.std),
            model.backbone,
            [block - 1 for block in blocks],
            runtime.precision,
            images.held_out.to(runtime.device),
            pool_of(config),
        )

    def reported(features: Tensor) -> Tensor:
        return probes.logits(features.to(runtime.device))[0]

    def choosing(features: Tensor) -> Tensor:
        return probes.logits(features.to(runtime.device))[1]

    training.journal.say(
        f"linear probes ({config.protocol}) on {len(blocks)} blocks: {len(images.train)} training images; {schedule.steps} "
        f"steps of {schedule.images_per_step}, lr {schedule.lr:.3g}; {runtime.describe()}"
    )
    evaluators = [
        ProbeAccuracy("held-out", choosing, images.choosing, blocks),
        ProbeAccuracy("test", reported, images.test, blocks),
    ]
    fit(probes, batches, probe_groups(probes), training, evaluators)
    by_held_out = block_accuracies(choosing, images.choosing)
    chosen = max(range(len(blocks)), key=by_held_out.__getitem__)
    return ProbeResult(chosen, by_held_out, block_accuracies(reported, images.test)), _optimistic(training.journal.path)


def _optimistic(journal: Path) -> Optimistic:
    evaluated = [event for event in read_journal(journal) if event.kind == "evaluate"]
    best = max(evaluated, key=lambda event: event.numbers["test/best"])
    return Optimistic(best.numbers["test/best"], int(best.numbers["test/block"]), best.step)
