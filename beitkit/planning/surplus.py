"""What the system's allocator holds beyond the tensors: freed pieces that the next tensors do not fit into.

On a CPU small tensors come from a heap, whose holes stay with the process. How much that is depends on the order in which a
step makes and frees tensors, so it is measured on whole steps of a network of few blocks, against their trace.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from torch import nn

from beitkit.configs.train import OptimConfig
from beitkit.planning.memory import plan_memory
from beitkit.planning.workload import Workload
from beitkit.train.optim import make_optimizer, parameter_groups
from beitkit.train.runtime import Runtime

STEPS = 3
"""Steps after which little is added."""


def resident_bytes() -> int:
    """Memory that this process holds now; where the system does not say, the most it ever held."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else most_resident_bytes()


def most_resident_bytes() -> int:
    """The most memory that this process ever held."""
    import resource  # not on Windows

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def allocator_factor(workload: Workload, pictures: int, runtime: Runtime) -> float:
    """How many times the traced bytes of training this workload takes in truth, at least 1; on a CPU only.

    It compares with the most this process ever held, so it has to come before anything else that is large.
    """
    traced = plan_memory(
        workload,
        pictures,
        own_passes=1,
        autocast=runtime.autocast,
        recompute=False,
        is_averaged=False,
        devices=1,
        is_sharded=False,
        process=0,
        factor=1.0,
    )
    before = resident_bytes()
    _train(workload, pictures, runtime)
    return max(1.0, (most_resident_bytes() - before) / traced.peak)


def _train(workload: Workload, pictures: int, runtime: Runtime) -> None:
    """Some steps as a run makes them: a batch, its tokens, forward, backward, update."""
    objective = workload.objective().train()
    tokenizer = None if workload.tokenizer is None else workload.tokenizer_network().eval()
    optimizer = make_optimizer(parameter_groups(objective, 0.05), OptimConfig())
    for _ in range(STEPS):
        batch = workload.batch(pictures, runtime.device)
        if tokenizer is not None:
            batch["tokens"] = tokenizer.encode(workload.token_images(pictures, runtime.device)).flatten(1)
        with runtime.precision():
            loss = objective(batch, 0.0).total
        loss.backward()
        nn.utils.clip_grad_norm_(objective.parameters(), 3.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        del loss
