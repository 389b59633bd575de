"""Time of a training step on GPUs that are not at hand, computed from counted operations and bytes. Nothing here was measured.

A matrix product takes its operations at the rate that products reach, or its bytes at the rate that memory gives, whichever is
more; attention its operations at the rate of its kernel, or its bytes; everything else its bytes alone. That is added up, as one
kernel runs after the other, and is no less than what the host needs to start them. Waiting for images, gaps between kernels, and
shapes that fill a GPU badly are not in it: it says what may be hoped for, not what will be.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch

from beitkit.configs.gpus import GPUS, Gpu, GpuName
from beitkit.configs.train import Form
from beitkit.nn.blocks import set_recompute
from beitkit.planning.memory import FLOAT
from beitkit.planning.traffic import Chains, Count
from beitkit.planning.workload import CPU, Workload, tokenizer_network, without_content

IN_WORDS: dict[Form, str] = {"off": "eager", "blocks": "blocks compiled", "objective": "compiled as a whole"}
BANDWIDTH_SHARE = 0.85
"""Of the memory's rate, what elementwise kernels reach: an assumption, as measurements of copies lie at 0.8 to 0.9."""
ATTENTION_SHARE = 0.3
"""Of the GPU's peak in bfloat16, what a fused attention kernel with a bias reaches forward and backward: an assumption; figures
of FlashAttention-2 (arXiv 2307.08691, section 4.1) show about as much of an A100's peak for xformers' kernel of the same kind."""
HOST_SECONDS = 1e-5
"""What the host needs to start one operation: an assumption, as 5 to 25 microseconds are usual."""
HALF = 2
"""Bytes of a bfloat16 number."""
UPDATE_NUMBERS = 8
"""float32 numbers that clipping and AdamW move for each weight: the gradient is read for its norm; weight, gradient and two
moments are read, and all but the gradient written."""
ATTENTION_PASSES = 3.5
"""Operations of fused attention forward and backward, of those forward: backward has five products for two, as it computes the
scores again (arXiv 2307.08691, section 4.1)."""


class Counted(NamedTuple):
    """Operations and bytes of a forward and a backward pass."""

    product_flops: float
    products: Count
    attention_flops: float
    attention: Count
    others: dict[Form, Count]
    """All that is neither, by what is compiled."""


class GpuSeconds(NamedTuple):
    """Of one step, by what it is spent on."""

    products: float
    attention: float
    others: float
    update: float
    host: float
    """What starting the kernels takes, which goes on beside them."""

    @property
    def total(self) -> float:
        """Of the step."""
        return max(self.host, self.products + self.attention + self.others + self.update)


class Computed(NamedTuple):
    """Seconds on a GPU that is not here."""

    device: str
    source: str
    step: float
    """Of a forward and a backward pass of one image."""
    forward: float
    """Of a forward pass of one image."""
    update: float
    """Of an optimizer step."""
    tokenizer: float
    """Of one image's tokens; 0 where nothing is tokenized."""


def computed(workload: Workload, batch_size: int, name: GpuName, form: Form, *, recompute: bool) -> Computed:
    """The times that a plan needs, in bfloat16."""
    seconds = step_seconds_on(GPUS[name], counted(workload, batch_size, recompute=recompute), form, workload.parameters)
    step = (seconds.total - seconds.update) / batch_size
    return Computed(
        device=f"{name.upper()}, {IN_WORDS[form]}",
        source="computed, not measured",
        step=step,
        forward=step * workload.flops.forward / workload.flops.step(recompute=recompute),
        update=seconds.update,
        tokenizer=tokenizer_seconds_on(GPUS[name], workload, batch_size) / batch_size,
    )


