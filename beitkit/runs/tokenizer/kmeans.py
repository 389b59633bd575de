"""k-means of whitened patches: draws patches from random views, finds the centers, and judges them. A killed run starts again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from beitkit.configs.model import by
from beitkit.contracts import Batch
from beitkit.data.seeds import derived_seed
from beitkit.errors import UserError
from beitkit.evaluation.tokens import TokenizerQuality
from beitkit.report.normal import Line
from beitkit.report.sections import TrainingReport
from beitkit.runs.tokenizer.config import TokenizerRun
from beitkit.runs.tokenizer.images import RunImages, in_unit_range
from beitkit.runs.tokenizer.report import Judgement, facts, next_command, show_tokens
from beitkit.runs.training.own import OwnParts
from beitkit.runs.training.reader import training_batches
from beitkit.runs.training.session import open_folder, reading_of, save_result
from beitkit.tokenizers.clusters import KMeansRound, kmeans, whitening_of
from beitkit.tokenizers.kmeans import KMeansTokenizer, contrast_normalized
from beitkit.train.folder import RunFolder
from beitkit.train.journal import Journal, WaitMeter
from beitkit.train.machine.runtime import Runtime, start_runtime

PATCHES_PER_VIEW = 16
"""Patches taken of one view, at random places: more would tell less, fewer would open more images."""
ROUNDS_PER_LINE = 5
NO_BRIGHTNESS = (
    "A code says nothing of its patch's own brightness and contrast, so reconstructions show structure, and their PSNR does not "
    "judge the tokens."
)


def run(config: TokenizerRun, own: OwnParts) -> Path:
    """Make one; returns its run folder.

    Raises:
        UserError: if several processes were started.
    """
    runtime = start_runtime(config.machine)
    if runtime.world_size > 1:
        raise UserError(f"`kind='kmeans'` takes seconds in one process, got {runtime.world_size}; start it without a launcher")
    images = RunImages.of(config, own)
    opened = open_folder("tokenizer", config, runtime, images.inputs())
    if opened is None:
        return config.out
    folder, journal = opened
    journal.rewind(-1)  # of a run that was killed
    fitted = images.fitted(config.kmeans)
    fitted = replace(fitted, whitening_eps=fitted.whitening)
    tokenizer = KMeansTokenizer(fitted).to(runtime.device)
    for line in images.lines:
        journal.say(line)
    journal.say(
        f"tokenizer: k-means, {fitted.vocabulary} codes, stride {fitted.stride}, margin {fitted.margin}, "
        f"whitened with {fitted.whitening:g}, at {by(images.size)}; {fitted.patches:,} patches of "
        f"{len(images.files)} images; {runtime.describe()}"
    )
    reading = reading_of(config, folder, runtime)
    batches = in_unit_range(training_batches(images.dataset(), 0, reading, runtime, WaitMeter()))
    with torch.no_grad():
        learn(tokenizer, batches, journal, torch.Generator().manual_seed(derived_seed(config.train.seed, "patches")))
    quality = images.quality(tokenizer, reading)
    judgement = Judgement.of(quality, "kmeans")
    statistics = judgement.statistics
    journal.note(
        fitted.iterations,
        f"{statistics.codes_used:,} of {statistics.vocabulary:,} codes used, the commonest makes up "
        f"{statistics.commonest_share:.1%}, psnr {judgement.psnr:.2f}",
    )
    judgement.warn(journal.say)
    _report(folder, runtime, tokenizer, quality, judgement, images)
    save_result(folder, runtime, journal, tokenizer, next_command(config, judgement))
    return config.out


def learn(tokenizer: KMeansTokenizer, batches: Iterator[Batch], journal: Journal, generator: torch.Generator) -> None:
    """Find a tokenizer's centers in patches of these batches, whose images are in [0, 1]."""
    config = tokenizer.config
    windows, patches = drawn_patches(tokenizer, batches, journal, generator)
    whitening = whitening_of(windows, config.whitening)
    whitening.apply_(windows)

    def watch(found: KMeansRound) -> None:
        journal.record("train", found.number, loss=found.distance, moved=found.moved, redrawn=float(found.redrawn))
        is_last = found.number == config.iterations or not (found.moved or found.redrawn)
        if is_last or found.number == 1 or found.number % ROUNDS_PER_LINE == 0:
            redrawn = f", {found.redrawn} rare centers drawn again" if found.redrawn else ""
            text = f"round {found.number}/{config.iterations}  distance {found.distance:.4g}  {found.moved:.1%} moved{redrawn}"
            journal.progress(text, 1.0 if is_last else found.number / config.iterations)

    centers, ids = kmeans(windows, config.vocabulary, config.iterations, generator, watch)
    tokenizer.set_centers(whitening, centers, ids, patches)


def drawn_patches(
    tokenizer: KMeansTokenizer, batches: Iterator[Batch], journal: Journal, generator: torch.Generator
) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n p"]]:
    """Normalized windows at random places of as many views as it takes, and the pixels of their patches."""
    config = tokenizer.config
    windows = patches = torch.empty(0)
    count = shown = 0
    while count < config.patches:
        cut = tokenizer.windows(next(batches)["images"])
        views, places, _ = cut.shape
        order = torch.rand(views, places, generator=generator).argsort(1)[:, :PATCHES_PER_VIEW].to(cut.device)
        chosen = cut[torch.arange(views, device=cut.device)[:, None], order].flatten(0, 1)[: config.patches - count]
        inner = tokenizer.patches_of(chosen)
        if not count:  # memory for all of them at once: a list to be joined would take twice as much
            windows, patches = (part.new_empty(config.patches, part.shape[1]) for part in (chosen, inner))
        windows[count : count + len(chosen)] = contrast_normalized(chosen, config.contrast_eps)
        patches[count : count + len(chosen)] = inner
        count += len(chosen)
        if 4 * count // config.patches > shown:
            shown = 4 * count // config.patches
            journal.progress(f"patches {count:,}/{config.patches:,}", count / config.patches)
    return windows, patches


@torch.no_grad()
def _report(
    folder: RunFolder,
    runtime: Runtime,
    tokenizer: KMeansTokenizer,
    quality: TokenizerQuality,
    judgement: Judgement,
    images: RunImages,
) -> None:
    config = tokenizer.config
    side = config.window
    report = TrainingReport("Tokenizer", folder.path)
    kind = f"k-means of whitened patches, found from {side}x{side} pixels"
    report.facts([*facts(kind, config, len(images.files), runtime, folder), *images.checked])
    report.section("Is this normal?")
    report.normal_lines([*judgement.lines(), Line("note", NO_BRIGHTNESS)])
    show_tokens(report, tokenizer, quality)
    report.section(
        "Learning", f"{config.patches:,} patches; a round moves every center to the mean of the patches nearest to it."
    )
    caption = "Mean squared distance of a whitened patch to its center."
    report.curves({"distance": "loss"}, caption, title="Distance", y_label="squared distance")
    caption = "Patches whose center is another one than in the round before."
    report.curves({"moved": "moved"}, caption, title="Patches that moved", y_label="share of patches", unit="percent")
    report.write(folder.path / "report.html")
