"""Semantic segmentation: a feature pyramid out of four blocks, the UPerNet decoder, and an auxiliary head for training.

A plain Transformer has one resolution; UPerNet (arXiv 1807.10221) wants four. So the outputs of four blocks are brought to
four sizes by small transposed convolutions and pooling. The decoder looks at the coarsest one through pooling windows of
several sizes, adds what it saw to the finer ones from top to bottom, and classifies all levels together.

Parameter names are those of official segmentation checkpoints (mmsegmentation 0.11), except that the pyramid is a part of
its own here: `pyramid.fpn1.0.weight` is officially called `backbone.fpn1.0.weight`, and so on for `fpn2`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from beitkit.configs.model import Pair, SegmenterConfig
from beitkit.contracts import LoadReport
from beitkit.nn.backbone import Backbone
from beitkit.nn.models import layer_of, no_decay

POOL_SIZES = (1, 2, 3, 6)  # pyramid pooling, arXiv 1612.01105, section 3.2
DROPOUT = 0.1  # of whole feature maps, before each classifier (official configs)
AUXILIARY_LEVEL = 2  # the auxiliary head reads the level at the resolution of the patch grid (patch 16)


class SegmentationLogits(NamedTuple):
    """Scores of the classes before they are brought to input size, (b, classes, h', w')."""

    main: Float[Tensor, "b classes mh mw"]
    auxiliary: Float[Tensor, "b classes ah aw"] | None


class ConvModule(nn.Module):
    """Convolution without bias, batch norm, ReLU; keeps the resolution."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b o h w"]:
        """The filtered map."""
        return F.relu(self.bn(self.conv(x)))


class FeaturePyramid(nn.Module):
    """Four maps of the patch grid's size to four sizes; strides 4, 8, 16, 32 for patches of 16 pixels (facts 9.1)."""

    def __init__(self, width: int, scales: tuple[float, float, float, float]) -> None:
        """`scales`: size of each level relative to the patch grid, a power of two from 4 down to 1/4."""
        super().__init__()
        self.fpn1, self.fpn2, self.fpn3, self.fpn4 = (_rescale(width, scale) for scale in scales)

    def forward(self, maps: list[Float[Tensor, "b d gh gw"]]) -> list[Float[Tensor, "b d _ _"]]:
        """The four levels, finest first."""
        first, second, third, fourth = maps
        return [self.fpn1(first), self.fpn2(second), self.fpn3(third), self.fpn4(fourth)]


class UPerHead(nn.Module):
    """Pyramid pooling on the coarsest level, a top-down path over the finer ones, a classifier on all together (facts 9.2)."""

    def __init__(self, width: int, channels: int, num_classes: int) -> None:
        super().__init__()
        self.psp_modules = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(size), ConvModule(width, channels, 1)) for size in POOL_SIZES
        )
        self.bottleneck = ConvModule(width + len(POOL_SIZES) * channels, channels, 3)
        self.lateral_convs = nn.ModuleList(ConvModule(width, channels, 1) for _ in range(3))
        self.fpn_convs = nn.ModuleList(ConvModule(channels, channels, 3) for _ in range(3))
        self.fpn_bottleneck = ConvModule(4 * channels, channels, 3)
        self.dropout = nn.Dropout2d(DROPOUT)
        self.conv_seg = _classifier(channels, num_classes)

    def forward(self, levels: list[Float[Tensor, "b d _ _"]]) -> Float[Tensor, "b classes h w"]:
        """Class scores at the size of the finest level."""
        coarsest = levels[-1]
        pooled = [resize(pool(coarsest), _size(coarsest)) for pool in self.psp_modules]
        laterals = [lateral(level) for lateral, level in zip(self.lateral_convs, levels[:-1], strict=True)]
        laterals.append(self.bottleneck(torch.cat((coarsest, *pooled), dim=1)))
        for index in (2, 1, 0):
            laterals[index] = laterals[index] + resize(laterals[index + 1], _size(laterals[index]))
        fused = [conv(lateral) for conv, lateral in zip(self.fpn_convs, laterals[:-1], strict=True)]
        fused.append(laterals[-1])
        stacked = torch.cat([resize(level, _size(fused[0])) for level in fused], dim=1)  # (b, 4 channels, h, w)
        return self.conv_seg(self.dropout(self.fpn_bottleneck(stacked)))


