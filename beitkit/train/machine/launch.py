"""Rank, world size and rendezvous address, from torchrun's or SLURM's environment, or from that of `devices`.

Nothing here imports torch: the command line needs the rank before it loads anything.
"""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

from beitkit.errors import UserError

SLURM_PORTS = range(20000, 32000)
"""First of the ports to choose from by job id; below the system's ephemeral ports."""

STEP_SIZES = ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS")
"""Where SLURM says how many tasks a step has, the surer place first."""

LIFELINE = "BEITKIT_LIFELINE"
"""Environment variable of a process that `devices` started: its standard input ends when the command that started it does."""
LOST = 75
"""Exit code by which such a process says that another one ended, and that it has nothing to add (EX_TEMPFAIL)."""
PARTING = 30.0
"""Seconds that it has to save when the command that started it is gone; torchrun's time."""


@dataclass(frozen=True, kw_only=True)
class Rank:
    """Rank, world size and rendezvous address of a process."""

    rank: int = 0
    local_rank: int = 0
    """Rank on its machine."""
    world_size: int = 1
    """Number of processes."""
    address: str = ""
    port: int = 0
    is_meeting_served: bool = False
    """Whether the launcher serves the store at the address; otherwise rank 0 does."""
    attempt: int = 0
    """How often the launcher has restarted the processes."""
    sees_own_devices: bool = False
    """Whether a single visible GPU belongs to this process alone (SLURM's --gpus-per-task)."""


def rank_from_environment(environment: Mapping[str, str] = os.environ) -> Rank:
    """The rank that the launcher has set; a single process without a launcher.

    Raises:
        UserError: if the launcher's variables are missing or inconsistent.
    """
    if _number(environment, "WORLD_SIZE", default=1) > 1:
        return _checked(
            Rank(
                rank=_number(environment, "RANK"),
                local_rank=_number(environment, "LOCAL_RANK"),
                world_size=_number(environment, "WORLD_SIZE"),
                address=_text(environment, "MASTER_ADDR"),
                port=_number(environment, "MASTER_PORT"),
                is_meeting_served=environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
                attempt=_number(environment, "TORCHELASTIC_RESTART_COUNT", default=0),
            ),
            "RANK and WORLD_SIZE",
        )
    # A batch script has SLURM_NTASKS too, but only processes started by `srun` have a step id. The shell that `salloc` opens is a
    # step of one task in a job of many: SLURM_NTASKS is the job's there, SLURM_STEP_NUM_TASKS always the step's.
    is_step = "SLURM_STEP_ID" in environment and "WORLD_SIZE" not in environment
    size = next((name for name in STEP_SIZES if name in environment), STEP_SIZES[-1])
    if is_step and _number(environment, size, default=1) > 1:
        job = _number(environment, "SLURM_JOB_ID", default=0) + _number(environment, "SLURM_STEP_ID", default=0)
        nodes = environment.get("SLURM_STEP_NODELIST") or _text(environment, "SLURM_NODELIST")
        return _checked(
            Rank(
                rank=_number(environment, "SLURM_PROCID"),
                local_rank=_number(environment, "SLURM_LOCALID"),
                world_size=_number(environment, size),
                address=environment.get("MASTER_ADDR") or first_host(nodes),
                port=_number(environment, "MASTER_PORT", default=SLURM_PORTS[job % len(SLURM_PORTS)]),
                attempt=_number(environment, "SLURM_RESTART_COUNT", default=0),
                sees_own_devices=True,
            ),
            f"SLURM_PROCID and {size}",
        )
    return Rank()


def joined_devices() -> bool:
    """Whether `devices` started this process; it then stops as on SIGTERM when the command that started it is gone."""
    if os.environ.pop(LIFELINE, None) is None:
        return False
    threading.Thread(target=_stop_with_the_command, daemon=True).start()
    return True


def _stop_with_the_command() -> None:
    os.read(0, 1)  # nobody writes: it returns when the other end is closed, by an exit or by a kill
    if os.environ.get("RANK") != "0":
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the command read our error output; a warning must not stop us from saving
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
    time.sleep(PARTING)
    os.killpg(0, signal.SIGKILL)  # with its workers


def failing_mark(rank: int) -> str:
    """How a line begins in which a process says why it ends."""
    return f"beitkit (process {rank}): " if rank else "beitkit: "


def first_host(nodes: str) -> str:
    """The first name of a SLURM node list: `gpu[03-05,7],cpu1` begins with gpu03."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes)
    assert first is not None
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first[0])


def _number(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    if default is not None and name not in environment:
        return default
    text = _text(environment, name)
    if not text.isdecimal():
        raise UserError(f"the environment variable {name} must be a whole number, got {text!r}; a launcher should set it")
    return int(text)


def _text(environment: Mapping[str, str], name: str) -> str:
    if name not in environment:
        asked = next(asking for asking in ("WORLD_SIZE", *STEP_SIZES) if asking in environment)
        raise UserError(
            f"{asked} asks for {environment[asked]} processes, but the environment variable {name} is not set; "
            f"start with torchrun or srun, or unset {asked}"
        )
    return environment[name]


def _checked(rank: Rank, names: str) -> Rank:
    if rank.rank >= rank.world_size:
        raise UserError(f"there is no process {rank.rank} of {rank.world_size}, counted from 0: {names} contradict each other")
    return rank
