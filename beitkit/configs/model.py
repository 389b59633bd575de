"""Network configs, as stored in checkpoints, and the published sizes."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal, NamedTuple

from beitkit.configs.bounds import Bounds, PositiveFloat, PositiveInt, ShareBelowOne, config
from beitkit.configs.codec import later
from beitkit.configs.data import IMAGENET, INCEPTION, Preprocessing
from beitkit.configs.segmentation import Color, InferenceConfig, default_palette
from beitkit.errors import UserError

Pair = tuple[int, int]
NORM_EPS = 1e-6  # of LayerNorm in the official code, not PyTorch's 1e-5; it is not stored in checkpoints
ImageSize = Annotated[int | Pair, Bounds(ge=1)]
"""Of images in pixels: the side of squares, or (height, width)."""
ImageSizeOrNone = Annotated[int | Pair | None, Bounds(ge=1)]
"""The same where it may be left out; `ImageSize | None` would do, but tyro warns of a default that is a number."""


class Size(NamedTuple):
    """Width, depth and heads of a backbone, the hidden width of its MLP, and LayerScale's usual first value."""

    width: int
    depth: int
    heads: int
    hidden: int
    layer_scale: float


# base and large: BEiT, arXiv 2106.08254; tiny and small: DeiT's shapes; huge and giant: BEiT v2's registry (patch 14).
# nano and micro are ours, for small images and for tests on a laptop; micro has few wide blocks, which CPUs compute fastest.
SIZES: dict[str, Size] = {
    "nano": Size(96, 4, 3, 384, 0.1),
    "micro": Size(128, 3, 4, 512, 0.1),
    "tiny": Size(192, 12, 3, 768, 0.1),
    "small": Size(384, 12, 6, 1536, 0.1),
    "base": Size(768, 12, 12, 3072, 0.1),
    "large": Size(1024, 24, 16, 4096, 1e-5),
    "huge": Size(1280, 32, 16, 5120, 1e-5),
    "giant": Size(1408, 40, 16, 6144, 1e-5),
}
SizeName = Literal["nano", "micro", "tiny", "small", "base", "large", "huge", "giant"]
RelativePositions = Literal["none", "shared", "per_block"]


