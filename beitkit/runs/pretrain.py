"""`beitkit pretrain`: predict the visual tokens of masked patches, on unlabelled pictures."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from beitkit.configs.model import BackboneConfig, MaskedImageModelConfig
from beitkit.configs.verbs import PretrainRun
from beitkit.contracts import Batch
from beitkit.data.files import PictureList, find_pictures
from beitkit.data.masking import Masker, masker
from beitkit.data.stream import (
    PictureDataset,
    counted_broken,
    evaluation_stream,
    normalized,
    to_device,
    tokenized,
    training_stream,
)
from beitkit.data.views import PretrainView
from beitkit.errors import UserError
from beitkit.evaluate.masked import MaskedAccuracy
from beitkit.evaluate.reconstruction import EXPLANATION, reconstruction_columns
from beitkit.interop.kinds import TokenizerNetwork
from beitkit.interop.load import load, load_tokenizer
from beitkit.interop.native import save_native
from beitkit.nn.models import MaskedImageModel
from beitkit.objectives.masked import MaskedTokens
from beitkit.report.document import Report
from beitkit.report.journal import read_journal
from beitkit.report.normal import pretraining_lines
from beitkit.report.pictures import sheet, write_png
from beitkit.report.sections import curve, last, normal_training, pace_figures
from beitkit.system import quoted
from beitkit.tokenizers.health import CodeUsage, UsageStatistics
from beitkit.train.folder import RunFolder
from beitkit.train.journal import Journal, WaitMeter
from beitkit.train.loop import Best, fit
from beitkit.train.optim import layered_groups
from beitkit.train.runtime import Runtime, start_runtime
from beitkit.train.schedule import Plan, make_plan

DEFAULT_EPOCHS = 300
"""Length of the paper's ablations; its main runs took 800 epochs of 1.28 million pictures."""
COUNTED_BATCHES = 4
"""Batches whose tokens are counted for the baselines of "is this normal?"."""
JUDGED_PICTURES = 512
"""Evaluations, and the choice of the best checkpoint, look at this many pictures, always in the same views."""
SHOWN_PICTURES = 8


