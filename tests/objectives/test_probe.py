"""Linear probes of all blocks at once against one layer trained alone."""

import math

import pytest
import torch
import torch.nn.functional as F

from beitkit.objectives.probe import LinearProbes


def case(seed: int, count: int = 12) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "features": torch.randn(3, count, 5, generator=generator),
        "labels": torch.randint(4, (count,), generator=generator),
        "held_out": torch.arange(count) % 5 == 4,
    }


def test_weights_are_drawn_as_the_official_ones() -> None:
    torch.manual_seed(0)
    probes = LinearProbes(12, 400, 20)
    assert probes.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert probes.weight.mean().item() == pytest.approx(0, abs=1e-4)
    assert not probes.bias.any()


def test_the_loss_is_the_sum_of_each_layers_own() -> None:
    torch.manual_seed(0)
    probes, batch = LinearProbes(3, 5, 4), case(1)
    expected = 0.0
    for block in range(3):
        for which, kept in ((0, slice(None)), (1, ~batch["held_out"])):
            logits = F.linear(batch["features"][block], probes.weight[which, block], probes.bias[which, block])
            expected += F.cross_entropy(logits[kept], batch["labels"][kept]).item()
    loss = probes(batch, 0.0)
    assert loss.total.item() == pytest.approx(expected, rel=1e-5)
    assert loss.parts["loss_per_block"].item() == pytest.approx(math.log(4), rel=0.05)


def test_held_out_images_teach_only_the_reported_set() -> None:
    torch.manual_seed(0)
    probes, batch = LinearProbes(3, 5, 4), case(2)
    other = batch | {"labels": torch.where(batch["held_out"], 3 - batch["labels"], batch["labels"])}
    gradients = []
    for one in (batch, other):
        probes.zero_grad()
        probes(one, 0.0).total.backward()
        assert probes.weight.grad is not None
        gradients.append(probes.weight.grad.clone())
    assert torch.equal(gradients[0][1], gradients[1][1])
    assert not torch.equal(gradients[0][0], gradients[1][0])
    assert torch.isfinite(probes(batch | {"held_out": torch.ones(12, dtype=torch.bool)}, 0.0).total)


def test_training_together_is_training_each_alone() -> None:
    torch.manual_seed(0)
    probes, batch = LinearProbes(3, 5, 4), case(3)
    alone = torch.nn.Linear(5, 4)
    alone.weight.data, alone.bias.data = probes.weight[0, 1].detach().clone(), probes.bias[0, 1].detach().clone()
    together = torch.optim.AdamW(probes.parameters(), lr=0.1, weight_decay=1e-4)
    one = torch.optim.AdamW(alone.parameters(), lr=0.1, weight_decay=1e-4)
    for _ in range(5):
        together.zero_grad()
        probes(batch, 0.0).total.backward()
        together.step()
        one.zero_grad()
        F.cross_entropy(alone(batch["features"][1]), batch["labels"]).backward()
        one.step()
    assert torch.allclose(probes.weight[0, 1], alone.weight, atol=1e-5)
    assert torch.allclose(probes.bias[0, 1], alone.bias, atol=1e-5)
