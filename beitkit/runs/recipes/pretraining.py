"""Pre-training as it was published: BEiT (arXiv 2106.08254), BEiT v2 (arXiv 2208.06366), and DiT on documents (arXiv 2203.02378).

Common to all: AdamW with a cosine after the warm-up, weight decay 0.05, patches of 16 pixels, jitter 0.4, at most 75 of 196
patches masked in blocks of at least 16 (method 2.4). The tokenizers are DALL-E's (BEiT) and VQ-KD taught by CLIP (BEiT v2); any
other with as many tokens as patches works, and is another experiment.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from beitkit.configs.data import MaskConfig, ViewConfig
from beitkit.configs.parts import DEFAULT_PATCH, NetworkConfig
from beitkit.configs.train import LoopConfig, OptimConfig, TrainConfig
from beitkit.runs.pretrain.choose import PLAIN_IMAGE_SIZE
from beitkit.runs.pretrain.config import PretrainRun
from beitkit.runs.recipes.recipe import IMAGES, OUT, Recipe

GLOBAL_BATCH = 2048
PER_PASS = {"base": 64, "large": 32}
VIT = NetworkConfig(positions="none", layer_scale=0.0)
"""The plain ViT of the paper's tables: absolute positions, no LayerScale."""
CODE = NetworkConfig(positions="shared")
"""What the released code trains: one table of relative positions, LayerScale 0.1 (base) or 1e-5 (large)."""
CODE_IN22K = replace(CODE, normalization="inception")
DIT = replace(VIT, layer_scale=1e-5, normalization="inception")
CODE_V2_300 = replace(CODE, drop_path=0.0)


def pretrain_run(
    size: Literal["base", "large"],
    epochs: float,
    network: NetworkConfig,
    *,
    clip: float = 3.0,
    warmup_steps: int | None = None,
    cls_branch: int | None = None,
    beta2: float = 0.999,
) -> PretrainRun:
    """What all have in common, with what differs; `cls_branch` makes it BEiT v2.

    BEiT v2 masks exactly 75 patches. Its code corrects a wrong count patch by patch, ours shortens the last block.
    """
    is_version_2 = cls_branch is not None
    return PretrainRun(
        IMAGES,
        out=OUT,
        size=size,
        image_size=PLAIN_IMAGE_SIZE,
        patch=DEFAULT_PATCH,
        cls_branch=cls_branch,
        train=TrainConfig(epochs=epochs, batch_size=PER_PASS[size], lr=1.5e-3),
        network=network,
        mask=MaskConfig(kind="block" if is_version_2 else "official", ratio=75 / 196),
        view=ViewConfig(crop_scale=(0.2, 1.0)) if is_version_2 else ViewConfig(),
        optim=OptimConfig(
            lr_batch=GLOBAL_BATCH, min_lr=1e-5, warmup_epochs=10.0, warmup_steps=warmup_steps, betas=(0.9, beta2), clip=clip
        ),
        loop=LoopConfig(accumulate=GLOBAL_BATCH // PER_PASS[size]),
    )


def dit_run(size: Literal["base", "large"]) -> PretrainRun:
    """DiT: BEiT's pre-training on pages of documents, its length in steps."""
    run = pretrain_run(size, 1.0, DIT, warmup_steps=10_000)
    return replace(run, train=replace(run.train, epochs=None, steps=500_000, lr=1e-3))


DIT_NOTE = (
    "The tokenizer is a discrete VAE of documents (8192 codes, stride 8, tokens of 112 pixels), which was never released: train "
    "one on your pages with beitkit tokenizer. Published are length, batch, rate, warm-up, weight decay, betas, drop path and "
    "40% masked patches as in BEiT; LayerScale and the statistics 0.5 and 0.5 are those of its fine-tuning. Clipping, the final "
    "rate, jitter and flip are BEiT's, of which nothing is said."
)
README, V2_README = "microsoft/unilm beit/README.md", "microsoft/unilm beit2/PRETRAINING.md"
ON_16, ON_64 = "16 GPUs with 128 images each (README)", "64 GPUs with 32 images each (README)"

# By hand: one row below the other, the values in a line of their own.
PRETRAINING = (
    Recipe("pretrain-base-in1k-300",
        "BEiT-B in 300 epochs on ImageNet-1k: the set-up of the paper's ablations.",
        "BEiT (arXiv 2106.08254), tables 4 and 12",
        "82.9% (82.86) top-1 on ImageNet-1k after fine-tuning; ADE20K 44.65 mIoU",
        "not published (800 epochs: 16 V100 with 32 GB, about 5 days)",
        pretrain_run("base", 300.0, VIT),
        "The rows of table 4 are one option each: --mask.kind random, --target pixels, --recover all, --mask.kind none with "
        "--recover all. What the table does not say is taken from the paper's base recipe."),
    Recipe("pretrain-base-in1k",
        "BEiT-B in 800 epochs on ImageNet-1k, the paper's main result: a plain ViT with absolute positions.",
        "BEiT (arXiv 2106.08254), tables 1 and 12",
        "83.2% top-1 on ImageNet-1k after fine-tuning at 224, 84.6% at 384",
        "16 V100 with 32 GB, about 5 days (paper)",
        pretrain_run("base", 800.0, VIT)),
    Recipe("pretrain-large-in1k",
        "BEiT-L in 800 epochs on ImageNet-1k: a plain ViT with absolute positions; gradients are clipped at 1.",
        "BEiT (arXiv 2106.08254), tables 1 and 12",
        "85.2% top-1 on ImageNet-1k after fine-tuning at 224, 86.3% at 384",
        "not published",
        pretrain_run("large", 800.0, VIT, clip=1.0),
        "The paper does not say which pixel statistics it used for the large network; ImageNet's are those of the base network."),
    Recipe("pretrain-base-in1k-code",
        "BEiT-B in 800 epochs on ImageNet-1k by the README: shared relative positions and LayerScale.",
        README, "none for this length (300 epochs: 83.2%, paper, table 5, 83.22)", ON_16,
        pretrain_run("base", 800.0, CODE)),
    Recipe("pretrain-base-in22k",
        "BEiT-B in 150 epochs on ImageNet-22k: the released checkpoint pt22k; 10,000 steps of warm-up, statistics 0.5 and 0.5.",
        README, "83.7% top-1 on ImageNet-1k after fine-tuning at 224 (85.2% with intermediate fine-tuning)", ON_16,
        pretrain_run("base", 150.0, CODE_IN22K, warmup_steps=10_000)),
    Recipe("pretrain-large-in22k",
        "BEiT-L in 150 epochs on ImageNet-22k: the released checkpoint pt22k, as far as its recipe is known.",
        "BEiT (arXiv 2106.08254) and microsoft/unilm beit/README.md, in part",
        "86.0% top-1 on ImageNet-1k after fine-tuning at 224 (87.4% with intermediate fine-tuning)",
        "not published",
        pretrain_run("large", 150.0, CODE_IN22K, clip=1.0, warmup_steps=10_000),
        "Published are the length, LayerScale from 1e-5 and the statistics. Ours are the batch, rate, warm-up and drop path, "
        "which are those of the base network on the same images, and the clipping at 1, which is that of the large network on "
        "ImageNet-1k."),
    Recipe("pretrain-v2-base",
        "BEiT v2 base in 1600 epochs on ImageNet-1k, with the class-token branch over block 9.",
        V2_README, "85.5% top-1 on ImageNet-1k after fine-tuning at 224", ON_16,
        pretrain_run("base", 1600.0, CODE, cls_branch=9),
        "The tokenizer is vqkd_encoder_base_decoder_3x768x12_clip. Its view is resized with Lanczos here, bicubic in the "
        "original."),
    Recipe("pretrain-v2-base-300",
        "BEiT v2 base in 300 epochs on ImageNet-1k: no stochastic depth, and a second moment that forgets faster (0.98).",
        V2_README, "85.0% top-1 on ImageNet-1k after fine-tuning at 224", ON_16,
        pretrain_run("base", 300.0, CODE_V2_300, cls_branch=9, beta2=0.98),
        "The tokenizer and its view are those of the long run."),
    Recipe("pretrain-v2-large",
        "BEiT v2 large in 1600 epochs on ImageNet-1k, with the class-token branch over block 21.",
        V2_README, "87.3% top-1 on ImageNet-1k after fine-tuning at 224", ON_64,
        pretrain_run("large", 1600.0, CODE, cls_branch=21),
        "The tokenizer and its view are those of the base network."),
    Recipe("pretrain-v2-large-300",
        "BEiT v2 large in 300 epochs on ImageNet-1k: no stochastic depth, and a second moment that forgets faster (0.98).",
        V2_README, "86.6% top-1 on ImageNet-1k after fine-tuning at 224", ON_64,
        pretrain_run("large", 300.0, CODE_V2_300, cls_branch=21, beta2=0.98),
        "The tokenizer and its view are those of the base network."),
    Recipe("dit-base",
        "DiT-B in 500,000 steps on 42 million document pages (IIT-CDIP): absolute positions, LayerScale 1e-5.",
        "DiT (arXiv 2203.02378), section 4.2, and microsoft/unilm dit/classification/README.md",
        "92.11% on RVL-CDIP after finetune-dit-base-rvlcdip", "not published",
        dit_run("base"), DIT_NOTE),
    Recipe("dit-large",
        "DiT-L in 500,000 steps on 42 million document pages (IIT-CDIP): as the base network.",
        "DiT (arXiv 2203.02378), section 4.2, and microsoft/unilm dit/classification/README.md",
        "92.69% on RVL-CDIP after fine-tuning", "not published",
        dit_run("large"), DIT_NOTE),
)  # fmt: skip
"""In the order in which they are listed."""
