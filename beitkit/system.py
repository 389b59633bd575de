"""What is asked of the operating system: files that are whole whenever the process dies, the cores and the memory one uses."""

from __future__ import annotations

import ctypes
import os
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4  # glibc's malloc.h


def write_atomically(path: Path, content: bytes | Callable[[IO[bytes]], object]) -> None:
    """Write a file beside its place, flush it to the disk, then move it there; creates the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            if isinstance(content, bytes):
                file.write(content)
            else:
                content(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, RuntimeError) and isinstance(error.__context__, OSError):
            raise error.__context__ from None  # torch.save hides a full disk behind an error of its own
        raise


def quoted(path: Path) -> str:
    """A path as it can be pasted into a shell."""
    return shlex.quote(str(path))


def usable_cores() -> int:
    """Cores this process may run on, which can be fewer than the machine has: its share where torchrun started several."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    sharing = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return max(1, cores // int(sharing)) if sharing.isdecimal() and int(sharing) else cores


def resident_bytes() -> int | None:
    """Memory that this process holds now; known on Linux only."""
    return _kilobytes("VmRSS")


def peak_resident_bytes() -> int | None:
    """The most memory that this process held, since `reset_peak_memory` if that was called; known on Linux only.

    It is not `ru_maxrss`, which a new process inherits from the one that started it.
    """
    return _kilobytes("VmHWM")


def reset_peak_memory() -> None:
    """Let the peak fall to what is resident now, where the system allows it (man 5 proc)."""
    if sys.platform == "linux":
        _RESET.write_text("5")


def _kilobytes(key: str) -> int | None:
    if sys.platform != "linux":
        return None
    found = re.search(rf"^{key}:\s+(\d+) kB$", _STATUS.read_text(), flags=re.MULTILINE)
    return None if found is None else 1024 * int(found[1])


def keep_heap(is_kept: bool = True) -> None:
    """Let the C library keep memory that is freed for the next tensor, or give it back to the system as it does by itself.

    By itself glibc gives every large block back at once, and the system then fills the next one with zeros page by page: a
    network on a CPU spends much of its time on that (docs/performance.md). Does nothing where the C library is another one, or
    where the environment has settings of the user's own.
    """
    if any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # no such function; TypeError: Windows has no library without a name
        return
    # What glibc settles at by itself once large blocks were freed; it settles no more after the first of these calls.
    settled = {M_MMAP_MAX: 65536, M_MMAP_THRESHOLD: 32 * 2**20, M_TRIM_THRESHOLD: 64 * 2**20}
    for parameter, value in ({M_MMAP_MAX: 0, M_TRIM_THRESHOLD: -1} if is_kept else settled).items():
        mallopt(parameter, value)


def trim_heap() -> None:
    """Let glibc give the system what is free of its heap now; nothing with another C library."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):
        return