def step_seconds_on(gpu: Gpu, found: Counted, form: Form, parameters: int) -> GpuSeconds:
    """Of one step of a network with so many parameters."""
    bandwidth = gpu.bandwidth * BANDWIDTH_SHARE
    others = found.others[form]
    calls = others.calls + found.products.calls + found.attention.calls
    return GpuSeconds(
        products=max(found.product_flops / gpu.matrix_rate, found.products.bytes / bandwidth),
        attention=max(found.attention_flops / (ATTENTION_SHARE * gpu.peak), found.attention.bytes / bandwidth),
        others=others.bytes / bandwidth,
        update=UPDATE_NUMBERS * FLOAT * parameters / bandwidth,
        host=HOST_SECONDS * calls,
    )


def counted(workload: Workload, images: int, *, recompute: bool) -> Counted:
    """What a step of this many images computes and moves in bfloat16, autocast as in runs."""
    # Both depths are counted, and the rest is as much more for every block.
    first, blocks = workload.least_depth, workload.network.backbone.depth
    shallow, deep = (_chains(workload.of_depth(first + more), images, recompute=recompute) for more in (0, 1))
    products, eager, fused = (
        _extended(getattr(shallow, name), getattr(deep, name), blocks - first) for name in ("products", "eager", "fused")
    )
    # Everything as chains but what the network without blocks saves by that.
    rest_eager, rest_fused = (_extended(getattr(shallow, n), getattr(deep, n), -first) for n in ("eager", "fused"))
    by_block = Count(fused.calls - rest_fused.calls + rest_eager.calls, fused.bytes - rest_fused.bytes + rest_eager.bytes)
    backbone = workload.network.backbone
    tokens, heads = 1 + backbone.grid[0] * backbone.grid[1], backbone.heads
    stream = images * tokens * backbone.width * HALF
    # Forward: queries, keys and values in, results out. Backward: these and the results' gradient in, three gradients out.
    moved, calls = (4 + 8 + 4 * recompute) * stream, 2 + recompute
    if backbone.relative_positions != "none":  # the gradient of the bias is written for every image, and added up
        moved += 2 * images * heads * tokens**2 * HALF
        calls += 1
    attention = 4 * tokens**2 * backbone.width * images * blocks
    return Counted(
        product_flops=images * workload.flops.step(recompute=recompute) - (3 + recompute) * attention,
        products=products,
        attention_flops=(ATTENTION_PASSES + recompute) * attention,
        attention=Count(blocks * calls, blocks * moved),
        others={"off": eager, "blocks": by_block, "objective": fused},
    )


def _extended(less: Count, more: Count, blocks: int) -> Count:
    """The count of a network of so many blocks more than the one of `less`; that of `more` has one more."""
    return Count(*(first + blocks * (second - first) for first, second in zip(less, more, strict=True)))


def tokenizer_seconds_on(gpu: Gpu, workload: Workload, images: int) -> float:
    """Of a batch's tokens in bfloat16, by an eager tokenizer; 0 without one."""
    if workload.tokenizer is None:
        return 0.0
    config = workload.tokenizer
    with without_content(lambda: tokenizer_network(config)) as network:
        shown = workload.token_images(images, CPU).contiguous(memory_format=torch.channels_last)
        with _counting(workload, images) as chains, torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            network.encode(shown.float().div_(255))
    bandwidth = gpu.bandwidth * BANDWIDTH_SHARE
    products = max(images * workload.tokenizer_flops / gpu.matrix_rate, chains.products.bytes / bandwidth)
    return products + chains.eager.bytes / bandwidth


@cache
def _chains(workload: Workload, images: int, *, recompute: bool) -> Chains:
    """A forward and a backward pass, counted on tensors without content."""
    with without_content(workload.objective) as objective:
        set_recompute(objective.train(), recompute)
        batch = workload.batch(images, CPU)
        with _counting(workload, images) as chains:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = objective(batch, 0.0).total
            loss.backward()
    return chains


def _counting(workload: Workload, images: int) -> Chains:
    grid = workload.grid
    return Chains(images, 1 + grid[0] * grid[1])
