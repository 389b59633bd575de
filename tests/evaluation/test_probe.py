"""Probes against brute force, and on features whose answer is known."""

import contextlib

import pytest
import torch
import torch.nn.functional as F

from beitkit.configs.model import BackboneConfig
from beitkit.evaluation.probe import (
    NEIGHBORS,
    TEMPERATURE,
    BlockFeatures,
    GridMeans,
    HeldOutProbe,
    ProbeAccuracy,
    block_accuracies,
    block_features,
    featured,
    held_out_split,
    linear_probe,
    logistic,
    mean_patch,
    nearest_neighbors,
    token_and_mean,
)
from beitkit.nn.backbone import Backbone


def clusters(count: int, noise: float, seed: int) -> BlockFeatures:
    """Block 0 is noise, block 1 holds three separable clusters."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    centers = torch.eye(3, 8) * 5
    informative = centers[labels] + noise * torch.randn(count, 8, generator=generator)
    return BlockFeatures(torch.stack((torch.randn(count, 8, generator=generator), informative)), labels)


def test_both_probes_choose_the_block_that_separates() -> None:
    train, test = clusters(90, 0.3, 0), clusters(60, 0.3, 1)
    for result in (nearest_neighbors(train, test, 3), linear_probe(train, test, 3)):
        assert result.chosen == 1
        assert result.test[1] == 1.0
        assert result.test[0] < 0.6


def test_the_test_images_do_not_influence_the_choice() -> None:
    train = clusters(90, 0.3, 0)
    swapped = clusters(60, 0.3, 1)
    swapped = BlockFeatures(swapped.features.flip(0), swapped.labels)
    assert nearest_neighbors(train, swapped, 3).chosen == linear_probe(train, swapped, 3).chosen == 1


def test_a_repeated_probe_is_the_logistic_one_of_the_best_block_on_every_fifth_image() -> None:
    config = BackboneConfig.named("nano/8", image_size=16)
    torch.manual_seed(0)
    backbone = Backbone(config).eval()
    labels = torch.arange(40) % 2
    images = torch.randn(40, 3, 16, 16) + 0.2 * labels[:, None, None, None]
    batch = {"images": images, "labels": labels, "broken": torch.full((40,), -1)}
    with torch.no_grad():  # as in the training loop
        found = dict(HeldOutProbe(backbone, lambda share: iter([batch]), 2, contextlib.nullcontext).run())
    stored = block_features(backbone, iter([batch]), contextlib.nullcontext, range(4))
    kept, out = held_out_split(labels)
    assert len(out) == 8
    scores = [
        (logistic(block[kept], labels[kept], block[out], 2, 1e-2) == labels[out]).float().mean().item()
        for block in stored.features
    ]
    assert found["linear"] == max(scores)
    assert found["linear_block"] == 1 + scores.index(max(scores))
    train = BlockFeatures(stored.features[:, kept], labels[kept])
    neighbors = nearest_neighbors(train, BlockFeatures(stored.features[:, out], labels[out]), 2).test
    assert found["neighbors"] == max(neighbors)


def test_neighbors_vote_like_brute_force() -> None:
    train, test = clusters(60, 6.0, 2), clusters(25, 6.0, 3)
    result = nearest_neighbors(train, test, 3)
    right = 0
    for ask, label in zip(test.features[1], test.labels, strict=True):
        similarity = F.cosine_similarity(train.features[1], ask[None])
        votes = [0.0, 0.0, 0.0]
        for index in similarity.argsort(descending=True)[:NEIGHBORS].tolist():
            votes[int(train.labels[index])] += float((similarity[index] / TEMPERATURE).exp())
        right += votes.index(max(votes)) == int(label)
    assert result.test[1] == pytest.approx(right / 25)
    assert right < 25  # hard enough that a wrong vote would show


def test_logistic_reaches_the_stationary_point() -> None:
    train = clusters(60, 2.0, 4)
    features, labels, penalty = train.features[1], train.labels, 1e-2
    standardized = (features - features.mean(0)) / features.std(0)
    # An independent solver: plain gradient descent to convergence in float64.
    weight = torch.zeros(8, 3, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD((weight, bias), lr=0.5)
    for _ in range(3000):
        optimizer.zero_grad()
        logits = standardized.double() @ weight + bias
        (F.cross_entropy(logits, labels) + 0.5 * penalty * weight.square().sum()).backward()
        optimizer.step()
    expected = (standardized.double() @ weight + bias).argmax(1)
    assert torch.equal(logistic(features, labels, features, 3, penalty), expected)


def test_the_held_out_part_is_a_fifth_of_every_class() -> None:
    labels = torch.tensor([0] * 20 + [1] * 5 + [2] * 3)
    kept, out = held_out_split(labels)
    assert sorted([*kept.tolist(), *out.tolist()]) == list(range(28))
    assert torch.bincount(labels[out], minlength=3).tolist() == [4, 1, 0]
    tiny_kept, tiny_out = held_out_split(torch.tensor([0, 0, 1, 1]))
    assert (len(tiny_kept), len(tiny_out)) == (2, 2)


def test_features_are_class_token_and_mean_patch_of_raw_blocks() -> None:
    torch.manual_seed(0)
    backbone = Backbone(BackboneConfig.named("nano/4", image_size=8)).eval()
    images = torch.randn(3, 3, 8, 8)
    batch = {"images": images, "labels": torch.tensor([0, 1, 2]), "broken": torch.tensor([-1, 4, -1])}
    features, labels = block_features(backbone, iter([batch]), contextlib.nullcontext, range(backbone.depth))
    assert labels.tolist() == [0, 2]
    with torch.no_grad():
        third = backbone.intermediates(images, [2])[0]
    expected = torch.cat((third.cls, third.patches.mean(1)), 1)[[0, 2]]
    assert torch.allclose(features[2], expected, atol=1e-6)
    paper, _ = block_features(backbone, iter([batch]), contextlib.nullcontext, [2], mean_patch)
    assert torch.allclose(paper[0], third.patches.mean(1)[[0, 2]], atol=1e-6)
    # 4 patches of 2x2: each is a cell of its own.
    cells, _ = block_features(backbone, iter([batch]), contextlib.nullcontext, [2], GridMeans(2))
    assert torch.allclose(cells[0], third.patches.flatten(1)[[0, 2]], atol=1e-6)
    one, _ = block_features(backbone, iter([batch]), contextlib.nullcontext, [2], GridMeans(1))
    assert torch.allclose(one, paper, atol=1e-6)


def test_features_are_a_stage_of_the_stream_that_leaves_no_gradient() -> None:
    torch.manual_seed(0)
    backbone = Backbone(BackboneConfig.named("nano/4", image_size=8)).eval()
    batch = {"images": torch.randn(2, 3, 8, 8), "index": torch.tensor([3, 1]), "labels": torch.tensor([0, 1])}
    held_out = torch.tensor([False, False, True, True])
    (out,) = featured([batch], backbone, [0, 3], contextlib.nullcontext, held_out, token_and_mean)
    assert set(out) == {"features", "held_out", "index", "labels"}
    assert out["features"].shape == (2, 2, 2 * 96)
    assert not out["features"].requires_grad
    assert out["held_out"].tolist() == [True, False]


def test_the_evaluator_names_the_best_block() -> None:
    images = clusters(30, 0.0, 5)

    def predict(features: torch.Tensor) -> torch.Tensor:
        return features[..., :3]  # block 1 holds the label in these places, block 0 holds noise

    assert block_accuracies(predict, images)[1] == 1.0
    values = dict(ProbeAccuracy("test", predict, images, (4, 9)).run())
    assert values == {"best": 1.0, "block": 9}
