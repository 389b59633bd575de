"""`beitkit.load`: a network from a checkpoint of any layout, as saved or handed over to another task or image size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from beitkit.configs.model import Pair
from beitkit.configs.parts import Task
from beitkit.contracts import LoadReport
from beitkit.data.reader import ImageReader, WholeReader
from beitkit.errors import UserError
from beitkit.interop.build import build
from beitkit.interop.handover import Predicted, Target, hand_over
from beitkit.interop.kinds import Network
from beitkit.interop.reading.checkpoints import read_checkpoint
from beitkit.interop.reading.tokenizers import read_tokenizer
from beitkit.nn.models import Classifier
from beitkit.nn.segmentation.label_map import SceneLabeler
from beitkit.nn.segmentation.segmenter import Segmenter
from beitkit.tokenizers.frozen import TokenizerNetwork


def load(
    path: str | Path,
    *,
    task: Task | None = None,
    num_classes: int | None = None,
    classes: Sequence[str] | None = None,
    image_size: int | Pair | None = None,
    drop_path: float | None = None,
    channels: int | None = None,
    vocabulary: Predicted | None = None,
    pooling: Literal["mean", "grid"] | None = None,
    pool_cells: int | None = None,
) -> Network:
    """The network of a checkpoint, in eval mode, on the CPU, in float32; its `load_report` lists what became of every tensor.

    Args:
        path: a run folder, a Hugging Face or timm folder, or a file: official `.pth`, safetensors, `.bin`; or a model on the Hub,
            `hf://USER/NAME`.
        task: another task than the one it was saved for; the head is then freshly initialized.
        num_classes: number of classes; if other than the file's, the head is freshly initialized.
        classes: their names; other than the file's means a fresh head, unless the file has only numbers.
        image_size: side, or (height, width), of the images; positions are resized by the official rule.
        drop_path: stochastic depth of the last block, for further training; None keeps the value of the file.
        channels: of the images; other than the file's, each channel gets the mean of the patch embedding's filters, rescaled, so
            that a gray image shown in all of them gives what it gave before.
        vocabulary: visual tokens that a network of task "masked" predicts, or "pixels"; other than the file's, the head is
            freshly initialized, and so are mask token and final norm where the file has none.
        pooling: what a classifier's head sees: the mean of the patches, or the means of the cells of a coarse grid side by side;
            None keeps that of a classifier, and is mean for others.
        pool_cells: rows and columns of that grid; None keeps those of a classifier, and is 4 for others.

    Raises:
        UserError: if the path holds no BEiT network, a tensor is missing, surplus or of the wrong shape, or the file cannot
            be what is asked for.
    """
    checkpoint = read_checkpoint(Path(path))
    names = None if classes is None else tuple(classes)
    target = Target(task, num_classes, names, image_size, drop_path, channels, vocabulary, pooling, pool_cells)
    try:
        handover = hand_over(checkpoint.config, checkpoint.tensors, target)
        model = build(handover.config, handover.tensors, handover.fresh)
    except UserError as problem:
        raise UserError(f"{path} ({checkpoint.layout}): {problem}") from None
    assert isinstance(model, Network)
    model.load_report = LoadReport(
        source=f"{path} ({checkpoint.layout})",
        records=(*handover.records, *checkpoint.skipped),
        notes=checkpoint.notes,
    )
    return ready(model)


def ready(model: Network) -> Network:
    """A network that can be given files, read as it was trained."""
    if isinstance(model, Classifier):
        model.reader = ImageReader.of(model.config.backbone, model.config.preprocessing)
    if isinstance(model, Segmenter):
        model.labeler = SceneLabeler(
            WholeReader(channels=model.config.backbone.channels, value_range=model.config.preprocessing.value_range)
        )
    return model


def load_tokenizer(path: str | Path) -> TokenizerNetwork:
    """The tokenizer of a run folder or of a file, frozen, in eval mode, on the CPU.

    Args:
        path: a folder that beitkit wrote; DALL-E's `encoder.pkl` with `decoder.pkl` beside it, or their state dicts, or the
            folder of both; `pytorch_model.bin` of BEiT's own discrete VAE, or its folder; a VQ-KD `.pth`; or `hf://USER/NAME`.

    Raises:
        UserError: if there is no tokenizer, or its tensors do not fit together.
    """
    checkpoint = read_tokenizer(Path(path))
    try:
        tokenizer = build(checkpoint.config, checkpoint.tensors)
    except UserError as problem:
        raise UserError(f"{path} ({checkpoint.layout}): {problem}") from None
    assert isinstance(tokenizer, TokenizerNetwork)
    return tokenizer.requires_grad_(False)
