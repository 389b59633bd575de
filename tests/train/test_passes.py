"""What a step of several passes rounds and clips, against passes of their own and PyTorch's clipping."""

import copy
import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from beitkit.configs.model import BackboneConfig, ClassifierConfig
from beitkit.configs.train import OptimConfig
from beitkit.contracts import Batch, Loss
from beitkit.nn.blocks import set_recompute
from beitkit.nn.models import Classifier
from beitkit.objectives.classify import Classify
from beitkit.planning.traffic import Traffic
from beitkit.train.machine.runtime import Runtime, StopRequest
from beitkit.train.optim import parameter_groups
from beitkit.train.schedule import Schedule
from beitkit.train.step import SEED_STRIDE, Trainer

CPU = torch.device("cpu")
PASSES = 3


def trainer(objective: nn.Module, passes: int, *, clip: float | None = None, precision: torch.dtype | None = None) -> Trainer:
    return Trainer(
        objective.train(),
        parameter_groups(objective, 0.05),
        schedule=Schedule(100, 0, 4, 100, 1e-2, 1e-2, seed=0),
        optim=OptimConfig(clip=clip),
        runtime=Runtime(CPU, precision),
        accumulation_steps=passes,
    )


def classify() -> Classify:
    torch.manual_seed(0)
    backbone = BackboneConfig.named("nano/4", image_size=16, relative_positions="per_block", final_norm=False, drop_path=0.2)
    return Classify(Classifier(ClassifierConfig(backbone=backbone, classes=("a", "b", "c"))), 0.1)


def batches() -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    labels = torch.tensor([0, 1, 2, 0])
    return [{"images": torch.randn(4, 3, 16, 16, generator=generator), "labels": labels} for _ in range(PASSES)]


class Casts(Traffic):
    """Counts how often each weight matrix is rounded."""

    def __init__(self, weights: list[Tensor]) -> None:
        super().__init__()
        self.times = {weight.data_ptr(): 0 for weight in weights}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._to_copy.default and args[0].data_ptr() in self.times:
            self.times[args[0].data_ptr()] += 1
        return super().__torch_dispatch__(func, types, args, kwargs)


@pytest.mark.parametrize("recompute", [False, True])
def test_the_passes_of_a_step_round_a_weight_once_and_give_the_gradients_of_their_own(recompute: bool) -> None:
    objective = classify()
    set_recompute(objective, recompute)
    alone = copy.deepcopy(objective).train()
    matrices = [module.weight for module in objective.modules() if isinstance(module, nn.Linear)]
    stepping = trainer(objective, PASSES, precision=torch.bfloat16)
    with Casts(matrices) as casts:
        losses = stepping.forward_backward(iter(batches()), 0)
    assert set(casts.times.values()) == {1}
    for number, batch in enumerate(batches()):
        torch.manual_seed((0 * SEED_STRIDE + number) % 2**63)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = alone(batch, 0.0).total
        (loss / PASSES).backward()
        assert torch.equal(loss, losses[number].total)
    for (name, one), other in zip(objective.named_parameters(), alone.parameters(), strict=True):
        assert one.grad is not None, name
        assert torch.equal(one.grad, other.grad), name
    assert not torch.is_autocast_enabled("cpu")


def test_what_a_pass_has_written_is_rounded_again() -> None:
    """An objective whose passes write its weight sees what they wrote, in bfloat16 too."""

    class Writing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 1, bias=False)

        def rewritten(self) -> list[Tensor]:
            return [self.layer.weight]

        def forward(self, batch: Batch, progress: float) -> Loss:
            with torch.no_grad():
                self.layer.weight.fill_(batch["number"])
            return Loss(self.layer(torch.ones(1, 2)).float().sum(), {})

    objective = Writing()
    stream = ({"number": torch.tensor(float(number))} for number in itertools.count(1))
    losses = trainer(objective, PASSES, precision=torch.bfloat16).forward_backward(stream, 0)
    assert [loss.total.item() for loss in losses] == [2, 4, 6]


@pytest.mark.parametrize("limit", [None, 1e-3, 1e3])
def test_a_step_is_that_of_clipped_gradients(limit: float | None) -> None:
    """Against PyTorch's `clip_grad_norm_` and AdamW, over two steps; no pass over the gradients for the clipping."""
    objective = classify()
    plain = copy.deepcopy(objective)
    stepping, stop = trainer(objective, 1, clip=limit), StopRequest()
    optim = OptimConfig(clip=limit)
    groups = [dict(group) for group in parameter_groups(plain, 0.05)]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=optim.betas, eps=optim.eps)
    batch = batches()[0]
    for done in range(2):
        losses = stepping.forward_backward(iter([batch]), done)
        for one, other in zip(objective.parameters(), plain.parameters(), strict=True):
            assert one.grad is not None
            other.grad = one.grad.clone()
        expected = nn.utils.clip_grad_norm_(plain.parameters(), math.inf if limit is None else limit)
        with Traffic() as traffic:
            norm = stepping.clip()
            stepping.update(losses, norm, done, stop)
        torch.testing.assert_close(norm, expected)
        assert limit is None or (norm > limit) == (limit < 1)
        assert "_foreach_mul_" not in traffic.operations
        optimizer.step()
        for (name, one), other in zip(objective.named_parameters(), plain.named_parameters(), strict=True):
            torch.testing.assert_close(one, other[1], rtol=1e-5, atol=1e-7, msg=name)
            other[1].data.copy_(one.detach())
