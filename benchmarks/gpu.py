"""Everything to find out on the day a GPU is there, in stages of at most eight minutes; `make gpu` runs them all.

    python -m benchmarks.gpu [--stage waiting parity steps copies run rivals] [--out runs/gpu] [--tiny]

Each stage is a process of its own, and writes OUT/STAGE.json when it ends: `seconds`, `device`, `torch`, and its `result`, or the
`error` that ended it. One that fails does not stop the others; the exit code is then 1.
`--tiny` is for trying it out, on a CPU too.

| stage | what it does |
|---|---|
| waiting | steps under `torch.cuda.set_sync_debug_mode("error")`, which ends them where the host waits |
| parity | loss and gradient norm on the device, in float32 and in bfloat16, beside float32 on the CPU |
| steps | images/s over sizes and batches, as they are, with compiled blocks, compiled as a whole, and with CUDA graphs |
| copies | images/s of batches pinned and copied, alone |
| run | a pre-training that is stopped half-way and continued, its wall time and last evaluation |
| rivals | `benchmarks.bench` against transformers and timm, where they are installed |
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from beitkit.configs.model import BackboneConfig, ClassifierConfig, MaskedImageModelConfig
from beitkit.configs.train import MachineConfig
from beitkit.data.transfer import pinned, to_device
from beitkit.planning.rates import NoiseSteps
from beitkit.planning.workload import Workload
from beitkit.runs.training.speed import Form, compile_as
from beitkit.system import write_atomically
from beitkit.train.machine.runtime import Runtime, start_runtime

LIMIT = 480
"""Seconds of a stage."""
STEPS = 10
FORMS: dict[str, tuple[Form, dict[str, Any]]] = {
    "as it is": ("off", {}),
    "blocks": ("blocks", {}),
    "whole": ("objective", {}),
    "whole, CUDA graphs": ("objective", {"triton.cudagraphs": True}),
}


def workloads(size: str) -> dict[str, Workload]:
    """Pre-training and fine-tuning, both with stochastic depth."""
    masked = BackboneConfig.named(f"{size}/16", image_size=224, drop_path=0.1, mask_token=True, pretrain_init=True)
    plain = replace(masked, mask_token=False, pretrain_init=False, relative_positions="per_block", final_norm=False)
    return {
        "pre-training": Workload(network=MaskedImageModelConfig(backbone=masked, vocabulary=8192), predicted=75),
        "fine-tuning": Workload(network=ClassifierConfig(backbone=plain, classes=tuple(map(str, range(1000))))),
    }


def waiting(runtime: Runtime, options: argparse.Namespace) -> dict[str, Any]:
    """Steps that end with an error where the host waits for the device."""
    found: dict[str, Any] = {"is_watched": runtime.kind == "cuda"}
    for name, workload in workloads(options.size[0]).items():
        step = NoiseSteps(workload, options.batch_size[0], runtime, recompute=False, tokenizes=False)
        for _ in range(2):
            step()  # what is done once may wait
        if runtime.kind == "cuda":
            torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(3):
                step()
        finally:
            if runtime.kind == "cuda":
                torch.cuda.set_sync_debug_mode("default")
        found[name] = "3 steps"
    return found


def parity(runtime: Runtime, options: argparse.Namespace) -> dict[str, Any]:
    """Loss and norm of the gradients of the same step."""
    found: dict[str, Any] = {}
    for name, workload in workloads(options.size[0]).items():
        torch.manual_seed(0)
        objective = workload.objective().eval()  # without stochastic depth, whose draws differ from device to device
        batch = workload.batch(2, torch.device("cpu"))
        places: dict[str, tuple[torch.device, torch.dtype | None]] = {
            "CPU, float32": (torch.device("cpu"), None),
            "float32": (runtime.device, None),
        }
        places["bfloat16"] = (runtime.device, torch.bfloat16)
        found[name] = {}
        for place, (device, precision) in places.items():
            objective.to(device).zero_grad()
            with torch.autocast(device.type, dtype=precision, enabled=precision is not None):
                loss = objective({key: value.to(device) for key, value in batch.items()}, 0.0).total
            loss.backward()
            gradients = [parameter.grad for parameter in objective.parameters() if parameter.grad is not None]
            found[name][place] = {"loss": loss.item(), "grad_norm": torch.nn.utils.get_total_norm(gradients).item()}
    return found


def steps(runtime: Runtime, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Speed of every combination, until the time is up; what does not fit or compile says so."""
    found, end = [], time.monotonic() + 0.8 * LIMIT
    for size, images in itertools.product(options.size, options.batch_size):
        for (name, workload), form in itertools.product(workloads(size).items(), FORMS):
            row: dict[str, Any] = {"size": size, "batch_size": images, "step": name, "form": form}
            found.append(row)
            if time.monotonic() > end:
                row["left_out"] = "no time"
            elif runtime.kind != "cuda" and FORMS[form][0] != "off":
                row["left_out"] = "compiled forms are for a GPU here"
            else:
                try:
                    row |= _speed(workload, images, runtime, *FORMS[form])
                except (RuntimeError, torch.OutOfMemoryError) as error:
                    row["left_out"] = str(error).splitlines()[0]
    return found