@dataclass(frozen=True)
class Setup:
    """What a run works with, checked against each other before anything is written."""

    config: PretrainRun
    tokenizer: TokenizerNetwork
    model: MaskedImageModelConfig
    draw_mask: Masker
    files: PictureList

    @classmethod
    def of(cls, config: PretrainRun) -> Setup:
        """Read the tokenizer, find the pictures, and refuse what cannot work together."""
        tokenizer = load_tokenizer(config.tokenizer)
        model = model_of(config, tokenizer)
        return cls(config, tokenizer, model, masker(config.mask, model.backbone.grid), find_pictures(config.images))

    def dataset(self) -> PictureDataset:
        """Pictures in two views, with their masks; the second view has one token per patch."""
        grid, stride = self.model.backbone.grid, self.tokenizer.stride
        token_size = grid[0] * stride, grid[1] * stride
        return PictureDataset(
            self.files,
            PretrainView(self.config.view, self.model.backbone.image_size, token_size),
            masker=self.draw_mask,
            channels=self.tokenizer.channels,
            seed=self.config.train.seed,
            smallest=self.model.backbone.patch,
        )

    def fixed(self) -> PictureDataset:
        """Some of the pictures, evenly spread, each always in the same view and under the same mask."""
        count = min(JUDGED_PICTURES, len(self.files))
        chosen = self.files.subset([index * len(self.files) // count for index in range(count)])
        dataset = self.dataset()
        return PictureDataset(
            chosen,
            dataset.view,
            masker=self.draw_mask,
            channels=dataset.channels,
            seed=self.config.train.seed,
            kind="evaluate",
            smallest=dataset.smallest,
        )

    def prepared(self, stream: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
        """Batches ready for the objective."""
        statistics = self.model.preprocessing
        stream = normalized(to_device(stream, device), statistics.mean, statistics.std)
        return tokenized(stream, self.tokenizer, self.model.backbone.grid)


def run(config: PretrainRun) -> Path:
    """Pre-train or continue; returns the run folder, which `beitkit.load` reads."""
    runtime = start_runtime(config.machine)
    config = replace(config, loop=config.loop.shared_by(runtime.world))
    setup = Setup.of(config)
    folder = RunFolder(config.out, "pretrain", config, runtime.processes)
    journal = Journal(folder.journal, is_main=runtime.is_main)
    if folder.is_finished():
        journal.say(f"{folder.path} holds this run, finished; its report.html stays as it is")
        return folder.path
    folder.pin(pictures=setup.files.digest, tokenizer=setup.tokenizer.fingerprint)
    setup.tokenizer.to(runtime.device)
    plan = make_plan(config.train, config.loop, config.optim, len(setup.files), default_epochs=DEFAULT_EPOCHS)
    torch.manual_seed(config.train.seed)
    objective = MaskedTokens(MaskedImageModel(setup.model)).to(runtime.device)
    journal.say(_announcement(setup, objective.model, plan, runtime))
    dataset, fixed = setup.dataset(), setup.fixed()
    waited = WaitMeter()

    def batches(start: int) -> Iterator[Batch]:
        stream = training_stream(
            dataset,
            config.train.batch_size,
            start_batch=start,
            workers=config.machine.workers,
            rank=runtime.rank,
            world=runtime.world,
        )
        stream = counted_broken(stream, dataset, config.read.max_broken, folder.note_broken, folder.broken_list)
        return setup.prepared(waited.metered(stream), runtime.device)

    def fixed_batches() -> Iterator[Batch]:
        return setup.prepared(evaluation_stream(fixed, config.train.batch_size, workers=0), runtime.device)

    def predict(images: Tensor, mask: Tensor) -> Tensor:
        with runtime.precision():
            return objective.model(images, mask)

    fit(
        objective,
        batches,
        layered_groups(objective.model, objective.model, config.optim),
        plan=plan,
        loop=config.loop,
        optim=config.optim,
        runtime=runtime,
        journal=journal,
        checkpoints=folder.checkpoints,
        waited=waited,
        evaluators=[MaskedAccuracy(predict, fixed_batches)],
        best=Best("fixed/accuracy", lambda: save_native(objective.model, folder.best)),
    )
    if runtime.is_main:
        _report(folder, setup, objective.model, runtime)
        save_native(objective.model.cpu(), folder.path)
    runtime.processes.wait()
    journal.say(
        f"done: {folder.path} (report.html shows it). Next: beitkit probe LABELLED --model {quoted(folder.path)}, "
        f"or beitkit finetune LABELLED --model {quoted(folder.path)} --out ..."
    )
    return folder.path


def previewed(config: PretrainRun) -> dict[str, Tensor]:
    """Picture columns of a finished run: original, masked, tokenizer, from predicted tokens."""
    setup = Setup.of(config)
    model = load(config.out)
    assert isinstance(model, MaskedImageModel)
    stream = setup.prepared(training_stream(setup.dataset(), SHOWN_PICTURES), torch.device("cpu"))
    return reconstruction_columns(model, setup.tokenizer, next(stream), SHOWN_PICTURES)


def model_of(config: PretrainRun, tokenizer: TokenizerNetwork) -> MaskedImageModelConfig:
    """The network a run asks for; its channels and vocabulary are the tokenizer's.

    Raises:
        UserError: for a picture size that is not a whole number of patches.
    """
    backbone = BackboneConfig.named(
        f"{config.size}/{config.patch}",
        image_size=config.image_size,
        channels=tokenizer.channels,
        absolute_positions=config.network.positions == "none",
        relative_positions=config.network.positions,
        layer_scale="default" if config.network.layer_scale is None else config.network.layer_scale or None,
        drop_path=config.network.drop_path,
        mask_token=True,
        pretrain_init=True,
    )
    if min(backbone.grid) < 2:
        raise UserError(
            f"--image-size {config.image_size} holds {backbone.grid[0]}x{backbone.grid[1]} patches of --patch {config.patch}; "
            "at least 2x2 are needed"
        )
    return MaskedImageModelConfig(
        backbone=backbone,
        vocabulary=tokenizer.vocabulary,
        preprocessing=config.network.preprocessing,
        tokenizer=tokenizer.fingerprint,
    )


def _announcement(setup: Setup, model: MaskedImageModel, plan: Plan, runtime: Runtime) -> str:
    config, grid = setup.config, setup.model.backbone.grid
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return (
        f"pre-training: {config.size}/{config.patch} at {config.image_size} ({parameters / 1e6:.1f} M parameters), "
        f"{setup.draw_mask.count} of {grid[0] * grid[1]} patches masked ({config.mask.kind}), {setup.model.vocabulary} tokens; "
        f"{len(setup.files)} pictures, {plan.steps} steps of {plan.pictures_per_step}, warm-up {plan.warmup}, lr {plan.lr:.3g} "
        f"({config.train.lr:g} at {config.optim.lr_batch}, {config.optim.lr_scaling}); {runtime.describe()}"
    )


def _report(folder: RunFolder, setup: Setup, model: MaskedImageModel, runtime: Runtime) -> None:
    config, draw_mask, files, tokenizer = setup.config, setup.draw_mask, setup.files, setup.tokenizer
    events = read_journal(folder.journal)
    stream = training_stream(setup.dataset(), config.train.batch_size, workers=config.machine.workers)
    first, statistics = _count_tokens(setup.prepared(stream, runtime.device), model.config.vocabulary)
    entropy = math.log(statistics.perplexity)
    patches = draw_mask.grid[0] * draw_mask.grid[1]

    report = Report("Pre-training", str(folder.path))
    report.facts(
        [
            ("Network", f"{config.size}/{config.patch} at {config.image_size} pixels"),
            ("Targets", f"{model.config.vocabulary:,} visual tokens"),
            ("Mask", f"{draw_mask.count} of {patches} patches, {config.mask.kind}"),
            ("Pictures", f"{len(files):,}, no labels used"),
            ("Device", runtime.describe()),
            *folder.broken_facts(),
        ]
    )
    report.section("Is this normal?")
    lines = pretraining_lines(
        vocabulary=model.config.vocabulary,
        loss=last(events, "loss"),
        accuracy=last(events, "accuracy"),
        token_entropy=entropy,
        commonest_share=statistics.commonest_share,
        masked_share=draw_mask.count / patches,
    )
    report.normal_lines([*lines, *normal_training(events)])

    report.section(
        "What it sees, and what it fills in",
        "The network sees the masked picture and predicts a token for every hidden patch; the tokenizer's decoder turns tokens "
        "back into pixels. It can be no sharper than the third column.",
    )
    columns = reconstruction_columns(model, tokenizer, first, SHOWN_PICTURES)
    report.pictures(columns, EXPLANATION)
    write_png(folder.path / "reconstructions.png", sheet(columns))
    report.section("Learning")
    report.figure(
        curve(
            events,
            {"loss": ("train", "loss")},
            title="Loss",
            y_label="cross-entropy",
            references=[("uniform guess", math.log(model.config.vocabulary)), ("token frequencies", entropy)],
        ),
        "Cross-entropy over masked patches. The dashed lines are what guessing costs.",
    )
    report.figure(
        curve(
            events,
            {"accuracy": ("train", "accuracy")},
            title="Token accuracy",
            y_label="share",
            unit="percent",
            references=[("always the commonest token", statistics.commonest_share)],
        ),
        "Share of masked patches whose token is predicted exactly.",
    )
    pace_figures(report, events)
    report.write(folder.path / "report.html")


def _count_tokens(stream: Iterator[Batch], vocabulary: int) -> tuple[Batch, UsageStatistics]:
    """The stream's first batch, and how often each token occurs among its first pictures."""
    first = next(stream)
    usage = CodeUsage(vocabulary)
    usage.update(first["tokens"])
    for _ in range(COUNTED_BATCHES - 1):
        usage.update(next(stream)["tokens"])
    return first, usage.statistics()
