"""The trace on tensors without content against real steps, and the sums."""

import pytest
import torch
from torch import Tensor

from beitkit.configs.model import BackboneConfig, ClassifierConfig, MaskedImageModelConfig
from beitkit.configs.tokenizer import DVAEConfig
from beitkit.planning.memory import FLOAT, Memory, plan_memory, trace_step, traced_passes
from beitkit.planning.workload import Workload, count_parameters

BACKBONE = {"image_size": (48, 64), "patch": (16, 16), "width": 32, "depth": 3, "heads": 2, "hidden": 64, "drop_path": 0.1}
MASKED = Workload(
    network=MaskedImageModelConfig(backbone=BackboneConfig(**BACKBONE, mask_token=True), vocabulary=50),
    tokenizer=DVAEConfig(vocabulary=50, hidden=16),
    predicted=5,
)
CLASSIFY = Workload(network=ClassifierConfig(backbone=BackboneConfig(**BACKBONE, final_norm=False), classes=("a", "b")))


def kept_by_hooks(workload: Workload, autocast: torch.dtype | None) -> int:
    """Bytes of the storages that a real forward pass of four images keeps, parameters and batch left out."""
    objective, batch = workload.objective().train(), workload.batch(4, torch.device("cpu"))
    known = {tensor.untyped_storage()._cdata for tensor in (*objective.parameters(), *objective.buffers(), *batch.values())}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage()._cdata not in known:
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", dtype=autocast, enabled=autocast is not None),
    ):
        loss = objective(batch, 0.0).total
    assert loss.isfinite()
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
@pytest.mark.parametrize("workload", [MASKED, CLASSIFY], ids=["masked", "classify"])
def test_activations_are_those_that_a_real_step_keeps(workload: Workload, autocast: torch.dtype | None) -> None:
    traced = trace_step(workload, 4, accumulation_steps=1, autocast=autocast, recompute=False)
    # The loss itself, which nothing saves, and masks that are views of what was known before make the small rest.
    assert traced.activations + traced.logits == pytest.approx(kept_by_hooks(workload, autocast), rel=0.03)
    assert (traced.cast_weights > 0) == (autocast is not None)


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_fake_tensors_trace_what_real_ones_do(autocast: torch.dtype | None) -> None:
    objective, batch = MASKED.objective().train(), MASKED.batch(4, torch.device("cpu"))
    real = traced_passes(objective, batch, accumulation_steps=2, autocast=autocast, logits=0)
    fake = trace_step(MASKED, 4, accumulation_steps=2, autocast=autocast, recompute=False)
    # Under autocast they differ by two hundred bytes, which were not traced to their operation.
    assert fake.peak == pytest.approx(real.peak, rel=1e-3)
    assert fake.activations + fake.logits == pytest.approx(real.activations, rel=1e-3)
    assert fake.cast_weights == real.cast_weights


def test_recomputing_keeps_less() -> None:
    kept, again = (trace_step(MASKED, 8, accumulation_steps=1, autocast=None, recompute=recompute) for recompute in (False, True))
    assert again.activations < kept.activations / 2
    assert again.peak < kept.peak


def planned(devices: int, *, is_sharded: bool = False) -> Memory:
    return plan_memory(
        MASKED, 4, own_accumulation_steps=1, autocast=None, recompute=False, is_averaged=True, devices=devices,
        is_sharded=is_sharded, process=1000, surplus=0.0,
    )  # fmt: skip


def test_states_are_whole_on_every_device_or_divided() -> None:
    size = FLOAT * count_parameters(MASKED.objective())
    alone, copied, sharded = planned(1), planned(4), planned(4, is_sharded=True)
    assert (alone.weights, alone.gradients, alone.moments, alone.average, alone.exchange) == (size, size, 2 * size, size, 0)
    assert (copied.exchange, copied.gradients) == (size, 0), "gradients are views of the buckets"
    assert alone.peak <= copied.peak < alone.peak + size, "which are there in the forward pass as well"
    assert (sharded.weights, sharded.moments) == (size // 4, 2 * size // 4)


def test_the_peak_is_the_fullest_moment_and_not_the_sum_of_all() -> None:
    memory = planned(1)
    resident = 1000 + 4 * memory.weights + memory.tokenizer + memory.batch
    assert memory.moments_in_time["tokenizing"] == resident + memory.tokenizer_activations
    assert memory.moments_in_time["update"] == resident + memory.gradients
    assert memory.peak == resident + max(memory.tokenizer_activations, memory.traced.peak)
