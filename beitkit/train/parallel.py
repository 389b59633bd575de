"""Data parallelism: replicated weights (DDP, `train.replicas`) or sharded weights (FSDP2, `train.shards`).

In both cases the optimizer sees plain tensors: the parameters themselves (`Replicas`), or this rank's rows of them (`Shards`), in
the memory from which FSDP2 gathers blocks, and small ones whole. So clipping, AdamW, EMA and checkpoints are the same code for
both, and none of it uses DTensor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from torch import nn

from beitkit.contracts import sharding_units
from beitkit.errors import UserError
from beitkit.train.machine.runtime import Runtime
from beitkit.train.replicas import Replicas

if TYPE_CHECKING:
    from beitkit.train.shards import Shards

SHARDED_FROM = 300_000_000
"""Parameters from which "auto" shards: large has 303 million (method 1.1)."""

Parallel: TypeAlias = "Replicas | Shards"


def parallel(objective: nn.Module, runtime: Runtime) -> Parallel:
    """Wrap the objective, which is equal on all ranks, as `runtime.sharding` asks for: replicated or sharded.

    Raises:
        UserError: if weights are to be sharded and the network has no `ShardingUnit`.
    """
    if not shares_out(objective, runtime):
        return Replicas(objective, runtime)
    from beitkit.train.shards import Shards  # here, as importing FSDP2 takes most of a second

    return Shards(objective, runtime)


def shares_out(objective: nn.Module, runtime: Runtime) -> bool:
    """Whether to shard an objective's weights (see `parallel`)."""
    has_units = len(sharding_units(objective)) > 0
    if runtime.sharding == "full" and not has_units:
        raise UserError("`speed.sharding='full'` shards the blocks of a Transformer, and this network has none; leave it out")
    is_large = sum(parameter.numel() for parameter in objective.parameters()) >= SHARDED_FROM
    is_wanted = runtime.sharding == "full" or (runtime.sharding == "auto" and is_large and has_units)
    return is_wanted and runtime.world_size > 1
