"""Workload of a run without its images: network, objective, and a batch of the right shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from beitkit.configs.model import ClassifierConfig, MaskedImageModelConfig, Pair, SegmenterConfig
from beitkit.configs.segmentation import SegmentationLossConfig
from beitkit.configs.tokenizer import TokenizerConfig
from beitkit.contracts import Batch
from beitkit.interop.kinds import KINDS, kind_of_config
from beitkit.nn.backbone import Backbone
from beitkit.nn.models import Classifier, MaskedImageModel
from beitkit.nn.segmentation.segmenter import Segmenter
from beitkit.nn.shapes import only_shapes
from beitkit.objectives.classify import Classify
from beitkit.objectives.masked import MaskedTokens
from beitkit.objectives.segment import Segment
from beitkit.planning.flops import Flops, count_forward, counting
from beitkit.tokenizers.frozen import Encoder, TokenizerNetwork

CPU, SHAPES = torch.device("cpu"), torch.device("meta")
TrainedConfig = MaskedImageModelConfig | ClassifierConfig | SegmenterConfig
Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The arithmetic of one kind of run."""

    network: TrainedConfig
    tokenizer: TokenizerConfig | None = None
    """None where nothing is tokenized in this run."""
    tried: int = 0
    """Images on which a run that computes in bfloat16 tries whether its tokenizer may, when it starts."""
    predicted: int = 0
    """Patches of an image that a masked-image model predicts."""
    mixes: bool = False
    """Whether a classifier's targets are shares of classes."""
    loss: SegmentationLossConfig = SegmentationLossConfig()

    @property
    def grid(self) -> Pair:
        """Patches per column and per row."""
        return self.network.backbone.grid

    @property
    def token_size(self) -> Pair | None:
        """Size of the images that the tokenizer sees; None without one."""
        if self.tokenizer is None:
            return None
        return self.grid[0] * self.tokenizer.stride, self.grid[1] * self.tokenizer.stride

    @property
    def flops(self) -> Flops:
        """Forward operations of one image, by part, without the tokenizer."""
        return network_flops(self.network, self.predicted)

    @property
    def tokenizer_flops(self) -> int:
        """Of making one image's tokens."""
        return 0 if self.tokenizer is None else tokenizer_flops(self.tokenizer, self.grid)

    @property
    def parameters(self) -> int:
        """Numbers that are trained."""
        with only_shapes():
            return count_parameters(self.objective())

    @property
    def least_depth(self) -> int:
        """The fewest blocks that such a network can have: a segmenter reads four different ones."""
        return 4 if isinstance(self.network, SegmenterConfig) else 1

    def of_depth(self, depth: int) -> Workload:
        """The same with another number of blocks; a class-token branch then starts after the first."""
        network = replace(self.network, backbone=replace(self.network.backbone, depth=depth))
        if isinstance(network, MaskedImageModelConfig) and network.cls_branch is not None:
            network = replace(network, cls_branch=replace(network.cls_branch, early_layer=1))
        return replace(self, network=network)

    def objective(self) -> nn.Module:
        """What is trained, with fresh weights."""
        if isinstance(self.network, MaskedImageModelConfig):
            return MaskedTokens(MaskedImageModel(self.network))
        if isinstance(self.network, ClassifierConfig):
            return Classify(Classifier(self.network), 0.1)
        return Segment(Segmenter(self.network), self.loss)

    def encoder(self, device: torch.device, precision: torch.dtype | None) -> Encoder:
        """The tokenizer as the run uses it, where this precision finds the tokens of float32."""
        assert self.tokenizer is not None
        return Encoder.laid_out(tokenizer_network(self.tokenizer).to(device), precision)

    def batch(self, batch_size: int, device: torch.device) -> Batch:
        """A batch of this many images, all of them noise, as the objective takes it."""
        backbone = self.network.backbone
        images = torch.rand(batch_size, backbone.channels, *backbone.image_size, device=device)
        if isinstance(self.network, ClassifierConfig):
            classes = len(self.network.classes)
            if self.mixes:
                return {"images": images, "targets": torch.full((batch_size, classes), 1 / classes, device=device)}
            return {"images": images, "labels": torch.zeros(batch_size, dtype=torch.int64, device=device)}
        if isinstance(self.network, SegmenterConfig):
            label_map = torch.zeros(batch_size, *backbone.image_size, dtype=torch.uint8, device=device)
            return {"images": images, "label_map": label_map}
        patches = self.grid[0] * self.grid[1]
        mask = (torch.arange(patches, device=device) < self.predicted).expand(batch_size, -1).contiguous()
        tokens = torch.zeros(batch_size, patches, dtype=torch.int64, device=device)
        # As `data.views.masking.with_positions` finds them, which a mask without content could not be asked.
        starts = torch.arange(batch_size, device=device)[:, None] * patches
        positions = (starts + torch.arange(self.predicted, device=device)).flatten()
        return {"images": images, "mask": mask, "tokens": tokens, "positions": positions}

    def token_images(self, batch_size: int, device: torch.device) -> Tensor:
        """Noise for the tokenizer, as the stream reads it: uint8."""
        assert self.token_size is not None
        return torch.randint(
            256, (batch_size, self.network.backbone.channels, *self.token_size), dtype=torch.uint8, device=device
        )


@contextmanager
def without_content(make: Callable[[], Network]) -> Iterator[Network]:
    """A network on a CPU whose tensors, and all that are made inside, have shapes, types and storages but no memory."""
    with only_shapes():
        network = make()
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield network.to_empty(device=CPU)


@cache
def network_flops(network: TrainedConfig, predicted: int = 0) -> Flops:
    """Of a network; `predicted` is the number of patches of an image that a masked-image model is asked about."""
    workload = Workload(network=network, predicted=predicted)
    with only_shapes():
        objective = workload.objective().eval()
    return count_forward(objective, workload.batch(1, SHAPES))


@cache
def tokenizer_flops(config: TokenizerConfig, grid: Pair) -> int:
    """Of encoding one image into this grid of tokens."""
    with only_shapes():
        tokenizer = tokenizer_network(config)
    images = torch.rand(1, tokenizer.channels, *(side * tokenizer.stride for side in grid), device=SHAPES)
    with counting() as counter:
        tokenizer.encode(images)
    return counter.get_total_flops()


def tokenizer_network(config: TokenizerConfig) -> TokenizerNetwork:
    """A tokenizer in eval mode with fresh weights, laid out in memory as `Encoder.laid_out` does."""
    network = KINDS[kind_of_config(config)][0](config)
    assert isinstance(network, TokenizerNetwork)
    return network.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload] - documented, but not declared


def backbone_of(objective: nn.Module) -> Backbone:
    """The backbone inside an objective of a workload."""
    return next(module for module in objective.modules() if isinstance(module, Backbone))


def count_parameters(module: nn.Module) -> int:
    """Numbers that are trained."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
