"""What PyTorch's counter counts on tensors without content, against closed forms and against the counter on real steps.

The closed forms know the papers' shapes and none of the modules: 2 for each multiply-add of a product or a convolution.
"""

from collections.abc import Iterator
from typing import NamedTuple

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from beitkit.configs.model import (
    BackboneConfig,
    ClassifierConfig,
    ClsBranchConfig,
    MaskedImageModelConfig,
    Pair,
    SegmenterConfig,
)
from beitkit.configs.tokenizer import PUBLISHED_DVAES, DVAEConfig, KMeansConfig, TokenizerConfig, VQKDConfig
from beitkit.planning.flops import Flops
from beitkit.planning.workload import TrainedConfig, Workload, network_flops, tokenizer_flops

CPU = torch.device("cpu")
SHAPE = {"image_size": (48, 64), "patch": (16, 16), "width": 32, "depth": 4, "heads": 2, "hidden": 80}
MASKED = BackboneConfig(**SHAPE, mask_token=True)
PLAIN = BackboneConfig(**SHAPE, final_norm=False)
WIDE = BackboneConfig(**SHAPE | {"image_size": (64, 96), "channels": 3}, final_norm=False)
SEVEN = tuple("abcdefg")
POOL_SIZES = (1, 2, 3, 6)  # of pyramid pooling, arXiv 1612.01105, section 3.2
SMALL = {
    "masked": Workload(network=MaskedImageModelConfig(backbone=MASKED, vocabulary=50), predicted=5),
    "branch": Workload(
        network=MaskedImageModelConfig(backbone=MASKED, vocabulary=50, cls_branch=ClsBranchConfig(early_layer=2)), predicted=5
    ),
    "classify": Workload(network=ClassifierConfig(backbone=PLAIN, classes=SEVEN)),
    "uper": Workload(network=SegmenterConfig(backbone=WIDE, classes=SEVEN, channels=24)),
    "setr": Workload(network=SegmenterConfig(backbone=WIDE, classes=SEVEN, head="setr_pup", channels=24)),
    "linear": Workload(network=SegmenterConfig(backbone=WIDE, classes=SEVEN, head="linear", auxiliary_channels=None)),
}


def published(name: str, image_size: int = 224, *, is_masked: bool = False) -> BackboneConfig:
    return BackboneConfig.named(name, image_size=image_size, mask_token=is_masked, final_norm=is_masked)


def pretrained(name: str, early_layer: int | None = None) -> Workload:
    branch = None if early_layer is None else ClsBranchConfig(early_layer=early_layer)
    network = MaskedImageModelConfig(backbone=published(name, is_masked=True), vocabulary=8192, cls_branch=branch)
    return Workload(network=network, predicted=75)


PUBLISHED = {
    "base": pretrained("base/16"),
    "large": pretrained("large/16"),
    "v2 base": pretrained("base/16", 9),
    "v2 large": pretrained("large/16", 21),
    "large at 512": Workload(network=ClassifierConfig(backbone=published("large/16", 512), classes=SEVEN)),
    "base on ADE20K": Workload(network=SegmenterConfig(backbone=published("base/16", 512), classes=SEVEN)),
}


class Convolution(NamedTuple):
    """Channels in and out, taps of the kernel, and places (positions of the output; transposed: of the input)."""

    inputs: int
    outputs: int
    taps: int
    places: int

    @property
    def flops(self) -> int:
        return 2 * self.inputs * self.outputs * self.taps * self.places


def network_form(network: TrainedConfig, predicted: int) -> Flops:
    backbone = network.backbone
    if isinstance(network, SegmenterConfig):
        head = sum(convolution.flops for convolution in segmentation_convolutions(network))
        return backbone_form(backbone)._replace(head=head)
    if isinstance(network, ClassifierConfig):
        return backbone_form(backbone)._replace(head=2 * backbone.width * len(network.classes))
    plain, branch = backbone_form(backbone), network.cls_branch
    head = 2 * predicted * backbone.width * network.outputs
    if branch is None:
        return plain._replace(head=head)
    share = 1 + branch.head_layers / backbone.depth
    return Flops(plain.embedding, round(plain.attention * share), round(plain.mlp * share), 2 * head)


def backbone_form(config: BackboneConfig) -> Flops:
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


def tokenizer_form(config: TokenizerConfig, grid: Pair) -> int:
    if isinstance(config, DVAEConfig):
        return sum(convolution.flops for convolution in encoder_convolutions(config, grid))
    if isinstance(config, KMeansConfig):
        return 2 * grid[0] * grid[1] * config.channels * (config.stride + 2 * config.margin) ** 2 * config.vocabulary
    tokens, width = grid[0] * grid[1], config.encoder.width
    task_layer = 2 * tokens * width * (width + config.code_dim)
    return backbone_form(config.encoder).forward + task_layer + 2 * tokens * config.code_dim * config.vocabulary


def encoder_convolutions(config: DVAEConfig, grid: Pair) -> Iterator[Convolution]:
    """Of a discrete VAE's encoder (`tokenizers.geometries`), for images of `grid` times its stride."""
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


@pytest.mark.parametrize("workload", [*SMALL.values(), *PUBLISHED.values()], ids=[*SMALL, *PUBLISHED])
def test_a_network_takes_what_the_closed_form_says(workload: Workload) -> None:
    assert workload.flops == network_form(workload.network, workload.predicted)


@pytest.mark.parametrize("workload", SMALL.values(), ids=SMALL)
def test_a_step_takes_what_the_counter_counts(workload: Workload) -> None:
    objective, batch = workload.objective().train(), workload.batch(2, CPU)
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as forward:
            loss = objective(batch, 0.0).total
        with FlopCounterMode(display=False) as backward:
            loss.backward()
    assert 2 * workload.flops.forward == forward.get_total_flops()
    assert 2 * workload.flops.backward == backward.get_total_flops()


@pytest.mark.parametrize(
    ("config", "grid"),
    [
        *((config, (3, 4)) for config in PUBLISHED_DVAES.values()),
        (DVAEConfig(vocabulary=30, hidden=40, stride=4, channels=1), (3, 4)),
        (DVAEConfig(vocabulary=30, hidden=128, stride=8), (3, 4)),
        (KMeansConfig(vocabulary=30, stride=4, margin=3, channels=2), (3, 4)),
        (VQKDConfig(encoder=BackboneConfig(**SHAPE), vocabulary=30, code_dim=6), (3, 4)),
        (PUBLISHED_DVAES["dalle"], (14, 14)),
        (VQKDConfig(encoder=BackboneConfig.named("base/16", mask_token=False), vocabulary=8192, code_dim=32), (14, 14)),
    ],
    ids=["dalle", "beit", "light/4", "light/8", "kmeans", "vqkd", "dalle at 112", "vqkd base"],
)
def test_a_tokenizer_takes_what_the_closed_form_says(config: TokenizerConfig, grid: Pair) -> None:
    assert tokenizer_flops(config, grid) == tokenizer_form(config, grid)


def test_beit_base_takes_what_is_known_of_it() -> None:
    backbone = BackboneConfig.named("base/16", mask_token=True)
    flops = network_flops(MaskedImageModelConfig(backbone=backbone, vocabulary=8192), predicted=75)
    assert flops.forward == pytest.approx(36e9, rel=0.01)
    assert flops.step(recompute=False) == pytest.approx(108e9, rel=0.01)
    assert flops.step(recompute=True) - flops.step(recompute=False) == flops.blocks
    assert tokenizer_flops(PUBLISHED_DVAES["dalle"], (14, 14)) == pytest.approx(52e9, rel=0.01)
