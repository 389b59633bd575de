"""timm in the races of classifiers: the same network, read from what `beitkit.save` writes, in a plain script's loop."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from beitkit.interop.save import save
from beitkit.train.machine.runtime import Runtime
from benchmarks.compare.plain_script import probabilities, trained
from benchmarks.compare.turns import Candidate, Step
from benchmarks.compare.workload import Workload

TIMM = "timm"


class TimmNetworks:
    """The classifier, made when first asked for."""

    def __init__(self, workload: Workload, runtime: Runtime) -> None:
        self._workload, self._runtime = workload, runtime
        self.inputs = workload.inputs(runtime.device)

    @functools.cached_property
    def classifier(self) -> Any:
        """timm's `Beit` with our weights."""
        import timm

        with tempfile.TemporaryDirectory() as folder:
            save(self._workload.classifier(), Path(folder), format="timm")
            return timm.create_model(f"local-dir:{folder}", pretrained=True).to(self._runtime.device)

    @torch.no_grad()
    def class_outputs(self) -> Tensor:
        """Float32 logits of the classes."""
        return self.classifier.eval()(self.inputs.images)


def finetuning(networks: TimmNetworks, runtime: Runtime) -> list[Candidate]:
    """An optimizer step of classification."""

    def prepare() -> Step:
        model, given = networks.classifier.train(), networks.inputs
        return trained(model, lambda: F.cross_entropy(model(given.images).float(), given.labels), runtime, None)

    return [Candidate(TIMM, "optimizer step", prepare)]


def inference(networks: TimmNetworks, runtime: Runtime) -> list[Candidate]:
    """Probabilities of the classes."""

    def prepare() -> Step:
        model = networks.classifier.eval()
        return probabilities(lambda: model(networks.inputs.images), runtime.precision)

    return [Candidate(TIMM, "probabilities, in autocast", prepare)]
