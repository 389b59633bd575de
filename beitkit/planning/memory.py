"""Memory of a training step, traced by running one on fake tensors.

The real objective runs forward and backward in the real precision on fake tensors, which have shapes, types and storages but no
memory. Every storage is counted until it is freed. So activations, autocast's copies of the weights, gradients and temporaries
are counted exactly.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from contextlib import AbstractContextManager
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from beitkit.configs.model import MaskedImageModelConfig
from beitkit.nn.blocks import set_recompute
from beitkit.nn.shapes import only_shapes
from beitkit.planning.workload import CPU, Workload, backbone_of, count_parameters, tokenizer_network, without_content
from beitkit.train.machine.runtime import rounding_once

FLOAT = 4
"""Bytes of a float32 number, in which weights, gradients and moments are kept."""
MOMENTS = 2
"""AdamW's, of each weight."""


class Traced(NamedTuple):
    """Bytes in one training step beyond weights, moments and the batch."""

    activations: int
    """Kept from the forward for the backward pass, without what follows; with autocast the lower-precision copies of weights."""
    cast_weights: int
    """Of these, autocast's copies of the weights."""
    logits: int
    """Logits, their float32 copy and the loss: held when the forward pass ends, and not by the network below the head."""
    peak: int
    """Most at any time between zeroed gradients and the end of the backward pass, gradients included."""


class Memory(NamedTuple):
    """Bytes on one device, by part, and at each of the moments that can be the fullest."""

    process: int
    """Python, torch and the libraries; on a GPU that of the host is not counted."""
    weights: int
    gradients: int
    moments: int
    average: int
    """Moving average of the weights."""
    tokenizer: int
    tokenizer_activations: int
    """Most while a batch is tokenized."""
    trial: int
    """Most while its precision is tried, when a run starts."""
    batch: int
    """Images as they were read and as they are normalized, with their tokens and masks."""
    exchange: int
    """What data parallelism holds: buckets, in which the gradients lie all the time, or blocks that sharding has gathered."""
    traced: Traced
    step: int
    """Traced peak, of which gradients are part."""
    surplus: int
    """What the allocator holds beyond the tensors, once a step was made."""

    @property
    def resident(self) -> int:
        """What is there all the time."""
        fixed = self.process + self.weights + self.moments + self.average + self.tokenizer
        return fixed + self.batch + self.exchange + self.surplus

    @property
    def moments_in_time(self) -> dict[str, int]:
        """What is held while the tokenizer is tried, a batch is tokenized, goes forward and backward, and the weights change."""
        return {
            "trying the tokenizer": self.process + self.weights + self.tokenizer + self.surplus + self.trial,
            "tokenizing": self.resident + self.tokenizer_activations,
            "forward and backward": self.resident + self.step,
            "update": self.resident + self.gradients,
        }

    @property
    def peak(self) -> int:
        """Most at any time."""
        return max(self.moments_in_time.values())


def plan_memory(
    workload: Workload,
    batch_size: int,
    *,
    own_accumulation_steps: int,
    autocast: torch.dtype | None,
    recompute: bool,
    is_averaged: bool,
    devices: int,
    is_sharded: bool,
    process: int,
    surplus: float,
) -> Memory:
    """What one of `devices` holds, which share a step.

    Args:
        own_accumulation_steps: forward passes of a step on this device.
        autocast: precision of matrix products; None is float32.
        recompute: whether the blocks' activations are computed again for the backward pass.
        is_averaged: whether a moving average of the weights is kept.
        is_sharded: whether weights, gradients and moments are divided among the devices.
        process: bytes of Python and its libraries.
        surplus: bytes that the allocator takes beyond the tensors, for each image (`rates.allocator_surplus`).
    """
    traced = trace_step(
        workload, batch_size, accumulation_steps=min(2, own_accumulation_steps), autocast=autocast, recompute=recompute
    )
    with only_shapes():
        objective = workload.objective()
    weights = FLOAT * count_parameters(objective)
    exchange, gradients, step = 0, weights, traced.peak
    share = devices if is_sharded else 1
    if devices > 1:  # gradients are views of DDP's buckets, which stay
        exchange, gradients = weights, 0
        step = max(traced.activations + traced.logits, traced.peak - weights)
    if is_sharded:
        blocks = backbone_of(objective).blocks
        block, gathered = count_parameters(next(iter(blocks))), FLOAT if autocast is None else autocast.itemsize
        # Two blocks are gathered at a time, the next one ahead; one has its whole gradient before it is divided in float32.
        exchange, gradients = (2 * gathered + FLOAT + (0 if autocast is None else gathered)) * block, weights // share
        # What is gathered in the run's precision is not rounded once more for the backward pass.
        step += gradients - (0 if autocast is None else min(traced.cast_weights, gathered * block * len(blocks)))
    tokenizer, activations = _tokenizer(workload, batch_size, autocast)
    trial = 0 if autocast is None else _tokenizer(workload, workload.tried, None)[1]
    return Memory(
        process=process,
        weights=weights // share,
        gradients=gradients,
        moments=MOMENTS * weights // share,
        average=weights // share if is_averaged else 0,
        tokenizer=tokenizer,
        tokenizer_activations=activations,
        trial=trial,
        batch=_batch(workload, batch_size),
        exchange=exchange,
        traced=traced,
        step=step,
        surplus=round(batch_size * surplus),
    )


