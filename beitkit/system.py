"""Atomic file writes, waiting, usable cores, memory statistics and heap settings."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import shlex
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4  # glibc's malloc.h


def write_atomically(path: Path, content: bytes | Callable[[IO[bytes]], object], size: int = 0) -> None:
    """Write to a temporary file, fsync it, rename it to `path` and fsync the folder, which is created if need be.

    `size` is how many bytes a writer will write, for the message if they do not fit.

    Raises:
        OSError: with the file's name; where the disk is full, also how much was needed and how much is free.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Two processes that write the same file must not write into each other's half.
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    written = 0
    try:
        with temporary.open("wb") as file:
            try:
                if isinstance(content, bytes):
                    file.write(content)
                else:
                    content(file)
            finally:
                written = file.tell()
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, RuntimeError) and isinstance(error.__context__, OSError):
            error = error.__context__  # torch.save hides a full disk behind an error of its own
        if isinstance(error, OSError):
            raise _named(error, path, max(size, written, len(content) if isinstance(content, bytes) else 0)) from None
        raise


def append(path: Path, content: bytes) -> None:
    """Add to the end of a file: all of it or, if there is no room, nothing.

    Raises:
        OSError: as `write_atomically`.
    """
    with path.open("ab", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        try:
            if file.write(content) != len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            with contextlib.suppress(OSError):
                file.truncate(end)
            raise _named(error, path, len(content)) from None


def drop_from_cache(path: Path) -> None:
    """Let the next reader of a file see what the disk holds, where the system can."""
    if hasattr(os, "posix_fadvise"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def is_full(error: OSError) -> bool:
    """Whether the disk, or what the user may have of it, is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def free_bytes(path: Path) -> int:
    """Free space on the disk of a file or folder that may not be there yet."""
    return shutil.disk_usage(next(folder for folder in (path, *path.absolute().parents) if folder.exists())).free


def _named(error: OSError, path: Path, size: int) -> OSError:
    """An error in writing `path`, with its name and, where the disk is full, the numbers."""
    reason = error.strerror or str(error)
    if is_full(error):
        reason += f" ({size / 1e6:.3g} MB are needed, {free_bytes(path) / 1e6:.3g} MB are free)"
    return OSError(error.errno, reason, str(path))


def _sync_folder(folder: Path) -> None:
    """Make sure that the names in a folder outlast a power cut, where the system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


_waiting_since: float | None = None


@contextmanager
def waiting() -> Iterator[None]:
    """The main thread waits for images inside the block: a disk that is gone may keep it there for ever."""
    global _waiting_since
    before, _waiting_since = _waiting_since, time.monotonic()
    try:
        yield
    finally:
        _waiting_since = before


def seconds_waited() -> float | None:
    """For how long it has waited; None if it does not."""
    return None if _waiting_since is None else time.monotonic() - _waiting_since


def quoted(path: Path) -> str:
    """A path quoted for the shell."""
    return shlex.quote(str(path))


def usable_cores(environment: Mapping[str, str] = os.environ) -> int:
    """CPU cores for this process: its affinity mask, or its share where others of its kind may use the same ones.

    A task that `srun` started has SLURM_CPUS_PER_TASK, else what the job has on the machine divided among the tasks there, as the
    mask holds all of them unless SLURM binds tasks. Of that the processes that torchrun started there have equal parts
    (LOCAL_WORLD_SIZE).
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if "SLURM_STEP_ID" in environment:
        if of_task := _count(environment, "SLURM_CPUS_PER_TASK"):
            cores = min(cores, of_task)
        elif of_job := _count(environment, "SLURM_CPUS_ON_NODE"):
            cores = min(cores, of_job // _tasks_here(environment))
    return max(1, cores // max(1, _count(environment, "LOCAL_WORLD_SIZE")))


def _count(environment: Mapping[str, str], name: str) -> int:
    """A number that a launcher has set; 0 where there is none."""
    text = environment.get(name, "")
    return int(text) if text.isdecimal() else 0


def _tasks_here(environment: Mapping[str, str]) -> int:
    """How many tasks of a SLURM step are on this machine; 1 if SLURM does not say it as expected."""
    each = environment.get("SLURM_STEP_TASKS_PER_NODE", "")  # as "2(x3),1": two on each of three machines, one on the fourth
    if not re.fullmatch(r"\d+(\(x\d+\))?(,\d+(\(x\d+\))?)*", each):
        return 1
    found = re.findall(r"(\d+)(?:\(x(\d+)\))?", each)
    counts = [int(tasks) for tasks, times in found for _ in range(int(times or 1))]
    node = _count(environment, "SLURM_NODEID")
    return max(1, counts[node]) if node < len(counts) else 1


def is_first_process() -> bool:
    """Whether this is the process that speaks for all that torchrun or srun started, or the only one."""
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"


def resident_bytes() -> int | None:
    """Resident memory of this process; None except on Linux."""
    return _kilobytes("VmRSS")


def peak_resident_bytes() -> int | None:
    """Peak resident memory of this process, since `reset_peak_memory` if that was called; None except on Linux.

    It is not `ru_maxrss`, which a new process inherits from the one that started it.
    """
    return _kilobytes("VmHWM")


def reset_peak_memory() -> None:
    """Reset the peak to the memory resident now, where the kernel allows it (man 5 proc)."""
    if sys.platform == "linux":
        _RESET.write_text("5")


def _kilobytes(key: str) -> int | None:
    if sys.platform != "linux":
        return None
    found = re.search(rf"^{key}:\s+(\d+) kB$", _STATUS.read_text(), flags=re.MULTILINE)
    return None if found is None else 1024 * int(found[1])


def keep_heap(is_kept: bool = True) -> None:
    """Let malloc keep freed memory for the next tensor, or return it to the system as by default.

    By default glibc returns every large block at once, and the kernel zeroes the next one page by page, which costs much of a
    step on a CPU (docs/performance.md). Does nothing with another C library, or if the user has set malloc variables.
    """
    if any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # no such function; TypeError: Windows has no library without a name
        return
    # What glibc adapts to by itself once large blocks were freed; after the first mallopt call it no longer adapts.
    settled = {M_MMAP_MAX: 65536, M_MMAP_THRESHOLD: 32 * 2**20, M_TRIM_THRESHOLD: 64 * 2**20}
    for parameter, value in ({M_MMAP_MAX: 0, M_TRIM_THRESHOLD: -1} if is_kept else settled).items():
        mallopt(parameter, value)


def trim_heap() -> None:
    """Return free heap memory to the system now (glibc only)."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):
        return
