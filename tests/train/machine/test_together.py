"""Processes that `--devices` starts: what they are told, and how they end together. Small programs stand in for beitkit."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from beitkit.configs.train import MachineConfig
from beitkit.errors import UserError
from beitkit.train.machine import together
from beitkit.train.machine.launch import LOST, Rank, rank_from_environment
from beitkit.train.machine.together import Ended, count_of, run_together

CPU = MachineConfig(device="cpu")
START = """
import os, signal, sys, time
rank, here = int(os.environ["RANK"]), sys.argv[1]
open(f"{here}/began-{rank}", "w").write(str(os.getpid()))
"""
WAITS = "time.sleep(60)\n"
SAVES = """
def saved(number, frame):
    print(f"beitkit (process {rank}): stopped", file=sys.stderr) if rank else None
    open(f"{here}/saved-{rank}", "w")
    os._exit(128 + number)
signal.signal(signal.SIGINT, saved), signal.signal(signal.SIGTERM, saved)
open(f"{here}/ready-{rank}", "w")
"""


def together_in(folder: Path, code: str, count: int = 2) -> Ended:
    return run_together([sys.executable, "-c", START + textwrap.dedent(code), str(folder)], count)


def when(is_so: Callable[[], bool], then: Callable[[], object]) -> threading.Thread:
    """Does something as soon as something is so."""

    def watch() -> None:
        until = time.monotonic() + 60
        while not is_so() and time.monotonic() < until:
            time.sleep(0.01)
        then()

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]


def began(folder: Path, rank: int) -> int:
    return int((folder / f"began-{rank}").read_text())


def test_each_is_told_who_it_is(tmp_path: Path) -> None:
    code = 'import json; json.dump(dict(os.environ), open(f"{here}/environment-{rank}", "w"))'
    assert together_in(tmp_path, code, 3) == Ended(0, [])
    import json

    found = [json.loads((tmp_path / f"environment-{rank}").read_text()) for rank in range(3)]
    ranks = [rank_from_environment(environment) for environment in found]
    (port,) = {rank.port for rank in ranks}
    assert ranks == [
        Rank(rank=rank, local_rank=rank, world_size=3, address="127.0.0.1", port=port, is_meeting_served=True)
        for rank in range(3)
    ]
    assert [environment["LOCAL_WORLD_SIZE"] for environment in found] == ["3"] * 3


def test_a_mistake_that_all_find_is_said_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code = """
    print(f"beitkit (process {rank}): no images" if rank else "beitkit: no images", file=sys.stderr)
    sys.exit(2)
    """
    assert together_in(tmp_path, code, 3) == Ended(2, [])
    assert capfd.readouterr().err == "beitkit: no images\n"


def test_one_fails_and_the_others_notice(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """What it says of a failure is left to be said at the end; everything else is passed on."""
    code = f"""
    if rank != 1:
        time.sleep(0.3)
        sys.exit({LOST})
    print("careful", file=sys.stderr)
    print("beitkit (process 1): no space left", file=sys.stderr)
    sys.exit(1)
    """
    assert together_in(tmp_path, code, 3) == Ended(1, ["process 1: no space left"])
    assert capfd.readouterr().err == "careful\n"
    assert together_in(tmp_path, code.replace("sys.exit(1)", "sys.exit(2)")) == Ended(2, ["no space left"])
    silent = "sys.exit(7 if rank else 75)"
    assert together_in(tmp_path, silent) == Ended(7, ["process 1 failed with exit code 7"])


@pytest.mark.parametrize("is_deaf", [False, True])
def test_those_that_do_not_notice_are_made_to_end(is_deaf: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of an exchange over NCCL, for instance, which neither ends nor lets signals through."""
    monkeypatch.setattr(together, "PATIENCE", 0.3)
    monkeypatch.setattr(together, "GRACE", 0.3)
    deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" if is_deaf else ""
    code = "if rank: sys.exit(3)\n"
    assert together_in(tmp_path, deaf + code + WAITS) == Ended(3, ["process 1 failed with exit code 3"])
    assert not is_running(began(tmp_path, 0))


