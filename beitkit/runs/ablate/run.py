"""`beitkit ablate`: how much each part of BEiT adds on your images, as in the paper's table 4.

Every variant is an ordinary pre-training run that differs from full BEiT by one or two options, and every score an ordinary
fine-tuning run; each has a folder of its own, and the same command again continues where it was cut.
"""

from __future__ import annotations

import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from beitkit.command.following import command
from beitkit.command.options import with_options
from beitkit.configs.data import MaskConfig
from beitkit.configs.model import by
from beitkit.configs.train import LoopConfig, OptimConfig, TrainConfig
from beitkit.interop.load import load_tokenizer
from beitkit.report.charts import Dots, dot_chart
from beitkit.report.document import Report
from beitkit.report.table import Table
from beitkit.runs.ablate.config import AblateRun, Variant
from beitkit.runs.finetune import run as finetune
from beitkit.runs.finetune.config import FinetuneRun
from beitkit.runs.pretrain import run as pretrain
from beitkit.runs.pretrain.config import PretrainRun
from beitkit.train.folder import RunFolder

SCRATCH = "from scratch"

ROWS = {
    "full": ("BEiT", 0.8286),
    "random-mask": ("- blockwise masking", 0.8277),
    "pixels": ("- visual tokens (pixels)", 0.8104),
    "pixels-random-mask": ("- both", 0.8050),
    "recover-all": ("+ recover all patches", 0.8259),
    "no-mask": ("- masking (recover all)", 0.8167),
    SCRATCH: (SCRATCH, 0.8180),
}
"""The paper's names of its rows, and its top-1 on ImageNet-1k: BEiT-B, 300 epochs (arXiv 2106.08254, table 4); from scratch
DeiT-B (table 1; method 8.1, 8.2)."""


class VariantRow(NamedTuple):
    """What was measured of a variant."""

    name: str
    label: str
    top1: tuple[float, ...]
    """Accuracy (a share) of every fine-tuning: all seeds of the first pre-training, then all of the next."""
    pretrainings: int
    """How many there were; one from scratch, where there are none."""
    paper: float
    """The paper's, on ImageNet-1k."""

    @property
    def mean(self) -> float:
        """Mean over all fine-tunings."""
        return statistics.mean(self.top1)

    @property
    def samples(self) -> tuple[float, ...]:
        """What the spread is of: the mean of each pre-training where there are several, else each fine-tuning."""
        if self.pretrainings == 1:
            return self.top1
        each = len(self.top1) // self.pretrainings
        return tuple(statistics.mean(self.top1[first : first + each]) for first in range(0, len(self.top1), each))

    @property
    def spread(self) -> float | None:
        """Standard deviation of `samples`; None where there is one."""
        return statistics.stdev(self.samples) if len(self.samples) > 1 else None


def run(config: AblateRun) -> tuple[VariantRow, ...]:
    """Run or continue all of it; returns the rows of the table, full BEiT first and from scratch last."""
    channels = load_tokenizer(config.tokenizer).channels
    folder = RunFolder(config.out, "ablate", config)
    say = Console(stderr=True, highlight=False, soft_wrap=True).print
    starts: tuple[Variant | None, ...] = ("full", *(variant for variant in config.variants if variant != "full"), None)
    rows, said = [], set[str]()
    for number, variant in enumerate(starts, 1):
        name = variant or SCRATCH
        label, paper = ROWS[name]
        pretrainings = config.pretrainings if variant else config.pretrainings[:1]
        seeds = config.seeds if variant else config.scratch_seeds
        told = f"{_pretrained(config)}, fine-tune {_times(seeds)}" if variant else f"train fresh weights {_times(seeds)}"
        say(f"\n[bold]{number} of {len(starts)}[/] {label}: {told}")
        if variant is not None:
            for start in pretrainings:
                pretrain.run(pretrain_run(config, variant, channels, start))
        scores = tuple(
            finetune.run(finetune_run(config, variant, seed, start), said=said).accuracy
            for start in pretrainings
            for seed in seeds
        )
        rows.append(VariantRow(name, label, scores, len(pretrainings), paper))
    folder.write_json("ablate.json", answer(config, tuple(rows)))
    _report(folder.path, config, rows)
    _print(folder.path, config, rows)
    return tuple(rows)


def answer(config: AblateRun, rows: tuple[VariantRow, ...]) -> dict[str, Any]:
    """What ablate.json holds and `--json` prints."""
    result = {row.name: row._asdict() | {"mean": row.mean, "spread": row.spread} for row in rows}
    return {"seeds": config.seeds, "pretrain_seeds": config.pretrainings, "variants": result}


def _pretrained(config: AblateRun) -> str:
    """How often each variant is pre-trained."""
    return "pre-train once" if len(config.pretrainings) == 1 else f"pre-train {_times(config.pretrainings)}, each"


def _times(seeds: tuple[int, ...]) -> str:
    return "once" if len(seeds) == 1 else f"{len(seeds)} times"


def _folder(config: AblateRun, variant: Variant, seed: int) -> Path:
    """The run folder of a pre-training; the first has no seed in its name."""
    suffix = "" if seed == config.pretrainings[0] else f"-{seed}"
    return config.out / "pretrain" / f"{variant}{suffix}"


