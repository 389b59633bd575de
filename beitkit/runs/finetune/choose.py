"""Defaults of fine-tuning, chosen from the data, the network and the device.

The paper's recipe is for a million images: 100 epochs of 1024 with Mixup and 20 epochs of warm-up. Its values are used
if there are enough images (arXiv 2106.08254, table 13; method 5.3); with fewer, length and augmentation are scaled down.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from beitkit.configs.choices import Choices, Facts, evaluate_every, narrowness
from beitkit.configs.data import PAPER_AUGMENT, PAPER_CROP, PAPER_JITTER, SMALL
from beitkit.configs.model import ImageSize, Pair, Pooling, as_pair
from beitkit.configs.train import resolved
from beitkit.runs.finetune.config import FinetuneRun

FEW = 2_000
"""Fewer training images than this: short runs, mild augmentation."""
MANY = 10_000
"""From this many on: the paper's augmentation."""
BATCH = {"cpu": 32, "mps": 64, "cuda": 128}
"""Largest batch that is chosen, by device."""
STEPS_FLOOR = 500
"""Fewer optimizer steps teach a new head too little, however few the images."""
STEPS_CEILING = {"cpu": 2_000, "mps": 20_000, "cuda": None}
"""More are not chosen for a device this slow; None is no limit."""
MIXED_EPOCHS = 30
"""Mixup and CutMix pay late: not in a run shorter than this."""
AUGMENTED_EPOCHS, AUGMENTED_STEPS = 30, 2_000
"""So do RandAugment, color jitter and small crops: only in runs that are as long as that, and longer (decision 018)."""
REPEATED_EPOCHS = 100
"""Seen that often, few images are learned by heart, in however few steps: then RandAugment pays."""
MILD_CROP = (0.6, 1.0)
TOO_SHORT = f"a run of less than {AUGMENTED_EPOCHS} epochs, or at most {AUGMENTED_STEPS:,} steps, loses more by it than it gains"
SMALL_IMAGES = 64
"""Up to this side, erasing hides too much (the paper's CIFAR recipe has none), and things stand where they usually do."""
MOST_CELLS = 8
UNCROPPED = 384
"""From this image size on, evaluation shows the whole short side (the original's rule)."""
LARGEST_SCRATCH_SIZE = 224
IMBALANCE = 10
"""The commonest class this many times as large as the rarest: balanced sampling is suggested."""
LONG_FROM_SCRATCH = 50_000
"""Steps from which on a run from scratch averages its weights (DeiT's and MAE's long recipes)."""


@dataclass(frozen=True, kw_only=True)
class FinetuneFacts(Facts):
    """What the choices depend on."""

    imbalance: float
    """Images of the commonest class per image of the rarest; 1 where images have several labels."""
    image_size: Pair | None
    """What the checkpoint was made for; None without one."""
    crop_share: float
    """What the checkpoint says."""
    has_head: bool = False
    """Whether the checkpoint is a classifier, whose pooling and head stay as they are if they can."""
    can_be_probed: bool = True
    """Whether a linear probe can be fitted: one label an image, and a class with two images."""


