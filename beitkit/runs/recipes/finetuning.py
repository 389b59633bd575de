"""Fine-tuning as it was published: BEiT (arXiv 2106.08254), BEiT v2 (arXiv 2208.06366) and DiT, on pre-trained weights.

Common to all: AdamW with a cosine from a linear warm-up down to 1e-6, label smoothing 0.1, mean pooling, no clipping unless said
(the original's DeepSpeed runs ignore it). Whatever is to be set for all of them at once is set in `finetune_run`.
"""

from __future__ import annotations

from functools import partial

from beitkit.configs.data import AugmentConfig, ViewConfig
from beitkit.configs.train import LoopConfig, OptimConfig, TrainConfig
from beitkit.runs.finetune.config import FinetuneRun
from beitkit.runs.recipes.recipe import IMAGES, MODEL, OUT, Recipe

WHOLE_FROM = 384
"""From this size on images are evaluated whole, not their center (method 5.1)."""


def finetune_run(
    *,
    lr: float,
    batch: tuple[int, int],
    epochs: float,
    warmup: float,
    layer_decay: float,
    drop_path: float,
    weight_decay: float = 0.05,
    clip: float | None = None,
    image_size: int = 224,
    is_mixing: bool = True,
    erasing: float = 0.25,
    repeats: int = 1,
    has_head: bool = False,
) -> FinetuneRun:
    """A complete fine-tuning run but for its paths.

    `batch` is (images per pass, passes per step), `warmup` in epochs. `is_mixing` stands for Mixup 0.8 and CutMix 1.0. A start
    that `has_head` is a classifier, whose pooling stays as it is.
    """
    return FinetuneRun(
        IMAGES,
        model=MODEL,
        out=OUT,
        pooling=None if has_head else "mean",
        head_init=None if has_head else "zero",
        image_size=image_size,
        crop_share=0.875 if image_size < WHOLE_FROM else 1.0,
        drop_path=drop_path,
        label_smoothing=0.1,
        augment=AugmentConfig(
            operations=2,
            magnitude=9.0,
            erasing=erasing,
            mixup=0.8 if is_mixing else 0.0,
            cutmix=1.0 if is_mixing else 0.0,
            repeats=repeats,
        ),
        view=ViewConfig(),
        train=TrainConfig(epochs=epochs, batch_size=batch[0], lr=lr),
        optim=OptimConfig(
            lr_batch=batch[0] * batch[1],
            min_lr=1e-6,
            warmup_epochs=warmup,
            warmup_limit=max(0.1, warmup / epochs),
            weight_decay=weight_decay,
            layer_decay=layer_decay,
            clip=clip,
        ),
        loop=LoopConfig(accumulate=batch[1], ema=0.0),
    )


after_labels = partial(finetune_run, lr=2e-5, epochs=30.0, warmup=5.0, weight_decay=1e-8, is_mixing=False, has_head=True)
"""What the README uses on networks that have seen labels."""

GET_STARTED = "microsoft/unilm beit/get_started_for_image_classification.md"
V2_GET_STARTED = "microsoft/unilm beit2/get_started_for_image_classification.md"
ON_8 = "8 GPUs with {} images each (README)"
TEN_MORE = (
    "Only the length is published. Ours are the rest: the README's rate, batch and layer decay for networks that were fine-tuned "
    "before, one epoch of warm-up, and the augmentation of the run at 224."
)

