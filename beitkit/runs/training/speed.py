"""Compilation and activation checkpointing, and what of it a run uses.

Compiled are either the Transformer blocks, one graph that all share, or the whole objective, one graph from batch to loss.
The latter leaves fewer intermediate results in memory, but takes longer to compile the deeper the network is, and its backward
pass hands over all gradients at its end, where several processes could not exchange them meanwhile: so it is for one process and
a GPU.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch
from torch import nn

from beitkit.configs.train import Form, SpeedConfig
from beitkit.errors import UserError
from beitkit.files import read_json
from beitkit.nn.backbone import Backbone
from beitkit.nn.blocks import Block, set_recompute
from beitkit.planning.rates import NoiseSteps
from beitkit.planning.workload import Workload
from beitkit.train.folder import RunFolder
from beitkit.train.machine.processes import ALONE
from beitkit.train.machine.runtime import Runtime
from beitkit.train.schedule import Schedule

COMPILED_FROM = {"cpu": 3e14, "cuda": 1e17}
"""By device, the floating point operations from which on compiling is considered: minutes of a CPU, below which it could not win
back its own time; some minutes of a GPU, by estimate."""
TRIED_FROM = 1800.0
"""Seconds from which on a run on a CPU tries whether it is faster compiled; what is tried costs about one minute."""
TRIAL = 30.0
"""Seconds of steps that take turns in a trial."""
TRIAL_ROUNDS = 3, 15
"""Turns of each, at least and at most."""
GAIN = 1.02
"""How many times as fast compiled steps must be: less is noise."""
LEAST_CAPABILITY = (7, 0)
"""Of a GPU for which Triton, PyTorch's compiler for them, makes kernels."""
FILE = "speed.json"


class Trial(NamedTuple):
    """What a run would try, to see how it is faster."""

    workload: Workload
    batch_size: int
    """Images of a forward pass."""


class Chosen(NamedTuple):
    """What is compiled, and why."""

    form: Form
    seconds: dict[str, float]
    """Median of a step in the trial, by form; empty where nothing was tried."""

    @property
    def words(self) -> str:
        """To put after `Runtime.describe`; empty if nothing is compiled."""
        if self.form == "off":
            return ""
        ratio = self.seconds["off"] / self.seconds[self.form] if self.seconds else None
        what = "compiled as a whole" if self.form == "objective" else "compiled"
        return f", {what}" if ratio is None else f", {what} ({ratio:.2f} times as fast in a trial)"


def accelerate(
    objective: nn.Module,
    config: SpeedConfig,
    runtime: Runtime,
    schedule: Schedule,
    *,
    folder: RunFolder | None = None,
    trial: Trial | None = None,
    is_static: bool = True,
) -> str:
    """Compile, or turn on activation checkpointing; returns words to put after `Runtime.describe`.

    Args:
        objective: of the run.
        config: what is asked for.
        runtime: where it runs.
        schedule: how long it is.
        folder: of the run, where what "auto" decides is kept, so that a continued run computes the same.
        trial: what "auto" may try on a CPU; None tries nothing, and compiles nothing there.
        is_static: whether all batches have the same shapes; else blocks alone are compiled.

    Raises:
        UserError: if compiling is asked for and cannot be done here.
    """
    set_recompute(objective, config.recompute)
    chosen = Chosen("off", {})
    if config.compile == "on":
        if (missing := _missing(runtime)) is not None:
            raise UserError(f"`speed.compile='on'` needs {missing}; install it, or give `speed.compile='off'`")
        chosen = Chosen(_fullest(runtime, is_static=is_static), {})
    elif config.compile == "auto":
        own = _decided(objective, config, runtime, schedule, folder, trial, is_static=is_static) if runtime.is_main else None
        decided = runtime.processes.all_gather(own)[0]
        assert decided is not None
        chosen = decided
    compile_as(objective, chosen.form)
    return chosen.words + (", recomputing" if config.recompute else "")


def compile_as(objective: nn.Module, form: Form, options: dict[str, Any] | None = None) -> None:
    """Have the training steps of an objective compiled, or not; evaluation stays eager, as its shapes vary.

    `options` of Inductor besides. Random numbers are those of eager steps.
    """
    blocks = [module for module in objective.modules() if isinstance(module, Block)]
    for block in blocks:
        block.compiled = None
    objective._compiled_call_impl = None
    if form == "off":
        return
    # PyTorch's internal warnings, which a user cannot act on.
    warnings.filterwarnings("ignore", module=r"torch\.(_inductor|_dynamo|_functorch)\b.*")
    # What earlier runs of this process compiled counts against PyTorch's limit of shapes, past which it stops in silence.
    torch.compiler.reset()
    if form == "objective":
        objective.compile(dynamic=False, options={"fallback_random": True, **(options or {})})
        return
    for block in blocks:
        block.compile_training(takes_factors=any(other.drop_path > 0 for other in blocks))