@cache
def trace_step(
    workload: Workload, images: int, *, accumulation_steps: int, autocast: torch.dtype | None, recompute: bool
) -> Traced:
    """Run `accumulation_steps` forward and backward passes of this many images on fake tensors, adding up gradients."""
    with without_content(workload.objective) as objective:
        set_recompute(objective, recompute)
        batch, logits = workload.batch(images, CPU), _logits(workload, images)
        return traced_passes(objective.train(), batch, accumulation_steps=accumulation_steps, autocast=autocast, logits=logits)


def traced_passes(
    objective: nn.Module, batch: dict[str, Tensor], *, accumulation_steps: int, autocast: torch.dtype | None, logits: int
) -> Traced:
    """What the passes held, of fake or real tensors."""
    live = LiveStorages([*objective.parameters(), *objective.buffers(), *batch.values()])
    forward, cast = 0, 0
    with live, rounding_once("cpu", accumulation_steps):
        for _ in range(accumulation_steps):
            before = live.bytes
            with _precision(autocast):
                loss = objective(batch, 0.0).total
            forward, cast = live.bytes - before, live.cast_bytes
            loss.backward()
            del loss
    return Traced(activations=max(0, forward - logits), cast_weights=cast, logits=min(logits, forward), peak=live.peak)


class LiveStorages(TorchDispatchMode):
    """Counts the bytes of all storages that operations make, from when they are made until nothing refers to them."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        """`known` are the tensors that are not counted."""
        super().__init__()
        self.bytes = self.peak = self.cast_bytes = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in known}
        self._counted: weakref.WeakValueDictionary[int, torch.UntypedStorage] = weakref.WeakValueDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        """Run the operation, and count what it made."""
        result = func(*args, **(kwargs or {}))
        is_cast = func is torch.ops.aten._to_copy.default and args[0].untyped_storage()._cdata in self._known
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf, is_cast=is_cast and leaf.dtype != args[0].dtype)
        return result

    def _count(self, tensor: Tensor, *, is_cast: bool) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata in self._known or storage._cdata in self._counted:
            return
        size = storage.nbytes()
        self._counted[storage._cdata] = storage
        self.bytes += size
        self.cast_bytes += size if is_cast else 0
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(storage, self._forget, size, size if is_cast else 0)

    def _forget(self, size: int, cast: int) -> None:
        self.bytes -= size
        self.cast_bytes -= cast


@cache
def _tokenizer(workload: Workload, batch_size: int, precision: torch.dtype | None) -> tuple[int, int]:
    """Bytes of the tokenizer's weights, and the most that encoding a batch holds beside them; 0 without one."""
    config = workload.tokenizer
    if config is None or not batch_size:
        return 0, 0
    with without_content(lambda: tokenizer_network(config)) as network:
        images = workload.token_images(batch_size, CPU)
        own = [*network.parameters(), *network.buffers()]
        live = LiveStorages([*own, images])
        with live, torch.no_grad(), _precision(precision):
            # As `tokenizers.frozen.Encoder` does, which asks for a fingerprint that weights without content do not have.
            network.encode(images.contiguous(memory_format=torch.channels_last).float().div_(255))
    return sum(tensor.nbytes for tensor in own), live.peak


def _batch(workload: Workload, images: int) -> int:
    """The images as uint8 and float32, those of the tokenizer as uint8, and what comes with them."""
    with FakeTensorMode():
        batch = workload.batch(images, CPU)
        seen = 0 if workload.tokenizer is None else workload.token_images(images, CPU).nbytes
    return sum(tensor.nbytes for tensor in batch.values()) + batch["images"].numel() + seen


def _logits(workload: Workload, images: int) -> int:
    """Log-softmax of the logits in float32, for the backward pass; that of classes is too small to matter."""
    network = workload.network
    if not isinstance(network, MaskedImageModelConfig):
        return 0
    assert network.vocabulary is not None
    predictions = 1 if network.cls_branch is None else 2
    return predictions * FLOAT * images * workload.predicted * network.vocabulary


def _precision(autocast: torch.dtype | None) -> AbstractContextManager[Any]:
    return torch.autocast("cpu", dtype=autocast, enabled=autocast is not None)