@config()
class BackboneConfig:
    """A BEiT vision Transformer, v1 or v2, in its pre-training or its fine-tuning form."""

    width: PositiveInt
    depth: PositiveInt
    heads: PositiveInt
    hidden: PositiveInt
    """Hidden width of the MLP."""
    image_size: Pair
    """(height, width) in pixels."""
    patch: Pair
    """(height, width) of a patch in pixels."""
    channels: PositiveInt = 3
    absolute_positions: bool = False
    relative_positions: RelativePositions = "shared"
    layer_scale: PositiveFloat | None = 0.1
    """First value of the LayerScale vectors; None leaves them out."""
    drop_path: ShareBelowOne = 0.0
    """Stochastic depth of the last block; earlier blocks get a linear share of it."""
    mask_token: bool = False
    """Whether there is a learned token that replaces masked patches (pre-training)."""
    final_norm: bool = True
    """Whether a LayerNorm over all tokens ends the network (pre-training, or class-token pooling)."""
    pretrain_init: bool = False
    """Draw weights by the pre-training table (truncated at one standard deviation) instead of the fine-tuning table."""
    key_bias: bool = later(False)
    """Whether queries, keys and values share one bias vector, as in plain ViTs (MAE, DINO, DeiT); BEiT's keys have none."""
    sub_norm: bool = later(False)
    """Whether a LayerNorm stands before the last linear layer of attention and of the MLP, as in BEiT-3 (arXiv 2210.06423)."""
    norm_eps: PositiveFloat = later(NORM_EPS)
    """Of all LayerNorms: 1e-6 in BEiT and most ViTs, 1e-5 in BEiT-3, 1e-12 in transformers' ViTs."""

    def __post_init__(self) -> None:
        (height, width), (patch_height, patch_width) = self.image_size, self.patch
        if min(patch_height, patch_width) < 1 or height % patch_height or width % patch_width:
            nearest = [max(1, round(s / p)) * p if p > 0 else s for s, p in zip(self.image_size, self.patch, strict=True)]
            raise UserError(
                f"image size {height}x{width} is not a whole number of {patch_height}x{patch_width} patches; "
                f"the nearest that is: {nearest[0]}x{nearest[1]} (`image_size`, `patch`)"
            )
        if self.width % self.heads:
            raise UserError(f"width {self.width} is not divisible by {self.heads} heads")

    @property
    def grid(self) -> Pair:
        """Patches per column and per row, (gh, gw)."""
        return self.image_size[0] // self.patch[0], self.image_size[1] // self.patch[1]

    @classmethod
    def named(
        cls,
        name: str,
        *,
        image_size: int | Pair = 224,
        channels: int = 3,
        absolute_positions: bool = False,
        relative_positions: RelativePositions = "shared",
        layer_scale: float | Literal["default"] | None = "default",
        drop_path: float = 0.0,
        mask_token: bool = False,
        final_norm: bool = True,
        pretrain_init: bool = False,
    ) -> BackboneConfig:
        """The config of a named size: `"base/16"` is width 768, depth 12, 12 heads, patches of 16x16 pixels."""
        size_name, _, patch_text = name.partition("/")
        if size_name not in SIZES or not patch_text.isdigit():
            raise UserError(f"no backbone is called {name!r}; write SIZE/PATCH, such as base/16, with SIZE of {', '.join(SIZES)}")
        return cls.of_size(
            SIZES[size_name],
            patch=int(patch_text),
            image_size=image_size,
            channels=channels,
            absolute_positions=absolute_positions,
            relative_positions=relative_positions,
            layer_scale=layer_scale,
            drop_path=drop_path,
            mask_token=mask_token,
            final_norm=final_norm,
            pretrain_init=pretrain_init,
        )

    @classmethod
    def of_size(
        cls,
        size: Size,
        *,
        patch: int,
        image_size: int | Pair = 224,
        layer_scale: float | Literal["default"] | None = "default",
        **details: Any,
    ) -> BackboneConfig:
        """The config of a width, depth and so on, with square patches; `details` are other fields."""
        return cls(
            width=size.width,
            depth=size.depth,
            heads=size.heads,
            hidden=size.hidden,
            image_size=as_pair(image_size),
            patch=(patch, patch),
            layer_scale=size.layer_scale if layer_scale == "default" else layer_scale,
            **details,
        )


@config()
class ClsBranchConfig:
    """BEiT v2's second prediction, which forces the class token to carry what the whole image shows (arXiv 2208.06366)."""

    early_layer: PositiveInt
    """Blocks after which the patches are handed to the branch (v2: 9 of 12, 21 of 24)."""
    head_layers: PositiveInt = 2
    """Blocks of the branch itself."""
    shared_head: bool = True
    """Whether both predictions use the same final norm and head."""


@config()
class MaskedImageModelConfig:
    """A backbone that predicts visual tokens, or pixels; what `model.json` stores beside the weights."""

    backbone: BackboneConfig
    vocabulary: PositiveInt | None
    """Number of visual tokens; None for a network that predicts the pixels of a patch instead (BEiT's ablation), or features."""
    features: PositiveInt | None = later(None)
    """Width of the feature vectors that are regressed instead (EVA: CLIP's, arXiv 2211.07636; data2vec: its own, arXiv
    2202.03555); None for all others. beitkit reads such networks and does not train them."""
    cls_branch: ClsBranchConfig | None = None
    """BEiT v2's class-token branch, for training only; None for BEiT v1."""
    preprocessing: Preprocessing = INCEPTION
    tokenizer: str = ""
    """Fingerprint of the tokenizer it was trained with; empty if unknown."""

    def __post_init__(self) -> None:
        if not self.backbone.mask_token:
            raise UserError("a masked-image model needs a backbone with `mask_token=True`")
        if self.cls_branch is not None and self.cls_branch.early_layer > self.backbone.depth:
            raise UserError(
                f"`early_layer` must be at most the backbone's {self.backbone.depth} blocks, got {self.cls_branch.early_layer}"
            )
        if self.cls_branch is not None and self.vocabulary is None:
            raise UserError("a class-token branch predicts visual tokens; give a `vocabulary`, or no `cls_branch`")
        if self.features is not None and self.vocabulary is not None:
            raise UserError("a masked-image model predicts visual tokens or features; leave `vocabulary` or `features` at None")

    @property
    def outputs(self) -> int:
        """Numbers predicted for each patch: one per visual token, per feature, or per pixel and channel."""
        backbone = self.backbone
        return self.vocabulary or self.features or backbone.channels * backbone.patch[0] * backbone.patch[1]


