"""Choosing device, precision and threads."""

import os
import signal

import pytest
import torch

from beitkit.configs.train import MachineConfig
from beitkit.errors import UserError
from beitkit.system import usable_cores
from beitkit.train.machine.launch import Rank
from beitkit.train.machine.runtime import StopRequest, _own_device, chosen_precision, start_runtime


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_the_device_is_chosen_in_the_stated_order(monkeypatch: pytest.MonkeyPatch) -> None:
    for cuda, mps, expected in ((True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: False)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda mps=mps: mps)
        assert start_runtime(MachineConfig(threads=1)).device.type == expected


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="`device='cuda'` was asked for"):
        start_runtime(MachineConfig(device="cuda"))


@pytest.mark.parametrize("has", [True, False])
def test_bfloat16_where_the_hardware_has_it(monkeypatch: pytest.MonkeyPatch, has: bool) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    runtime = start_runtime(MachineConfig(device="cpu", threads=1))
    assert runtime.autocast == (torch.bfloat16 if has else None)
    with runtime.precision():
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == (torch.bfloat16 if has else torch.float32)
    assert start_runtime(MachineConfig(device="cpu", precision="float32")).autocast is None
    assert start_runtime(MachineConfig(device="cpu", precision="bfloat16")).autocast == torch.bfloat16


def test_float16_on_gpus_without_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda")
    for has in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True, has=has: has)
        assert chosen_precision(gpu, MachineConfig()) is (torch.bfloat16 if has else torch.float16)
    with pytest.raises(UserError, match=r"this GPU does not multiply in it; try `precision='float16'`"):
        chosen_precision(gpu, MachineConfig(precision="bfloat16"))
    assert chosen_precision(torch.device("mps"), MachineConfig()) is None
    runtime = start_runtime(MachineConfig(device="cpu", precision="float16"))
    assert runtime.is_scaled
    assert "float16" in runtime.describe()
    with runtime.precision():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float16


def test_threads_follow_the_option_or_the_cores() -> None:
    start_runtime(MachineConfig(device="cpu", threads=3))
    assert torch.get_num_threads() == 3
    start_runtime(MachineConfig(device="cpu"))
    assert torch.get_num_threads() == usable_cores()


def test_the_first_signal_is_remembered_and_the_second_interrupt_stops() -> None:
    before = signal.getsignal(signal.SIGINT)
    with StopRequest().listening() as stop:
        assert stop.signal_number is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal_number == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_gpu_for_each_process(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert _own_device(torch.device("cuda"), Rank(rank=7, local_rank=3, world_size=8)) == torch.device("cuda", 3)
    with pytest.raises(UserError, match="process 4 of this machine has no GPU of its own, 4 can be seen"):
        _own_device(torch.device("cuda"), Rank(rank=4, local_rank=4, world_size=8))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    bound = Rank(rank=7, local_rank=3, world_size=8, sees_own_devices=True)
    assert _own_device(torch.device("cuda"), bound) == torch.device("cuda", 0)
    assert chosen == [3, 0]
    with pytest.raises(UserError, match="`device='mps'` works in one process only, got 8"):
        _own_device(torch.device("mps"), bound)
