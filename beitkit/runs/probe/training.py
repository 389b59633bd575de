"""The linear probes of the official script and of the paper: layers on every block that learn from random crops."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from beitkit.configs.train import LoopConfig, OptimConfig, TrainConfig
from beitkit.contracts import Batch
from beitkit.data.dataset import ImageDataset
from beitkit.data.sources.image_list import ImageList
from beitkit.data.stream import normalized, to_device, training_stream, with_limit_on_broken
from beitkit.data.views.image import ProbeView
from beitkit.errors import Interrupted
from beitkit.evaluation.probe import BlockFeatures, ProbeAccuracy, ProbeResult, block_accuracies, featured
from beitkit.nn.models import Classifier, MaskedImageModel
from beitkit.objectives.probe import LinearProbes
from beitkit.report.journal import read_journal
from beitkit.runs.probe.config import ProbeRun
from beitkit.train.checkpoints.checkpoint import Checkpoints
from beitkit.train.folder import RunFolder
from beitkit.train.journal import Journal, WaitMeter
from beitkit.train.loop import fit
from beitkit.train.machine.runtime import Runtime
from beitkit.train.optim import Group
from beitkit.train.schedule import Schedule, make_schedule

EPOCHS = {"official": 100, "paper": 50}
BATCH = 1024
"""The paper's, and of the official script's README (8 GPUs with 128)."""
BASE_LR = 1e-3
OPTIM = OptimConfig(lr_batch=256, lr_scaling="linear", min_lr=0.0, warmup_epochs=0.0, weight_decay=1e-4, clip=None)
"""AdamW of the official script (method 6.2)."""


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


class ProbeFiles(NamedTuple):
    """Where a training keeps what it needs, and tells what it could not read."""

    journal: Path
    checkpoints: Checkpoints
    report: Callable[[Path, str], None]
    broken_list: Path | None


def train_probes(
    config: ProbeRun,
    model: MaskedImageModel | Classifier,
    images: Images,
    blocks: tuple[int, ...],
    runtime: Runtime,
    folder: RunFolder | None,
) -> tuple[ProbeResult, Optimistic]:
    """Train one linear layer per block (`blocks` count from 1), or continue; without a folder nothing is kept."""
    if folder is not None:
        run_files = ProbeFiles(folder.journal, folder.checkpoints, folder.note_broken, folder.broken_list)
        return _train(config, model, images, blocks, runtime, run_files)
    with tempfile.TemporaryDirectory() as name:
        run_files = ProbeFiles(Path(name) / "journal.jsonl", Checkpoints(Path(name) / "checkpoints"), say_skipped, None)
        try:
            return _train(config, model, images, blocks, runtime, run_files)
        except Interrupted as stop:
            what_now = "nothing was kept, give --out for a run that can be continued"
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


def say_skipped(file: Path, reason: str) -> None:
    """Tell on stderr about a file that cannot be read."""
    print(f"skipped {file}: {reason}", file=sys.stderr)


def _train(
    config: ProbeRun,
    model: MaskedImageModel | Classifier,
    images: Images,
    blocks: tuple[int, ...],
    runtime: Runtime,
    run_files: ProbeFiles,
) -> tuple[ProbeResult, Optimistic]:
    schedule = probe_schedule(config, len(images.train))
    torch.manual_seed(config.seed)
    probes = LinearProbes(len(blocks), images.test.features.shape[2], len(images.train.classes)).to(runtime.device)
    waited = WaitMeter()

    def batches(first: int) -> Iterator[Batch]:
        stream = _crops(config, model, images.train, schedule.images_per_step, first, run_files)
        stream = to_device(waited.metered(stream), runtime.device)
        return featured(
            normalized(stream, model.config.preprocessing.mean, model.config.preprocessing.std),
            model.backbone,
            [block - 1 for block in blocks],
            runtime.precision,
            images.held_out.to(runtime.device),
            with_class_token=config.protocol == "official",
        )

    def reported(features: Tensor) -> Tensor:
        return probes.logits(features.to(runtime.device))[0]

    def choosing(features: Tensor) -> Tensor:
        return probes.logits(features.to(runtime.device))[1]

    journal = Journal(run_files.journal)
    journal.say(
        f"linear probes ({config.protocol}) on {len(blocks)} blocks: {len(images.train)} training images; {schedule.steps} "
        f"steps of {schedule.images_per_step}, lr {schedule.lr:.3g}; {runtime.describe()}"
    )
    epoch = max(1, round(schedule.steps_per_epoch))
    fit(
        probes,
        batches,
        probe_groups(probes),
        schedule=schedule,
        loop=LoopConfig(evaluate_every=epoch, save_every=epoch),
        optim=OPTIM,
        runtime=runtime,
        journal=journal,
        checkpoints=run_files.checkpoints,
        waited=waited,
        evaluators=[
            ProbeAccuracy("held-out", choosing, images.choosing, blocks),
            ProbeAccuracy("test", reported, images.test, blocks),
        ],
    )
    by_held_out = block_accuracies(choosing, images.choosing)
    chosen = max(range(len(blocks)), key=by_held_out.__getitem__)
    return ProbeResult(chosen, by_held_out, block_accuracies(reported, images.test)), _optimistic(run_files.journal)


def _crops(
    config: ProbeRun, model: MaskedImageModel | Classifier, files: ImageList, batch_size: int, first: int, run_files: ProbeFiles
) -> Iterator[Batch]:
    backbone = model.config.backbone
    dataset = ImageDataset(
        files, ProbeView(backbone.image_size), channels=backbone.channels, seed=config.seed, smallest=backbone.patch
    )
    stream = training_stream(dataset, batch_size, start_batch=first, workers=config.machine.workers)
    return with_limit_on_broken(stream, dataset, config.read.max_broken, run_files.report, run_files.broken_list)


def _optimistic(journal: Path) -> Optimistic:
    evaluated = [event for event in read_journal(journal) if event.kind == "evaluate"]
    best = max(evaluated, key=lambda event: event.numbers["test/best"])
    return Optimistic(best.numbers["test/best"], int(best.numbers["test/block"]), best.step)
