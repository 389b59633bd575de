"""`beitkit segment`: train a semantic segmentation network, from a pre-trained one or from scratch with the same settings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from beitkit.command.following import command, unused
from beitkit.configs.data import IMAGENET, INCEPTION
from beitkit.configs.model import BackboneConfig, BareBackbone, MaskedImageModelConfig, SegmenterConfig, as_pair, by
from beitkit.configs.parts import DEFAULT_PATCH
from beitkit.configs.train import resolved
from beitkit.contracts import WHOLE, Batch, Share
from beitkit.data.dataset import ImageDataset
from beitkit.data.scenes.audit import audit
from beitkit.data.scenes.reading import NumberedScene, readable_scenes
from beitkit.data.scenes.scenes import CLASSES_FILE, Scenes, as_csv, train_and_val_scenes
from beitkit.data.sources.image_list import ImageList
from beitkit.data.stream import normalized
from beitkit.data.views.scene import SceneTrainView, with_zeroed_padding
from beitkit.evaluation.segmentation import MeanIoU
from beitkit.evaluation.sheets.scenes import evaluate_scenes
from beitkit.interop.load import load
from beitkit.interop.reading.checkpoints import read_checkpoint
from beitkit.nn.lora import merged_state
from beitkit.nn.segmentation.label_map import predict_label_map
from beitkit.nn.segmentation.segmenter import Segmenter
from beitkit.objectives.segment import Segment
from beitkit.planning.workload import Workload
from beitkit.runs.segment.choose import Origin, SegmentFacts, choose_scenes
from beitkit.runs.segment.config import SegmentRun
from beitkit.runs.segment.report import SegmentResult, facts_of, write_report
from beitkit.runs.training.leaks import note_on_leaks
from beitkit.runs.training.live import renewing
from beitkit.runs.training.own import NONE, OwnParts, checked_by
from beitkit.runs.training.pixels import Pixels, decided_pixels
from beitkit.runs.training.reader import median_side
from beitkit.runs.training.session import Session, read_result, start_run
from beitkit.runs.training.speed import Trial, accelerate
from beitkit.runs.training.start import Start
from beitkit.runs.training.task import refused_if_labeled
from beitkit.system import write_atomically
from beitkit.tokenizers.fingerprint import digest_of
from beitkit.train.folder import OWN_IMAGES
from beitkit.train.loop import fit
from beitkit.train.schedule import Schedule

AUXILIARY_CHANNELS = 256
"""Width of the auxiliary head (method 7.2); a narrower network gets one of its own width."""


def run(config: SegmentRun, own: OwnParts = NONE, said: set[str] | None = None) -> SegmentResult:
    """Train or continue; the run folder is what `beitkit.load` reads.

    `own` are the objects that the config describes, `said` the choices that runs of the same command have printed.
    """
    config, runtime = start_run(config, config.speed.sharding)
    with refused_if_labeled(config.images, config.columns):
        train, val = train_and_val_scenes(
            own.images_or(config.images),
            own.val_or(config.val),
            config.train.seed,
            classes=config.classes,
            all_values=config.all_values,
            columns=config.columns,
        )
    audits = audit(train), audit(val)
    backbone, origin = _origin(config)
    pixels = _pixels(config, train.files)
    backbone = replace(backbone, channels=pixels.channels)
    facts = SegmentFacts(
        images=len(train),
        side=median_side(train.files, 0),
        start=origin,
        patch=max(backbone.patch),
        width=backbone.width,
        depth=backbone.depth,
        device=runtime.kind,
    )
    config, reasons = choose_scenes(config, facts)
    compared = None if config.compare is None else result_of(config.compare, val.digest)
    start = Start.of(partial(_initialized, config, backbone, train, pixels), config)
    model = start.model
    inputs = {
        "pictures": train.digest,
        "validation pictures": val.digest,
        "model": digest_of(model.config.backbone, merged_state(model.backbone)),
    }
    if train.files.items is not None:
        inputs[OWN_IMAGES] = train.files.items.fingerprint
    checked = checked_by({"images": train.files} | ({} if config.val is None else {"validation images": val.files}))
    session = Session.begin(
        "segment", config, runtime, inputs, files=train.files, others=[train.masks, val.files, val.masks], default_epochs=1
    )
    if session is None:
        return result_of(config.out, val.digest)
    folder, schedule = session.folder, session.training.schedule
    session.describe(model)
    if runtime.is_main:
        write_atomically(folder.path / "scenes.csv", as_csv({"train": train, "val": val}).encode("utf-8", "surrogateescape"))
        write_atomically(folder.path / CLASSES_FILE, train.code.as_json().encode())
    odd = (*audits[0].notes(), *(f"validation: {note}" for note in audits[1].notes()))
    told = [f"{name.lower()} {told}" for name, told in checked]
    session.say_choices((*pixels.lines, *reasons, *told, *(f"note: {note}" for note in odd)), said)
    if runtime.is_main and (leak := note_on_leaks(train.files, val.files)) is not None:
        session.say(leak)
    objective = Segment(model, config.loss, audits[0].pixels)
    trial = Trial(Workload(network=model.config, loss=config.loss), resolved(config.train.batch_size))
    computed = accelerate(objective, config.speed, runtime, schedule, folder=folder, trial=trial)
    images = f"{len(train)} images of {len(train.classes)} classes, {len(val)} to validate"
    session.say(_announcement(config, origin, images, schedule) + f"; {runtime.describe()}{computed}{start.describe()}")
    dataset = ImageDataset(
        train.files,
        SceneTrainView(config.view, model.config.backbone.image_size),
        channels=backbone.channels,
        value_range=model.config.preprocessing.value_range,
        seed=config.train.seed,
        smallest=backbone.patch,
        label_map=train.label_map,
    )
    preprocessing = model.config.preprocessing
    mean, std = preprocessing.mean, preprocessing.std

    def batches(first: int) -> Iterator[Batch]:
        return with_zeroed_padding(normalized(session.batches(dataset, first), mean, std))

    def predict(image: Tensor) -> Tensor:
        return predict_label_map(model, image, config.inference, runtime.precision)

    def scenes(share: Share = WHOLE) -> Iterator[NumberedScene]:
        max_broken, report = session.reading.max_broken, session.reading.report
        return readable_scenes(val, backbone.channels, max_broken, report, preprocessing.value_range, share)

    def labeled(share: Share) -> Iterator[tuple[Tensor, Tensor]]:
        return ((scene.image, scene.label_map) for scene in scenes(share))

    evaluator = MeanIoU(predict, labeled, len(train.classes))
    best = session.best("val/miou", model, patience=config.patience)
    renewed = renewing(session.training, "Segmentation", [*facts_of(config, model.config, audits[0], runtime), *checked])
    fit(objective, batches, start.groups, renewed, [evaluator], best)
    if runtime.is_main:
        if config.patience is not None:
            model = session.best_kept(model).to(runtime.device)  # what `predict` calls
        scored = evaluate_scenes(predict, scenes(), train.classes, model.config.colors)
        result = {
            "miou": scored.scores.mean_iou,
            "macc": scored.scores.mean_accuracy,
            "aacc": scored.scores.pixel_accuracy,
            "class_iou": scored.class_iou,
            "images": len(val),
            "scratch": origin == "scratch",
            "val_digest": val.digest,
        }
        folder.write_json("result.json", result)
        length = [*session.length_facts("val/miou", config.patience), *checked]
        report = write_report(folder, config, model.config, audits[0], scored, compared, runtime, length)
        session.say(
            f"mIoU {scored.scores.mean_iou:.1%} on {len(val)} images (pixels named right: {scored.scores.pixel_accuracy:.1%})"
        )
        session.say_found(report, config)
    session.finish(model, command("predict", "IMAGES", model=config.out, out=unused(Path("masks"))))
    return result_of(config.out, val.digest)


def result_of(folder: Path, val_digest: str) -> SegmentResult:
    """What a finished run found out, on the same validation images."""

    def read(content: dict[str, Any]) -> SegmentResult:
        return SegmentResult(folder, float(content["miou"]), dict(content["class_iou"]))

    return read_result(folder, "segmentation", val_digest, read)


def _announcement(config: SegmentRun, origin: Origin, images: str, schedule: Schedule) -> str:
    weights = f"from {config.model}" if origin != "scratch" else "from scratch"
    crops = by(resolved(config.image_size))
    return (
        f"segmentation {weights}: {images}; crops of {crops}, {config.head} head; {schedule.steps} steps of "
        f"{schedule.images_per_step}, warm-up {schedule.warmup}, lr {schedule.lr:.3g}, layer decay "
        f"{resolved(config.optim.layer_decay):g}"
    )


def _origin(config: SegmentRun) -> tuple[BackboneConfig, Origin]:
    """The network's backbone as the checkpoint has it, or as the options describe it, and where its weights come from."""
    if config.model is None:
        patch = config.patch or DEFAULT_PATCH
        side = config.image_size or 4 * patch  # the real one is chosen when the images are known
        backbone = config.network.backbone(resolved(config.size), patch, side, drop_path=0.0, final_norm=False)
        return backbone, "scratch"
    found = read_checkpoint(config.model).config
    if config.scratch:
        return found.backbone, "scratch"
    return found.backbone, "pre-trained" if isinstance(found, MaskedImageModelConfig | BareBackbone) else "fine-tuned"


