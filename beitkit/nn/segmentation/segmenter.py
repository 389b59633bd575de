"""Semantic segmentation network: a backbone and a decoder that maps its blocks to class scores.

A plain Transformer has one resolution; UPerNet (arXiv 1807.10221) needs four. So the outputs of four blocks are rescaled by
transposed convolutions and pooling. The decoder applies pyramid pooling to the coarsest level, adds it to the finer ones top
down, and classifies all levels together. The other heads (`SegmenterConfig.head`) need no pyramid.

Parameter names are those of official segmentation checkpoints (mmsegmentation 0.11), except that the pyramid is a part of
its own here: `pyramid.fpn1.0.weight` is officially called `backbone.fpn1.0.weight`, and so on for `fpn2`.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from jaxtyping import Float
from torch import Tensor, nn

from beitkit.configs.model import SegmenterConfig
from beitkit.configs.segmentation import InferenceConfig
from beitkit.contracts import ImageInput, LoadReport
from beitkit.errors import UserError
from beitkit.nn.backbone import Backbone
from beitkit.nn.models import layer_of, no_decay
from beitkit.nn.prediction import ScenePrediction
from beitkit.nn.segmentation.heads import (
    FCNHead,
    FeaturePyramid,
    LinearHead,
    Maps,
    ProgressiveUpsamplingHead,
    UPerHead,
    map_size,
    resize,
)


class SegmentationLogits(NamedTuple):
    """Class scores before upsampling to the input size, (b, classes, h', w')."""

    main: Float[Tensor, "b classes mh mw"]
    auxiliary: Float[Tensor, "b classes ah aw"] | None


class Labeler(Protocol):
    """Predicts the label map of an image in any form."""

    def __call__(self, model: Segmenter, image: ImageInput, config: InferenceConfig | None) -> ScenePrediction:
        """The label map, areas and confidences."""
        ...


class Segmenter(nn.Module):
    """Assigns a class to every pixel (arXiv 2106.08254, section 3.2)."""

    load_report: LoadReport | None = None
    """Report on every tensor, if loaded from a checkpoint."""
    labeler: Labeler | None = None
    """Labels images for `predict`; `beitkit.load` sets it."""

    def __init__(self, config: SegmenterConfig) -> None:
        super().__init__()
        self.config = config
        width, num_classes = config.backbone.width, len(config.classes)
        self.backbone = Backbone(config.backbone)
        self.pyramid = FeaturePyramid(width, config.pyramid_scales) if config.head == "uper" else None
        self.decode_head = _decoder(config)
        auxiliary = config.auxiliary_channels
        self.auxiliary_head = None if auxiliary is None else FCNHead(width, auxiliary, num_classes)

    def features(self, images: Float[Tensor, "b c h w"]) -> Maps:
        """The four maps that the heads read: the levels of the feature pyramid, finest first; without one, the tapped blocks."""
        taps = self.backbone.intermediates(images, self.config.tapped_blocks)
        maps = [tap.patches.transpose(1, 2).unflatten(2, tap.grid) for tap in taps]  # each (b, d, gh, gw)
        return maps if self.pyramid is None else self.pyramid(maps)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b classes h w"]:
        """Class logits at every pixel."""
        return resize(self.coarse_logits(images), map_size(images))

    def coarse_logits(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b classes mh mw"]:
        """Logits at the decoder's resolution, which `forward` upsamples to that of the images."""
        return self.decode_head(self.features(images))

    def predict(self, image: ImageInput, *, inference: InferenceConfig | None = None) -> ScenePrediction:
        """Predict the label map of an image at its own size.

        Args:
            image: a path, a Pillow image, or an array or tensor, uint8 or float in [0, 1], of shape (h, w), (h, w, c) or
                (c, h, w).
            inference: windows, scales and flips; None takes the network's own.

        Raises:
            UserError: an image that cannot be read, a network without a labeler, or one that is in training mode.
        """
        if self.labeler is None:
            raise UserError("this network has no reader of images; load it with beitkit.load, or set its labeler")
        return self.labeler(self, image, inference)

    def training_logits(self, images: Float[Tensor, "b c h w"]) -> SegmentationLogits:
        """Logits of both heads at their own resolution, for a weighted loss (official code: 1 and 0.4)."""
        levels = self.features(images)
        auxiliary = None if self.auxiliary_head is None else self.auxiliary_head(levels)
        return SegmentationLogits(self.decode_head(levels), auxiliary)

    def layer_of(self, name: str) -> int:
        """Layer of a parameter for layer-wise learning rates; pyramid and heads are above the last block (method 7.4)."""
        return layer_of(self.backbone, name)

    def no_decay(self, name: str) -> bool:
        """Whether a parameter is free of weight decay by name."""
        return no_decay(self.backbone, name)


def _decoder(config: SegmenterConfig) -> UPerHead | LinearHead | ProgressiveUpsamplingHead:
    width, channels, num_classes = config.backbone.width, config.decoder_channels, len(config.classes)
    if config.head == "linear":
        return LinearHead(width, num_classes)
    head = UPerHead if config.head == "uper" else ProgressiveUpsamplingHead
    return head(width, channels, num_classes)
