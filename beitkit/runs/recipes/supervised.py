"""Training on labels alone, which the paper compares with: DeiT (arXiv 2012.12877) and ViT (arXiv 2010.11929)."""

from __future__ import annotations

from dataclasses import replace

from beitkit.configs.data import NO_AUGMENT, ViewConfig
from beitkit.configs.parts import NetworkConfig
from beitkit.configs.train import LoopConfig, OptimConfig
from beitkit.runs.recipes.finetuning import after_labels, finetune_run
from beitkit.runs.recipes.recipe import Recipe

PLAIN_VIT = NetworkConfig(positions="none", layer_scale=0.0, normalization="imagenet")
DEIT_B = replace(
    finetune_run(lr=5e-4, batch=(64, 16), epochs=300.0, warmup=5.0, layer_decay=1.0, drop_path=0.1, repeats=3),
    scratch=True,
    model=None,
    size="base",
    patch=16,
    pooling="cls",
    network=PLAIN_VIT,
    optim=OptimConfig(lr_batch=512, lr_scaling="linear", min_lr=5e-6, warmup_epochs=5.0, layer_decay=1.0, clip=None),
    loop=LoopConfig(accumulate=16, ema=0.99996),
)
VIT_B = replace(
    finetune_run(lr=1e-3, batch=(64, 64), epochs=90.0, warmup=3.0, layer_decay=1.0, drop_path=0.1, weight_decay=0.03, clip=1.0),
    scratch=True,
    model=None,
    size="base",
    patch=16,
    pooling="cls",
    network=replace(PLAIN_VIT, normalization="inception"),
    augment=NO_AUGMENT,
    view=ViewConfig(color_jitter=0.0),
)

# By hand: one row below the other, the values in a line of their own.
SUPERVISED = (
    Recipe("scratch-base-in1k",
        "DeiT-B from scratch on ImageNet-1k at 224: what BEiT's fine-tuning is compared with.",
        "DeiT, arXiv 2012.12877, tables 7 and 9 (quoted in table 1 of BEiT, arXiv 2106.08254)",
        "81.8% top-1 on ImageNet-1k", "one node of 8 V100, 53 hours (DeiT)",
        DEIT_B,
        "A plain ViT: class token, absolute positions, no LayerScale. As in DeiT the rate follows the batch linearly and is "
        "stated for 512; its last value does not there, so half of it is given for a batch twice as large. DeiT warms up from "
        "1e-6, we from 0."),
    Recipe("scratch-small-in1k",
        "DeiT-S from scratch on ImageNet-1k at 224, with the settings of DeiT-B.",
        "DeiT, arXiv 2012.12877, tables 5, 7 and 9",
        "79.8% top-1 on ImageNet-1k", "one node of 8 V100 (DeiT)",
        replace(DEIT_B, size="small")),
    Recipe("supervised-base-in22k",
        "Supervised pre-training of ViT-B on the labels of ImageNet-22k: what BEiT's intermediate fine-tuning is compared with.",
        "ViT, arXiv 2010.11929, table 3, in part (quoted in table 1 of BEiT, arXiv 2106.08254)",
        "none of its own (84.0% top-1 on ImageNet-1k after supervised-base-in1k-384)", "TPUv3 (ViT)",
        VIT_B,
        "ViT's are the rate, the batch of 4096, 90 epochs and weight decay 0.03. Ours are AdamW with a cosine (ViT: Adam with a "
        "linear fall), stochastic depth 0.1 (ViT: dropout 0.1), label smoothing, and a warm-up of 3 epochs (ViT: 10,000 steps)."),
    Recipe("supervised-base-in1k-384",
        "Fine-tuning of a network trained on the labels of ImageNet-22k, for ImageNet-1k at 384.",
        "ViT, arXiv 2010.11929, in part (quoted in table 1 of BEiT, arXiv 2106.08254)",
        "84.0% top-1 on ImageNet-1k", "TPUv3 (ViT)",
        after_labels(batch=(32, 16), layer_decay=0.85, drop_path=0.1, clip=1.0, image_size=384),
        "Only the batch of 512, the size and the clipping at 1 are ViT's, which needs SGD with momentum and dropout. The rest is "
        "ours: AdamW with the rate, length, layer decay and augmentation that BEiT's README uses on networks that have seen "
        "labels."),
)  # fmt: skip
"""In the order in which they are listed."""