def pretrain_run(config: AblateRun, variant: Variant, channels: int, seed: int) -> PretrainRun:
    """The pre-training of a variant: full BEiT but for what its name says. `channels` are the tokenizer's."""
    full = PretrainRun(
        config.images,
        tokenizer=config.tokenizer,
        out=_folder(config, variant, seed),
        size=config.size,
        image_size=config.image_size,
        patch=config.patch,
        train=TrainConfig(steps=config.steps, batch_size=config.batch_size, lr=config.lr, seed=seed),
        network=config.network,
        machine=config.machine,
        view=config.view,
        read=config.read,
    )
    random_mask = MaskConfig(kind="random")
    # Without its tokenizer a run would see color; all variants must see the same channels.
    pixels = replace(full, target="pixels", tokenizer=None, channels=channels)
    return {
        "full": full,
        "random-mask": replace(full, mask=random_mask),
        "pixels": pixels,
        "pixels-random-mask": replace(pixels, mask=random_mask),
        "recover-all": replace(full, recover="all"),
        "no-mask": replace(full, recover="all", mask=MaskConfig(kind="none")),
    }[variant]


def finetune_run(config: AblateRun, variant: Variant | None, seed: int, start: int) -> FinetuneRun:
    """The same fine-tuning for all, of the pre-training with seed `start`; None starts from fresh weights, in the network of
    full BEiT and at a rate of its own."""
    model = _folder(config, variant or "full", start)
    return FinetuneRun(
        config.labelled,
        model=model,
        out=config.out / "finetune" / f"{model.name if variant else 'scratch'}-{seed}",
        scratch=variant is None,
        labels=config.labels,
        train=TrainConfig(
            steps=config.finetune_steps,
            batch_size=config.batch_size,
            lr=config.finetune_lr if variant else config.scratch_lr,
            seed=seed,
        ),
        machine=config.machine,
        view=config.view,
        read=config.read,
        optim=OptimConfig(lr_batch=1024, min_lr=1e-6, warmup_epochs=20.0, clip=None),
        loop=LoopConfig(ema=0.0),  # or else it would be chosen by the start
    )


def _cells(row: VariantRow, full: VariantRow) -> list[str]:
    """A row of the table: name, mean, seeds, spread, difference to full BEiT, and the paper's mean and difference."""
    return [
        row.label,
        f"{row.mean:.1%}",
        " ".join(f"{value:.1%}" for value in row.top1),
        "-" if row.spread is None else f"{100 * row.spread:.1f}",
        "" if row is full else f"{100 * (row.mean - full.mean):+z.1f}",
        f"{100 * row.paper:.2f}%",
        "" if row is full else f"{100 * (row.paper - full.paper):+.2f}",
    ]


EXPLANATION = (
    "Means over all fine-tunings; spread (standard deviation over the pre-trainings of a variant, or over the seeds where it has "
    "one) and differences in points. Paper: BEiT-B, 300 epochs of ImageNet-1k; its row from scratch is DeiT-B, in another set-up."
)


ONE_SEED = "One seed has no spread, so no difference here can be told from chance; give several `seeds`, such as 0 1 2."


def _table(rows: list[VariantRow]) -> Table:
    header = ["variant", "top-1", "by seed", "spread", "to BEiT", "paper", "to BEiT"]
    return Table(header, [_cells(row, rows[0]) for row in rows], EXPLANATION)


def _claim(rows: list[VariantRow]) -> tuple[str, bool | None]:
    """What the table says about pre-training, and whether the seeds settle it; None where there is only one."""
    full, scratch = rows[0], rows[-1]
    gain = full.mean - scratch.mean
    claim = f"BEiT's pre-training is worth {100 * gain:+z.1f} points here"
    if full.spread is None or scratch.spread is None:
        return claim, None
    return claim, gain > max(full.spread, scratch.spread)


def _print(out: Path, config: AblateRun, rows: list[VariantRow]) -> None:
    _table(rows).print()
    print(EXPLANATION)
    if rows[0].spread is None:
        print(with_options(ONE_SEED, AblateRun))
    following = command("evaluate", config.labelled, model=out / "finetune" / f"full-{config.seeds[0]}")
    print(f"done: {out} (report.html shows it). Next: {following}")


def _report(out: Path, config: AblateRun, rows: list[VariantRow]) -> None:
    report = Report("Ablation", str(out))
    labels = "all" if config.labels is None else f"{config.labels:,}"
    report.facts(
        [
            ("Network", f"{config.size}/{config.patch} at {by(config.image_size)} pixels"),
            ("Pre-training", f"{config.steps:,} steps of {config.batch_size}; seeds {' '.join(map(str, config.pretrainings))}"),
            ("Fine-tuning", f"{config.finetune_steps:,} steps of {config.batch_size}, labels: {labels}"),
            ("Seeds", " ".join(map(str, config.seeds))),
        ]
    )
    claim, is_clear = _claim(rows)
    detail = (
        "All starts share network, labels, steps and augmentation. Pre-trained weights are spared by layer decay, fresh "
        "ones have none, and a rate of their own. A difference below the spread may be chance"
        + ("." if len(config.pretrainings) > 1 else ", and each variant was pre-trained only once.")
    )
    report.verdict(claim, is_clear, f"{detail} {ONE_SEED}" if rows[0].spread is None else detail)
    report.figure(
        dot_chart(
            [Dots("here", [list(row.top1) for row in rows])],
            [row.label for row in rows],
            title="Accuracy after fine-tuning",
            x_label="variant",
            y_label="top-1",
        ),
        "Each dot is one fine-tuning.",
    )
    report.table(_table(rows))
    report.paragraph("Every pre-training and fine-tuning left a report of its own, in pretrain/ and finetune/.")
    report.write(out / "report.html")
