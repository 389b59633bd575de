"""GPUs that a run can be planned for without having them, by their data sheets and by what others measured."""

from __future__ import annotations

from typing import Literal, NamedTuple

GpuName = Literal["a100", "h100", "h200"]
GIB = 2**30


class Gpu(NamedTuple):
    """What a GPU can do."""

    peak: float
    """bfloat16 operations per second of its matrix units, dense, by its data sheet."""
    matrix_rate: float
    """What the fastest bfloat16 product that was found reaches of it: stas00/ml-engineering, compute/accelerator, "Maximum
    Achievable Matmul FLOPS"."""
    bandwidth: float
    """Bytes per second of its memory, by its data sheet."""
    memory: int
    """Bytes."""


GPUS: dict[GpuName, Gpu] = {
    "a100": Gpu(peak=312e12, matrix_rate=271.2e12, bandwidth=2.039e12, memory=80 * GIB),  # SXM with 80 GB
    "h100": Gpu(peak=989e12, matrix_rate=794.5e12, bandwidth=3.35e12, memory=80 * GIB),  # SXM
    "h200": Gpu(peak=989e12, matrix_rate=828.6e12, bandwidth=4.8e12, memory=141 * 10**9),  # SXM; the rate is that of the GH200
}
