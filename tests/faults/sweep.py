"""Faults by the hundred: each case is one that must end well, and what is printed is how many of how many did.

    python tests/faults/sweep.py kills --count 200      # SIGKILL at random times; the run continues to the same bytes
    python tests/faults/sweep.py ranks --count 50       # a process of two under `torchrun --max-restarts` is killed
    python tests/faults/sweep.py signals --count 60     # SIGTERM, SIGINT and SIGUSR1 at random times; saved, then the same bytes
    python tests/faults/sweep.py flips --count 4000     # a bit of the newest checkpoint is flipped; the one before is restored
    python tests/faults/sweep.py requeue --count 20     # SLURM's warning, and the job that is queued again

`make test` runs a few of each (`test_sweep.py`). Cases are drawn by `--seed`; when processes are hit is not repeatable.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from beitkit.train.checkpoints.checkpoint import Checkpoints
from beitkit.train.checkpoints.manifest import Piece

HERE = Path(__file__).parent
RUN = [sys.executable, str(HERE / "tiny_run.py")]
LAST = "step-00000040.0.safetensors"
"""Weights, moments and averages at the end of `tiny_run.py`."""
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
            process = subprocess.Popen([*RUN, str(folder)], env=_environment())
            try:
                code = process.wait(rng.uniform(0.3, 1.0) * seconds if hit + own < count else None)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                own += 1
                continue
            break
        hit += own
        if code == 0 and _ended(folder) == reference:
            good += own
        else:
            say(f"run {number}: exit code {code}, {'the same' if code == 0 else 'no'} end after {own} kills")
        shutil.rmtree(folder)
    return good


def signals(count: int, rng: random.Random, room: Path, say: Say) -> int:
    """A signal at a random time: saved, the exit code says which, and the run continues to the same bytes."""
    reference, _ = _unbroken(room)
    good = 0
    for number in range(count):
        folder, sent = room / f"signals-{number}", (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)[number % 3]
        process = subprocess.Popen([*RUN, str(folder)], env=_environment(pause=0.04))
        _wait_for_a_line(folder, process)
        time.sleep(rng.uniform(0, 1.5))
        process.send_signal(sent)
        code = process.wait(120)
        is_saved = code == 0 or (code == 128 + sent and bool(list((folder / "checkpoints").glob("step-*.json"))))
        again = 0 if code == 0 else subprocess.run([*RUN, str(folder)], check=False, env=_environment()).returncode
        if is_saved and again == 0 and _ended(folder) == reference:
            good += 1
        else:
            say(f"{sent.name}: exit code {code}, then {again}")
        shutil.rmtree(folder)
    return good


def ranks(count: int, rng: random.Random, room: Path, say: Say) -> int:
    """One of two processes under torchrun is killed; torchrun starts both again, and they end as two that nobody killed."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=3"]
    start = time.monotonic()
    unbroken = room / "two"
    subprocess.run([*launcher, RUN[1], str(unbroken)], check=True, env=_environment(), capture_output=True)
    seconds, reference = time.monotonic() - start, _ended(unbroken)
    good = 0
    for number in range(count):
        folder = room / f"ranks-{number}"
        process = subprocess.Popen(
            [*launcher, RUN[1], str(folder)], env=_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        _wait_for_a_line(folder, process)
        time.sleep(rng.uniform(0, 0.1) * seconds)
        workers = _children(process.pid)
        if workers:
            os.kill(rng.choice(workers), signal.SIGKILL)
        try:
            code = process.wait(180)
        except subprocess.TimeoutExpired:
            process.kill()
            code = -9
        if code == 0 and workers and _ended(folder) == reference:
            good += 1
        else:
            say(f"case {number}: exit code {code} after one of {len(workers)} processes was killed")
        shutil.rmtree(folder)
    return good


def requeue(count: int, rng: random.Random, room: Path, say: Say) -> int:
    """A stand-in for srun: starts two tasks, warns them by SIGUSR1 as `--signal=USR1@120` does, and queues the job again."""
    good = 0
    reference = b""
    for number in range(-1, count):
        folder, codes = room / f"requeue-{number}", [10]
        for restart in range(20):
            tasks = [
                subprocess.Popen(
                    [*RUN, str(folder)],
                    env=_environment(pause=0.08) | _slurm(task, restart, 2, number),
                    stderr=subprocess.DEVNULL,
                )
                for task in range(2)
            ]
            if number >= 0 and restart == 0:  # later the journal is there before the run listens
                _wait_for_a_line(folder, tasks[0])
                time.sleep(rng.uniform(0, 0.4))
                for task in tasks:
                    task.send_signal(signal.SIGUSR1)
            codes = [task.wait(120) for task in tasks]
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


SWEEPS = {"kills": kills, "signals": signals, "ranks": ranks, "requeue": requeue, "flips": flips}


def sweep(kind: str, count: int, seed: int = 0, say: Say = print) -> bool:
    """Try so many cases; returns whether all ended well."""
    with tempfile.TemporaryDirectory() as room:
        good = SWEEPS[kind](count, random.Random(seed), Path(room), say)
    say(f"{kind}: {good} of {count}")
    return good == count


def _state(step: int) -> dict[str, Piece]:
    return {"weight": Piece(torch.full((500,), float(step)), (500,))}


def _environment(pause: float = 0.01) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1]), "TINY_RUN_PAUSE": str(pause)}


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
    subprocess.run([*RUN, str(room / "unbroken")], check=True, env=_environment())
    return _ended(room / "unbroken"), time.monotonic() - start


def _ended(folder: Path) -> bytes:
    """The last state, and the journal but for its times."""
    events = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    untimed = [{key: value for key, value in event.items() if key not in TIMED} for event in events if event["kind"] != "note"]
    return (folder / "checkpoints" / LAST).read_bytes() + json.dumps(untimed).encode()


def _wait_for_a_line(folder: Path, process: subprocess.Popen[bytes]) -> None:
    journal = folder / "journal.jsonl"
    while process.poll() is None and not (journal.exists() and journal.stat().st_size):
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
