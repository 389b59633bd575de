"""Steps of small networks on small images: beitkit's runs and a bare PyTorch loop over uint8 tensors, in turns in one process.

    python -m benchmarks.small [--shape 96x4/4@28 ...] [--batch-size 64] [--rounds 15] [--turn 0.5] [--jitter 0]
        [--threads 0] [--views]

A shape is WIDTHxBLOCKS/PATCH@SIDE; heads are 32 wide, the MLP four times the width, images gray at 28 pixels, else in color.
The candidates pre-train on tokens that are given (512 of them), 40% of the patches masked:

* bare: images as one uint8 tensor, shifted by up to 3 pixels and flipped in batch, random masks, a network in fifty lines with
  absolute positions, autocast, AdamW. What anyone would write for such images.
* step: `Trainer` over `MaskedTokens` with the product's own network (shared position bias, LayerScale, drop path), one batch that
  lies there.
* run: the same fed by `training_stream` of PNG files, as a run is: shifted and flipped like the bare loop's, block-wise masks.
* crops: the same with random crops in place of shifts.

With `--views` nothing is trained: stated is the processor time to read an image of the shapes' sizes, in microseconds of one
core: from memory batch by batch, from memory one by one, and decoded each time (`--read.cache 0`), masks included.

Stated are medians over rounds, and the medians of the ratios within each round. The share of the matrix rate is the time that the
matrix products of the bare network would take at the rate of the fastest plain product of these shapes, over the step's time.
"""

from __future__ import annotations

import argparse
import itertools
import re
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from beitkit.configs.data import INCEPTION, MaskConfig, ViewConfig
from beitkit.configs.model import BackboneConfig, MaskedImageModelConfig
from beitkit.configs.train import MachineConfig, OptimConfig
from beitkit.contracts import Batch
from beitkit.data.budget import DEFAULT, memory_up_to
from beitkit.data.dataset import ImageDataset
from beitkit.data.sources.find import find_images
from beitkit.data.sources.image_list import ImageList
from beitkit.data.stream import normalized, training_stream, with_limit_on_broken
from beitkit.data.transfer import to_device
from beitkit.data.views.image import PretrainView, TrainView, View
from beitkit.data.views.masking import masker, with_positions
from beitkit.nn.models import MaskedImageModel
from beitkit.objectives.masked import MaskedTokens
from beitkit.train.machine.runtime import Runtime, StopRequest, start_runtime
from beitkit.train.optim import layered_groups
from beitkit.train.schedule import Schedule
from beitkit.train.step import Trainer
from benchmarks.compare import matrix
from benchmarks.compare.turns import Candidate, Step, interleaved, synchronizer

SHAPES = ("96x4/4@28", "96x4/4@32", "128x3/7@28", "192x4/4@32")
VOCABULARY, RATIO, IMAGES, SHIFT, HEAD, STEPS = 512, 0.4, 2048, 3, 32, 1_000_000


class Shape(NamedTuple):
    """A network and its images."""

    width: int
    depth: int
    patch: int
    side: int

    @classmethod
    def read(cls, text: str) -> Shape:
        """From WIDTHxBLOCKS/PATCH@SIDE."""
        found = re.fullmatch(r"(\d+)x(\d+)/(\d+)@(\d+)", text)
        if found is None:
            raise argparse.ArgumentTypeError(f"{text} is no WIDTHxBLOCKS/PATCH@SIDE")
        return cls(*(int(number) for number in found.groups()))

    def __str__(self) -> str:
        return f"{self.width}x{self.depth}/{self.patch}@{self.side}"

    @property
    def channels(self) -> int:
        """1 for images of Fashion-MNIST's size, else 3."""
        return 1 if self.side == 28 else 3

    @property
    def num_patches(self) -> int:
        """Patches of an image."""
        return (self.side // self.patch) ** 2

    @property
    def num_masked(self) -> int:
        """Hidden patches of an image."""
        return round(RATIO * self.num_patches)

    @property
    def flops(self) -> int:
        """Operations of the matrix products of a step, of one image: forward, and twice that backward."""
        tokens, width = self.num_patches + 1, self.width
        block = 2 * tokens * 12 * width**2 + 4 * tokens**2 * width
        embedding = 2 * self.num_patches * self.channels * self.patch**2 * width
        return 3 * (self.depth * block + 2 * self.num_masked * width * VOCABULARY) + 2 * embedding

    @property
    def backbone(self) -> BackboneConfig:
        """The network of the product."""
        return BackboneConfig(
            width=self.width,
            depth=self.depth,
            heads=self.width // HEAD,
            hidden=4 * self.width,
            image_size=(self.side, self.side),
            patch=(self.patch, self.patch),
            channels=self.channels,
            drop_path=0.1,
            mask_token=True,
            pretrain_init=True,
        )


class BareBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(self.norm1(x)).unflatten(2, (3, -1, HEAD)).permute(2, 0, 3, 1, 4)
        # As in beitkit: PyTorch's own attention is slower in bfloat16 on a CPU (decision 008).
        mixed = ((query * HEAD**-0.5) @ key.transpose(-2, -1)).softmax(-1).to(value.dtype) @ value
        x = x + self.proj(mixed.transpose(1, 2).flatten(2))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class BareNetwork(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.patch = shape.patch
        self.embed = nn.Linear(shape.channels * shape.patch**2, shape.width)
        self.mask_token = nn.Parameter(torch.zeros(shape.width))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, shape.width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, shape.num_patches + 1, shape.width))
        self.blocks = nn.Sequential(*(BareBlock(shape.width) for _ in range(shape.depth)))
        self.norm, self.head = nn.LayerNorm(shape.width), nn.Linear(shape.width, VOCABULARY)

    def forward(self, images: Tensor, mask: Tensor, at: Tensor) -> Tensor:
        patches = F.unfold(images, self.patch, stride=self.patch).transpose(1, 2)
        x = torch.where(mask[..., None], self.mask_token, self.embed(patches))
        x = torch.cat((self.cls_token.expand(len(x), -1, -1), x), 1) + self.positions
        return self.head(self.norm(self.blocks(x))[:, 1:].flatten(0, 1)[at])