class FCNHead(nn.Module):
    """One convolution and a classifier, which give a middle block a gradient of its own in training (facts 9.2)."""

    def __init__(self, width: int, channels: int, num_classes: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList([ConvModule(width, channels, 3)])
        self.dropout = nn.Dropout2d(DROPOUT)
        self.conv_seg = _classifier(channels, num_classes)

    def forward(self, level: Float[Tensor, "b d h w"]) -> Float[Tensor, "b classes h w"]:
        """Class scores at the size of the level."""
        return self.conv_seg(self.dropout(self.convs[0](level)))


class Segmenter(nn.Module):
    """Names every pixel of a picture (arXiv 2106.08254, section 3.2, with UPerNet as in its tables 5 to 7)."""

    load_report: LoadReport | None = None
    """What became of every tensor, when the network was loaded from a checkpoint."""

    def __init__(self, config: SegmenterConfig) -> None:
        super().__init__()
        self.config = config
        width, num_classes = config.backbone.width, len(config.classes)
        self.backbone = Backbone(config.backbone)
        self.pyramid = FeaturePyramid(width, config.pyramid_scales)
        self.decode_head = UPerHead(width, config.channels, num_classes)
        auxiliary = config.auxiliary_channels
        self.auxiliary_head = None if auxiliary is None else FCNHead(width, auxiliary, num_classes)

    def features(self, images: Float[Tensor, "b c h w"]) -> list[Float[Tensor, "b d _ _"]]:
        """The four levels of the feature pyramid, finest first."""
        taps = self.backbone.intermediates(images, self.config.tapped_blocks)
        return self.pyramid([tap.patches.transpose(1, 2).unflatten(2, tap.grid) for tap in taps])  # each (b, d, gh, gw)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b classes h w"]:
        """Logits of the classes at every pixel."""
        return resize(self.decode_head(self.features(images)), _size(images))

    def training_logits(self, images: Float[Tensor, "b c h w"]) -> SegmentationLogits:
        """Logits of both heads at their own resolution, for a loss that weighs them (official code: 1 and 0.4)."""
        levels = self.features(images)
        auxiliary = None if self.auxiliary_head is None else self.auxiliary_head(levels[AUXILIARY_LEVEL])
        return SegmentationLogits(self.decode_head(levels), auxiliary)

    def layer_of(self, name: str) -> int:
        """Layer of a parameter for layer-wise learning rates; pyramid and heads are above the last block (facts 9.4)."""
        return layer_of(self.backbone, name)

    def no_decay(self, name: str) -> bool:
        """Whether a parameter is free of weight decay by name."""
        return no_decay(self.backbone, name)


def resize(x: Float[Tensor, "b c h w"], size: Pair) -> Float[Tensor, "b c oh ow"]:
    """A map at another (height, width), bilinear, corners not aligned."""
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def _size(x: Tensor) -> Pair:
    return x.shape[-2], x.shape[-1]


def _rescale(width: int, scale: float) -> nn.Module:
    """A change of resolution by a power of two; the layers that learn keep their official places in the sequence."""
    if scale == 4:
        return nn.Sequential(
            nn.ConvTranspose2d(width, width, 2, stride=2),
            nn.BatchNorm2d(width),
            nn.GELU(),
            nn.ConvTranspose2d(width, width, 2, stride=2),
        )
    if scale == 2:
        return nn.Sequential(nn.ConvTranspose2d(width, width, 2, stride=2))
    return nn.Identity() if scale == 1 else nn.MaxPool2d(round(1 / scale))


def _classifier(channels: int, num_classes: int) -> nn.Conv2d:
    layer = nn.Conv2d(channels, num_classes, 1)
    nn.init.normal_(layer.weight, std=0.01)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer
