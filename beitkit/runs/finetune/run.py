"""`beitkit finetune`: train a classifier from a pre-trained network, or from scratch with the same settings."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from beitkit.command.following import command, kept
from beitkit.configs.model import ClassifierConfig
from beitkit.configs.parts import DEFAULT_PATCH, shard_of
from beitkit.configs.train import resolved
from beitkit.contracts import WHOLE, Batch, Share
from beitkit.data.dataset import ImageDataset
from beitkit.data.decoding.reading import is_deep
from beitkit.data.own.augmentation import OwnAugmentation
from beitkit.data.sources.image_list import ImageList
from beitkit.data.sources.split import few_per_class, note_on_val, split_table, train_and_val
from beitkit.data.stream import evaluation_batches, evaluation_dataset, normalized
from beitkit.data.views.augment import ON_BYTES, RandAugment, erased
from beitkit.data.views.image import TrainView
from beitkit.data.views.mixing import mixed
from beitkit.errors import UserError
from beitkit.evaluation.calibration import chosen_thresholds, fitted_temperature
from beitkit.evaluation.classification import ClassifierQuality
from beitkit.evaluation.scores import MultilabelScores, Scores, multilabel_scores, single_label_scores
from beitkit.interop.load import load
from beitkit.interop.reading.checkpoints import read_checkpoint
from beitkit.nn.models import Classifier
from beitkit.nn.prediction import class_probabilities
from beitkit.objectives.classify import Classify
from beitkit.planning.workload import Workload
from beitkit.report.table import plain
from beitkit.runs.finetune.choose import FinetuneFacts, choose
from beitkit.runs.finetune.config import FinetuneRun
from beitkit.runs.finetune.folds import SCORES, CrossValidation, cross_validate
from beitkit.runs.finetune.head import check_head, fit_head
from beitkit.runs.finetune.report import FinetuneResult, facts_of, write_report
from beitkit.runs.training.leaks import note_on_leaks
from beitkit.runs.training.live import renewing
from beitkit.runs.training.own import NONE, OwnParts, checked_by
from beitkit.runs.training.pixels import Pixels, decided_pixels
from beitkit.runs.training.reader import median_side, note_on_cut
from beitkit.runs.training.session import Session, read_result, start_run
from beitkit.runs.training.speed import Trial, accelerate
from beitkit.runs.training.start import Start
from beitkit.runs.training.task import refuse_scenes
from beitkit.system import write_atomically
from beitkit.tokenizers.fingerprint import digest_of
from beitkit.train.folder import OWN_IMAGES
from beitkit.train.loop import fit
from beitkit.train.machine.runtime import Runtime


def run(config: FinetuneRun, own: OwnParts = NONE, said: set[str] | None = None) -> FinetuneResult | CrossValidation:
    """Fine-tune or continue; the run folder is what `beitkit.load` reads. With `folds` it holds a run folder for each.

    `own` are the objects that the config describes, `said` the choices that runs of the same command have printed.
    """
    refuse_scenes(config.images)
    if config.folds is not None:
        return cross_validate(config, partial(run, own=own, said=set()), own.images_or(config.images))
    config, runtime = start_run(config, config.speed.sharding)
    fold = None if config.fold is None else shard_of(config.fold, "fold")
    train, val = train_and_val(own.images_or(config.images), own.val_or(config.val), config.train.seed, config.columns, fold)
    if config.labels is not None:
        train = few_per_class(train, config.labels, config.train.seed)
    if config.balanced and train.labels is None:
        raise UserError(f"--balanced needs one label an image, but those of {config.images} have several; leave it out")
    pixels = _pixels(config, train)
    config, reasons = choose(config, _facts(config, train, runtime))
    model = _network(config, train, pixels)
    metric = "map" if model.config.multilabel else "top1"
    compared = None if config.compare is None else _result_of(config.compare, val.digest, metric)
    inputs = {"pictures": train.digest, "validation pictures": val.digest}
    deep = is_deep(pixels.channels, pixels.preprocessing.value_range)
    augmentation = own.augmentation_of(config.augmentation, pixels.channels, is_deep=deep)
    if train.items is not None:
        inputs[OWN_IMAGES] = train.items.fingerprint
    if augmentation is not None:
        inputs["augmentation"] = augmentation.fingerprint[0]
    checked = checked_by({"images": train} | ({} if config.val is None else {"validation images": val}), None, augmentation)
    if config.model is not None:  # a network that is described here has no weights of its own yet
        inputs["model"] = digest_of(model.config, model.backbone.state_dict())
    session = Session.begin("finetune", config, runtime, inputs, files=train, others=[val], default_epochs=0)
    if session is None:
        return _result_of(config.out, val.digest, metric)
    folder, schedule = session.folder, session.training.schedule
    if runtime.is_main:
        write_atomically(folder.path / "split.csv", split_table(train, val).encode("utf-8", "surrogateescape"))
    start = Start.of(partial(_initialized, config, model), config)
    model = start.model
    session.describe(model)
    if config.head_init == "probe":
        check_head(model, train, is_fresh=config.scratch or _has_fresh_head(model))
        if not folder.checkpoints.has_begun:  # what a checkpoint holds goes on from there
            session.say(fit_head(model, train, session.reading, runtime))
    objective = Classify(model, config.label_smoothing)
    trial = Trial(Workload(network=model.config, mixes=config.augment.is_mixing), resolved(config.train.batch_size))
    computed = accelerate(objective, config.speed, runtime, schedule, folder=folder, trial=trial)
    session.say_choices((*pixels.lines, *reasons, *(f"{name.lower()} {told}" for name, told in checked)), said)
    if pixels.preprocessing.value_range is not None and config.augment.operations:
        session.say(f"note: RandAugment leaves out {', '.join(ON_BYTES)}, which are defined on the 256 values of 8-bit images")
    if (note := note_on_cut(train, model.config.backbone.image_size, model.config.preprocessing)) is not None:
        session.say(note)
    origin = "from scratch" if config.scratch else f"from {config.model}"
    session.say(
        f"fine-tuning {origin}: {len(train)} labeled images of {len(train.classes)} classes, {len(val)} to validate; "
        f"{schedule.steps} steps of {schedule.images_per_step}, warm-up {schedule.warmup}, lr {schedule.lr:.3g}, "
        f"layer decay {config.optim.layer_decay:g}; {runtime.describe()}{computed}{start.describe()}"
    )
    if (note := note_on_val(val)) is not None:
        session.say(note)
    if runtime.is_main and (leak := note_on_leaks(train, val)) is not None:
        session.say(leak)

    streams = _Streams(config, model.config, train, val, session, augmentation)
    session.say_held(streams.dataset)
    evaluator = ClassifierQuality(runtime.precision()(model.__call__), streams.validation, model.config.multilabel)
    best = session.best(f"val/{metric}", model, patience=config.patience)
    shown = [*facts_of(config, model.config, train, runtime), *checked]
    renewed = renewing(session.curved(len(val)), "Fine-tuning", shown)
    fit(objective, streams.training, start.groups, renewed, [evaluator], best)
    if runtime.is_main:
        if config.patience is not None:
            model = session.best_kept(model).to(runtime.device)
            evaluator = ClassifierQuality(runtime.precision()(model.__call__), streams.validation, model.config.multilabel)
            with torch.no_grad():
                deque(evaluator.run(), maxlen=0)
        scores = _calibrated(model, evaluator, session)
        score = scores.measures[0].value
        result = {metric: score, "images": scores.images, "labels": len(train), "scratch": config.scratch}
        folder.write_json(SCORES, plain({"measures": {one.name: one.value for one in scores.measures}} | scores._asdict()))
        folder.write_json("result.json", result | {"val_digest": val.digest})
        length = [*session.length_facts(f"val/{metric}", config.patience), *checked]
        first = next(streams.training(0))
        twice = None if model.config.multilabel else session.outlook(f"val/{metric}", scores.images)
        report = write_report(folder, config, model.config, train, scores, compared, runtime, first, length, twice)
        name = "mean average precision" if model.config.multilabel else "accuracy"
        session.say(f"{name} {score:.1%} on {scores.images} images")
        session.say_found(report, config)
    if own.images is not None or own.val is not None:  # which no command can name
        following = command("predict", "IMAGES", model=config.out)
    else:
        following = command("evaluate", config.val or config.images, model=config.out, **kept(config, "columns"))
    session.finish(model, following)
    return _result_of(config.out, val.digest, metric)


@dataclass
class _Streams:
    """The batches of a run: augmented ones to train on, plain ones to validate."""

    config: FinetuneRun
    network: ClassifierConfig
    train: ImageList
    val: ImageList
    session: Session
    augmentation: OwnAugmentation | None

    def __post_init__(self) -> None:
        backbone, preprocessing = self.network.backbone, self.network.preprocessing
        augment, seed = self.config.augment, self.config.train.seed
        randomly = None
        if resolved(augment.operations):
            randomly = RandAugment(
                resolved(augment.operations), resolved(augment.magnitude), augment.magnitude_std, preprocessing.mean
            )
        self.dataset = ImageDataset(
            self.train,
            TrainView(self.config.view, backbone.image_size, randomly, resolved(augment.erasing)),
            channels=backbone.channels,
            value_range=preprocessing.value_range,
            seed=seed,
            smallest=backbone.patch,
            repeats=augment.repeats,
            balanced=self.config.balanced,
            augmentation=self.augmentation,
        )
        self.evaluation = evaluation_dataset(self.val, backbone, preprocessing, is_repeated=True)

    def training(self, first: int) -> Iterator[Batch]:
        """Endless batches from number `first` on: views, normalized, erased, mixed."""
        config, preprocessing = self.config, self.network.preprocessing
        stream = normalized(self.session.batches(self.dataset, first), preprocessing.mean, preprocessing.std)
        if config.augment.erasing:
            stream = erased(stream)
        if config.augment.is_mixing:
            stream = mixed(
                stream,
                config.augment,
                classes=len(self.network.classes),
                seed=config.train.seed,
                first=first,
                rank=self.session.training.runtime.rank,
                world=self.session.training.runtime.world_size,
            )
        return stream

    def validation(self, share: Share = WHOLE) -> Iterator[Batch]:
        """One pass of the validation images as they are, or a share of it."""
        reading = self.session.reading
        reading = reading._replace(batch_size=2 * reading.batch_size)
        return evaluation_batches(self.evaluation, self.network.preprocessing, reading, share)


def _facts(config: FinetuneRun, train: ImageList, runtime: Runtime) -> FinetuneFacts:
    imbalance, can_be_probed, has_head = 1.0, False, False
    if train.labels is not None:
        counts = np.unique(train.labels, return_counts=True)[1]
        imbalance, can_be_probed = float(counts.max() / counts.min()), bool(counts.max() > 1)
    if config.model is None:
        size, patch, image_size = config.network.shape(resolved(config.size)), config.patch or DEFAULT_PATCH, None
        width, depth, preprocessing = size.width, size.depth, config.network.preprocessing
    else:
        stored = read_checkpoint(config.model).config
        backbone, preprocessing, has_head = stored.backbone, stored.preprocessing, isinstance(stored, ClassifierConfig)
        width, depth, patch, image_size = backbone.width, backbone.depth, max(backbone.patch), backbone.image_size
    return FinetuneFacts(
        images=len(train),
        side=median_side(train, config.train.seed),
        imbalance=imbalance,
        width=width,
        depth=depth,
        patch=patch,
        image_size=image_size,
        crop_share=preprocessing.crop_share,
        has_head=has_head,
        can_be_probed=can_be_probed,
        device=runtime.kind,
    )


def _pixels(config: FinetuneRun, files: ImageList) -> Pixels:
    """Channels, range and statistics of the images, given those of the checkpoint or of `--network`."""
    base, channels, own = config.network.preprocessing, 3, config.network.has_own_statistics
    if config.model is not None:
        stored = read_checkpoint(config.model).config
        base, channels, own = stored.preprocessing, stored.backbone.channels, False
    return decided_pixels(files, base, channels, channels=config.channels, value_range=config.value_range, own_statistics=own)


def _network(config: FinetuneRun, files: ImageList, pixels: Pixels) -> Classifier:
    """The checkpoint as a classifier of these images, or the network that is described instead."""
    if config.model is None:
        model = Classifier(_described(config, files.classes, pixels.channels))
    else:
        loaded = load(
            config.model,
            task="classify",
            classes=files.classes,
            image_size=config.image_size,
            drop_path=config.drop_path,
            channels=pixels.channels,
            pooling=None if config.pooling == "cls" else config.pooling,
            pool_cells=config.pool_cells,
        )
        assert isinstance(loaded, Classifier)
        model = loaded
    shown = pixels.preprocessing.shown(config.fit, config.crop_share)
    shown.check_share(config.crop_share, model.config.backbone.image_size)
    model.config = replace(model.config.uncalibrated(), multilabel=files.targets is not None, preprocessing=shown)
    return model


def _initialized(config: FinetuneRun, found: Classifier) -> Classifier:
    """The network with its first weights: what is fresh, all or the head, is drawn here, where the seed is set."""
    if config.scratch:
        return Classifier(found.config)
    if _has_fresh_head(found):
        found.reset_head()
    return found


def _described(config: FinetuneRun, classes: tuple[str, ...], channels: int) -> ClassifierConfig:
    """The network that `--size`, `--patch`, `--image-size`, `--pooling` and `--network` ask for."""
    network, pooling = config.network, config.pooling or "mean"
    return ClassifierConfig(
        backbone=network.backbone(
            resolved(config.size),
            config.patch or DEFAULT_PATCH,
            resolved(config.image_size),
            drop_path=resolved(config.drop_path),
            final_norm=pooling == "cls",
            channels=channels,
        ),
        classes=classes,
        pooling=pooling,
        pool_cells=config.pool_cells or ClassifierConfig.pool_cells,
        preprocessing=network.preprocessing,
    )


def _calibrated(model: Classifier, evaluator: ClassifierQuality, session: Session) -> Scores | MultilabelScores:
    """Fit temperature and thresholds of the finished network on the validation images; returns its scores on them."""
    answers = evaluator.answers()
    assert answers is not None  # one process asks for all
    logits, labels = answers
    temperature = fitted_temperature(logits, labels)
    session.say(f"temperature {temperature.value:.4g}: {temperature.reason}")
    config = model.config = replace(model.config, temperature=temperature.value)
    if not config.multilabel:
        return single_label_scores(logits, labels, config.classes, config.temperature)
    thresholds = chosen_thresholds(class_probabilities(logits, config), labels)
    model.config = replace(config, thresholds=thresholds)
    session.say(f"thresholds {min(thresholds):.3g} to {max(thresholds):.3g}: the best F1 of each class on the validation images")
    return multilabel_scores(logits, labels, config.classes, config.temperature, thresholds)


def _has_fresh_head(model: Classifier) -> bool:
    """Whether the head is new, because the checkpoint had none or one for other classes."""
    assert model.load_report is not None
    return any(record.name == "head.weight" and record.fate == "fresh" for record in model.load_report.records)


def _result_of(folder: Path, val_digest: str, metric: str) -> FinetuneResult:
    return read_result(folder, "fine-tuning", val_digest, lambda content: FinetuneResult(folder, float(content[metric])))
