"""Compilation and activation checkpointing of Transformer blocks."""

from __future__ import annotations

import math
import os
import shutil
import warnings

import torch
from torch import nn

from beitkit.configs.train import SpeedConfig
from beitkit.errors import UserError
from beitkit.nn.backbone import Backbone
from beitkit.nn.blocks import Block, set_recompute
from beitkit.train.machine.runtime import Runtime
from beitkit.train.schedule import Schedule

COMPILED_FROM = {"cpu": 3e14, "cuda": 1e17}
"""By device, the floating point operations from which on a run is compiled: half an hour of two CPU cores, where compiling took
up to 27 s and won tiny networks 3 to 6% (docs/performance.md); some minutes of a GPU, by estimate."""
COMPILED_UP_TO = {"cpu": 2e10, "cuda": math.inf}
"""By device, the operations of an image up to which it is: on a CPU larger networks, from small on, won nothing or lost 4%."""


def accelerate(objective: nn.Module, config: SpeedConfig, runtime: Runtime, schedule: Schedule) -> str:
    """Compile blocks or turn on activation checkpointing; returns words to put after `Runtime.describe`.

    Raises:
        UserError: if compiling is asked for and there is no compiler.
    """
    blocks = [module for module in objective.modules() if isinstance(module, Block)]
    set_recompute(objective, config.recompute)
    is_compiled = config.compile == "on" or (config.compile == "auto" and _pays(objective, runtime, schedule))
    if config.compile == "on" and (missing := _missing(runtime.kind)) is not None:
        raise UserError(f"`speed.compile='on'` needs {missing}; install it, or give `speed.compile='off'`")
    if is_compiled:
        # PyTorch's internal warnings, which a user cannot act on.
        warnings.filterwarnings("ignore", module=r"torch\.(_inductor|_dynamo|_functorch)\b.*")
        # What earlier runs of this process compiled counts against PyTorch's limit of shapes, past which it stops in silence.
        torch.compiler.reset()
        for block in blocks:
            block.compile_training()
    return "".join(f", {word}" for word, holds in (("compiled", is_compiled), ("recomputing", config.recompute)) if holds)


def _pays(objective: nn.Module, runtime: Runtime, schedule: Schedule) -> bool:
    if runtime.kind not in COMPILED_FROM or _missing(runtime.kind) is not None:
        return False
    # Forward and backward take 6 operations per weight and token.
    per_image = sum(
        6 * (backbone.config.grid[0] * backbone.config.grid[1] + 1) * sum(weight.numel() for weight in backbone.parameters())
        for backbone in objective.modules()
        if isinstance(backbone, Backbone)
    )
    operations = per_image * schedule.steps * schedule.images_per_step / runtime.world_size
    return operations >= COMPILED_FROM[runtime.kind] and per_image <= COMPILED_UP_TO[runtime.kind]


def _missing(kind: str) -> str | None:
    """What is missing on this machine to compile for a device, if anything."""
    if kind == "mps":
        return "a CUDA GPU or a CPU"
    compilers = [os.environ["CXX"]] if "CXX" in os.environ else ["g++", "clang++", "c++"]
    return None if any(shutil.which(compiler) for compiler in compilers) else "a C++ compiler such as g++"
