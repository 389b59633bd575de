"""`beitkit doctor`: what this machine has, and what is missing or broken; that may be torch, so it begins without."""

from __future__ import annotations

import os
import platform
import shutil
from importlib import metadata
from types import ModuleType
from typing import Any, NamedTuple

from beitkit.report.normal import Level, Line
from beitkit.report.table import Column, Table, plain
from beitkit.runs.doctor.config import DoctorRun
from beitkit.runs.doctor.packages import Extra, Package, needed
from beitkit.runs.doctor.resources import ComputeDevice, Resources, resources
from beitkit.system import usable_cores
from beitkit.terminal import one_line
from beitkit.version import __version__

GIB = 2**30
LITTLE_DISK, LITTLE_MEMORY, LITTLE_SHARED = 5 * GIB, 2 * GIB, GIB // 4
"""Less than this is worth a note: a run folder of BEiT-B takes 1.4 GB, and workers hand batches over in shared memory."""
SIGNS: dict[Level, str] = {"ok": "ok", "note": "note", "warn": "broken"}


class MachineCheck(NamedTuple):
    """What `beitkit.doctor` returns."""

    beitkit: str
    python: str
    platform: str
    packages: tuple[Package, ...]
    extras: tuple[Extra, ...]
    torch_build: str
    """cpu, or what GPUs torch was built for; empty without torch."""
    threads: int | None
    """That torch computes with by default; a run takes the cores."""
    resources: Resources
    devices: tuple[ComputeDevice, ...]
    lines: tuple[Line, ...]
    """What is broken ("warn") comes first."""

    @property
    def is_broken(self) -> bool:
        """Whether beitkit cannot do its work here as it should."""
        return any(line.state == "warn" for line in self.lines)


def run(config: DoctorRun) -> MachineCheck:
    """Look, measure, and print."""
    lines: list[Line] = []
    packages, extras = _packages(lines)
    there = resources()
    devices, build, threads = (), "", None
    torch = _torch(lines)
    if torch is not None:
        build = (
            f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {torch.version.hip}" if torch.version.hip else "CPU"
        )
        threads = torch.get_num_threads()
        devices = _devices(torch, config.seconds, lines)
    lines += _about_resources(there)
    if not any(shutil.which(name) for name in ("g++", "clang++", "c++")) and "CXX" not in os.environ:
        lines.append(Line("note", "there is no C++ compiler, so --speed.compile stays off: install g++ or clang++"))
    lines += [Line("note", f"not installed: {extra.use}: {_install(extra.name)}") for extra in extras if extra.missing]
    order = ("warn", "note", "ok")
    found = MachineCheck(
        beitkit=__version__,
        python=platform.python_version(),
        platform=platform.platform(),
        packages=packages,
        extras=extras,
        torch_build=build,
        threads=threads,
        resources=there,
        devices=devices,
        lines=tuple(sorted(lines, key=lambda line: order.index(line.state))),
    )
    _print(found)
    return found


def answer(_: DoctorRun, found: MachineCheck) -> dict[str, Any]:
    """What `--json` prints."""
    return plain(found) | {"is_broken": found.is_broken}


def _install(extra: str) -> str:
    return f"pip install 'beitkit[{extra}]'"


def _packages(lines: list[Line]) -> tuple[tuple[Package, ...], tuple[Extra, ...]]:
    try:
        packages, extras = needed(metadata.requires("beitkit") or [])
    except metadata.PackageNotFoundError:
        lines.append(
            Line("note", "beitkit runs from its source and is not installed, so its packages were not looked at: pip install .")
        )
        return (), ()
    for package in packages:
        if not package.is_fit:
            wanted = f"'{package.name}>={package.least}'" if package.least else package.name
            what = "is not installed" if package.version is None else f"is {package.version}, which is too old"
            lines.append(Line("warn", f"{package.name} {what}: pip install --upgrade {wanted}"))
    if packages and all(package.is_fit for package in packages):
        lines.append(Line("ok", f"all {len(packages)} packages that beitkit needs are there"))
    return packages, extras


def _torch(lines: list[Line]) -> ModuleType | None:
    """torch, if it can be imported; whatever its libraries raise is the finding."""
    try:
        import torch
    except Exception as error:  # a library that is missing or of another machine is an OSError, a RuntimeError, ...
        lines.append(
            Line("warn", f"torch cannot be imported ({one_line(str(error))}): install it again (pytorch.org, Get started)")
        )
        return None
    return torch