def bare(shape: Shape, pixels: Tensor, tokens: Tensor, batch_size: int, runtime: Runtime) -> Step:
    """The loop that the product is measured against."""
    torch.manual_seed(0)
    network = BareNetwork(shape)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-5, weight_decay=0.05, fused=True)
    padded = F.pad(pixels, (SHIFT,) * 4)
    rows = torch.arange(shape.side)

    def step() -> None:
        chosen = torch.randint(0, len(pixels), (batch_size,))
        down, across = torch.randint(0, 2 * SHIFT + 1, (2, batch_size, 1))
        columns = torch.where(torch.rand(batch_size, 1) < 0.5, rows, rows.flip(0)) + across
        images = padded[chosen[:, None, None], :, (rows + down)[:, :, None], columns[:, None, :]]
        images = images.permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
        order = torch.rand(batch_size, shape.num_patches).argsort(1)
        mask = order < shape.num_masked
        at = mask.flatten().nonzero().flatten()
        with runtime.precision():
            logits = network(images, mask, at).float()
        F.cross_entropy(logits, tokens[chosen].flatten()[at]).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 3.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def ours(shape: Shape, stream: Iterator[Batch], runtime: Runtime) -> Step:
    """Steps of the product over these batches."""
    torch.manual_seed(0)
    model = MaskedImageModel(MaskedImageModelConfig(backbone=shape.backbone, vocabulary=VOCABULARY))
    optim, objective = OptimConfig(), MaskedTokens(model)
    schedule = Schedule(STEPS, 0, 1, STEPS, 1e-5, 1e-5, seed=0)
    groups = layered_groups(model, model, optim)
    trainer = Trainer(objective.train(), groups, schedule=schedule, optim=optim, runtime=runtime, accumulation_steps=1)
    counter, stop = itertools.count(), StopRequest()

    def step() -> None:
        done = next(counter)
        losses = trainer.forward_backward(stream, done)
        trainer.update(losses, trainer.clip(), done, stop).read()

    return step


def batches(
    shape: Shape, files: ImageList, tokens: Tensor, batch_size: int, view_config: ViewConfig, runtime: Runtime
) -> Iterator[Batch]:
    """Batches as pre-training makes them."""
    view = PretrainView(view_config, (shape.side, shape.side), None)
    mask = masker(MaskConfig(ratio=RATIO), shape.backbone.grid)
    dataset = ImageDataset(files, view, masker=mask, channels=shape.channels, smallest=shape.backbone.patch)
    stream = with_limit_on_broken(training_stream(dataset, batch_size), dataset, 0.0, lambda path, reason: None, None)
    stream = normalized(to_device(with_positions(stream, recover_all=False), runtime.device), INCEPTION.mean, INCEPTION.std)
    return (batch | {"tokens": tokens[batch["index"]]} for batch in stream)


def pixels_of(shape: Shape) -> Tensor:
    """Smooth images, uint8 (n, c, h, w)."""
    coarse = torch.rand(IMAGES, shape.channels, 6, 6, generator=torch.Generator().manual_seed(0))
    return F.interpolate(coarse, (shape.side, shape.side), mode="bilinear").mul_(255).to(torch.uint8)


def write_images(folder: Path, pixels: Tensor) -> ImageList:
    """The images as PNG files."""
    for number, image in enumerate(pixels):
        array = image[0].numpy() if len(image) == 1 else np.ascontiguousarray(image.permute(1, 2, 0).numpy())
        Image.fromarray(array).save(folder / f"{number:05}.png")
    return find_images(folder)