def test_one_that_is_killed_is_named(tmp_path: Path) -> None:
    code = f"""
    if rank:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.3)
    sys.exit({LOST})
    """
    ended = together_in(tmp_path, code)
    assert ended.code == 128 + signal.SIGKILL
    assert ended.lines == ["process 1 was killed by SIGKILL, as the system does where memory is short"]
    assert ended.is_lost


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_all_once_and_they_save(
    number: signal.Signals, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(number)
    thread = when(lambda: len(list(tmp_path.glob("ready-*"))) == 2, lambda: os.kill(os.getpid(), number))
    assert together_in(tmp_path, SAVES + WAITS) == Ended(128 + number, [])
    thread.join()
    assert sorted(path.name for path in tmp_path.glob("saved-*")) == ["saved-0", "saved-1"]
    assert capfd.readouterr().err == ""
    assert signal.getsignal(number) is before


def test_one_that_a_signal_ends_before_it_listens_says_nothing_so_we_do(tmp_path: Path) -> None:
    thread = when(lambda: len(list(tmp_path.glob("began-*"))) == 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert together_in(tmp_path, WAITS) == Ended(128 + signal.SIGTERM, ["stopped at once"], is_lost=True)
    thread.join()


def test_a_second_ctrl_c_ends_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those that neither Ctrl-C reaches."""
    monkeypatch.setattr(together, "AT_ONCE", 0.1)
    code = 'signal.signal(signal.SIGINT, signal.SIG_IGN); open(f"{here}/ready-{rank}", "w")\n'

    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.3)
        assert is_running(began(tmp_path, 0))  # the first is a request
        os.kill(os.getpid(), signal.SIGINT)

    thread = when(lambda: len(list(tmp_path.glob("ready-*"))) == 2, twice)
    assert together_in(tmp_path, code + WAITS).code == 128 + signal.SIGINT
    thread.join()
    assert not any(is_running(began(tmp_path, rank)) for rank in (0, 1))


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked up in /proc")
def test_nobody_is_left_when_the_command_is_killed(tmp_path: Path) -> None:
    """They stop as on SIGTERM: those that save do."""
    joins = "from beitkit.train.machine.launch import joined_devices\nassert joined_devices()\n"
    program = f"""
import sys
from beitkit.train.machine.together import run_together
run_together([sys.executable, "-c", {START + SAVES + joins + WAITS!r}, sys.argv[1]], 2)
"""
    command = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)])
    when(lambda: len(list(tmp_path.glob("ready-*"))) == 2, command.kill).join()
    command.wait()
    until = time.monotonic() + 30
    while any(is_running(began(tmp_path, rank)) for rank in (0, 1)) and time.monotonic() < until:
        time.sleep(0.01)
    assert not any(is_running(began(tmp_path, rank)) for rank in (0, 1))
    assert sorted(path.name for path in tmp_path.glob("saved-*")) == ["saved-0", "saved-1"]


def test_how_many(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert count_of(3, CPU) == 3
    assert count_of("all", CPU) == 1
    assert "--devices all is one process here, as there is no GPU" in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert (count_of("all", MachineConfig()), count_of(2, MachineConfig()), count_of(1, MachineConfig())) == (2, 2, 1)
    assert count_of(3, CPU) == 3
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(UserError, match=r"--devices 3 asks for 3 GPUs, and 2 can be seen; give at most 2, or all"):
        count_of(3, MachineConfig())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,3")
    with pytest.raises(UserError, match=r"2 can be seen \(CUDA_VISIBLE_DEVICES=0,3\)"):
        count_of(3, MachineConfig())
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    with pytest.raises(UserError, match="cannot share the one GPU of a Mac"):
        count_of(2, MachineConfig(device="mps"))
