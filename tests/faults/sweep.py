"""Faults by the hundred: each case is one that must end well, and what is printed is how many of how many did.

    python tests/faults/sweep.py kills --count 200      # SIGKILL at random times; the run continues to the same bytes
    python tests/faults/sweep.py ranks --count 50       # a process of two under `torchrun --max-restarts` is killed
    python tests/faults/sweep.py signals --count 60     # SIGTERM, SIGINT and SIGUSR1 at random times; saved, then the same bytes
    python tests/faults/sweep.py flips --count 4000     # a bit of the newest checkpoint is flipped; the one before is restored
    python tests/faults/sweep.py requeue --count 20     # SLURM's warning, and the job that is queued again
    python tests/faults/sweep.py odd --count 140        # pipes, devices, links and empty files where something is read
    python tests/faults/sweep.py malice --count 350     # archives, indexes and checkpoints made to do harm

`make test` runs a few of each (`test_sweep.py`). Cases are drawn by `--seed`; when processes are hit is not repeatable.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from multiprocessing.context import ForkProcess
from pathlib import Path

import hostile
import tiny_run
import torch
import torch._dynamo  # which the first step of an optimizer would import in every process that is forked
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from beitkit.system import peak_resident_bytes, reset_peak_memory
from beitkit.train.checkpoints.checkpoint import Checkpoints
from beitkit.train.checkpoints.manifest import Piece

FORK = multiprocessing.get_context("fork")
LAST = "step-00000040.0.safetensors"
"""Weights, moments and averages at the end of `tiny_run.py`."""
PATIENCE = 900
"""Seconds after which a process hangs; it takes one or two, and many times that on a busy machine."""
LONGEST = 20
"""Seconds of computing that a file may take; `PATIENCE` are those that it may wait."""
MOST_MEMORY = 300e6
"""Bytes that reading a small file may take."""
TIMED = ("images_per_second", "data_wait")
Say = Callable[[str], object]


def kills(count: int, rng: random.Random, room: Path, say: Say) -> int:
    """SIGKILL at a random time, again and again until a run has come to its end, then the next run."""
    reference, seconds = _unbroken(room)
    good = hit = number = 0
    while hit < count:
        number += 1
        folder, own = room / f"kills-{number}", 0
        while True:
            begun = time.monotonic()
            process = _started(folder)
            code = _waited(process, rng.uniform(0.3, 1.0) * seconds if hit + own < count else PATIENCE)
            if code is not None:
                if not own:  # the machine may be less busy than it was
                    seconds = time.monotonic() - begun
                break
            process.kill()
            process.join()
            own += 1
        hit += own
        if code == 0 and _ended(folder) == reference:
            good += own
        else:
            say(f"run {number}: exit code {code}, {'another' if code == 0 else 'no'} end after {own} kills")
        shutil.rmtree(folder)
    return good


def signals(count: int, rng: random.Random, room: Path, say: Say) -> int:
    """A signal at a random time: saved, the exit code says which, and the run continues to the same bytes."""
    reference, _ = _unbroken(room)
    good = 0
    for number in range(count):
        folder, sent = room / f"signals-{number}", (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)[number % 3]
        process = _started(folder, pause=0.04)
        _wait_for_a_line(folder, process)
        time.sleep(rng.uniform(0, 1.5))
        if process.is_alive():
            os.kill(_pid(process), sent)
        code = _waited(process, PATIENCE)
        is_saved = code == 0 or (code == 128 + sent and bool(list((folder / "checkpoints").glob("step-*.json"))))
        again = 0 if code == 0 else _waited(_started(folder), PATIENCE)
        if is_saved and again == 0 and _ended(folder) == reference:
            good += 1
        else:
            say(f"{sent.name}: exit code {code}, then {again}")
        shutil.rmtree(folder)
    return good


def ranks(count: int, rng: random.Random, room: Path, say: Say) -> int:
    """One of two processes under torchrun is killed; torchrun starts both again, and they end as two that nobody killed."""
    unbroken = room / "two"
    _waited(_launched(unbroken), PATIENCE)
    good, reference = 0, _ended(unbroken)
    number = 0
    while number < count:
        folder = room / f"ranks-{number}"
        process = _launched(folder)
        _wait_for_a_line(folder, process)
        time.sleep(rng.uniform(0, 1.5))
        workers = _children(_pid(process))
        if workers:
            os.kill(rng.choice(workers), signal.SIGKILL)
        code = _waited(process, PATIENCE)
        if code == 0 and not workers:  # it was over before anything could be killed
            shutil.rmtree(folder)
            continue
        number += 1
        if code == 0 and _ended(folder) == reference:
            good += 1
        else:
            say(f"case {number}: exit code {code} after one of {len(workers)} processes was killed")
            for pid in _children(_pid(process)):
                os.kill(pid, signal.SIGKILL)
            process.kill()
        shutil.rmtree(folder)
    return good


def requeue(count: int, rng: random.Random, room: Path, say: Say) -> int:
    """A stand-in for srun: starts two tasks, warns them by SIGUSR1 as `--signal=USR1@120` does, and queues the job again."""
    good = 0
    reference = b""
    for number in range(-1, count):
        folder, codes = room / f"requeue-{number}", [None, None]
        for restart in range(20):
            tasks = [_started(folder, pause=0.08, variables=_slurm(task, restart, 2, number)) for task in range(2)]
            if number >= 0 and restart == 0:  # later the journal is there before the run listens
                _wait_for_a_line(folder, tasks[0])
                time.sleep(rng.uniform(0, 0.4))
                for task in tasks:
                    os.kill(_pid(task), signal.SIGUSR1)
            codes = [_waited(task, PATIENCE) for task in tasks]
            if set(codes) != {128 + signal.SIGUSR1}:
                break
        if number < 0:
            reference = _ended(folder)
        elif codes == [0, 0] and _ended(folder) == reference:
            good += 1
        else:
            say(f"case {number}: exit codes {codes}")
        shutil.rmtree(folder)
    return good


def flips(count: int, rng: random.Random, room: Path, say: Say) -> int:
    """A random bit of the newest checkpoint is flipped, in its manifest or its tensors."""
    checkpoints = Checkpoints(room / "flips")
    for step in (1, 2):
        checkpoints.save(step, _state(step), {"best": step / 2})
    files = sorted(checkpoints.folder.glob("step-00000002*"))
    good = 0
    for number in range(count):
        path = rng.choice(files)
        whole = path.read_bytes()
        place = rng.randrange(8 * len(whole))
        path.write_bytes(whole[: place // 8] + bytes([whole[place // 8] ^ 1 << place % 8]) + whole[place // 8 + 1 :])
        try:
            manifest, into = checkpoints.newest(), _state(0)
            assert manifest is not None
            checkpoints.restore(manifest, into)
            good += into["weight"].rows.eq(manifest.step).all().item() and manifest.numbers == {"best": manifest.step / 2}
        except Exception as error:  # what is not handled is what this looks for
            say(f"case {number}: bit {place} of {path.name}: {error!r}")
        path.write_bytes(whole)
    return good


def odd(count: int, rng: random.Random, room: Path, say: Say) -> int:
    """Pipes, devices, links, empty files and others in the place of everything that is read."""
    (room / "good").mkdir()
    hostile.lay_out_good(room / "good")
    return _refused(list(hostile.odd_cases(room / "good")), count, rng, room, say)


def malice(count: int, rng: random.Random, room: Path, say: Say) -> int:
    """Archives, indexes and checkpoints made to do harm: nothing runs, nothing is written, little memory is taken."""
    (room / "good").mkdir()
    hostile.lay_out_good(room / "good")
    return _refused(list(hostile.hostile_cases(room / "good", room / "canary")), count, rng, room, say)


def _refused(cases: list[hostile.Case], count: int, rng: random.Random, room: Path, say: Say) -> int:
    """Try so many of the cases, each once before any comes again."""
    good = 0
    order: list[hostile.Case] = []
    before = _entries(room)
    while len(order) < count:
        order += rng.sample(cases, len(cases))
    for number, case in enumerate(order[:count]):
        (room / "case").mkdir()
        problem = _harm_of(case, room / "case")
        if not problem and _entries(room) - before != {"case"}:
            problem = f"wrote {sorted(_entries(room) - before)}"
        if problem:
            say(f"case {number}, {case.name}: {problem}")
        good += not problem
        shutil.rmtree(room / "case")
    return good


def _harm_of(case: hostile.Case, folder: Path) -> str:
    """What reading it does that it must not; empty if nothing."""
    path = case.make(folder)
    modules, there = set(sys.modules), _entries(folder)
    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(PATIENCE)
    begun = time.process_time()
    reset_peak_memory()
    taken = peak_resident_bytes() or 0
    try:
        case.read(path)
        if case.must_refuse:
            return "was read as if it were good"
    except hostile.REFUSED as error:
        if "\n" in str(error) or "\x1b" in str(error):
            return f"not one plain line: {str(error)!r}"
    except Exception as error:  # what is not handled is what this looks for
        return repr(error)
    finally:
        signal.alarm(0)
    if time.process_time() - begun > LONGEST:
        return f"took {time.process_time() - begun:.0f} s"
    if "antigravity" in set(sys.modules) - modules:
        return "something was imported"
    if _entries(folder) != there:
        return f"wrote {sorted(_entries(folder) - there)}"
    taken = (peak_resident_bytes() or 0) - taken
    return f"took {taken / 1e6:.0f} MB" if taken > MOST_MEMORY else ""


def _too_long(*_: object) -> None:
    raise TimeoutError(f"still reading after {PATIENCE} s")


def _entries(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


SWEEPS = {"kills": kills, "signals": signals, "ranks": ranks, "requeue": requeue, "flips": flips, "odd": odd, "malice": malice}


def sweep(kind: str, count: int, seed: int = 0, say: Say = print) -> bool:
    """Try so many cases; returns whether all ended well."""
    with tempfile.TemporaryDirectory() as room:
        good = SWEEPS[kind](count, random.Random(seed), Path(room), say)
    say(f"{kind}: {good} of {count}")
    return good == count


def _state(step: int) -> dict[str, Piece]:
    return {"weight": Piece(torch.full((500,), float(step)), (500,))}


def _started(folder: Path, pause: float = tiny_run.PAUSE, variables: Mapping[str, str] | None = None) -> ForkProcess:
    """A process of its own that trains in the folder or goes on there. It is forked, so that it has imported PyTorch already."""
    process = FORK.Process(target=_train, args=(folder, pause, variables or {}))
    process.start()
    return process


def _train(folder: Path, pause: float, variables: Mapping[str, str]) -> None:
    os.environ.update(variables)
    warnings.simplefilter("ignore")
    sys.exit(tiny_run.exit_code(folder, pause))


def _launched(folder: Path) -> ForkProcess:
    """What `torchrun --standalone --nproc-per-node=2 --max-restarts=3` does, with processes that are forked."""
    process = FORK.Process(target=_launch, args=(folder,))
    process.start()
    return process


def _launch(folder: Path) -> None:
    logging.disable()
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=2, max_restarts=3, start_method="fork", monitor_interval=0.1,
        rdzv_backend="c10d", rdzv_endpoint="localhost:0", run_id=folder.name,
    )  # fmt: skip
    elastic_launch(config, _train)(folder, 0.03, {})


def _waited(process: ForkProcess, seconds: float) -> int | None:
    """Its exit code as a shell would say it; None if it has none after so long."""
    process.join(seconds)
    return process.exitcode


def _pid(process: ForkProcess) -> int:
    assert process.pid is not None
    return process.pid


def _slurm(task: int, restart: int, tasks: int, number: int) -> dict[str, str]:
    """What srun sets for a task; the job keeps its number when it is queued again."""
    return {
        "SLURM_JOB_ID": str(10_000 + os.getpid() % 5_000 + 7 * number + 7),
        "SLURM_STEP_ID": str(restart),
        "SLURM_STEP_NUM_TASKS": str(tasks),
        "SLURM_PROCID": str(task),
        "SLURM_LOCALID": str(task),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_RESTART_COUNT": str(restart),
    }


def _unbroken(room: Path) -> tuple[bytes, float]:
    """How a run ends that nothing happens to, and how long it takes."""
    start = time.monotonic()
    _waited(_started(room / "unbroken"), PATIENCE)
    return _ended(room / "unbroken"), time.monotonic() - start


def _ended(folder: Path) -> bytes:
    """The last state, and the journal but for its times."""
    events = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    untimed = [{key: value for key, value in event.items() if key not in TIMED} for event in events if event["kind"] != "note"]
    return (folder / "checkpoints" / LAST).read_bytes() + json.dumps(untimed).encode()


def _wait_for_a_line(folder: Path, process: ForkProcess) -> None:
    journal = folder / "journal.jsonl"
    while process.is_alive() and not (journal.exists() and journal.stat().st_size):
        time.sleep(0.005)


def _children(pid: int) -> list[int]:
    """Processes that torchrun has started."""
    found = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in found.read_text().split()] if found.exists() else []


def main() -> int:
    """Sweep as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=SWEEPS)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    return 0 if sweep(options.kind, options.count, options.seed) else 1


if __name__ == "__main__":
    sys.exit(main())