def measure(shape: Shape, options: argparse.Namespace, runtime: Runtime, folder: Path) -> str:
    """A row of the table."""
    pixels = pixels_of(shape)
    tokens = torch.randint(0, VOCABULARY, (IMAGES, shape.num_patches), generator=torch.Generator().manual_seed(1))
    files = write_images(folder, pixels)

    def stream(shift: int | None) -> Iterator[Batch]:
        view = ViewConfig(shift=shift, color_jitter=options.jitter)
        return batches(shape, files, tokens, options.batch_size, view, runtime)

    def run(shift: int | None) -> Step:
        step = ours(shape, stream(shift), runtime)
        for _ in range(IMAGES // options.batch_size):  # the first epoch decodes
            step()
        return step

    contestants: list[tuple[str, Callable[[], Step]]] = [
        ("bare", lambda: bare(shape, pixels, tokens, options.batch_size, runtime)),
        ("step", lambda: ours(shape, itertools.repeat(next(stream(SHIFT))), runtime)),
        ("run", lambda: run(SHIFT)),
        ("crops", lambda: run(None)),
    ]
    racing = [Candidate(name, "", prepare, is_ours=True) for name, prepare in contestants]
    products = matrix.products_of(shape.backbone, options.batch_size, ["bfloat16" if runtime.autocast else "float32"])
    racing += [matrix.candidate(product, runtime.device) for product in products]
    taken = interleaved(racing, options.rounds, turn=options.turn, wait=synchronizer(runtime.device))
    (rate,) = matrix.best_rates(products, taken).values()
    speed = {name: options.batch_size / median(taken[name]) for name, _ in contestants}
    ratios = {
        name: median(ours / bare for ours, bare in zip(taken[name], taken["bare"], strict=True)) for name in list(speed)[1:]
    }
    shares = {name: speed[name] * shape.flops / rate for name in ("bare", "run")}
    cells = [
        *(shape, shape.num_patches, f"{shape.flops / 1e6:.0f}", f"{rate / 1e9:.0f}"),
        *(f"{speed[name]:.0f}" for name in speed),
        *(f"{ratios[name]:.2f}" for name in ratios),
        *(f"{shares[name]:.0%}" for name in shares),
    ]
    return f"| {' | '.join(map(str, cells))} |"


def measure_views(shape: Shape, options: argparse.Namespace, folder: Path) -> Iterator[str]:
    """Rows of the table of views."""
    torch.set_num_threads(1)
    files = write_images(folder, pixels_of(shape))
    size = (shape.side, shape.side)
    views: dict[str, View] = {
        "shift": PretrainView(ViewConfig(shift=SHIFT, color_jitter=0.0), size, None),
        "crop": PretrainView(ViewConfig(color_jitter=0.0), size, None),
        "crop, and the tokenizer's": PretrainView(ViewConfig(color_jitter=0.0), size, size),
        "crop, jitter": PretrainView(ViewConfig(), size, None),
        "of a classifier": TrainView(ViewConfig(color_jitter=0.0), size),
    }
    for name, view in views.items():
        streams = []
        for way in ("together", "alone", "decoded"):
            with memory_up_to(0.0 if way == "decoded" else DEFAULT):
                mask = masker(MaskConfig(ratio=RATIO), shape.backbone.grid)
                dataset = ImageDataset(files, view, masker=mask, channels=shape.channels)
                dataset.hold()
            if way == "alone":
                dataset = dataset.showing(lambda image, rng, view=view: view(image, rng))  # which draws no batches
            streams.append(training_stream(dataset, options.batch_size))
        taken: list[list[float]] = [[] for _ in streams]
        for round in range(-(IMAGES // options.batch_size), options.rounds):
            for stream, seconds in zip(streams, taken, strict=True):
                start = time.thread_time()
                next(stream)
                if round >= 0:
                    seconds.append(time.thread_time() - start)
        together, alone, decoded = (1e6 * median(seconds) / options.batch_size for seconds in taken)
        yield f"| {shape.channels}x{shape.side}x{shape.side} | {name} | {together:.0f} | {alone:.0f} | {decoded:.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", type=Shape.read, default=[Shape.read(text) for text in SHAPES])
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--turn", type=float, default=0.5)
    parser.add_argument("--jitter", type=float, default=0.0)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--views", action="store_true")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    runtime = start_runtime(MachineConfig(threads=options.threads))
    if options.views:
        print("| image | view | in memory, together | one by one | decoded each time |\n|---|---|---|---|---|")
        for shape in {shape.side: shape for shape in options.shape}.values():
            with tempfile.TemporaryDirectory() as folder:
                for row in measure_views(shape, options, Path(folder)):
                    print(row, flush=True)
        return
    print(f"{runtime.describe()}, batch {options.batch_size}, PyTorch {torch.__version__}; medians of {options.rounds} rounds\n")
    print("| shape | patches | MFLOP/image | GFLOP/s of products | bare, images/s | step | run | crops | step/bare ", end="")
    print("| run/bare | crops/bare | share, bare | share, run |\n|" + 13 * "---|")
    for shape in options.shape:
        with tempfile.TemporaryDirectory() as folder:
            print(measure(shape, options, runtime, Path(folder)), flush=True)


if __name__ == "__main__":
    main()
