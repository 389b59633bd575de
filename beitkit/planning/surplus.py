"""What the system's allocator holds beyond the tensors: freed pieces that the next tensors do not fit into.

On a CPU most tensors come from a heap, whose holes stay with the process. glibc would hand every large tensor back at once if
told to (`MALLOC_MMAP_THRESHOLD_`), but then every step waits for the system to clear the same memory again (docs/guide/plan.md).
How large the holes are depends on the order in which a step makes and frees tensors, so it is measured on whole steps, of large
networks with few of their blocks, against their trace.
"""

from __future__ import annotations

from beitkit.planning.memory import plan_memory
from beitkit.planning.steps import NoiseSteps
from beitkit.planning.workload import Workload
from beitkit.system import forget_peak_resident_bytes, peak_resident_bytes, resident_bytes
from beitkit.train.runtime import Runtime

STEPS = 3
"""Steps after which little is added."""


def allocator_factor(workload: Workload, pictures: int, runtime: Runtime, *, recompute: bool) -> float:
    """How many times the traced bytes of training this workload are resident, at least 1; 1 where that cannot be known."""
    before = resident_bytes()
    if runtime.device.type != "cpu" or before is None:
        return 1.0
    traced = plan_memory(
        workload,
        pictures,
        own_passes=1,
        autocast=runtime.autocast,
        recompute=recompute,
        is_averaged=False,
        devices=1,
        is_sharded=False,
        process=0,
        factor=1.0,
    )
    forget_peak_resident_bytes()
    step = NoiseSteps(workload, pictures, runtime, recompute=recompute, tokenizes=True)
    for _ in range(STEPS):
        step()
    held = peak_resident_bytes()
    assert held is not None
    return max(1.0, (held - before) / traced.peak)
