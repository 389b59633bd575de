"""What this machine has, or the container that this process is in: cores, memory, disk, devices."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import NamedTuple

from beitkit.files import read_text
from beitkit.system import usable_cores

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")
SHARED = Path("/dev/shm")


class ComputeDevice(NamedTuple):
    """A device that torch can use."""

    name: str
    kind: str
    memory: int | None
    """Bytes, of a GPU."""
    free: int | None
    rates: dict[str, float]
    """Operations per second of a large matrix product, by precision."""
    is_right: bool
    """Whether the products are what they should be."""


class Resources(NamedTuple):
    """What a run can have here; None where it cannot be told."""

    cores: int
    """That this process may use."""
    quota: float | None
    """Cores whose time the container gets."""
    memory: int | None
    """Bytes, of the container where it has a limit."""
    available: int | None
    """Of these, what is not in use."""
    shared: int | None
    """Bytes free for what worker processes hand over."""
    disk: int
    """Bytes free where the command was typed."""
    can_write: bool


def resources(meminfo: Path = MEMINFO, cgroup: Path = CGROUP, shared: Path = SHARED, here: Path = Path()) -> Resources:
    """What there is."""
    memory, available = _number(meminfo, "MemTotal:", 1024), _number(meminfo, "MemAvailable:", 1024)
    limit, used = _number(cgroup / "memory.max"), _number(cgroup / "memory.current")
    if limit is not None and (memory is None or limit < memory):
        memory, available = limit, max(0, limit - (used or 0))
    return Resources(
        cores=usable_cores(),
        quota=_quota(cgroup / "cpu.max"),
        memory=memory,
        available=available,
        shared=shutil.disk_usage(shared).free if shared.is_dir() else None,
        disk=shutil.disk_usage(here).free,
        can_write=os.access(here, os.W_OK),
    )


def _number(path: Path, key: str = "", unit: int = 1) -> int | None:
    """A number of a file of the kernel: the one behind the key, or the only one."""
    try:
        words = next(line.removeprefix(key).split() for line in read_text(path).splitlines() if line.startswith(key))
        return unit * int(words[0])
    except (OSError, ValueError, StopIteration, IndexError):
        return None


def _quota(path: Path) -> float | None:
    try:
        quota, period = read_text(path).split()
        return int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None