def _speed(workload: Workload, images: int, runtime: Runtime, form: Form, settings: dict[str, Any]) -> dict[str, Any]:
    step = NoiseSteps(workload, images, runtime, recompute=False, tokenizes=False)
    compile_as(step.trainer.objective, form, settings)
    begun = time.perf_counter()
    for _ in range(3):
        step().read()
    first, taken = time.perf_counter() - begun, []
    if runtime.kind == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for _ in range(3):
        begun = time.perf_counter()
        results = [step() for _ in range(STEPS)]
        results[-1].read()
        taken.append((time.perf_counter() - begun) / STEPS)
    peak = torch.cuda.max_memory_allocated() if runtime.kind == "cuda" else None
    rate = images * workload.flops.step(recompute=False) / statistics.median(taken)
    return {"images_per_second": images / statistics.median(taken), "flops": rate, "first_three": first, "peak_bytes": peak}


def copies(runtime: Runtime, options: argparse.Namespace) -> dict[str, Any]:
    """Batches from memory to the device, as runs copy them."""
    images = options.batch_size[-1]
    batch = {"images": torch.zeros(images, 3, 224, 224, dtype=torch.uint8)}
    stream = to_device(pinned(iter([dict(batch) for _ in range(STEPS + 1)]), runtime.device), runtime.device)
    next(stream)
    begun = time.perf_counter()
    for moved in stream:
        moved["images"].sum(dtype=torch.int64)
    if runtime.kind == "cuda":
        torch.cuda.synchronize()
    return {"images_per_second": STEPS * images / (time.perf_counter() - begun)}


def run(runtime: Runtime, options: argparse.Namespace) -> dict[str, Any]:
    """A run of the command line that is told to stop, and the same command again."""
    out, length = options.out / "run", ("--steps", "6") if options.tiny else ("--epochs", "20")
    images = options.images
    if images is None:
        images = options.out / "noise"
        _noise(images, 16 if options.tiny else 512)
    command = [sys.executable, "-m", "beitkit", "pretrain", str(images), "--out", str(out), "--target", "pixels", *length]
    command += ["--size", "nano", "--image-size", "32", "--patch", "4", "--batch-size", "8" if options.tiny else "256"]
    command += ["--loop.save-every", "1" if options.tiny else "500", "--loop.log-every", "1"]
    begun = time.monotonic()
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while first.poll() is None and not any((out / "checkpoints").glob("*.json")):
        time.sleep(0.05)
    first.send_signal(signal.SIGTERM)
    stopped = first.wait()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    events = [json.loads(line) for line in (out / "journal.jsonl").read_text().splitlines()]
    return {"stopped_with": stopped, "seconds": time.monotonic() - begun, "last": events[-1]}


def _noise(folder: Path, count: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.frombytes("RGB", (32, 32), os.urandom(3 * 32 * 32)).save(folder / f"{number}.png")


def rivals(runtime: Runtime, options: argparse.Namespace) -> dict[str, Any]:
    """The benchmark, whose own result lies beside."""
    sizes = ("--image-size", "32", "--rounds", "1", "--turn", "0", "--no-memory") if options.tiny else ()
    command = [sys.executable, "-m", "benchmarks.bench", "--out", str(options.out), "--size", options.size[0], *sizes]
    command += ["--batch-size", str(options.batch_size[0]), "--what", "pretraining", "finetuning", "inference"]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return json.loads((options.out / "bench.json").read_text())


STAGES: dict[str, Callable[[Runtime, argparse.Namespace], Any]] = {
    "waiting": waiting,
    "parity": parity,
    "steps": steps,
    "copies": copies,
    "run": run,
    "rivals": rivals,
}


def stage(name: str, options: argparse.Namespace) -> bool:
    """Run one stage here, and write what it found; whether it came to its end."""
    runtime = start_runtime(MachineConfig())
    begun = time.monotonic()
    found: dict[str, Any] = {"stage": name, "device": runtime.describe(), "torch": torch.__version__, "tiny": options.tiny}
    try:
        found["result"] = STAGES[name](runtime, options)
    except Exception as error:  # whatever it was: the other stages are to run
        found["error"] = f"{type(error).__name__}: {error}"
    found["seconds"] = time.monotonic() - begun
    write_atomically(options.out / f"{name}.json", (json.dumps(found, indent=2) + "\n").encode())
    print(f"{name}: {found.get('error', 'done')}, {found['seconds']:.0f} s", flush=True)
    return "error" not in found


def main(arguments: list[str] | None = None) -> int:
    """Run the stages; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", nargs="+", choices=list(STAGES), default=list(STAGES))
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--images", type=Path, help="a folder for the stage run, such as CIFAR-10's; noise without it")
    parser.add_argument("--size", nargs="+", default=["base", "large"])
    parser.add_argument("--batch-size", type=int, nargs="+", default=[128, 64])
    parser.add_argument("--tiny", action="store_true")
    given = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(given)
    if options.tiny:
        options.size, options.batch_size = ["nano"], [2]
    options.out.mkdir(parents=True, exist_ok=True)
    if len(options.stage) == 1:
        return 0 if stage(options.stage[0], options) else 1
    rest = [f"--out={options.out}", *(["--tiny"] if options.tiny else [])]
    rest += [] if options.images is None else [f"--images={options.images}"]
    rest += ["--size", *options.size, "--batch-size", *map(str, options.batch_size)]
    failed = []
    for name in options.stage:
        try:
            code = subprocess.run([sys.executable, "-m", "benchmarks.gpu", "--stage", name, *rest], timeout=LIMIT).returncode
        except subprocess.TimeoutExpired:
            print(f"{name}: not done after {LIMIT} s", flush=True)
            code = 1
        failed += [name] if code else []
    print(f"written: {options.out}" + (f"; failed: {', '.join(failed)}" if failed else ""), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