Pooling = Literal["mean", "cls", "grid"]
"""How the tokens of an image become the input of a classifier's head."""


@config()
class ClassifierConfig:
    """A backbone that names what an image shows; what `model.json` stores beside the weights."""

    backbone: BackboneConfig
    classes: Annotated[tuple[str, ...], Bounds(min_length=1)]
    pooling: Pooling = "mean"
    """mean: average of the patches, then a LayerNorm (`fc_norm`); cls: the class token after the final norm; grid: averages over
    the cells of a coarse grid, each through the LayerNorm, side by side, so that the head sees where something is."""
    pool_cells: PositiveInt = later(4)
    """Rows and columns of that grid; where the network has fewer patches, some cells share one."""
    multilabel: bool = False
    """Whether an image may show several classes at once: each logit is then a yes or no of its own (sigmoid)."""
    preprocessing: Preprocessing = INCEPTION
    temperature: PositiveFloat = later(1.0)
    """What logits are divided by to become probabilities (arXiv 1706.04599, section 4.2)."""
    thresholds: Annotated[tuple[float, ...] | None, Bounds(ge=0, le=1)] = later(None)
    """Multi-label: probability of each class from which it is predicted; None takes 0.5 for all."""

    def __post_init__(self) -> None:
        if self.backbone.final_norm != (self.pooling == "cls"):
            raise UserError(
                "pooling over patches needs a backbone with `final_norm=False`, class-token pooling one with `final_norm=True`"
            )

        if self.thresholds is not None and not (self.multilabel and len(self.thresholds) == len(self.classes)):
            raise UserError(
                f"`thresholds` are one for each of {len(self.classes)} classes of a network for several labels an image, "
                f"got {len(self.thresholds)}{'' if self.multilabel else ' for one that gives one label'}"
            )

    @property
    def decisions(self) -> tuple[float, ...]:
        """Multi-label: `thresholds`, or 0.5 for all."""
        return self.thresholds or (0.5,) * len(self.classes)

    def uncalibrated(self) -> ClassifierConfig:
        """The same without what was fitted on validation images, which holds for one head only."""
        return replace(self, temperature=1.0, thresholds=None)

    @property
    def head_width(self) -> int:
        """Numbers that the head sees of an image."""
        return self.backbone.width * (self.pool_cells**2 if self.pooling == "grid" else 1)


@config()
class BareBackbone:
    """A network without a head, which only gives features; what `model.json` stores beside the weights."""

    backbone: BackboneConfig
    preprocessing: Preprocessing = INCEPTION


SegmentationHead = Literal["uper", "linear", "setr_pup"]
SETR_CHANNELS = 256  # arXiv 2012.15840, released code
MAX_CLASSES = 255  # label maps are 8-bit, and 255 is the ignored label


