from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from scipy.stats import entropy, laplace
from torch.nn import functional as F

from beitkit.configs.tokenizer import DVAEConfig, ReconstructConfig
from beitkit.objectives.reconstruct import Reconstruct, anneal, gumbel_softmax, kl_to_uniform, logit_laplace_loss
from beitkit.tokenizers.dvae import DiscreteVAE

LIGHT = DVAEConfig(geometry="light", vocabulary=32, hidden=32, codebook_dim=16, stride=4, channels=1)
PLAIN = ReconstructConfig(start_from_data=False, revive_every=0)


def random_images(num: int = 16) -> torch.Tensor:
    return F.interpolate(torch.rand(num, 1, 4, 4), size=16, mode="bilinear", align_corners=True)


def test_anneal_at_the_corners() -> None:
    assert anneal((1.0, 0.0625), 0.0, 0.5) == 1.0
    assert anneal((1.0, 0.0), 0.25, 0.5) == pytest.approx(0.5)
    assert anneal((1.0, 0.0), 0.125, 0.5) == pytest.approx(0.5 + 0.5 * math.sqrt(0.5))
    assert anneal((1.0, 0.0625), 0.5, 0.5) == anneal((1.0, 0.0625), 1.0, 0.5) == 0.0625
    assert anneal((0.0, 6.6), 0.0, 0.0) == 6.6


def test_kl_against_scipy() -> None:
    torch.manual_seed(0)
    logits = 2 * torch.randn(3, 10, 2, 4)
    q = logits.softmax(1).permute(0, 2, 3, 1).reshape(-1, 10).numpy()
    expected = sum(float(entropy(row, [0.1] * 10)) for row in q) / len(q)
    assert float(kl_to_uniform(logits)) == pytest.approx(expected, rel=1e-5)
    assert float(kl_to_uniform(torch.zeros(1, 10, 2, 2))) == pytest.approx(0, abs=1e-6)


def test_logit_laplace_is_a_density() -> None:
    """logit x is Laplace-distributed: log f(x) = log laplace(logit x) - log(x (1 - x)) at x = 0.8 pixel + 0.1."""
    torch.manual_seed(0)
    images, location, log_scale = torch.rand(2, 3, 4, 4), torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4).clamp(min=-1.9)
    x = (0.8 * images + 0.1).double()
    expected = (
        laplace.logpdf(torch.logit(x).numpy(), location.double().numpy(), log_scale.double().exp().numpy())
        - (x * (1 - x)).log().numpy()
    )
    loss = logit_laplace_loss(torch.cat([location, log_scale], 1), images)
    assert float(loss) == pytest.approx(-float(expected.mean()), rel=1e-4)


def test_logit_laplace_is_bounded_on_a_constant_background() -> None:
    images = torch.zeros(1, 1, 2, 2)
    location = torch.logit(torch.full((1, 1, 2, 2), 0.1))
    narrow = logit_laplace_loss(torch.cat([location, torch.full_like(location, -50)], 1), images)
    assert float(narrow) == pytest.approx(-4 + math.log(2 * 0.1 * 0.9), abs=1e-4)


def test_gumbel_softmax_draws_codes_with_their_probabilities() -> None:
    torch.manual_seed(0)
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    logits = probabilities.log()[None, :, None, None].expand(40, 4, 25, 40)
    weights = gumbel_softmax(logits, 0.1)
    torch.testing.assert_close(weights.sum(1), torch.ones(40, 25, 40))
    shares = torch.bincount(weights.argmax(1).flatten(), minlength=4) / 40_000
    torch.testing.assert_close(shares, probabilities, atol=0.01, rtol=0)


def test_loss_against_a_short_reference() -> None:
    torch.manual_seed(0)
    objective = Reconstruct(DiscreteVAE(LIGHT), ReconstructConfig(kl_weight=(0.5, 0.5), start_from_data=False, revive_every=0))
    images = random_images()
    torch.manual_seed(7)
    loss = objective({"images": images}, 0.0)
    torch.manual_seed(7)
    tokenizer = objective.tokenizer
    logits = tokenizer.logits(images)
    weights = ((logits - (-torch.rand_like(logits).log()).log()) / 1.0).softmax(1)
    reconstruction = (tokenizer.decode_relaxed(weights) - (2 * images - 1)).square().mean()
    kl = sum(
        float(entropy(row, [1 / 32] * 32)) for row in logits.detach().softmax(1).permute(0, 2, 3, 1).reshape(-1, 32).numpy()
    ) / (16 * 16)
    assert float(loss.parts["reconstruction"]) == pytest.approx(float(reconstruction.detach()), rel=1e-5)
    assert float(loss.parts["kl"]) == pytest.approx(kl, rel=1e-4, abs=1e-6)
    assert float(loss.total.detach()) == pytest.approx(float(reconstruction.detach()) + 0.5 * kl / 16, rel=1e-4)
    assert loss.total.requires_grad
    assert not any(part.requires_grad for part in loss.parts.values())