def _decided(
    objective: nn.Module,
    config: SpeedConfig,
    runtime: Runtime,
    schedule: Schedule,
    folder: RunFolder | None,
    trial: Trial | None,
    *,
    is_static: bool,
) -> Chosen:
    """What "auto" means for this run: as it began, or as is best here."""
    path = None if folder is None else folder.path / FILE
    can_compile = runtime.kind in COMPILED_FROM and _missing(runtime) is None
    if path is not None and path.exists():
        begun = _read(path)
        return begun if can_compile else Chosen("off", {})
    chosen = Chosen("off", {})
    if can_compile and _operations(objective, runtime, schedule) >= COMPILED_FROM[runtime.kind]:
        if runtime.kind == "cuda":
            chosen = Chosen(_fullest(runtime, is_static=is_static), {})
        elif trial is not None:
            chosen = tried(trial, runtime, schedule, recompute=config.recompute)
    if folder is not None:
        folder.write_json(FILE, {"compile": chosen.form, "seconds": chosen.seconds})
    return chosen


def _read(path: Path) -> Chosen:
    try:
        content = read_json(path)
        form, seconds = content["compile"], dict(content["seconds"])
        if form not in get_args(Form) or (seconds and not all(seconds.get(name, 0) > 0 for name in ("off", "blocks"))):
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path} does not say what the run compiles; remove it, or give `speed.compile`") from None
    return Chosen(form, seconds)


def tried(trial: Trial, runtime: Runtime, schedule: Schedule, *, recompute: bool) -> Chosen:
    """Whether steps are faster with compiled blocks, timed on noise in turns with steps as they are; "off" for shorter runs."""
    alone = replace(runtime, processes=ALONE, sharding="none")
    passes = schedule.images_per_step // trial.batch_size / runtime.world_size
    with torch.random.fork_rng():  # the network that is timed draws weights
        step = NoiseSteps(trial.workload, trial.batch_size, alone, recompute=recompute, tokenizes=False)
        objective = step.trainer.objective
        step()  # the first one makes the moments
        if _seconds(step) * passes * schedule.steps < TRIED_FROM:
            return Chosen("off", {})
        compile_as(objective, "blocks")
        forms = {block: block.compiled for block in objective.modules() if isinstance(block, Block)}
        taken: dict[Form, list[float]] = {"off": [], "blocks": []}
        begin = time.perf_counter()
        try:
            step()
        except Exception:  # whatever a compiler comes to: what cannot be compiled here is not
            return Chosen("off", {})
        for turn in range(TRIAL_ROUNDS[1]):
            for form in taken:
                for block, compiled in forms.items():
                    block.compiled = compiled if form == "blocks" else None
                taken[form].append(_seconds(step))
            if turn + 1 >= TRIAL_ROUNDS[0] and time.perf_counter() - begin > TRIAL:
                break
    seconds = {form: statistics.median(times) for form, times in taken.items()}
    return Chosen("blocks" if seconds["off"] >= GAIN * seconds["blocks"] else "off", seconds)


def _seconds(step: Callable[[], object]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def _fullest(runtime: Runtime, *, is_static: bool) -> Form:
    """The most that is worth compiling on this device."""
    return "objective" if runtime.kind == "cuda" and runtime.world_size == 1 and is_static else "blocks"


def _operations(objective: nn.Module, runtime: Runtime, schedule: Schedule) -> float:
    """Of the run, on this device: forward and backward take 6 per weight and token."""
    per_image = sum(
        6 * (backbone.config.grid[0] * backbone.config.grid[1] + 1) * sum(weight.numel() for weight in backbone.parameters())
        for backbone in objective.modules()
        if isinstance(backbone, Backbone)
    )
    return per_image * schedule.steps * schedule.images_per_step / runtime.world_size


def _missing(runtime: Runtime) -> str | None:
    """What is missing on this machine to compile for a device, if anything."""
    if runtime.kind == "mps":
        return "a CUDA GPU or a CPU"
    if runtime.kind == "cuda":
        if importlib.util.find_spec("triton") is None:
            return "Triton, which PyTorch's packages for CUDA bring with them"
        capability = torch.cuda.get_device_capability(runtime.device)
        if capability < LEAST_CAPABILITY:
            found, least = (".".join(map(str, version)) for version in (capability, LEAST_CAPABILITY))
            return f"a GPU of compute capability {least} or newer (this one has {found})"
        return _compiler("CC", ("gcc", "clang", "cc"), "a C compiler such as gcc")
    return _compiler("CXX", ("g++", "clang++", "c++"), "a C++ compiler such as g++")


def _compiler(variable: str, names: tuple[str, ...], words: str) -> str | None:
    given = [os.environ[variable]] if variable in os.environ else names
    return None if any(shutil.which(name) for name in given) else words
