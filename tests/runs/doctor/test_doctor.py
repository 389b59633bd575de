"""`beitkit doctor`: what is broken is found, said with what to do, and ends with exit code 1; nothing else does."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch

import beitkit
from beitkit.cli import main
from beitkit.runs.doctor import devices
from beitkit.runs.doctor.devices import has_code_for, why_unusable
from beitkit.runs.doctor.packages import needed
from beitkit.runs.doctor.resources import resources

USABLE = {"has_driver": True, "cuda": "12.6", "is_available": True, "is_other_build": False, "error": ""}


def test_a_healthy_machine(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(devices, "has_nvidia_driver", torch.cuda.is_available)
    monkeypatch.setattr(metadata, "requires", lambda name: ["torch>=2.10", "numpy", "no-such-thing; extra == 'dicom'"])
    state = torch.random.get_rng_state()
    found = beitkit.doctor(seconds=0.02)
    assert not found.is_broken
    assert found.devices[0].kind == "cpu"
    assert all(1e8 < rate < 1e16 for rate in found.devices[0].rates.values())
    assert "pip install 'beitkit[dicom]'" in capsys.readouterr().out
    assert torch.equal(state, torch.random.get_rng_state())
    with pytest.raises(SystemExit) as stopped:
        main(["doctor", "--json", "--seconds", "0.02"])
    assert stopped.value.code == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["is_broken"], said["beitkit"], said["torch_build"]) == (False, beitkit.__version__, found.torch_build)


def test_the_precision_that_auto_takes_on_an_old_gpu_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The GPU is played by the CPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75"])
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: False)
    real = devices.measured
    monkeypatch.setattr(devices, "measured", lambda device, name, seconds: real(torch.device("cpu"), name, seconds))
    beitkit.doctor(seconds=0.02)
    assert "--precision auto takes float16 on Tesla T4, with a scaled loss in training" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("requirement", "expected"),
    [
        ("torch>=99.1", f"torch is {torch.__version__}, which is too old: pip install --upgrade 'torch>=99.1'"),
        ("no-such-thing", "no-such-thing is not installed: pip install --upgrade no-such-thing"),
    ],
)
def test_a_package_that_is_missing_or_old_is_broken(
    requirement: str, expected: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(metadata, "requires", lambda name: [requirement])
    with pytest.raises(SystemExit) as stopped:
        main(["doctor", "--seconds", "0.02"])
    assert stopped.value.code == 1
    assert f"broken: {expected}" in capsys.readouterr().out


def test_torch_that_cannot_be_imported_is_said(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise OSError('libcudart.so.12: cannot open shared object file')")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from beitkit.cli import main; main(['doctor'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "broken: torch cannot be imported (libcudart.so.12: cannot open shared object file)" in done.stdout
    assert "Traceback" not in done.stderr


def test_a_gpu_that_torch_was_not_built_for(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(devices, "has_nvidia_driver", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert beitkit.doctor(seconds=0.02).is_broken
    assert "broken: there is a driver for an NVIDIA GPU, but this torch was built for CPUs only" in capsys.readouterr().out


def test_a_gpu_without_code_is_broken_and_not_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {
        "is_available": True,
        "device_count": 1,
        "get_device_name": "Tesla K80",
        "get_device_capability": (3, 7),
        "get_arch_list": ["sm_80", "sm_90"],
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    monkeypatch.setattr(torch.version, "hip", None)
    found = beitkit.doctor(seconds=0.02)
    assert found.is_broken
    assert [device.kind for device in found.devices] == ["cpu"]
    assert "this torch has no code for Tesla K80 (compute capability 3.7, it has sm_80, sm_90)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, None),
        ({"has_driver": False, "is_available": False, "cuda": None}, None),
        ({"is_available": False, "cuda": None}, "built for CPUs only"),
        ({"is_available": False, "error": "driver too old"}, "built for CUDA 12.6, cannot use it (driver too old)"),
        ({"is_available": False, "cuda": None, "is_other_build": True}, None),
    ],
)
def test_why_a_gpu_cannot_be_used(changed: dict[str, object], expected: str | None) -> None:
    reason = why_unusable(**{**USABLE, **changed})  # type: ignore[arg-type]
    assert reason is None if expected is None else expected in (reason or "")


@pytest.mark.parametrize(
    ("capability", "architectures", "expected"),
    [  # CUDA programming guide: binary code within a major number upward, PTX upward of all
        ((8, 6), ["sm_80"], True),
        ((8, 0), ["sm_86"], False),
        ((9, 0), ["sm_80", "sm_86"], False),
        ((9, 0), ["sm_80", "compute_80"], True),
        ((12, 0), ["sm_90", "sm_120"], True),
        ((12, 0), ["sm_90", "sm_100"], False),
        ((9, 0), ["sm_90a"], True),
        ((9, 1), ["sm_90a"], False),
        ((7, 5), [], False),
    ],
)
def test_code_for_a_compute_capability(capability: tuple[int, int], architectures: list[str], expected: bool) -> None:
    assert has_code_for(capability, architectures) is expected


def test_requirements_are_read_as_pip_does() -> None:
    versions = {"torch": "2.13.0+cpu", "tyro": "0.9.2", "ray": "2.1", "pillow": "12"}
    given = [
        "torch>=2.10",
        "tyro>=1.0",
        "pillow",
        "numpy",
        "ray[data]; extra == 'ray'",
        "pyarrow; extra == 'ray'",
        "ruff==1; extra == 'dev'",
    ]
    packages, extras = needed(given, versions.get)
    assert {package.name: package.is_fit for package in packages} == {
        "torch": True,
        "tyro": False,
        "pillow": True,
        "numpy": False,
    }
    assert [(extra.name, extra.missing) for extra in extras] == [("ray", ("pyarrow",))]


def test_limits_of_a_container(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:  1000000 kB\nMemFree: 5 kB\nMemAvailable:  600000 kB\n")
    without = resources(tmp_path / "meminfo", tmp_path / "none", tmp_path / "none")
    assert (without.memory, without.available, without.quota, without.shared) == (1_024_000_000, 614_400_000, None, None)
    for name, text in (("memory.max", "500000"), ("memory.current", "200000"), ("cpu.max", "150000 100000")):
        (tmp_path / name).write_text(text + "\n")
    inside = resources(tmp_path / "meminfo", tmp_path, tmp_path)
    assert (inside.memory, inside.available, inside.quota) == (500_000, 300_000, 1.5)
    assert (inside.shared or 0) > 0
    (tmp_path / "memory.max").write_text("max\n")
    assert resources(tmp_path / "meminfo", tmp_path).memory == 1_024_000_000
    assert resources(tmp_path / "nothing", tmp_path / "none").memory is None
