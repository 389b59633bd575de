"""Semantic segmentation of ADE20K as it was published: the released configs (method 7.4), and the paper's own head.

Common to all: AdamW with a straight line down to 0 ("poly" of power 1) after a linear warm-up, weight decay 0.05, 16 images a
step, UPerNet with an auxiliary head of weight 0.4, losses averaged over all pixels, the ignored ones among them, and ImageNet's
pixel statistics, whatever the backbone was pre-trained with. Windows of the crop's size are slid over whole images by two
thirds of it; the published multi-scale numbers take `--inference.scales 0.5 0.75 1.0 1.25 1.5 1.75 --inference.flip`.
"""

from __future__ import annotations

from typing import Literal

from beitkit.configs.model import SegmentationHead
from beitkit.configs.segmentation import SegmentationLossConfig
from beitkit.configs.train import LoopConfig, OptimConfig, TrainConfig
from beitkit.runs.recipes.recipe import IMAGES, MODEL, OUT, Recipe
from beitkit.runs.segment.config import SegmentRun


def segment_run(
    *,
    lr: float,
    layer_decay: float,
    drop_path: float,
    crop: Literal[512, 640] = 512,
    per_pass: int = 2,
    head: SegmentationHead = "uper",
) -> SegmentRun:
    """A complete segmentation run but for its paths; 16 images a step, `per_pass` in each pass."""
    return SegmentRun(
        IMAGES,
        model=MODEL,
        out=OUT,
        image_size=crop,
        head=head,
        normalization="imagenet",
        drop_path=drop_path,
        train=TrainConfig(steps=160_000, batch_size=per_pass, lr=lr),
        loss=SegmentationLossConfig(auxiliary_weight=0.4, average="all"),
        optim=OptimConfig(
            schedule="linear",
            lr_batch=16,
            min_lr=0.0,
            warmup_epochs=None,
            warmup_steps=1_500,
            weight_decay=0.05,
            layer_decay=layer_decay,
            clip=None,
        ),
        loop=LoopConfig(accumulate=16 // per_pass),
    )


CONFIGS, V2_CONFIGS = "microsoft/unilm beit/semantic_segmentation/configs", "microsoft/unilm beit2/semantic_segmentation/configs"
ON_8 = "8 GPUs with 2 images each (released config)"

# By hand: one row below the other, the values in a line of their own.
SEGMENTATION = (
    Recipe("segment-base-setr",
        "The paper's BEiT-B, pre-trained on ImageNet-1k, with its own head (SETR-PUP), at 512.",
        "BEiT (arXiv 2106.08254), tables 3 and 14",
        "45.6 mIoU on ADE20K (47.7 after intermediate fine-tuning)",
        "not published",
        segment_run(lr=1e-3, layer_decay=0.65, drop_path=0.1, head="setr_pup"),
        "The paper does not say how its head is built in detail, nor whether it has an auxiliary one; ours are SETR's and 0.4."),
    Recipe("segment-base-512-from-pt",
        "BEiT-B from masked pre-training alone, at 512.",
        CONFIGS, "none for this one", ON_8,
        segment_run(lr=7e-4, layer_decay=0.65, drop_path=0.1)),
    Recipe("segment-base-512-from-ft22k",
        "BEiT-B after intermediate fine-tuning on ImageNet-22k, at 512.",
        CONFIGS, "none for this one", ON_8,
        segment_run(lr=3e-5, layer_decay=0.9, drop_path=0.1)),
    Recipe("segment-base-640-from-ft22k",
        "BEiT-B after intermediate fine-tuning on ImageNet-22k, at 640.",
        CONFIGS, "53.6 mIoU on ADE20K, 54.2 multi-scale", ON_8,
        segment_run(lr=3e-5, layer_decay=0.9, drop_path=0.1, crop=640)),
    Recipe("segment-large-512-from-ft22k",
        "BEiT-L after intermediate fine-tuning on ImageNet-22k, at 512.",
        CONFIGS, "none for this one", ON_8,
        segment_run(lr=2e-5, layer_decay=0.95, drop_path=0.2)),
    Recipe("segment-large-640-from-ft22k",
        "BEiT-L after intermediate fine-tuning on ImageNet-22k, at 640.",
        CONFIGS, "56.7 mIoU on ADE20K, 57.0 multi-scale", "8 GPUs with 1 image in each of 2 passes (released config)",
        segment_run(lr=2e-5, layer_decay=0.95, drop_path=0.2, crop=640, per_pass=1),
        "The config counts 320,000 passes and 3,000 of warm-up; two make a step, which is what we count."),
    Recipe("segment-v2-base-512",
        "BEiT v2 base, pre-trained on ImageNet-1k, at 512.",
        V2_CONFIGS, "53.1 mIoU on ADE20K", ON_8,
        segment_run(lr=5e-5, layer_decay=0.75, drop_path=0.15)),
    Recipe("segment-v2-base-512-from-ft21k",
        "BEiT v2 base after intermediate fine-tuning on ImageNet-21k, at 512.",
        V2_CONFIGS, "53.5 mIoU on ADE20K", ON_8,
        segment_run(lr=5e-5, layer_decay=0.85, drop_path=0.15)),
    Recipe("segment-v2-large-512",
        "BEiT v2 large, pre-trained on ImageNet-1k, at 512.",
        V2_CONFIGS, "56.7 mIoU on ADE20K", ON_8,
        segment_run(lr=4e-5, layer_decay=0.9, drop_path=0.2)),
    Recipe("segment-v2-large-512-from-ft21k",
        "BEiT v2 large after intermediate fine-tuning on ImageNet-21k, at 512.",
        V2_CONFIGS, "57.5 mIoU on ADE20K", ON_8,
        segment_run(lr=3e-5, layer_decay=0.9, drop_path=0.2)),
)  # fmt: skip
"""In the order in which they are listed."""
