"""Floating-point operations of one picture, in closed form: 2 for each multiply-add of a matrix product or a convolution.

Everything else (norms, softmax, GELU, the optimizer) is left out, as is usual; it takes time, but under a hundredth of the
operations. A backward pass takes two products for each of the forward pass (by the input, by the weight), so twice as many;
the patch embedding takes one, because nobody asks for the pictures' gradient. A kernel that computes attention scores again in
its backward pass does more than is counted here, and so does recomputation of whole blocks, which is a part of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from beitkit.configs.model import BackboneConfig, ClassifierConfig, MaskedImageModelConfig, Pair, SegmenterConfig
from beitkit.configs.tokenizer import DVAEConfig, VQKDConfig

POOL_SIZES = (1, 2, 3, 6)
"""Windows of UPerNet's pyramid pooling, along each axis."""


class Convolution(NamedTuple):
    """Channels in and out, taps of the kernel, and places (positions of the output; transposed: of the input)."""

    inputs: int
    outputs: int
    taps: int
    places: int

    @property
    def flops(self) -> int:
        """Of a forward pass over one picture."""
        return 2 * self.inputs * self.outputs * self.taps * self.places


class Flops(NamedTuple):
    """Forward operations of one picture by part."""

    embedding: int
    attention: int
    """Projections of queries, keys, values and results, scores, and mixing."""
    mlp: int
    head: int

    @property
    def blocks(self) -> int:
        """All blocks."""
        return self.attention + self.mlp

    @property
    def forward(self) -> int:
        """One forward pass."""
        return self.embedding + self.blocks + self.head

    @property
    def backward(self) -> int:
        """One backward pass: no gradient with respect to the picture is computed."""
        return 2 * self.forward - self.embedding

    def step(self, *, recompute: bool) -> int:
        """Forward and backward; with `recompute` the blocks go forward a second time."""
        return self.forward + self.backward + (self.blocks if recompute else 0)


def network_flops(network: MaskedImageModelConfig | ClassifierConfig | SegmenterConfig, predicted: int = 0) -> Flops:
    """Of a network; `predicted` is the number of patches of a picture that a masked-image model is asked about."""
    backbone = network.backbone
    if isinstance(network, SegmenterConfig):
        head = sum(convolution.flops for convolution in segmentation_convolutions(network))
        return backbone_flops(backbone)._replace(head=head)
    if isinstance(network, ClassifierConfig):
        return backbone_flops(backbone)._replace(head=2 * backbone.width * len(network.classes))
    plain, branch = backbone_flops(backbone), network.cls_branch
    head = 2 * predicted * backbone.width * network.outputs
    if branch is None:
        return plain._replace(head=head)
    share = 1 + branch.head_layers / backbone.depth
    return Flops(plain.embedding, round(plain.attention * share), round(plain.mlp * share), 2 * head)


def backbone_flops(config: BackboneConfig) -> Flops:
    """Of a backbone without a head."""
    patches = config.grid[0] * config.grid[1]
    tokens, width = patches + 1, config.width
    projections = 2 * tokens * width * 4 * width
    scores_and_mixing = 2 * 2 * tokens * tokens * width
    return Flops(
        embedding=2 * patches * config.channels * config.patch[0] * config.patch[1] * width,
        attention=config.depth * (projections + scores_and_mixing),
        mlp=config.depth * 2 * 2 * tokens * width * config.hidden,
        head=0,
    )


def tokenizer_flops(config: DVAEConfig | VQKDConfig, grid: Pair) -> int:
    """Of encoding one picture into this grid of tokens."""
    if isinstance(config, DVAEConfig):
        return sum(convolution.flops for convolution in encoder_convolutions(config, grid))
    tokens, width = grid[0] * grid[1], config.encoder.width
    task_layer = 2 * tokens * width * (width + config.code_dim)
    return backbone_flops(config.encoder).forward + task_layer + 2 * tokens * config.code_dim * config.vocabulary


def encoder_convolutions(config: DVAEConfig, grid: Pair) -> Iterator[Convolution]:
    """Of a discrete VAE's encoder (`tokenizers.geometries`), for pictures of `grid` times its stride."""
    tokens = grid[0] * grid[1]
    halvings = config.stride.bit_length() - 1
    places = [tokens * 4**halving for halving in range(halvings, -1, -1)]  # of each resolution, from the pixels to the tokens
    if config.geometry == "dalle":
        widths = [config.hidden * 2**group for group in range(4)]
        yield Convolution(config.channels, config.hidden, 49, places[0])
        for group, width in enumerate(widths):
            for entering in (widths[max(0, group - 1)], width):
                if entering != width:
                    yield Convolution(entering, width, 1, places[group])
                inner = width // 4
                yield Convolution(entering, inner, 9, places[group])
                yield Convolution(inner, inner, 9, 2 * places[group])
                yield Convolution(inner, width, 1, places[group])
        yield Convolution(widths[-1], config.vocabulary, 1, tokens)
        return
    entering = config.channels
    for halving in range(1, halvings + 1):
        width = config.hidden if config.geometry == "beit" else max(16, config.hidden >> (halvings - halving))
        yield Convolution(entering, width, 16, places[halving])
        if config.geometry == "beit":
            yield Convolution(width, width, 9, 2 * places[halving])
            yield Convolution(width, width, 1, places[halving])
        entering = width
    if config.geometry == "light":
        yield Convolution(entering, 2 * entering, 1, 2 * tokens)  # widened and narrowed again
    yield Convolution(entering, config.vocabulary, 1, tokens)


def segmentation_convolutions(config: SegmenterConfig) -> Iterator[Convolution]:
    """Of everything above a segmenter's backbone, the auxiliary head of training included."""
    height, width = config.backbone.grid
    inputs, channels, classes = config.backbone.width, config.decoder_channels, len(config.classes)
    patches = height * width
    places = (
        [int(height * scale) * int(width * scale) for scale in config.pyramid_scales] if config.head == "uper" else [patches] * 4
    )
    if config.head == "uper":
        for scale in config.pyramid_scales:
            for doubling in range({4.0: 2, 2.0: 1}.get(scale, 0)):
                yield Convolution(inputs, inputs, 4, patches * 4**doubling)
        for size in POOL_SIZES:
            yield Convolution(inputs, channels, 1, size * size)
        yield Convolution(inputs + len(POOL_SIZES) * channels, channels, 9, places[3])
        for level in places[:3]:
            yield Convolution(inputs, channels, 1, level)
            yield Convolution(channels, channels, 9, level)
        yield Convolution(4 * channels, channels, 9, places[0])
        yield Convolution(channels, classes, 1, places[0])
    elif config.head == "setr_pup":
        for doubling in range(4):
            yield Convolution(channels if doubling else inputs, channels, 9, patches * 4**doubling)
        yield Convolution(channels, classes, 1, patches * 4**4)
    else:
        yield Convolution(inputs, classes, 1, patches)
    if config.auxiliary_channels is not None:
        yield Convolution(inputs, config.auxiliary_channels, 9, places[2])
        yield Convolution(config.auxiliary_channels, classes, 1, places[2])