def test_evaluation_changes_no_state() -> None:
    torch.manual_seed(0)
    objective = Reconstruct(DiscreteVAE(LIGHT), ReconstructConfig(revive_every=1)).eval()
    before = copy.deepcopy(objective.state_dict())
    for _ in range(3):
        objective({"images": random_images()}, 0.1)
    assert all(torch.equal(before[name], tensor) for name, tensor in objective.state_dict().items())


def train(
    objective: Reconstruct, optimizer: torch.optim.Optimizer, images: torch.Tensor, first: int, last: int, num_steps: int
) -> None:
    for step in range(first, last):
        loss = objective({"images": images}, step / num_steps)
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()


LIKELIHOOD = replace(LIGHT, reconstruction="logit_laplace")


@pytest.mark.parametrize("config", [LIGHT, LIKELIHOOD], ids=lambda c: c.reconstruction)
def test_overfits_one_batch(config: DVAEConfig) -> None:
    torch.manual_seed(0)
    objective = Reconstruct(DiscreteVAE(config), ReconstructConfig(revive_every=10))
    images = random_images()
    train(objective, torch.optim.AdamW(objective.parameters(), lr=5e-3), images, 0, 100, 100)
    ids = objective.tokenizer.encode(images)
    error = float((objective.tokenizer.decode(ids) - images).square().mean())
    assert error < 0.2 * float(images.var())
    assert len(ids.unique()) >= 20


def test_start_and_revival_keep_codes_alive() -> None:
    used = {}
    for is_tended in (False, True):
        torch.manual_seed(0)
        objective = Reconstruct(DiscreteVAE(LIGHT), ReconstructConfig(revive_every=10) if is_tended else PLAIN)
        images = random_images(32)
        train(objective, torch.optim.AdamW(objective.parameters(), lr=5e-3), images, 0, 60, 60)
        used[is_tended] = len(objective.tokenizer.encode(images).unique())
    assert used[True] >= 20
    assert used[True] > 2 * used[False]


def test_resuming_is_exact() -> None:
    """Cut in the middle of a revival window, restored from state dicts and the generator: bit for bit the same."""

    def fresh() -> tuple[Reconstruct, torch.optim.AdamW]:
        objective = Reconstruct(DiscreteVAE(LIGHT), ReconstructConfig(revive_every=4))
        return objective, torch.optim.AdamW(objective.parameters(), lr=2e-3)

    torch.manual_seed(0)
    images = random_images()
    objective, optimizer = fresh()
    train(objective, optimizer, images, 0, 6, 12)
    saved = copy.deepcopy((objective.state_dict(), optimizer.state_dict(), torch.get_rng_state()))
    train(objective, optimizer, images, 6, 12, 12)
    resumed, resumed_optimizer = fresh()
    resumed.load_state_dict(saved[0])
    resumed_optimizer.load_state_dict(saved[1])
    torch.set_rng_state(saved[2])
    train(resumed, resumed_optimizer, images, 6, 12, 12)
    expected = objective.state_dict()
    assert all(torch.equal(expected[name], tensor) for name, tensor in resumed.state_dict().items())


def test_codes_change_only_on_the_first_pass_of_a_step() -> None:
    torch.manual_seed(0)
    objective = Reconstruct(DiscreteVAE(LIGHT), ReconstructConfig(revive_every=1, dead_share=1.0))
    images = random_images()
    layer = objective.tokenizer.code_layer
    objective({"images": images}, 0.0)
    started = layer.weight.detach().clone()
    objective({"images": images}, 0.0)
    assert torch.equal(layer.weight, started)
    assert objective.revival.batches == 2
    objective({"images": images}, 0.1)
    assert not torch.equal(layer.weight, started)
    assert objective.revival.batches == 1
