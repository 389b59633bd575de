"""Fragmentation of the CPU heap: memory that the allocator holds beyond the tensors.

On a CPU most tensors are on the heap, whose holes stay with the process. glibc could return every large tensor at once
(`MALLOC_MMAP_THRESHOLD_`), but then the kernel zeroes the same memory again in every step (docs/guide/plan.md). The size of the
holes depends on the order of allocations, so it is measured on real steps against their trace; for a slow network, on two with
fewer blocks.
"""

from __future__ import annotations

from beitkit.planning.memory import trace_step
from beitkit.planning.steps import NoiseSteps
from beitkit.planning.workload import Workload
from beitkit.system import peak_resident_bytes, reset_peak_memory, resident_bytes, trim_heap
from beitkit.train.machine.runtime import Runtime

STEPS = 3
"""Steps after which little is added."""
MOST_FLOPS = 5e11
"""Operations of one of these steps, at most; the whole network makes them if it can."""
BLOCKS_MORE = 1, 5
"""Blocks beyond the fewest there can be in the two networks that stand for a larger one: the holes grow with the depth, in
proportion but for a constant."""


def allocator_surplus(workload: Workload, batch_size: int, runtime: Runtime, *, recompute: bool) -> float:
    """Bytes beyond the traced ones that training this workload takes, for each image; 0 where that cannot be known."""
    if runtime.device.type != "cpu" or resident_bytes() is None:
        return 0.0
    if batch_size * workload.flops.step(recompute=recompute) <= MOST_FLOPS:
        return _surplus(workload, batch_size, runtime, recompute=recompute) / batch_size
    shallow, deep = (workload.of_depth(workload.least_depth + more) for more in BLOCKS_MORE)
    images = max(1, min(batch_size, int(MOST_FLOPS / deep.flops.step(recompute=recompute))))
    less, more = (_surplus(part, images, runtime, recompute=recompute) for part in (shallow, deep))
    each = max(0, more - less) / (BLOCKS_MORE[1] - BLOCKS_MORE[0])
    return (less + each * (workload.network.backbone.depth - shallow.network.backbone.depth)) / images


def _surplus(workload: Workload, images: int, runtime: Runtime, *, recompute: bool) -> int:
    """Bytes beyond the traced ones that some steps of this workload take."""
    traced = trace_step(workload, images, accumulation_steps=1, autocast=runtime.autocast, recompute=recompute)
    trim_heap()  # else the steps would take what was here before them
    reset_peak_memory()
    before = resident_bytes()
    step = NoiseSteps(workload, images, runtime, recompute=recompute, tokenizes=True)
    for _ in range(STEPS):
        step()
    held = peak_resident_bytes()
    assert before is not None
    assert held is not None
    return max(0, held - before - traced.peak)