@config()
class SegmenterConfig:
    """A backbone that names every pixel; what `model.json` stores beside the weights."""

    backbone: BackboneConfig
    classes: Annotated[tuple[str, ...], Bounds(min_length=1)]
    head: SegmentationHead = "uper"
    """uper: UPerNet on a feature pyramid (official checkpoints); setr_pup: four convolutions that double the resolution (the
    paper's tables 3 and 4); linear: batch norm and a linear classifier of each patch, to judge features that stay frozen."""
    channels: PositiveInt | None = None
    """Width of the decoder; None takes the backbone's for uper (official: 768 for base, 1024 for large) and 256 for setr_pup.
    A linear head has none."""
    auxiliary_channels: PositiveInt | None = 256
    """Width of the head that helps in training only; None leaves it out, as it must be for a linear head."""
    taps: tuple[int, int, int, int] | None = None
    """The blocks (0-based, ascending) that feed the four levels of the feature pyramid, finest first; None takes those at a
    third, half, two thirds and the end of the depth: 3 5 7 11 of 12. The heads without a pyramid read the last one, the
    auxiliary head the third."""
    inference: InferenceConfig = InferenceConfig()
    """How whole images are labeled, unless something else is asked for."""
    palette: tuple[Color, ...] | None = None
    """Color (red, green, blue, 0 to 255) of every class, for images of predictions."""
    preprocessing: Preprocessing = IMAGENET

    def __post_init__(self) -> None:
        if self.backbone.final_norm or self.backbone.mask_token:
            raise UserError("a segmenter needs a backbone with `final_norm=False` and `mask_token=False`")
        self.inference.refuse_shift()
        if len(self.classes) > MAX_CLASSES:
            raise UserError(f"a segmenter has at most {MAX_CLASSES} classes, got {len(self.classes)}")
        if self.head == "linear" and self.channels is not None:
            raise UserError(f"a linear head has no channels of its own, got {self.channels}; leave `channels` at None")
        if self.head == "linear" and self.auxiliary_channels is not None:
            raise UserError("a linear head is trained without an auxiliary one; set `auxiliary_channels` to None")
        if self.palette is not None and len(self.palette) != len(self.classes):
            raise UserError(f"`palette` must have one color for each of the {len(self.classes)} classes, got {len(self.palette)}")
        depth = self.backbone.depth
        if depth < 4:
            raise UserError(f"a segmenter needs a backbone of at least 4 blocks, got {depth}")
        ascending = tuple(sorted(set(self.tapped_blocks)))
        if ascending != self.tapped_blocks or len(ascending) != 4 or not 0 <= ascending[0] <= ascending[-1] < depth:
            raise UserError(f"`taps` must be 4 different blocks in ascending order, numbered 0 to {depth - 1}, got {self.taps}")
        coarsest = round(1 / min(self.pyramid_scales))
        if self.head == "uper" and min(self.backbone.grid) < coarsest:
            raise UserError(
                f"a segmenter with a feature pyramid needs a grid of at least {coarsest}x{coarsest} patches, "
                f"got {self.backbone.grid[0]}x{self.backbone.grid[1]}; choose a larger `image_size`, or another head"
            )

    @property
    def decoder_channels(self) -> int:
        """Width of the decoder, `channels` or the rule; for a linear head that of the backbone, which it reads directly."""
        return self.channels or (SETR_CHANNELS if self.head == "setr_pup" else self.backbone.width)

    @property
    def tapped_blocks(self) -> tuple[int, int, int, int]:
        """The blocks that feed the head, `taps` or the rule."""
        depth = self.backbone.depth
        return self.taps or (depth // 3 - 1, depth // 2 - 1, -(-2 * depth // 3) - 1, depth - 1)

    @property
    def pyramid_scales(self) -> tuple[float, float, float, float]:
        """Size of each pyramid level relative to the patch grid: strides 4, 8, 16, 32 pixels for patches of 16 or of 8 pixels."""
        return (4.0, 2.0, 1.0, 0.5) if max(self.backbone.patch) > 8 else (2.0, 1.0, 0.5, 0.25)

    @property
    def colors(self) -> tuple[Color, ...]:
        """In which each class is shown, `palette` or the rule."""
        return self.palette or default_palette(len(self.classes))


def as_pair(size: int | Pair) -> Pair:
    """One number for a square, or (height, width)."""
    return (size, size) if isinstance(size, int) else size


def by(size: int | Pair) -> str:
    """A size in words: 224x320, the height first."""
    height, width = as_pair(size)
    return f"{height}x{width}"
