"""What computes here: whether torch's build fits it, whether it multiplies correctly, and how fast."""

from __future__ import annotations

import re
import time
from pathlib import Path

import torch

from beitkit.runs.doctor.resources import ComputeDevice

SIDE = {"cpu": 1024, "mps": 2048, "cuda": 8192}
"""Of the square matrices that are multiplied, by device; a GPU needs large ones."""
LEAST_PRODUCTS = 2
NVIDIA = (Path("/proc/driver/nvidia/version"), Path("/dev/nvidiactl"), Path("/dev/dxg"))
"""What a driver for NVIDIA's GPUs leaves (the last one under Windows' Linux)."""
TOLERANCE = 0.05
"""Largest relative error of a product in bfloat16 or float16."""


def has_nvidia_driver() -> bool:
    """Whether there is a driver for an NVIDIA GPU, seen without torch."""
    return any(path.exists() for path in NVIDIA)


def why_unusable(*, has_driver: bool, cuda: str | None, is_available: bool, is_other_build: bool, error: str) -> str | None:
    """Why torch cannot use an NVIDIA GPU whose driver is here; None if it can, or if there is none.

    Args:
        has_driver: whether a driver was seen.
        cuda: the version of CUDA that torch was built for; None for a build without it.
        is_available: whether torch can use a GPU.
        is_other_build: whether torch was built for GPUs of another maker.
        error: what torch says when it is asked to begin.
    """
    if not has_driver or is_available or is_other_build:
        return None
    if cuda is None:
        return (
            "there is a driver for an NVIDIA GPU, but this torch was built for CPUs only, so everything would run on the CPU: "
            "install the build of torch for CUDA (pytorch.org, Get started)"
        )
    said = error or "no device is visible"
    return (
        f"there is a driver for an NVIDIA GPU, but torch, built for CUDA {cuda}, cannot use it ({said}): update the driver, "
        "install a torch for an older CUDA, or look at CUDA_VISIBLE_DEVICES and the rights to /dev/nvidia*"
    )


def has_code_for(capability: tuple[int, int], architectures: list[str]) -> bool:
    """Whether a build of torch has code for a GPU (CUDA programming guide, binary and PTX compatibility).

    Binary code (`sm_80`) runs on the same major and the same or a higher minor number, PTX (`compute_80`) on anything newer.
    """
    for architecture in architectures:
        match = re.fullmatch(r"(sm|compute)_(\d+)(\d)([a-z]?)", architecture)
        if match is None:
            continue
        built = int(match[2]), int(match[3])
        is_exact = bool(match[4])  # `sm_90a` and its like run on that one alone
        if built == capability or (not is_exact and built <= capability and (match[1] == "compute" or built[0] == capability[0])):
            return True
    return False


def measured(device: torch.device, name: str, seconds: float) -> ComputeDevice:
    """How fast a device multiplies matrices, and whether rightly; takes about `seconds`."""
    precisions = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if device.type == "mps" or (device.type == "cuda" and not torch.cuda.is_bf16_supported()):
        del precisions["bfloat16"]
    if device.type == "cpu":
        del precisions["float16"]  # most multiply in it by taking numbers apart, which is slower than float32
    rates = {name: _rate(device, kind, seconds / len(precisions)) for name, kind in precisions.items()}
    free, memory = torch.cuda.mem_get_info(device) if device.type == "cuda" else (None, None)
    is_right = all(_is_right(device, kind) for kind in precisions.values())
    return ComputeDevice(name, device.type, memory, free, rates, is_right)


def _rate(device: torch.device, kind: torch.dtype, seconds: float) -> float:
    side = SIDE[device.type]
    generator = torch.Generator(device).manual_seed(0)
    left, right = (torch.randn(side, side, device=device, generator=generator).to(kind) for _ in range(2))
    out = torch.empty(side, side, device=device, dtype=kind)
    best = 0.0
    until = time.perf_counter() + seconds
    count = 0
    while count < LEAST_PRODUCTS or time.perf_counter() < until:
        began = time.perf_counter()
        torch.mm(left, right, out=out)
        out[0, 0].item()  # waits for the device
        best = max(best, 2 * side**3 / (time.perf_counter() - began))
        count += 1
    return best


def _is_right(device: torch.device, kind: torch.dtype) -> bool:
    """Whether a product agrees with that of double precision."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(128, 128, generator=generator, dtype=torch.float64) for _ in range(2))
    product = (left.float().to(device, kind) @ right.float().to(device, kind)).double().cpu()
    return bool((product - left @ right).norm() <= TOLERANCE * (left @ right).norm())