def _devices(torch: ModuleType, seconds: float, lines: list[Line]) -> tuple[ComputeDevice, ...]:
    """All devices that torch can use, measured; what is wrong with them."""
    from beitkit.configs.train import MachineConfig
    from beitkit.contracts import precision_name  # here, as what follows: it imports torch
    from beitkit.runs.doctor.devices import has_code_for, has_nvidia_driver, measured, why_unusable
    from beitkit.train.machine.runtime import chosen_precision

    is_available, error = torch.cuda.is_available(), ""
    has_driver = has_nvidia_driver()
    if has_driver and torch.version.cuda and not is_available:
        try:
            torch.cuda.init()
        except Exception as problem:  # torch raises its own kinds
            error = one_line(str(problem))[:200]
    reason = why_unusable(
        has_driver=has_driver,
        cuda=torch.version.cuda,
        is_available=is_available,
        is_other_build=torch.version.hip is not None,
        error=error,
    )
    if reason is not None:
        lines.append(Line("warn", reason))
    named = [(torch.device("cpu"), platform.processor() or platform.machine())]
    if torch.backends.mps.is_available():
        named.append((torch.device("mps"), "Apple GPU"))
    for index in range(torch.cuda.device_count() if is_available else 0):
        name, capability = torch.cuda.get_device_name(index), torch.cuda.get_device_capability(index)
        architectures = torch.cuda.get_arch_list()
        if torch.version.hip is None and architectures and not has_code_for(capability, architectures):
            lines.append(
                Line(
                    "warn",
                    f"this torch has no code for {name} (compute capability {capability[0]}.{capability[1]}, it has "
                    f"{', '.join(architectures)}): install a build of torch that has (pytorch.org, Get started)",
                )
            )
            continue
        named.append((torch.device("cuda", index), name))
    found = []
    before = torch.get_num_threads()
    torch.set_num_threads(usable_cores())  # as a run does
    for device, name in named:
        try:
            found.append(measured(device, name, seconds))
        except Exception as problem:  # a device that does not compute raises whatever its driver does
            lines.append(Line("warn", f"{name} does not compute ({one_line(str(problem))[:200]})"))
            continue
        if device.type == "cuda":
            taken = precision_name(chosen_precision(device, MachineConfig()))
            scaled = ", with a scaled loss in training" if taken == "float16" else ""
            lines.append(Line("ok", f"--precision auto takes {taken} on {name}{scaled}"))
        if not found[-1].is_right:
            lines.append(Line("warn", f"{name} multiplies wrongly: nothing that is computed on it can be trusted"))
    torch.set_num_threads(before)
    if len(found) == 1 and reason is None:
        lines.append(Line("ok", "no GPU: small networks and images are for a CPU, others take days"))
    return tuple(found)


def _about_resources(there: Resources) -> list[Line]:
    lines = []
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads.isdecimal() and 0 < int(threads) < there.cores:
        lines.append(Line("ok", f"OMP_NUM_THREADS is {threads}; a run takes {there.cores} threads all the same, or --threads"))
    if there.quota is not None and there.quota < there.cores:
        whole = max(1, int(there.quota))
        text = f"the container shows {there.cores} cores, but gets the time of {there.quota:g}: give --threads {whole}"
        lines.append(Line("note", text))
    if there.available is not None and there.available < LITTLE_MEMORY:
        lines.append(Line("note", f"only {_size(there.available)} of memory are free"))
    if there.shared is not None and there.shared < LITTLE_SHARED:
        advice = "workers that read images need more (docker --shm-size), or --workers 0"
        lines.append(Line("note", f"only {_size(there.shared)} of shared memory (/dev/shm): {advice}"))
    if not there.can_write:
        lines.append(Line("note", "nothing can be written in this folder; give every command another --out"))
    elif there.disk < LITTLE_DISK:
        lines.append(Line("note", f"only {_size(there.disk)} are free on this disk"))
    return lines


def _print(found: MachineCheck) -> None:
    there = found.resources
    versions = {package.name: package.version for package in found.packages if package.version}
    rows = [
        ("beitkit", found.beitkit),
        ("python", f"{found.python}, {found.platform}"),
        ("torch", f"{versions.pop('torch', 'version unknown')}, built for {found.torch_build}" if found.torch_build else "none"),
        ("packages", ", ".join(f"{name} {version}" for name, version in versions.items()) or "not known"),
        ("cores", f"{there.cores}" + (f", the time of {there.quota:g}" if there.quota is not None else "")),
        ("memory", f"{_size(there.available)} free of {_size(there.memory)}"),
        ("disk", f"{_size(there.disk)} free here"),
    ]
    for device in found.devices:
        rates = ", ".join(f"{rate / 1e9:,.0f} in {precision}" for precision, rate in device.rates.items())
        memory = "" if device.memory is None else f"; {_size(device.free)} free of {_size(device.memory)}"
        rows.append((device.kind, f"{device.name}: {rates} (1e9 operations a second of a matrix product){memory}"))
    installed = [extra.name for extra in found.extras if not extra.missing]
    rows.append(("extras", ", ".join(installed) or "none"))
    Table(["", Column("", align="left")], rows).print()
    for line in found.lines:
        print(f"{SIGNS[line.state]}: {line.sentence}")
    broken = sum(line.state == "warn" for line in found.lines)
    if broken:
        print(f"{broken} thing{'s' if broken > 1 else ''} broken, as said above. Next: put that right, then beitkit doctor again")
    else:
        print("nothing is broken. Next: beitkit demo")


def _size(size: int | None) -> str:
    return "an unknown size" if size is None else f"{size / GIB:,.1f} GiB"
