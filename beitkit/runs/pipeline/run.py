"""`beitkit run`: audit, tokenizer, pre-training, probe, verdict, fine-tuning and export, one after the other, within a budget.

Each stage is an ordinary run below `out`. Its settings are decided when it begins, from the time that is left and from the speed
of some steps on the real images, and kept in `progress.json`; a finished stage is not looked at again.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import shutil
import time
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from beitkit.command.following import command, unused
from beitkit.configs.data import ColumnsConfig, ReadLimit
from beitkit.configs.model import SIZES, SizeName
from beitkit.configs.train import resolved
from beitkit.data.scenes.layout import looks_like_scenes, scene_splits
from beitkit.data.scenes.scenes import CLASSES_FILE, Scenes, as_csv, train_and_val_scenes
from beitkit.data.sources.find import LabeledArchives, find_images, labeled_source
from beitkit.data.sources.image_list import ImageList
from beitkit.data.sources.split import few_per_class, split_table, train_and_val
from beitkit.errors import UserError
from beitkit.files import MOST_OWN, read_json
from beitkit.interop.reading.checkpoints import read_checkpoint
from beitkit.runs.audit import run as audit
from beitkit.runs.audit.config import AuditRun
from beitkit.runs.checkpoints import run as checkpoints
from beitkit.runs.checkpoints.config import ExportRun
from beitkit.runs.finetune import run as finetune
from beitkit.runs.finetune.config import FinetuneRun
from beitkit.runs.pipeline import choose, rehearse
from beitkit.runs.pipeline.choose import SHARES, UNLABELED, Pace, PipelineFacts, Rounds, Shape
from beitkit.runs.pipeline.config import PipelineRun
from beitkit.runs.pipeline.ledger import Ledger
from beitkit.runs.pipeline.rehearse import as_table
from beitkit.runs.pipeline.report import write_page
from beitkit.runs.pretrain import run as pretrain
from beitkit.runs.probe import run as probe
from beitkit.runs.probe.config import ProbeRun
from beitkit.runs.segment import run as segment
from beitkit.runs.tokenizer import run as tokenizer
from beitkit.runs.training.reader import median_side
from beitkit.runs.verdict import run as verdict
from beitkit.runs.verdict.classifiers import LabeledImages, check_labels
from beitkit.runs.verdict.config import VerdictRun
from beitkit.runs.verdict.measured import named_starts
from beitkit.runs.verdict.report import Verdict
from beitkit.runs.verdict.report import as_json as verdict_as_json
from beitkit.system import write_atomically
from beitkit.train.folder import RunFolder
from beitkit.train.journal import duration
from beitkit.train.machine.runtime import start_runtime

EVALUATED_SHARE = 0.15
"""Of the time of the last fine-tuning that its evaluation may take; of more validation images it looks at a part."""
REPEATED = 1.3
"""A training of the verdict takes this many times what it takes besides its steps: its answers are computed once more."""


def run(config: PipelineRun) -> Verdict | None:
    """Run or continue all of it; returns the verdict, None without labels."""
    began = time.monotonic()
    RunFolder(config.out, "run", config)
    shutil.rmtree(config.out / "rehearsal", ignore_errors=True)
    looked = _Looked.at(config)
    ledger = Ledger(config.out, began)
    try:
        return _Pipeline(config, ledger, looked).run()
    finally:
        ledger.close()


def answer(config: PipelineRun, found: Verdict | None) -> dict[str, Any]:
    """What `--json` prints."""
    kept = read_json(config.out / "progress.json", MOST_OWN)
    stated = None if found is None else verdict_as_json(found)
    return {"out": config.out, "stages": kept["stages"], "seconds": kept["spent"], "verdict": stated}


@dataclass(frozen=True)
class _Labeled:
    """Labeled images, and those to compare on."""

    train: ImageList | Scenes
    val: ImageList | Scenes
    is_packed: bool
    """Whether they lie in archives, which a table cannot name."""

    @classmethod
    def of(cls, config: PipelineRun, labels: Path) -> _Labeled:
        """Find them, and refuse what a later stage would refuse."""
        if looks_like_scenes(labels):
            scenes = train_and_val_scenes(labels, config.val, config.seed, columns=config.columns)
            found = cls(*scenes, scenes[0].files.members is not None)
            splits: Any = scene_splits(labels, config.columns)
        else:
            train, val = train_and_val(labels, config.val, config.seed, config.columns)
            if train.labels is None:
                raise UserError(f"{labels} has several labels an image; beitkit run takes one")
            source = labeled_source(labels, config.columns)
            found, splits = cls(train, val, isinstance(source, LabeledArchives)), source.splits
            check_labels(train, (len(train),))
        if found.is_packed and config.val is None and not ("train" in splits and {"val", "test"} & {*splits}):
            raise UserError(verdict.ARCHIVES_DIVIDED.format(labels))
        return found

    @property
    def is_dense(self) -> bool:
        """Whether they are images and masks."""
        return isinstance(self.train, Scenes)

    def part(self, train: int, val: int, seed: int) -> _Labeled:
        """So many of each: of the classes as evenly as can be, or spread over the list."""
        if isinstance(self.train, Scenes) and isinstance(self.val, Scenes):
            return replace(self, train=_spread(self.train, train), val=_spread(self.val, val))
        assert isinstance(self.train, ImageList)
        assert isinstance(self.val, ImageList)
        shown = few_per_class(self.val, val, seed) if len(self.val.classes) <= val < len(self.val) else self.val
        return replace(self, train=few_per_class(self.train, train, seed), val=shown)

    def write(self, folder: Path) -> Path:
        """A table of them."""
        folder.mkdir(parents=True, exist_ok=True)
        table = folder / "labeled.csv"
        if isinstance(self.train, Scenes) and isinstance(self.val, Scenes):
            text = as_csv({"train": self.train, "val": self.val})
            write_atomically(folder / CLASSES_FILE, self.train.code.as_json().encode())
        else:
            assert isinstance(self.train, ImageList)
            assert isinstance(self.val, ImageList)
            text = split_table(self.train, self.val)
        write_atomically(table, text.encode("utf-8", "surrogateescape"))
        return table


def _spread(scenes: Scenes, count: int) -> Scenes:
    total = len(scenes)
    return scenes.subset([index * total // count for index in range(min(count, total))])


@dataclass(frozen=True)
class _Looked:
    """The images, and what follows from them alone."""

    files: ImageList
    side: int
    facts: PipelineFacts
    shape: Shape
    labeled: _Labeled | None

    @classmethod
    def at(cls, config: PipelineRun) -> _Looked:
        """Look at the images, and refuse what cannot be done before anything is trained."""
        labeled = None if config.labels is None else _Labeled.of(config, config.labels)
        files = find_images(config.images, config.columns.image)
        side = median_side(files, config.seed)
        facts = PipelineFacts(
            images=len(files),
            side=side,
            device=start_runtime(config.machine).kind,
            is_dense=labeled is not None and labeled.is_dense,
            init=None if config.init is None else read_checkpoint(config.init).config.backbone,
        )
        if facts.is_dense and facts.init is not None:
            choose.check_depth(facts.init.depth, "init")
        if facts.is_dense and config.size is not None:
            choose.check_depth(SIZES[config.size].depth, "size")
        return cls(files, side, facts, choose.shape_of(facts), labeled)


class _Pipeline:
    """The stages of one run."""

    def __init__(self, config: PipelineRun, ledger: Ledger, looked: _Looked) -> None:
        self.config, self.ledger = config, ledger
        self.files, self.side, self.facts = looked.files, looked.side, looked.facts
        self.shape, self.labeled = looked.shape, looked.labeled
        self.say = Console(stderr=True, highlight=False, soft_wrap=True, markup=False).print

    @property
    def stages(self) -> tuple[str, ...]:
        """Those of this run, in their order."""
        if self.labeled is None:
            return UNLABELED
        return tuple(stage for stage in SHARES if stage != "probe" or not self.labeled.is_dense)

    def run(self) -> Verdict | None:
        """All stages that are not finished."""
        shape, seconds = self.shape, self.config.seconds
        self.say(
            f"budget {duration(seconds)}, {duration(self.ledger.spent)} of it spent; shares: "
            + ", ".join(f"{stage} {SHARES[stage] / sum(SHARES[one] for one in self.stages):.0%}" for stage in self.stages)
        )
        self.say(f"images are shown as {shape.image_size} pixels, patches of {shape.patch}: {shape.reason}")
        found: Verdict | None = None
        for number, stage in enumerate(self.stages, 1):
            title = f"{number} of {len(self.stages)}: {stage}"
            if self.ledger.is_done(stage) and stage != "verdict":
                self.say(f"\n{title}, finished")
                continue
            self.say(f"\n{title}, {duration(self.left(stage))} for it")
            if stage == "verdict":
                found = self.verdict()
            else:
                getattr(self, stage)()
            self.write_page(found)
        self.write_page(found)
        self.say(f"\n{duration(self.ledger.spent)} of {duration(seconds)}")
        out, last = self.config.out, self.config.out / ("pretrain" if self.labeled is None else self.finetuned)
        after = command("finetune", "LABELED", model=last, out=unused(out / "finetune"))
        if self.labeled is not None:
            written = Path("masks" if self.facts.is_dense else "predictions.csv")
            after = command("predict", "IMAGES", model=last, out=unused(written))
        print(f"done: {out} (report.html shows it). Next: {after}")
        return found

    @property
    def finetuned(self) -> str:
        """The folder of the last fine-tuning, called as its verb."""
        return "segment" if self.facts.is_dense else "finetune"

    def left(self, stage: str) -> float:
        """Seconds that a stage gets."""
        return choose.share_of(stage, self.stages, self.config.seconds - self.ledger.spent)

    def write_page(self, found: Verdict | None) -> None:
        """The page, as far as it is."""
        write_page(self.config, self.stages, self.ledger, found, self.finetuned)

    def decided(self, stage: str, settings: dict[str, Any]) -> dict[str, Any]:
        """Say why the settings of a stage are as they are."""
        for line in settings.get("why", ()):
            self.say(line)
        return settings

    def audit(self) -> None:
        """What is in the images; of more than there is time for, in some of them, evenly spread."""
        config, total, seconds = self.config, len(self.files), self.left("audit")
        with self.ledger.stage("audit") as kept:
            wanted = max(choose.LEAST_AUDITED, int(choose.AUDITED_PER_SECOND * seconds))
            count = min(total, self.ledger.decided("audit", lambda: {"images": wanted})["images"])
            source, columns = config.images, config.columns
            if count < total:
                if self.files.members is not None:
                    self.say(
                        f"left out: {total:,} images in archives take more time than this; beitkit audit looks at all of them"
                    )
                    return
                source, columns = config.out / "audited.csv", ColumnsConfig()
                write_atomically(source, as_table(self.files.evenly_spread(count)))
                self.say(f"{count:,} of {total:,} images, evenly spread")
            limit = ReadLimit(**{field.name: getattr(config.read, field.name) for field in fields(ReadLimit)})
            workers, out = config.machine.workers, config.out / "audit"
            found = audit.run(AuditRun(source, task="none", out=out, workers=workers, read=limit, columns=columns))
            kept["lines"] = [[*line] for line in found.lines]

    def tokenizer(self) -> None:
        """A token for each patch."""
        wanted = choose.tokenizer_run(self.config, self.shape)
        patches = self.ledger.decided("tokenizer", lambda: {"patches": wanted.kmeans.patches})["patches"]
        with self.ledger.stage("tokenizer"):
            tokenizer.run(replace(wanted, kmeans=replace(wanted.kmeans, patches=patches)))

    def pretrain(self) -> None:
        """As many steps as fit."""
        batch = choose.batch_of(len(self.files))
        with self.ledger.stage("pretrain"):
            settings = self.decided("pretrain", self.ledger.decided("pretrain", lambda: self._length_of_pretraining(batch)))
            pretrain.run(choose.pretrain_run(self.config, self.shape, settings["size"], batch, settings["steps"]))

    def _length_of_pretraining(self, batch: int) -> dict[str, Any]:
        config, why = self.config, []
        until = self.ledger.spent + self.left("pretrain")
        size = config.size
        if config.init is None and size is None:
            size, reason = self._size(batch)
            why.append(reason)
        pace = rehearse.pretraining_pace(config, self.shape, size, batch, self.files, self.side)
        per_pass = len(self.files) / batch
        seconds = until - self.ledger.spent
        steps = pace.steps(seconds, per_pass)
        why.append(
            f"pre-training: {batch / pace.first:,.0f} images/s in the first pass, {batch / pace.later:,.0f} later, timed here; "
            f"{steps:,} steps of {batch} ({steps / per_pass:.3g} passes) for {duration(seconds)}, {duration(pace.overhead)} of "
            "them for all else"
        )
        return {"size": size, "steps": steps, "why": why}

    def _size(self, batch: int) -> tuple[SizeName, str]:
        """The largest network that sees the images often enough in its time, by its speed on noise."""
        sizes = choose.candidates(self.facts)
        chosen = sizes[0]
        shown = 0.0
        seconds, runtime = self.left("pretrain"), start_runtime(self.config.machine)
        for size in sizes:
            reached = seconds * rehearse.images_per_second(self.config, self.shape, size, batch, runtime)
            if size != sizes[0] and not choose.is_enough(self.facts, reached):
                break
            chosen, shown = size, reached
            if not choose.is_enough(self.facts, reached):
                break
        return chosen, (
            f"size {chosen}: about {shown / self.facts.images:.3g} passes over {self.facts.images:,} images in its time; a "
            f"larger one is taken where it makes {choose.ENOUGH_PASSES} passes and {choose.ENOUGH_STEPS:,} steps"
        )

    def labels(self) -> tuple[Path, int | None]:
        """Labeled images of the verdict, limited by the budget, and how many of them each seed draws; None: all."""
        labeled, path = self.labeled, resolved(self.config.labels)
        assert labeled is not None
        settings = self.ledger.decided("labels", self._label_counts)
        count, total, val = settings["labels"], settings["drawn_from"], settings["val"]
        if labeled.is_packed:
            return path, count if count < len(labeled.train) else None
        table = self.config.out / "labeled" / "labeled.csv"
        if not table.exists():
            labeled.part(total, val, self.config.seed).write(table.parent)
        return table, count if count < total else None

    def _label_counts(self) -> dict[str, Any]:
        labeled = self.labeled
        assert labeled is not None
        train, val, classes, seconds = len(labeled.train), len(labeled.val), len(labeled.train.classes), self.config.seconds
        count = choose.most_labels(seconds, train, classes, is_dense=labeled.is_dense)
        shown = choose.most_labels(seconds, val, classes, is_dense=labeled.is_dense)
        total = count if labeled.is_dense else min(train, choose.SEEDS * count)  # each seed draws others
        unit = "images with masks" if labeled.is_dense else "labels"
        why = [f"verdict: {count:,} {unit} of {train:,}, compared on {shown:,} images of {val:,}, by the budget"]
        return {"labels": count, "drawn_from": total, "val": shown, "why": why}

    def probe(self) -> None:
        """Frozen features, block by block."""
        config = self.config
        table, count = self.labels()
        with self.ledger.stage("probe"):
            found = probe.run(
                ProbeRun(
                    table,
                    model=config.out / "pretrain",
                    val=None if table != config.labels else config.val,
                    out=config.out / "probe",
                    limit=min(ProbeRun.limit, count or ProbeRun.limit),
                    seed=config.seed,
                    machine=config.machine,
                    read=config.read,
                    columns=ColumnsConfig() if table != config.labels else config.columns,
                )
            )
            self.ledger.stages["probe"]["linear"] = found.linear.test[found.linear.chosen]

    def verdict(self) -> Verdict:
        """Which start is best, with the floors beside."""
        table, count = self.labels()
        self.decided("verdict", self.ledger.decided("labels", self._label_counts))
        if self.ledger.is_done("verdict"):
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                return verdict.run(self._verdict_run(table, count))
        with self.ledger.stage("verdict") as kept:
            self.decided("verdict", self.ledger.decided("verdict", lambda: self._rounds(table, count)))
            found = verdict.run(self._verdict_run(table, count))
            kept["winner"] = max(found.contests, key=lambda one: one.labels).best.name
        return found

    def _verdict_run(self, table: Path, count: int | None) -> VerdictRun:
        settings = self.ledger.stages["verdict"]["settings"]
        rounds = Rounds(settings["seeds"], settings["steps"])
        return choose.verdict_run(self.config, self.shape, table, count, rounds, is_dense=self.facts.is_dense)

    def _rounds(self, table: Path, count: int | None) -> dict[str, Any]:
        """Seeds and steps of the verdict's trainings."""
        dense, until = self.facts.is_dense, self.ledger.spent + self.left("verdict")
        some = choose.verdict_run(self.config, self.shape, table, count, Rounds(1, choose.SHORT_STEPS), is_dense=dense)
        start = named_starts(some.starts)[-1]
        labels = self.ledger.stages["labels"]["settings"]
        pace = rehearse.finetuning_pace(verdict.training_of(some, start, labels["labels"], self.config.seed))
        batch = pace.batch
        per_pass = labels["labels"] / batch
        timed = self._timed_floors(labels)
        floors = [
            choose.floor_seconds(labels["labels"], labels["val"], seeds, timed, is_dense=dense)
            for seeds in range(1, choose.SEEDS + 1)
        ]
        seconds, repeated = until - self.ledger.spent, pace._replace(overhead=REPEATED * pace.overhead)
        rounds = choose.rounds_of(seconds, repeated, len(some.starts), floors, per_pass)
        why = [
            f"verdict: {len(some.starts)} starts, {rounds.seeds} seeds, {rounds.steps:,} steps of {batch} each "
            f"({rounds.steps / per_pass:.3g} passes, {1000 * pace.first:.0f} ms a step, timed here) for {duration(seconds)}, "
            f"about {duration(floors[rounds.seeds - 1])} of them for floors and probes"
        ]
        return rounds._asdict() | {"overhead": pace.overhead, "batch": batch, "why": why}

    def _timed_floors(self, labels: dict[str, Any]) -> float | None:
        """Seconds of the floors of one seed, timed here; None of scenes, and where there are too few images for it."""
        assert self.labeled is not None
        if self.facts.is_dense or self.labeled.is_packed:
            return None
        part = self.labeled.part(labels["drawn_from"], labels["val"], self.config.seed)
        assert isinstance(part.train, ImageList)
        assert isinstance(part.val, ImageList)
        images = LabeledImages(part.train, part.val, self.config.machine, self.config.read)
        return rehearse.floors_pace(images, labels["labels"], self.config.out)

    def finetune(self) -> None:
        """The best start with all labels, for the time that is left."""
        assert self.labeled is not None
        with self.ledger.stage("finetune") as kept:
            settings = self.decided("finetune", self.ledger.decided("finetune", self._length_of_finetuning))
            config = self.config
            table, columns, val = resolved(config.labels), config.columns, config.val
            if settings["val"] < len(self.labeled.val):
                table, columns, val = config.out / "labeled" / "all" / "labeled.csv", ColumnsConfig(), None
                if not table.exists():
                    self.labeled.part(len(self.labeled.train), settings["val"], config.seed).write(table.parent)
            some = self._verdict_run(*self.labels())
            start = next(one for one in named_starts(some.starts) if one.name == settings["start"])
            some = replace(some, images=table, columns=columns, val=val, steps=settings["steps"])
            run = verdict.training_of(some, start, len(self.labeled.train), config.seed)
            run = replace(run, out=config.out / self.finetuned)
            if isinstance(run, FinetuneRun):
                kept["top-1"] = finetune.run(run).accuracy
            else:
                kept["mIoU"] = segment.run(run).mean_iou

    def _length_of_finetuning(self) -> dict[str, Any]:
        assert self.labeled is not None
        seconds, verdict_stage = self.left("finetune"), self.ledger.stages["verdict"]
        settings, labels = verdict_stage["settings"], self.ledger.stages["labels"]["settings"]
        some = self._verdict_run(*self.labels())
        start = next(one for one in named_starts(some.starts) if one.name == verdict_stage["winner"])
        made = verdict.training_of(some, start, labels["labels"], some.seeds[0]).out
        step, batch, total = rehearse.seconds_a_step(made), settings["batch"], len(self.labeled.train)
        # A forward pass takes a third of a step's time; of scenes whole images are looked at, so what that took is the measure.
        each = settings["overhead"] / labels["val"] if self.facts.is_dense else step / batch / 2
        val = max(labels["val"], min(len(self.labeled.val), int(EVALUATED_SHARE * seconds / each)))
        overhead = settings["overhead"] + each * (val - labels["val"])
        if self.labeled.is_packed:
            val = len(self.labeled.val)
        steps = min(choose.longest(total / batch), Pace(step, step, overhead, batch).steps(seconds, total / batch))
        why = [
            f"fine-tuning: {start.name} with all {total:,} labels, {steps:,} steps of {batch} ({steps * batch / total:.3g} "
            f"passes, {1000 * step:.0f} ms a step in the verdict) for {duration(seconds)}; measured on {val:,} images"
        ]
        return {"start": start.name, "steps": steps, "val": val, "why": why}

    def export(self) -> None:
        """A program that runs without beitkit."""
        has_onnx = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))
        with self.ledger.stage("export") as kept:
            path = self.config.out / ("model.onnx" if has_onnx else "model.pt2")
            if not has_onnx:
                self.say("onnx, onnxscript and onnxruntime are not all installed, so a program of torch.export is written")
            if not path.exists():  # written whole or not at all
                checkpoints.export(ExportRun(self.config.out / self.finetuned, "onnx" if has_onnx else "torch", path))
            kept["file"] = path.name
