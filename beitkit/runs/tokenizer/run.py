"""`beitkit tokenizer`: train a discrete VAE on images, so that each patch gets a visual token."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from beitkit.configs.data import Preprocessing
from beitkit.configs.model import as_pair
from beitkit.configs.train import resolved
from beitkit.contracts import Batch
from beitkit.data.dataset import ImageDataset
from beitkit.data.sources.find import find_images
from beitkit.data.sources.image_list import ImageList
from beitkit.data.stream import evaluation_batches, normalized
from beitkit.data.views.image import EvaluationView, PretrainView
from beitkit.errors import UserError
from beitkit.evaluation.tokens import TokenizerQuality
from beitkit.interop.formats.native import save_native
from beitkit.objectives.reconstruct import Reconstruct
from beitkit.report.document import Report
from beitkit.report.images import token_map
from beitkit.report.journal import read_journal
from beitkit.report.normal import tokenizer_lines
from beitkit.report.sections import curve, last, normal_training, pace_figures
from beitkit.runs.tokenizer.config import TokenizerRun
from beitkit.runs.training.reader import TrainingReader
from beitkit.system import quoted
from beitkit.tokenizers.dvae import DiscreteVAE
from beitkit.tokenizers.health import diagnose
from beitkit.train.folder import RunFolder
from beitkit.train.journal import Journal, WaitMeter
from beitkit.train.loop import Best, fit
from beitkit.train.machine.runtime import Runtime, start_runtime
from beitkit.train.optim import parameter_groups
from beitkit.train.schedule import make_schedule

DEFAULT_EPOCHS = 20
EVALUATED_IMAGES = 2000
"""The tokenizer is judged on at most this many images, seen whole and without augmentation."""
SHOWN_IMAGES = 8
UNIT_RANGE = Preprocessing(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), crop_share=1.0)
"""Tokenizers take images in [0, 1] and normalize them themselves."""


def run(config: TokenizerRun) -> Path:
    """Train or continue a tokenizer; returns its run folder, which `beitkit.load_tokenizer` reads."""
    runtime = start_runtime(config.machine)
    config = replace(config, loop=config.loop.shared_by(runtime.world_size))
    size = as_pair(config.image_size)
    if config.image_size % config.dvae.stride:
        nearest = max(1, round(config.image_size / config.dvae.stride)) * config.dvae.stride
        raise UserError(
            f"--image-size {config.image_size} is not a multiple of the tokenizer's stride {config.dvae.stride}; "
            f"nearest: {nearest}"
        )
    files = find_images(config.images)
    folder = RunFolder(config.out, "tokenizer", config, runtime.processes)
    journal = Journal(folder.journal, is_main=runtime.is_main)
    if folder.is_finished():
        journal.say(f"{folder.path} holds this run, finished; its report.html stays as it is")
        return folder.path
    folder.pin(pictures=files.digest)
    schedule = make_schedule(config.train, config.loop, config.optim, len(files), default_epochs=DEFAULT_EPOCHS)
    torch.manual_seed(config.train.seed)
    objective = Reconstruct(DiscreteVAE(config.dvae), config.reconstruct).to(runtime.device)
    journal.say(
        f"tokenizer: {config.dvae.geometry}, {config.dvae.vocabulary} codes, stride {config.dvae.stride}; {len(files)} images, "
        f"{schedule.steps} steps of {schedule.images_per_step}, lr {schedule.lr:.3g}; {runtime.describe()}"
    )

    dataset = ImageDataset(
        files,
        PretrainView(config.view, size, None),
        channels=config.dvae.channels,
        seed=config.train.seed,
        smallest=as_pair(config.dvae.stride),
    )
    waited = WaitMeter()

    reader = TrainingReader(config.train, config.machine, config.read, runtime, folder, waited)

    def batches(start: int) -> Iterator[Batch]:
        return normalized(reader.batches(dataset, start), UNIT_RANGE.mean, UNIT_RANGE.std)

    judge = Judge(config, files, runtime, folder)
    quality = TokenizerQuality(objective.tokenizer, judge.batches)
    fit(
        objective,
        batches,
        parameter_groups(objective, config.optim.weight_decay),
        schedule=schedule,
        loop=config.loop,
        optim=config.optim,
        runtime=runtime,
        journal=journal,
        checkpoints=folder.checkpoints,
        waited=waited,
        evaluators=[quality],
        best=Best("tokenizer/psnr", lambda: save_native(objective.tokenizer, folder.best)),
    )
    if runtime.is_main:
        tokenizer = objective.tokenizer
        values = dict(quality.run())
        problems = diagnose(quality.usage.statistics(), values["psnr"])
        for problem in problems:
            journal.say(f"warning: {problem.name}: {problem.finding} {problem.advice}")
        _report(folder, tokenizer, quality, values["psnr"], judge)
        save_native(tokenizer.cpu(), folder.path)
    runtime.processes.barrier()
    after = f"beitkit pretrain {quoted(config.images)} --tokenizer {quoted(folder.path)} --out ..."
    journal.say(f"done: {folder.path} (report.html shows it). Next: {after}")
    return folder.path


@dataclass
class Judge:
    """The images a tokenizer is judged on: evenly spread over the list, seen whole."""

    config: TokenizerRun
    files: ImageList
    runtime: Runtime
    folder: RunFolder

    def batches(self) -> Iterator[Batch]:
        """One pass."""
        count = min(EVALUATED_IMAGES, len(self.files))
        chosen = [index * len(self.files) // count for index in range(count)]
        view = EvaluationView(UNIT_RANGE, as_pair(self.config.image_size))
        dataset = ImageDataset(self.files.subset(chosen), view, channels=self.config.dvae.channels, kind="evaluate")
        return evaluation_batches(
            dataset,
            resolved(self.config.train.batch_size),
            workers=0,
            device=self.runtime.device,
            preprocessing=UNIT_RANGE,
            max_broken=self.config.read.max_broken,
            report=self.folder.note_broken,
            list_file=self.folder.broken_list,
        )


@torch.no_grad()
def _report(folder: RunFolder, tokenizer: DiscreteVAE, quality: TokenizerQuality, psnr: float, judge: Judge) -> None:
    events = read_journal(folder.journal)
    statistics = quality.usage.statistics()
    report = Report("Tokenizer", str(folder.path))
    config = tokenizer.config
    report.facts(
        [
            ("Network", f"discrete VAE, {config.geometry}"),
            ("Codes", f"{config.vocabulary:,}, one for {config.stride}x{config.stride} pixels"),
            ("Images", f"{len(judge.files):,}"),
            ("Device", judge.runtime.describe()),
            *folder.broken_facts(),
        ]
    )
    report.section("Is this normal?")
    lines = tokenizer_lines(
        diagnose(statistics, psnr),
        vocabulary=config.vocabulary,
        codes_used=statistics.codes_used,
        perplexity=statistics.perplexity,
        commonest_share=statistics.commonest_share,
        psnr=psnr,
    )
    report.normal_lines([*lines, *normal_training(events)])

    report.section("What the tokens keep", "Each image becomes a grid of tokens, and is decoded again from these alone.")
    batch = next(judge.batches())
    images = batch["images"][batch["broken"] < 0][:SHOWN_IMAGES]
    ids = tokenizer.encode(images)
    report.images(
        {
            "original": images.cpu(),
            "tokens": torch.stack([token_map(row, config.vocabulary) for row in ids]),
            "reconstruction": tokenizer.decode(ids).cpu(),
        },
        "Images, their tokens (one color a code), and what the decoder makes of the tokens.",
    )
    report.section("Learning")
    report.figure(
        curve(events, {"reconstruction": ("train", "reconstruction")}, title="Reconstruction loss", y_label="loss"),
        f"Training loss per pixel and channel ({config.reconstruction}).",
    )
    report.figure(
        curve(
            events,
            {"perplexity": ("train", "perplexity")},
            title="Perplexity of the codes",
            y_label="codes",
            references=[("all codes equally common", config.vocabulary)],
        ),
        "How many equally common codes would be as varied as those of a batch.",
    )
    report.figure(
        curve(events, {"KL to uniform": ("train", "kl")}, title="KL to uniform", y_label="nats"),
        f"How certain the encoder is of its choice; at most ln {config.vocabulary}. Last reconstruction loss: "
        f"{last(events, 'reconstruction'):.4g}.",
    )
    pace_figures(report, events)
    report.write(folder.path / "report.html")