def _pixels(config: SegmentRun, files: ImageList) -> Pixels:
    """Channels, range and statistics of the images, given those of the checkpoint or of `--network`."""
    base, channels, own = config.network.preprocessing, 3, config.network.has_own_statistics
    if config.model is not None:
        stored = read_checkpoint(config.model).config
        base, channels, own = stored.preprocessing, stored.backbone.channels, False
    if config.normalization is not None:
        named, own = (
            {"imagenet": IMAGENET, "inception": INCEPTION}.get(config.normalization, base),
            config.normalization == "data",
        )
        base = replace(named, value_range=base.value_range)
    value_range = config.value_range
    return decided_pixels(files, base, channels, channels=config.image_channels, value_range=value_range, own_statistics=own)


def _initialized(config: SegmentRun, backbone: BackboneConfig, train: Scenes, pixels: Pixels) -> Segmenter:
    """The network with its first weights: a backbone handed over or fresh, and a head, kept if the checkpoint has just that."""
    side = resolved(config.image_size)
    if config.model is None:
        found = None
        sized = replace(backbone, image_size=as_pair(side), drop_path=resolved(config.drop_path))
        start = SegmenterConfig(backbone=sized, classes=train.classes, preprocessing=pixels.preprocessing)
    else:
        found = load(
            config.model,
            task="segment",
            classes=train.classes,
            image_size=side,
            drop_path=config.drop_path,
            channels=pixels.channels,
        )
        assert isinstance(found, Segmenter)
        start = found.config
    start = replace(start, palette=train.code.palette, preprocessing=pixels.preprocessing, inference=config.inference)
    has_auxiliary = config.head != "linear" and config.loss.auxiliary_weight > 0
    wanted = replace(
        start,
        head=config.head,
        channels=config.channels,
        auxiliary_channels=min(AUXILIARY_CHANNELS, backbone.width) if has_auxiliary else None,
    )
    if found is None or config.scratch:
        return Segmenter(wanted)
    has_head = config.model is not None and isinstance(read_checkpoint(config.model).config, SegmenterConfig)
    is_as_wide = config.channels is None or config.channels == start.decoder_channels
    if has_head and start.head == config.head and is_as_wide:
        found.config = start
        return found
    model = Segmenter(wanted)
    model.backbone.load_state_dict(found.backbone.state_dict())
    return model
