"""Started by `test_speed.py`: captures the training steps of every objective, and prints what became of each as a line of JSON.

A line: the name, breaks of the graph, graphs over three steps of a run, and the largest difference of losses and gradients from
the steps as they are. Inductor, which would turn the graph into code, is left out: what stops it is breaks.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from beitkit.configs.model import BackboneConfig, ClassifierConfig, ClsBranchConfig, MaskedImageModelConfig, SegmenterConfig
from beitkit.configs.segmentation import SegmentationLossConfig
from beitkit.contracts import Batch
from beitkit.nn.blocks import Block, set_recompute
from beitkit.nn.models import MaskedImageModel
from beitkit.objectives.masked import MaskedPixels, MaskedTokens
from beitkit.planning.workload import Workload

CPU = torch.device("cpu")
BACKBONE = replace(BackboneConfig.named("nano/4", image_size=16, drop_path=0.2, mask_token=True), depth=2)
MASKED = MaskedImageModelConfig(backbone=BACKBONE, vocabulary=16)
PLAIN = replace(BACKBONE, mask_token=False, relative_positions="per_block", final_norm=False)
TAPPED = replace(PLAIN, depth=4)


def cases() -> dict[str, tuple[nn.Module, Workload]]:
    masked = Workload(network=MASKED, predicted=6)
    branch = Workload(network=replace(MASKED, cls_branch=ClsBranchConfig(early_layer=1)), predicted=6)
    classes = Workload(network=ClassifierConfig(backbone=PLAIN, classes=("a", "b")))
    uper = SegmenterConfig(backbone=TAPPED, classes=("a", "b"), channels=16, auxiliary_channels=8)
    balanced = SegmentationLossConfig(dice_weight=0.5)
    found = {
        "tokens": (masked.objective(), masked),
        "blocks": (masked.objective(), masked),
        "recomputed": (masked.objective(), masked),
        "branch": (branch.objective(), branch),
        "all patches": (MaskedTokens(MaskedImageModel(MASKED), recover_all=True), masked),
        "pixels": (MaskedPixels(MaskedImageModel(replace(MASKED, vocabulary=None))), masked),
        "classes": (classes.objective(), classes),
        "mixed": (classes.objective(), replace(classes, mixes=True)),
    }
    for head in ("uper", "setr_pup"):
        segmenter = Workload(network=replace(uper, head=head), loss=balanced)
        found[head] = (segmenter.objective(), segmenter)
    return found


def numbers(objective: nn.Module, batch: Batch, progress: float) -> list[Tensor]:
    torch.manual_seed(1)
    objective.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = objective(batch, progress)
    loss.total.backward()
    parameters = (parameter.grad for parameter in objective.parameters() if parameter.grad is not None)
    return [loss.total.detach(), *loss.parts.values(), *parameters]


def main() -> None:
    warnings.filterwarnings("ignore")
    torch.manual_seed(0)
    for name, (objective, workload) in cases().items():
        objective.train()
        set_recompute(objective, name == "recomputed")
        batch = workload.batch(4, CPU)
        batches = [batch | {"images": torch.randn_like(batch["images"])} for _ in range(3)]
        plain = [numbers(objective, one, 0.1 * step) for step, one in enumerate(batches)]
        torch._dynamo.reset()
        counted = CompileCounterWithBackend("aot_eager")
        if name == "blocks":
            for block in objective.modules():
                if isinstance(block, Block):
                    block.compile_training(takes_factors=True)
                    block.compiled = torch.compile(Block.branches, dynamic=False, backend=counted)
        else:
            objective.compile(dynamic=False, backend=counted)
        torch._dynamo.utils.counters.clear()
        captured = [numbers(objective, one, 0.1 * step) for step, one in enumerate(batches)]
        breaks = sum(torch._dynamo.utils.counters["graph_break"].values())
        pairs = [pair for one, other in zip(plain, captured, strict=True) for pair in zip(one, other, strict=True)]
        difference = max(float((one - other).abs().max() / one.abs().max().clamp(min=1e-3)) for one, other in pairs)
        print(json.dumps([name, breaks, counted.frame_count, difference]))


if __name__ == "__main__":
    main()
