"""`beitkit inspect`: what is this checkpoint?"""

from __future__ import annotations

import json

from beitkit.configs.codec import to_json
from beitkit.interop.inspect import CheckpointSummary, inspect_checkpoint
from beitkit.runs.checkpoints.config import InspectRun


def run(config: InspectRun) -> CheckpointSummary:
    """Print what a checkpoint is, on stdout."""
    summary = inspect_checkpoint(config.path)
    if config.json:
        print(json.dumps({"layout": summary.layout, "task": summary.task, "config": to_json(summary.config)}))
        return summary
    lines = summary.lines()
    width = max(len(name) for name, _ in lines)
    for name, value in lines:
        print(f"{name.ljust(width)}  {value}")
    if config.verbose:
        for tensor in summary.tensors:
            reason = f"  ({tensor.reason})" if tensor.reason else ""
            print(f"{tensor.fate.ljust(8)}  {tensor.name}  {'x'.join(map(str, tensor.shape)) or 'scalar'}{reason}")
    return summary
