"""`beitkit probe`: evaluate frozen features, block by block, with the quick, the official or the paper's protocol."""

from __future__ import annotations

import sys

import torch

from beitkit.command.following import beside, command, kept
from beitkit.data.sources.image_list import ImageList
from beitkit.data.sources.split import few_per_class, train_and_val
from beitkit.data.stream import Reading, evaluation_batches, evaluation_dataset
from beitkit.errors import UserError
from beitkit.evaluation.probe import BlockFeatures, block_features, held_out_split, linear_probe, nearest_neighbors
from beitkit.interop.load import load
from beitkit.nn.segmentation.segmenter import Segmenter
from beitkit.report.table import plain
from beitkit.runs.probe.config import ProbeRun
from beitkit.runs.probe.report import Probe, chart, print_result, write_report
from beitkit.runs.probe.training import Images, pool_of, train_probes
from beitkit.runs.training.own import NONE, OwnParts
from beitkit.runs.training.reader import note_on_cut
from beitkit.runs.training.task import refuse_scenes
from beitkit.tokenizers.fingerprint import digest_of
from beitkit.train.folder import RunFolder
from beitkit.train.journal import say_skipped
from beitkit.train.machine.runtime import start_runtime

EVALUATION_BATCH = 64
"""Images per forward pass where nothing is learned."""

__all__ = ["Probe", "chart", "run"]


def run(config: ProbeRun, own: OwnParts = NONE) -> Probe:
    """Probe, and print a table. `own` are the objects that the config describes."""
    refuse_scenes(config.images)
    model = load(config.model)
    if isinstance(model, Segmenter):
        raise UserError(f"{config.model} holds a {type(model).__name__}; probe a pre-trained model or a classifier")
    blocks = _blocks(config, model.backbone.depth)
    train, test = train_and_val(own.images_or(config.images), own.val_or(config.val), config.seed, config.columns)
    if len(train) > config.limit:
        train = few_per_class(train, config.limit, config.seed, field="limit")
    if train.labels is None:
        raise UserError(f"{config.images} has several labels an image; beitkit probe takes one")
    if config.protocol != "quick" and (config.batch_size or 1) > len(train):  # before anything is written
        raise UserError(f"`batch_size` {config.batch_size} is more than there are images; give at most {len(train)}")
    folder = None if config.out is None else RunFolder(config.out, "probe", config)
    runtime = start_runtime(config.machine)
    model.to(runtime.device).requires_grad_(False)
    reading = Reading(
        batch_size=min(EVALUATION_BATCH, config.batch_size or EVALUATION_BATCH),
        workers=config.machine.workers,
        device=runtime.device,
        max_broken=config.read.max_broken,
        report=say_skipped if folder is None else folder.note_broken,
        list_file=None if folder is None else folder.broken_list,
    )

    def features(files: ImageList) -> BlockFeatures:
        dataset = evaluation_dataset(files, model.config.backbone, model.config.preprocessing)
        stream = evaluation_batches(dataset, model.config.preprocessing, reading)
        return block_features(model.backbone, stream, runtime.precision, [block - 1 for block in blocks], pool_of(config))

    if (note := note_on_cut(test, model.config.backbone.image_size, model.config.preprocessing, advice="")) is not None:
        print(note, file=sys.stderr)
    ask = features(test)
    if config.protocol == "quick":
        fit = features(train)
        neighbors = nearest_neighbors(fit, ask, len(train.classes), config.neighbors)
        linear, optimistic = linear_probe(fit, ask, len(train.classes)), None
    else:
        if folder is not None:
            network = digest_of(model.config, model.backbone.state_dict())
            folder.pin(pictures=train.digest, **{"test pictures": test.digest, "model": network})
        _, out = held_out_split(torch.from_numpy(train.labels))
        choosing = features(train.subset(out.numpy()))
        is_out = torch.zeros(len(train), dtype=torch.bool).index_fill(0, out, value=True)
        images = Images(train, is_out, choosing, ask, blocks)
        neighbors = None
        linear, optimistic = train_probes(config, model, images, reading, runtime, folder)
    result = Probe(
        protocol=config.protocol,
        cells=config.cells,
        blocks=blocks,
        neighbors=neighbors,
        linear=linear,
        optimistic=optimistic,
        train_images=len(train),
        test_images=len(test),
        classes=len(train.classes),
    )
    if folder is not None:
        folder.write_json("probe.json", plain(result))
        write_report(folder.path / "report.html", str(config.model), result)
    print_result(str(config.model), result)
    where = f"written: {folder.path} (report.html shows it)" if folder is not None else "give --out to keep a report"
    is_own = own.images is not None or own.val is not None  # which no command can name
    following = command(
        "finetune",
        "LABELED" if is_own else config.images,
        model=config.model,
        out=beside(config.model, "cls"),
        **kept(config, *(() if is_own else ("val",)), "columns", "read.max_broken"),
    )
    print(f"{where}. Next: {following}")
    return result


def _blocks(config: ProbeRun, depth: int) -> tuple[int, ...]:
    """The blocks to probe, counted from 1 and ascending."""
    blocks = tuple(range(1, depth + 1)) if config.blocks is None else tuple(sorted(config.blocks))
    if blocks[-1] > depth:
        raise UserError(f"`blocks` {blocks[-1]} is more than the {depth} blocks of {config.model}")
    return blocks