# By hand: one row below the other, the values in a line of their own.
FINETUNING = (
    Recipe("finetune-base-in1k",
        "The paper's BEiT-B, pre-trained on ImageNet-1k, for ImageNet-1k at 224, with repeated augmentation.",
        "BEiT (arXiv 2106.08254), tables 1 and 13", "83.2% top-1 on ImageNet-1k", "not published",
        finetune_run(lr=4e-3, batch=(64, 16), epochs=100.0, warmup=20.0, layer_decay=0.65, drop_path=0.1, repeats=3),
        "The paper took the best rate of 2e-3, 3e-3, 4e-3 and 5e-3 and does not say which; 4e-3 is the README's for the "
        "base size."),
    Recipe("finetune-base-in1k-384",
        "The paper's BEiT-B, already fine-tuned at 224, for ten more epochs at 384.",
        "BEiT (arXiv 2106.08254), table 1 (ten more epochs at 384)", "84.6% top-1 on ImageNet-1k", "not published",
        finetune_run(
            lr=2e-5, batch=(32, 16), epochs=10.0, warmup=1.0, layer_decay=0.85, drop_path=0.1, image_size=384, repeats=3),
        TEN_MORE),
    Recipe("finetune-large-in1k",
        "The paper's BEiT-L, pre-trained on ImageNet-1k, for ImageNet-1k at 224.",
        "BEiT (arXiv 2106.08254), tables 1 and 13", "85.2% top-1 on ImageNet-1k", "not published",
        finetune_run(lr=2e-3, batch=(32, 32), epochs=50.0, warmup=5.0, layer_decay=0.75, drop_path=0.1),
        "The paper took the best rate of 2e-3, 3e-3, 4e-3 and 5e-3 and does not say which; 2e-3, the smallest, is our choice."),
    Recipe("finetune-large-in1k-384",
        "The paper's BEiT-L, already fine-tuned at 224, for ten more epochs at 384.",
        "BEiT (arXiv 2106.08254), table 1 (ten more epochs at 384)", "86.3% top-1 on ImageNet-1k", "not published",
        finetune_run(lr=2e-5, batch=(16, 32), epochs=10.0, warmup=1.0, layer_decay=0.9, drop_path=0.1, image_size=384),
        TEN_MORE),
    Recipe("finetune-base-cifar100",
        "The paper's BEiT-B, pre-trained on ImageNet-1k, for CIFAR-100 at 224: more weight decay, no erasing.",
        "BEiT (arXiv 2106.08254), tables 11 and 13", "90.1% top-1 on CIFAR-100", "not published",
        finetune_run(
            lr=4e-3, batch=(64, 8), epochs=150.0, warmup=20.0, layer_decay=0.65, drop_path=0.1, weight_decay=0.3, erasing=0.0),
        "The paper took the best rate of 2e-3, 3e-3, 4e-3 and 5e-3 and does not say which; 4e-3 is our choice."),
    Recipe("finetune-base-pt22k",
        "BEiT-B, pre-trained on ImageNet-22k (pt22k), for ImageNet-1k at 224.",
        GET_STARTED, "83.7% top-1 on ImageNet-1k (96.6% top-5)", ON_8.format(128),
        finetune_run(lr=4e-3, batch=(64, 16), epochs=100.0, warmup=20.0, layer_decay=0.65, drop_path=0.1)),
    Recipe("finetune-large-pt22k",
        "BEiT-L, pre-trained on ImageNet-22k (pt22k), for ImageNet-1k at 224.",
        GET_STARTED, "86.0% top-1 on ImageNet-1k (97.6% top-5)", ON_8.format("64 x 2"),
        finetune_run(lr=1e-3, batch=(32, 32), epochs=50.0, warmup=5.0, layer_decay=0.75, drop_path=0.2)),
    Recipe("finetune-base-in22k",
        "Intermediate fine-tuning of BEiT-B (pt22k) on the labels of ImageNet-22k: the released checkpoint pt22k_ft22k.",
        "microsoft/unilm beit/README.md",
        "none of its own (85.2% top-1 on ImageNet-1k after finetune-base-pt22k-ft22k)",
        "16 GPUs with 256 images each (README)",
        finetune_run(
            lr=3e-3, batch=(64, 32), epochs=90.0, warmup=5.0, layer_decay=0.65, drop_path=0.2, clip=3.0, is_mixing=False),
        "The README's command for this batch of 2048 names 16 x 256, which would be 4096; the total it states is taken."),
    Recipe("finetune-large-in22k",
        "Intermediate fine-tuning of BEiT-L (pt22k) on the labels of ImageNet-22k: the released checkpoint pt22k_ft22k.",
        "microsoft/unilm beit/README.md",
        "none of its own (87.4% top-1 on ImageNet-1k after finetune-large-pt22k-ft22k)",
        "16 GPUs with 64 x 2 images each (README)",
        finetune_run(
            lr=2e-3, batch=(32, 64), epochs=90.0, warmup=5.0, layer_decay=0.75, drop_path=0.2, clip=1.0, is_mixing=False)),
    Recipe("finetune-base-pt22k-ft22k",
        "BEiT-B after intermediate fine-tuning (pt22k_ft22k), for ImageNet-1k at 224.",
        GET_STARTED, "85.2% top-1 on ImageNet-1k (97.6% top-5)", ON_8.format(64),
        after_labels(batch=(32, 16), layer_decay=0.85, drop_path=0.1)),
    Recipe("finetune-base-pt22k-ft22k-384",
        "BEiT-B after intermediate fine-tuning (pt22k_ft22k), for ImageNet-1k at 384.",
        GET_STARTED, "86.8% (86.820) top-1 on ImageNet-1k (98.1% top-5)", ON_8.format(64),
        after_labels(batch=(32, 16), layer_decay=0.85, drop_path=0.1, image_size=384)),
    Recipe("finetune-large-pt22k-ft22k",
        "BEiT-L after intermediate fine-tuning (pt22k_ft22k), for ImageNet-1k at 224.",
        GET_STARTED, "87.4% (87.396) top-1 on ImageNet-1k (98.3% top-5)", ON_8.format("32 x 2"),
        after_labels(batch=(16, 32), layer_decay=0.9, drop_path=0.4)),
    Recipe("finetune-large-pt22k-ft22k-384",
        "BEiT-L after intermediate fine-tuning (pt22k_ft22k), for ImageNet-1k at 384.",
        GET_STARTED, "88.4% (88.408) top-1 on ImageNet-1k (98.6% top-5)", ON_8.format("32 x 2"),
        after_labels(batch=(16, 32), layer_decay=0.9, drop_path=0.4, image_size=384)),
    Recipe("finetune-large-pt22k-ft22k-512",
        "BEiT-L after intermediate fine-tuning (pt22k_ft22k), for ImageNet-1k at 512.",
        GET_STARTED, "88.6% (88.600) top-1 on ImageNet-1k (98.7% top-5)", ON_8.format("32 x 2"),
        after_labels(batch=(16, 32), layer_decay=0.9, drop_path=0.4, image_size=512)),
    Recipe("finetune-v2-base",
        "BEiT v2 base, pre-trained for 1600 epochs on ImageNet-1k, for ImageNet-1k at 224.",
        V2_GET_STARTED, "85.5% top-1 on ImageNet-1k (97.5% top-5)", "not published",
        finetune_run(lr=5e-4, batch=(64, 16), epochs=100.0, warmup=20.0, layer_decay=0.6, drop_path=0.2)),
    Recipe("finetune-v2-base-300",
        "BEiT v2 base, pre-trained for 300 epochs on ImageNet-1k, for ImageNet-1k at 224.",
        V2_GET_STARTED, "85.0% top-1 on ImageNet-1k", "not published",
        finetune_run(lr=5e-4, batch=(64, 16), epochs=100.0, warmup=20.0, layer_decay=0.65, drop_path=0.1)),
    Recipe("finetune-v2-large",
        "BEiT v2 large, pre-trained for 1600 epochs on ImageNet-1k, for ImageNet-1k at 224.",
        V2_GET_STARTED, "87.3% top-1 on ImageNet-1k (98.2% top-5)", "not published",
        finetune_run(lr=2e-4, batch=(32, 32), epochs=50.0, warmup=5.0, layer_decay=0.8, drop_path=0.2)),
    Recipe("finetune-v2-large-300",
        "BEiT v2 large, pre-trained for 300 epochs on ImageNet-1k, for ImageNet-1k at 224.",
        V2_GET_STARTED, "86.6% top-1 on ImageNet-1k", "not published",
        finetune_run(lr=5e-4, batch=(32, 32), epochs=50.0, warmup=5.0, layer_decay=0.8, drop_path=0.2)),
    Recipe("finetune-v2-base-in21k",
        "Intermediate fine-tuning of BEiT v2 base on the labels of ImageNet-21k: the released checkpoint pt1k_ft21k.",
        V2_GET_STARTED,
        "none of its own (86.5% top-1 on ImageNet-1k after finetune-v2-base-ft21k)",
        "32 GPUs with 128 images each (README)",
        finetune_run(lr=6e-4, batch=(64, 64), epochs=90.0, warmup=20.0, layer_decay=0.75, drop_path=0.1)),
    Recipe("finetune-v2-large-in21k",
        "Intermediate fine-tuning of BEiT v2 large on the labels of ImageNet-21k: the released checkpoint pt1k_ft21k.",
        V2_GET_STARTED,
        "none of its own (88.4% top-1 on ImageNet-1k after finetune-v2-large-ft21k)",
        "32 GPUs with 128 images each (README)",
        finetune_run(lr=6e-4, batch=(32, 128), epochs=90.0, warmup=20.0, layer_decay=0.75, drop_path=0.2)),
    Recipe("finetune-v2-base-ft21k",
        "BEiT v2 base after intermediate fine-tuning (pt1k_ft21k), for ImageNet-1k at 224.",
        V2_GET_STARTED, "86.5% (86.458) top-1 on ImageNet-1k (98.0% top-5)", ON_8.format(128),
        finetune_run(lr=5e-5, batch=(64, 16), epochs=30.0, warmup=20.0, layer_decay=0.75, drop_path=0.1, is_mixing=False)),
    Recipe("finetune-v2-large-ft21k",
        "BEiT v2 large after intermediate fine-tuning (pt1k_ft21k), for ImageNet-1k at 224.",
        V2_GET_STARTED, "88.4% (88.370) top-1 on ImageNet-1k (98.6% top-5)", ON_8.format("64 x 2"),
        finetune_run(lr=7e-5, batch=(32, 32), epochs=20.0, warmup=5.0, layer_decay=0.8, drop_path=0.25, is_mixing=False)),
    Recipe("finetune-dit-base-rvlcdip",
        "DiT-B, pre-trained on documents (dit-base), for the 16 kinds of documents of RVL-CDIP at 224.",
        "DiT (arXiv 2203.02378), by microsoft/unilm dit/classification/README.md",
        "92.11% on RVL-CDIP", "8 GPUs with 64 x 2 images each (README)",
        finetune_run(
            lr=5e-4, batch=(64, 16), epochs=180.0, warmup=20.0, layer_decay=0.75, drop_path=0.2, clip=1.0, is_mixing=False),
        "The README's command; the paper has 90 epochs of batch 128 at 1e-3 (DiT, section 4.2)."),
)  # fmt: skip
"""In the order in which they are listed."""
