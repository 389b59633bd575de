from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from beitkit.configs.tokenizer import DVAEConfig
from beitkit.tokenizers.dvae import DiscreteVAE
from beitkit.tokenizers.revival import START_MARGIN, CodeRevival, kmeans, start_codes

CONFIGS = [
    DVAEConfig(geometry="light", vocabulary=16, hidden=32, codebook_dim=16, stride=4, channels=3),
    DVAEConfig(geometry="beit", vocabulary=16, hidden=16, codebook_dim=8, stride=4),
    DVAEConfig(geometry="dalle", vocabulary=16, hidden=16, codebook_dim=8, stride=8, reconstruction="logit_laplace"),
]


def random_images() -> torch.Tensor:
    """Smooth random colors, varied enough for 16 codes, and a black border."""
    images = F.interpolate(torch.rand(16, 3, 6, 6), size=32, mode="bilinear", align_corners=True)
    images[..., :8] = 0
    return images


def test_kmeans_finds_separated_clusters() -> None:
    torch.manual_seed(0)
    truth = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0], [30.0, 30.0]])
    points = (truth[:, None] + 0.1 * torch.randn(5, 200, 2)).flatten(0, 1)[torch.randperm(1000)]
    centers = kmeans(points, 5)
    assert torch.cdist(truth, centers).min(1).values.max() < 0.1


def test_kmeans_with_fewer_distinct_points_than_centers() -> None:
    torch.manual_seed(0)
    points = torch.tensor([[0.0], [1.0]]).repeat(50, 1)
    centers = kmeans(points, 6)
    assert centers.isfinite().all()
    assert centers.unique().tolist() == pytest.approx([0.0, 1.0])


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.geometry)
def test_start_scores_codes_by_distance(config: DVAEConfig) -> None:
    """Score differences between codes are differences of squared distance, times one positive number."""
    torch.manual_seed(0)
    tokenizer, images = DiscreteVAE(config), random_images()
    with torch.no_grad():
        features = tokenizer.features(images)
        start_codes(tokenizer, features)
        logits = tokenizer.code_layer(features).permute(0, 2, 3, 1).flatten(0, 2)
        assert len(tokenizer.encode(images).unique()) == config.vocabulary
        assert tokenizer.embeddings.isfinite().all()
    points = features.permute(0, 2, 3, 1).flatten(0, 2).double()
    first_two = logits.topk(2).values
    assert float((first_two[:, 0] - first_two[:, 1]).mean()) == pytest.approx(START_MARGIN, rel=1e-2)
    owners = logits.argmax(1)
    centers = torch.stack([points[owners == code].mean(0) for code in range(config.vocabulary)])
    distances = torch.cdist(points, centers).square()
    agreement = (distances.argmin(1) == owners).double().mean()
    assert float(agreement) > 0.9  # k-means may be a step short of its fixed point


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: c.geometry)
def test_a_dead_code_takes_half_of_the_donors_work(config: DVAEConfig) -> None:
    torch.manual_seed(0)
    tokenizer, images = DiscreteVAE(config), random_images()
    with torch.no_grad():
        features = tokenizer.features(images)
        start_codes(tokenizer, features)
        tokenizer.code_layer.bias[5] = -1e9  # pyright: ignore[reportOptionalSubscript]
        ids = tokenizer.encode(images)
        points = features.permute(0, 2, 3, 1).flatten(0, 2)
        varied = max(ids.unique().tolist(), key=lambda code: float(points[ids.flatten() == code].var(0, correction=0).sum()))
        error = torch.where(ids == varied, 1.0, 0.01)
        revival = CodeRevival(config.vocabulary, dead_share=0.05)
        revival.observe(ids, error)
        revival.usage.clamp_(min=1)  # nobody else is dead
        revival.usage[5] = 0
        before = tokenizer.embeddings.clone()
        assert revival.revive(tokenizer, features) == 1
        after = tokenizer.encode(images)
    moved = (ids == varied) & (after == 5)
    stayed = (ids == varied) & (after == varied)
    assert moved.any()
    assert stayed.any()
    assert int(moved.sum() + stayed.sum()) >= 0.9 * int((ids == varied).sum())
    others = (ids != varied) & (after != ids)
    assert others.float().mean() < 0.05
    change = (tokenizer.embeddings - before).norm(dim=1)
    assert change.nonzero().flatten().tolist() == [5]
    torch.testing.assert_close(tokenizer.embeddings[5], before[varied], atol=float(before.std()) * 0.1, rtol=0)
    assert not revival.usage.any()
    assert not revival.error.any()
    assert revival.batches == 0


def test_an_empty_background_is_not_split() -> None:
    """The most used code, with no error and no variation, gets no twin."""
    torch.manual_seed(0)
    tokenizer = DiscreteVAE(CONFIGS[0])
    with torch.no_grad():
        features = tokenizer.features(torch.zeros(4, 3, 32, 32))[:, :, 2:-2, 2:-2]
        ids = tokenizer.code_layer(features).argmax(1)
        revival = CodeRevival(16, dead_share=0.05)
        revival.observe(ids, torch.zeros(ids.shape))
        before = {name: tensor.clone() for name, tensor in tokenizer.state_dict().items()}
        assert revival.revive(tokenizer, features) == 0
    assert all(torch.equal(before[name], tensor) for name, tensor in tokenizer.state_dict().items())


def test_counts_are_kept_in_the_state_dict() -> None:
    revival = CodeRevival(4, dead_share=0.05)
    revival.observe(torch.tensor([[[0, 0], [3, 1]]]), torch.tensor([[[1.0, 2.0], [4.0, 8.0]]]))
    other = CodeRevival(4, dead_share=0.05)
    other.load_state_dict(revival.state_dict())
    assert other.usage.tolist() == [2, 1, 0, 1]
    assert other.error.tolist() == [3, 8, 0, 4]
    assert other.batches == 1
