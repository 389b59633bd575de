"""Parts of a segmenter above its backbone: feature pyramid, decoders, and the auxiliary head used in training.

Every head takes the list of four maps, finest first, and uses those it needs. Parameter names are those of official
segmentation checkpoints (mmsegmentation 0.11), and `conv_seg` is the classifier of every head.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from beitkit.configs.model import Pair
from beitkit.nn.segmentation.norm import BatchNorm2d

POOL_SIZES = (1, 2, 3, 6)  # pyramid pooling, arXiv 1612.01105, section 3.2
DROPOUT = 0.1  # of whole feature maps, before each classifier (official configs)
AUXILIARY_LEVEL = 2  # the auxiliary head reads the level at the resolution of the patch grid (patch 16)
DOUBLINGS = 4  # of the resolution, from patches of 16 pixels to pixels (arXiv 2012.15840, section 3.3)

Maps = list[Float[Tensor, "b d _ _"]]


class ConvModule(nn.Module):
    """Convolution without bias, batch norm, ReLU; keeps the resolution."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
        self.bn = BatchNorm2d(outputs)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b o h w"]:
        """The convolved map."""
        return F.relu(self.bn(self.conv(x)))


class FeaturePyramid(nn.Module):
    """Rescales four maps of the patch grid's size; strides 4, 8, 16, 32 for patches of 16 pixels (method 7.1)."""

    def __init__(self, width: int, scales: tuple[float, float, float, float]) -> None:
        """`scales`: size of each level relative to the patch grid, a power of two from 4 down to 1/4."""
        super().__init__()
        self.fpn1, self.fpn2, self.fpn3, self.fpn4 = (_rescale(width, scale) for scale in scales)

    def forward(self, maps: list[Float[Tensor, "b d gh gw"]]) -> Maps:
        """The four levels, finest first."""
        first, second, third, fourth = maps
        return [self.fpn1(first), self.fpn2(second), self.fpn3(third), self.fpn4(fourth)]


class UPerHead(nn.Module):
    """UPerNet: pyramid pooling on the coarsest level, top-down fusion, a classifier on all levels together (method 7.2)."""

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

    def forward(self, levels: Maps) -> Float[Tensor, "b classes h w"]:
        """Class scores at the size of the finest level."""
        coarsest = levels[-1]
        pooled = [resize(pool(coarsest), map_size(coarsest)) for pool in self.psp_modules]
        laterals = [lateral(level) for lateral, level in zip(self.lateral_convs, levels[:-1], strict=True)]
        laterals.append(self.bottleneck(torch.cat((coarsest, *pooled), dim=1)))
        for index in (2, 1, 0):
            laterals[index] = laterals[index] + resize(laterals[index + 1], map_size(laterals[index]))
        fused = [conv(lateral) for conv, lateral in zip(self.fpn_convs, laterals[:-1], strict=True)]
        fused.append(laterals[-1])
        stacked = torch.cat([resize(level, map_size(fused[0])) for level in fused], dim=1)  # (b, 4 channels, h, w)
        return self.conv_seg(self.dropout(self.fpn_bottleneck(stacked)))


class FCNHead(nn.Module):
    """Auxiliary FCN head: one convolution and a classifier on a middle level, used in training only (method 7.2)."""

    def __init__(self, width: int, channels: int, num_classes: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList([ConvModule(width, channels, 3)])
        self.dropout = nn.Dropout2d(DROPOUT)
        self.conv_seg = _classifier(channels, num_classes)

    def forward(self, levels: Maps) -> Float[Tensor, "b classes h w"]:
        """Class scores at the size of the third level."""
        return self.conv_seg(self.dropout(self.convs[0](levels[AUXILIARY_LEVEL])))


class LinearHead(nn.Module):
    """Batch norm and a linear classifier of every patch of the last map, for frozen features (arXiv 2304.07193, section 7.4)."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.bn = BatchNorm2d(width)
        self.conv_seg = _classifier(width, num_classes)

    def forward(self, levels: Maps) -> Float[Tensor, "b classes h w"]:
        """Class scores of the patches."""
        return self.conv_seg(self.bn(levels[-1]))


class ProgressiveUpsamplingHead(nn.Module):
    """SETR-PUP: convolutions and doublings of the resolution in turn, on the last map (arXiv 2012.15840, section 3.3).

    BEiT's paper names it as the task layer of its tables 3 and 4 and no more. As in SETR's paper, the raw patches come in and
    nothing is dropped out; SETR's code has a LayerNorm first, for which the batch norm after the first convolution stands in.
    """

    def __init__(self, width: int, channels: int, num_classes: int) -> None:
        super().__init__()
        inputs = (width, *[channels] * (DOUBLINGS - 1))
        self.up_convs = nn.ModuleList(ConvModule(count, channels, 3) for count in inputs)
        self.conv_seg = _classifier(channels, num_classes)

    def forward(self, levels: Maps) -> Float[Tensor, "b classes h w"]:
        """Class scores at 16 times the patch grid."""
        x = levels[-1]
        for conv in self.up_convs:
            height, width = map_size(x)
            x = resize(conv(x), (2 * height, 2 * width))
        return self.conv_seg(x)


def resize(x: Float[Tensor, "b c h w"], size: Pair) -> Float[Tensor, "b c oh ow"]:
    """A map at another (height, width), bilinear, corners not aligned."""
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def map_size(x: Tensor) -> Pair:
    """(height, width) of a map."""
    return x.shape[-2], x.shape[-1]


def _rescale(width: int, scale: float) -> nn.Module:
    """A change of resolution by a power of two; the layers that learn keep their official places in the sequence."""
    if scale == 4:
        return nn.Sequential(
            nn.ConvTranspose2d(width, width, 2, stride=2),
            BatchNorm2d(width),
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