def choose(run: FinetuneRun, found: FinetuneFacts) -> tuple[FinetuneRun, tuple[str, ...]]:
    """`run` with every open value decided by the facts alone, and a line for each with its option and its reason; then notes."""
    choices = Choices()
    is_pretrained = not run.scratch
    image_size, crop_share = _shown(choices, run, found)
    side = max(found.image_size or (0,)) if image_size is None else max(as_pair(image_size))
    batch_size = choices.pick(run.train.batch_size, "--batch-size", _batch_size(found, side))
    per_epoch = found.images / (batch_size * (run.loop.accumulate or 1))
    epochs = run.train.epochs
    if run.train.steps is None:
        epochs = choices.pick(epochs, "--epochs", _epochs(found, per_epoch))
    length = run.train.steps / per_epoch if run.train.steps is not None else resolved(epochs)
    pooling, head_init = run.pooling, run.head_init
    if not found.has_head:
        pooling = choices.pick(pooling, "--pooling", _pooling(found, side))
        head_init = choices.pick(head_init, "--head-init", _head_init(found, is_pretrained))
    pool_cells = run.pool_cells
    if pooling == "grid":
        pool_cells = choices.pick(pool_cells, "--pool-cells", _pool_cells(found, side))
    rate, why = _lr(found, is_pretrained)
    if is_pretrained and head_init == "probe":
        rate, why = rate / 2, f"{why}, halved because the head is fitted first"
    train = replace(run.train, batch_size=batch_size, epochs=epochs, lr=choices.pick(run.train.lr, "--lr", (rate, why)))
    warmup_epochs = run.optim.warmup_epochs
    if run.optim.warmup_steps is None:
        warmup_epochs = choices.pick(warmup_epochs, "--optim.warmup-epochs", (length / 10, "a tenth of the run"))
    layer_decay = choices.pick(run.optim.layer_decay, "--optim.layer-decay", _layer_decay(found, is_pretrained))
    is_short = length < AUGMENTED_EPOCHS or length * per_epoch <= AUGMENTED_STEPS
    strength = run.augment
    operations = choices.pick(strength.operations, "--augment.operations", _operations(is_short, length))
    said = choices if operations else Choices()  # how strong none of them are is nothing to tell
    augment = replace(
        strength,
        operations=operations,
        magnitude=said.pick(strength.magnitude, "--augment.magnitude", _magnitude(found)),
        erasing=choices.pick(strength.erasing, "--augment.erasing", _erasing(found)),
        mixup=choices.pick(strength.mixup, "--augment.mixup", _mixing(found, length, resolved(PAPER_AUGMENT.mixup))),
        cutmix=choices.pick(strength.cutmix, "--augment.cutmix", _mixing(found, length, resolved(PAPER_AUGMENT.cutmix))),
    )
    view = replace(
        run.view,
        crop_scale=choices.pick(run.view.crop_scale, "--view.crop-scale", _crop_scale(is_short)),
        color_jitter=choices.pick(run.view.color_jitter, "--view.color-jitter", _color_jitter(is_short)),
    )
    every = run.loop.evaluate_every
    if run.patience is not None:
        every = choices.pick(every or None, "--loop.evaluate-every", evaluate_every(length * per_epoch))
    config = replace(
        run,
        pooling=pooling,
        pool_cells=pool_cells,
        head_init=head_init,
        image_size=image_size,
        crop_share=crop_share,
        drop_path=choices.pick(run.drop_path, "--drop-path", _drop_path(found)),
        train=train,
        optim=replace(run.optim, warmup_epochs=warmup_epochs, layer_decay=layer_decay),
        augment=augment,
        view=view,
        loop=replace(
            run.loop,
            evaluate_every=every,
            ema=choices.pick(run.loop.ema, "--loop.ema", _ema(is_pretrained, length * per_epoch)),
        ),
    )
    if found.imbalance > IMBALANCE and not run.balanced:
        ratio = f"the commonest class has {found.imbalance:.0f} times the images of the rarest"
        choices.lines.append(f"note: {ratio}; --balanced shows them equally often")
    return config, tuple(choices.lines)


def _shown(choices: Choices, run: FinetuneRun, found: FinetuneFacts) -> tuple[ImageSize | None, float]:
    """Image size (None keeps a checkpoint's, which may be no square) and crop share."""
    size = run.image_size
    if size is None and found.image_size is None:
        patch = found.patch
        nearest = min(LARGEST_SCRATCH_SIZE // patch, max(2, round(found.side / patch))) * patch
        size = choices.pick(None, "--image-size", (nearest, f"images of {found.side} pixels, patches of {patch}"))
    if run.fit in ("squeeze", "letterbox"):
        return size, choices.pick(run.crop_share, "--crop-share", (1.0, f"{run.fit} shows whole images"))
    shape = found.image_size if size is None else as_pair(size)
    assert shape is not None  # without a checkpoint's a size was chosen
    if max(shape) <= SMALL:
        given = run.crop_share if run.recipe is None else None  # a recipe's is for the recipe's size
        return size, choices.pick(given, "--crop-share", (1.0, f"up to {SMALL} pixels images are shown whole"))
    if shape == found.image_size or min(shape) < UNCROPPED:
        return size, choices.pick(run.crop_share, "--crop-share", (found.crop_share, "the network's own"))
    return size, choices.pick(run.crop_share, "--crop-share", (1.0, f"{UNCROPPED} pixels and more are shown whole"))


def _batch_size(found: FinetuneFacts, side: int) -> tuple[int, str]:
    """The device's batch, halved for wide networks and for large images; at most a quarter of the images."""
    largest = BATCH[found.device] // (2 if found.width >= 1024 else 1) // (2 if side >= UNCROPPED else 1)
    power = 1
    while 2 * power <= min(largest, found.images / 4):
        power *= 2
    return power, f"{found.images} images, {found.device}"


def _pooling(found: FinetuneFacts, side: int) -> tuple[Pooling, str]:
    """Small images, also if enlarged, are often of one thing in the middle: it counts where, which a mean throws away."""
    small = min(side, found.side)
    if small <= SMALL_IMAGES:
        return "grid", f"images of {small} pixels, in which it counts where something is"
    return "mean", "the paper's"


def _pool_cells(found: FinetuneFacts, side: int) -> tuple[int, str]:
    """A cell for each patch, up to a number that a head learns from few images."""
    patches = max(1, side // found.patch)
    return min(patches, MOST_CELLS), f"{patches} patches a row"


def _head_init(found: FinetuneFacts, is_pretrained: bool) -> tuple[Literal["zero", "probe"], str]:
    """With few images, a head that is fitted first spares what the start has learned."""
    if is_pretrained and found.images < FEW and found.can_be_probed:
        return "probe", f"pre-trained, {found.images} images"
    return "zero", "the paper's"


def _epochs(found: FinetuneFacts, per_epoch: float) -> tuple[float, str]:
    """30 for few images, 50 for some or a deep network, 100 for many; between floor and ceiling in steps."""
    epochs = 30.0 if found.images < FEW else 50.0 if found.images < MANY or found.depth > 12 else 100.0
    ceiling = STEPS_CEILING[found.device]
    if epochs * per_epoch < STEPS_FLOOR:
        return STEPS_FLOOR / per_epoch, f"{found.images} images need more than {epochs:g} to make {STEPS_FLOOR} steps"
    if ceiling is not None and epochs * per_epoch > ceiling:
        return ceiling / per_epoch, f"{ceiling} steps are what a run on {found.device} gets, of {epochs:g} epochs"
    return epochs, f"{found.images} images, {found.depth} blocks"


def _lr(found: FinetuneFacts, is_pretrained: bool) -> tuple[float, str]:
    """The paper's for the pre-trained, less for deep networks, more for narrow ones; from scratch, less for wide ones."""
    if not is_pretrained:
        return (4e-3 if found.width < 384 else 1e-3), f"from scratch, width {found.width}"
    if found.depth > 12:
        return 1e-3, f"pre-trained, {found.depth} blocks"
    narrow = narrowness(found.width)
    return round(4e-3 * narrow, 4), "pre-trained, the paper's" + (f", more for width {found.width}" if narrow > 1 else "")


def _layer_decay(found: FinetuneFacts, is_pretrained: bool) -> tuple[float, str]:
    """Layer decay spares what is already good; fresh weights have nothing to spare and would only learn more slowly."""
    if not is_pretrained:
        return 1.0, "from scratch"
    decay = 0.8 if found.depth < 12 else 0.65 if found.depth == 12 else 0.75
    return decay, f"pre-trained, {found.depth} blocks"


def _operations(is_short: bool, epochs: float) -> tuple[int, str]:
    """Augmentation makes a short run worse, because it has not yet learned the images as they are."""
    papers = resolved(PAPER_AUGMENT.operations)
    if epochs >= REPEATED_EPOCHS:
        return papers, f"the paper's; without it {epochs:.0f} epochs learn the images by heart"
    return (0, TOO_SHORT) if is_short else (papers, "the paper's")


def _crop_scale(is_short: bool) -> tuple[tuple[float, float], str]:
    """A crop of a twelfth of an image often does not show what it is of."""
    return (MILD_CROP, TOO_SHORT) if is_short else (PAPER_CROP, "the paper's")


def _color_jitter(is_short: bool) -> tuple[float, str]:
    """It acts where RandAugment does not."""
    return (0.0, TOO_SHORT) if is_short else (PAPER_JITTER, "the paper's")


def _magnitude(found: FinetuneFacts) -> tuple[float, str]:
    """Milder where few images have to be recognized at all."""
    if found.images < FEW:
        return 5.0, f"milder than the paper's 9 for {found.images} images"
    return resolved(PAPER_AUGMENT.magnitude), "the paper's"


def _erasing(found: FinetuneFacts) -> tuple[float, str]:
    """The paper's, but neither for few images nor for small ones."""
    if found.side <= SMALL_IMAGES:
        return 0.0, f"images of {found.side} pixels"
    if found.images < FEW:
        return 0.0, f"{found.images} images"
    return resolved(PAPER_AUGMENT.erasing), "the paper's"


def _mixing(found: FinetuneFacts, epochs: float, strength: float) -> tuple[float, str]:
    """The paper's for long runs on many images."""
    if found.images < MANY:
        return 0.0, f"{found.images} images"
    if epochs < MIXED_EPOCHS:
        return 0.0, f"a run of {epochs:.3g} epochs is too short for it"
    return strength, "the paper's"


def _drop_path(found: FinetuneFacts) -> tuple[float, str]:
    """The released recipes'."""
    return (0.1 if found.depth <= 12 else 0.2), f"{found.depth} blocks"


def _ema(is_pretrained: bool, steps: float) -> tuple[float, str]:
    """None in the paper's recipes; long runs from scratch gain by it."""
    if is_pretrained:
        return 0.0, "pre-trained, the paper has none"
    return (0.9999 if steps >= LONG_FROM_SCRATCH else 0.0), f"from scratch, {steps:.0f} steps"
