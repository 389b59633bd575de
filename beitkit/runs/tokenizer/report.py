"""What the reports of all kinds of tokenizers share: facts, judgement, and images beside their tokens."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from beitkit.command.following import beside, command, kept
from beitkit.configs.tokenizer import DVAEConfig, KMeansConfig, TokenizerKind
from beitkit.contracts import WHOLE
from beitkit.errors import GIVEN
from beitkit.evaluation.tokens import TokenizerQuality
from beitkit.report.images import token_map
from beitkit.report.normal import Line, tokenizer_lines
from beitkit.report.sections import TrainingReport
from beitkit.runs.tokenizer.config import TokenizerRun
from beitkit.runs.training.live import STRIP_IMAGES, Strip
from beitkit.tokenizers.frozen import TokenizerNetwork
from beitkit.tokenizers.health import Diagnosis, UsageStatistics, diagnose
from beitkit.train.folder import RunFolder
from beitkit.train.machine.runtime import Runtime

SHOWN_IMAGES = 8


class Judgement(NamedTuple):
    """How well a finished tokenizer does."""

    statistics: UsageStatistics
    psnr: float
    problems: list[Diagnosis]

    @classmethod
    def of(cls, quality: TokenizerQuality, kind: TokenizerKind) -> Judgement:
        """Measure it."""
        psnr = dict(quality.run())["psnr"]
        statistics = quality.usage.statistics()
        return cls(statistics, psnr, diagnose(statistics, psnr, kind))

    def warn(self, say: Callable[[str], None]) -> None:
        """Say what is wrong."""
        for problem in self.problems:
            say(f"warning: {problem.name}: {problem.finding} {problem.advice}")

    def lines(self) -> list[Line]:
        """For "Is this normal?"."""
        return tokenizer_lines(
            self.problems,
            vocabulary=self.statistics.vocabulary,
            codes_used=self.statistics.codes_used,
            perplexity=self.statistics.perplexity,
            commonest_share=self.statistics.commonest_share,
            psnr=self.psnr,
        )


def facts(
    network: str, config: DVAEConfig | KMeansConfig, images: int, runtime: Runtime, folder: RunFolder
) -> list[tuple[str, str]]:
    """The page's head; `network` says what kind of tokenizer it is."""
    return [
        ("Network", network),
        ("Codes", f"{config.vocabulary:,}, one for {config.stride}x{config.stride} pixels"),
        ("Images", f"{images:,}"),
        ("Device", runtime.describe()),
        *folder.broken_facts(),
    ]


def show_tokens(report: TrainingReport, tokenizer: TokenizerNetwork, quality: TokenizerQuality) -> None:
    """Some of the images that it was judged on, their tokens, and what is decoded from these."""
    report.section("What the tokens keep", "Each image becomes a grid of tokens, and is decoded again from these alone.")
    batch = next(iter(quality.batches(WHOLE)))
    shown = batch["images"][batch["broken"] < 0][:SHOWN_IMAGES]
    ids = tokenizer.encode(shown)
    report.images(
        {
            "original": shown.cpu(),
            "tokens": torch.stack([token_map(row, tokenizer.vocabulary) for row in ids]),
            "reconstruction": tokenizer.decode(ids).cpu(),
        },
        "Images, their tokens (one color a code), and what is decoded from the tokens.",
    )


def strip_of(tokenizer: TokenizerNetwork, quality: TokenizerQuality, folder: RunFolder) -> Strip:
    """What is decoded from the tokens, of the first images that it is judged on."""

    @cache
    def first() -> Tensor:
        batch = next(iter(quality.batches(WHOLE)))
        return batch["images"][batch["broken"] < 0][:STRIP_IMAGES]

    return Strip(folder.path, lambda: {"original": first().cpu(), "now": tokenizer.decode(tokenizer.encode(first())).cpu()})


def next_command(config: TokenizerRun, judgement: Judgement | None) -> str:
    """What one does with a finished tokenizer; with one that was warned about, make another first."""
    options = kept(config, "image_size", "columns", "value_range", "read.max_broken")
    if "--image-size" in options:  # a token for each of these patches, then
        options["--patch"] = config.tokenizer.stride
    following = command("pretrain", config.images, tokenizer=config.out, out=beside(config.out, "pre"), **options)
    if str(config.images).startswith(GIVEN):  # which no command can name
        following = f"beitkit.pretrain(images, tokenizer={str(config.out)!r}, out=...)"
    if judgement is None or not judgement.problems:
        return following
    return f"{following} (or first do what the warning says, in another --out)"
