"""The floors against brute force, closed forms and long gradient descent, and on planted answers."""

import math

import pytest
import torch
import torch.nn.functional as F

from beitkit.evaluation import floors
from beitkit.evaluation.floors import (
    CONTRAST,
    PENALTIES,
    WHITENING,
    Logistic,
    PatchDictionary,
    PixelClassifier,
    Standard,
    kmeans,
    logistic_answers,
    neighbor_answers,
    normalized_patches,
    pixel_features,
    pixels,
    principal_components,
    triangle,
    without_copies,
)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("number", [40, 6])
def test_logistic_regression_finds_the_minimum_of_long_gradient_descent(number: int) -> None:
    """With more images than features, and with fewer; some features are nearly copies of others."""
    features = drawn(number, 10) * torch.logspace(0, 2, 10)
    features[:, 5] = features[:, 4] + 0.01 * features[:, 5]
    labels = torch.arange(number) % 3
    model = Logistic(features, labels, 3)
    for penalty in (1.0, 0.03):
        model.fit(penalty)
        known = ((features - features.mean(0)) / features.std(0, correction=0)).double()
        weight, bias = torch.zeros(10, 3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
        for _ in range(6000):
            error = ((known @ weight + bias).softmax(1) - F.one_hot(labels, 3)) / number
            weight, bias = weight - 0.15 * (known.T @ error + penalty * weight), bias - 0.15 * error.sum(0)
        assert torch.allclose(model.weights[0].double(), weight, atol=2e-3)
        assert torch.allclose(model.weights[1].double(), bias, atol=2e-3)


def test_two_classes_of_one_feature_have_a_closed_form_without_much_data() -> None:
    """Features -1 and 1 with labels 0 and 1: by symmetry the weights are (-w, w)."""
    model = Logistic(torch.tensor([[-1.0], [1.0]]), torch.tensor([0, 1]), 2)
    model.fit(0.1)
    (low, high), bias = model.weights[0][0].tolist(), model.weights[1].tolist()
    assert low == pytest.approx(-high, abs=1e-4)
    assert bias == pytest.approx([0, 0], abs=1e-4)
    # The derivative of log(1 + exp(-2 w)) + 0.1 w^2 is zero.
    assert 2 / (1 + math.exp(2 * high)) == pytest.approx(0.2 * high, abs=1e-3)


def test_constant_features_stay_small() -> None:
    features = torch.cat((drawn(20, 3), torch.ones(20, 1)), dim=1)
    features[0, 3] += 1e-4
    assert float(Standard.of(features)(features).abs().max()) < 5


def test_principal_components_span_what_varies() -> None:
    features = drawn(30, 2) @ drawn(2, 8, seed=1)
    basis, variances = principal_components(features)
    assert basis.shape == (8, 2)
    assert torch.allclose(basis.T @ basis, torch.eye(2), atol=1e-5)
    assert torch.allclose(features @ basis @ basis.T, features, atol=1e-4)
    assert torch.allclose((features @ basis).square().mean(0), variances, rtol=1e-4)
    few, _ = principal_components(features[:5])
    assert few.shape == (8, 2)


def test_the_penalty_is_chosen_on_a_fifth_of_each_class() -> None:
    """One useful feature among 60: the answers are those of the penalty that names most of the images held out right."""
    labels = torch.arange(100) % 2
    features, ask = drawn(100, 60), drawn(200, 60, seed=5)
    features[:, 0] += 1.5 * (2 * labels - 1)
    out = (torch.arange(100) // 2) % 5 == 4
    best, right = 0.0, -1
    for penalty in PENALTIES:
        model = Logistic(features[~out], labels[~out], 2)
        model.fit(penalty)
        count = int((model.answers(features[out]) == labels[out]).sum())
        if count > right:
            best, right = penalty, count
    model = Logistic(features, labels, 2)
    model.fit(best)
    assert best != PENALTIES[-1]
    assert torch.equal(logistic_answers(features, labels, ask, 2), model.answers(ask))


@pytest.mark.parametrize("count", [1, 3, 10])
def test_neighbors_vote_like_brute_force(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floors, "NEIGHBORS", (count,))
    features, ask, labels = drawn(50, 4), drawn(30, 4, seed=1), torch.arange(50) % 3
    answers = neighbor_answers(features, labels, ask, 3)
    for one, answer in zip(ask, answers.tolist(), strict=True):
        near = [int(labels[place]) for place in (features - one).square().sum(1).argsort()[:count].tolist()]
        votes = [near.count(label) for label in range(3)]
        tied = [label for label in range(3) if votes[label] == max(votes)]
        assert answer in tied
        if count != 10 or len(tied) == 1:
            assert answer == min(tied, key=near.index)


def test_the_number_of_neighbors_is_chosen_on_held_out_images() -> None:
    """Labels that lie at random in one image out of four: one neighbor repeats the mistakes, many do not."""
    generator = torch.Generator().manual_seed(0)
    features = torch.cat((drawn(200, 2), drawn(200, 2, seed=1) + 6))
    truth = torch.arange(2).repeat_interleave(200)
    labels = torch.where(torch.rand(400, generator=generator) < 0.25, 1 - truth, truth)
    ask = torch.cat((drawn(50, 2, seed=2), drawn(50, 2, seed=3) + 6))
    answers = neighbor_answers(features, labels, ask, 2)
    assert float((answers == torch.arange(2).repeat_interleave(50)).float().mean()) > 0.97


def test_kmeans_finds_planted_clusters() -> None:
    """Well separated clusters: the centers are their means, which brute force over the true groups gives."""
    planted = torch.tensor([[0.0, 0.0], [20.0, 0.0], [0.0, 20.0]])
    points = (planted[:, None] + drawn(3, 40, 2)).flatten(0, 1)
    for seed in range(20):
        found = kmeans(points, 3, torch.Generator().manual_seed(seed))
        if len({int(torch.cdist(center[None], planted).argmin()) for center in found}) == 3:
            break
    else:
        pytest.fail("no start found the three clusters")
    nearest = torch.cdist(planted, found).argmin(1)
    means = points.view(3, 40, 2).mean(1)
    assert torch.allclose(found[nearest], means, atol=1e-4)


def test_kmeans_never_has_an_empty_center_and_not_more_centers_than_points() -> None:
    points = torch.cat((torch.zeros(50, 2), drawn(10, 2) + 9))
    found = kmeans(points, 6, torch.Generator().manual_seed(1))
    assert not found.isnan().any()
    assert len(kmeans(points[-4:], 9, torch.Generator())) == 4


def test_triangle_activation_by_loops() -> None:
    points, centers = drawn(5, 3), drawn(4, 3, seed=1)
    for point, row in zip(points, triangle(points, centers), strict=True):
        distances = [math.dist(point.tolist(), center.tolist()) for center in centers]
        expected = [max(0.0, sum(distances) / 4 - distance) for distance in distances]
        assert row.tolist() == pytest.approx(expected, abs=1e-5)


def test_features_of_a_dictionary_by_loops() -> None:
    """Every patch, contrast normalized, whitened and compared with every center, summed over the quadrant it lies in."""
    images = torch.randint(256, (3, 2, 9, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    # Of other images: the distance of a patch to itself is a difference of large numbers.
    dictionary = PatchDictionary.learn(images.flip(0, 3) // 2 + 9, 0, num_centers=5)
    assert dictionary.side == 6
    found = dictionary.features(images)
    assert found.shape == (3, 4 * 5)
    for image, row in zip(images.double() / 255, found, strict=True):
        sums = torch.zeros(2, 2, 5, dtype=torch.float64)
        for top in range(4):
            for left in range(3):
                patch = image[:, top : top + 6, left : left + 6].flatten()
                patch = (patch - patch.mean()) / (patch.var() + CONTRAST).sqrt()
                white = (patch - dictionary.mean) @ dictionary.whitening.double()
                distances = (dictionary.centers.double() - white).norm(dim=1)
                sums[int(top >= 2), int(left >= 2)] += (distances.mean() - distances).clamp_min(0)
        assert torch.allclose(row.double(), sums.flatten(), atol=1e-3)


def test_whitening_makes_directions_alike() -> None:
    images = (drawn(400, 1, 12, 12).cumsum(3) * 20 + 128).clamp(0, 255).to(torch.uint8)
    dictionary = PatchDictionary.learn(images, 0, num_centers=2)
    patches = normalized_patches(F.unfold(images / 255, 6).transpose(1, 2)).flatten(0, 1)
    white = (patches - dictionary.mean) @ dictionary.whitening
    before = torch.linalg.eigvalsh(torch.cov(patches.T)).clamp_min(0)
    after = torch.linalg.eigvalsh(torch.cov(white.T))
    assert torch.allclose(after.sort().values, (before / (before + WHITENING)).sort().values, atol=0.05)


def test_a_dictionary_tells_textures_apart_that_pixels_do_not() -> None:
    """Stripes across and along, with a random phase."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(120) % 2
    phases = torch.randint(4, (120, 1), generator=generator)
    stripes = (((torch.arange(16) + phases) // 2 % 2) * 200).to(torch.uint8)
    images = torch.where(
        (labels == 0)[:, None, None], stripes[:, :, None].expand(-1, 16, 16), stripes[:, None, :].expand(-1, 16, 16)
    )[:, None].contiguous()
    images = (images + torch.randint(50, images.shape, generator=generator, dtype=torch.uint8)).to(torch.uint8)
    described = PatchDictionary.learn(images, 0, num_centers=20).features(images)
    answers = logistic_answers(described[:60], labels[:60], described[60:], 2)
    assert torch.equal(answers, labels[60:])


def test_gray_images_stored_as_rgb_lose_their_copies() -> None:
    gray = torch.randint(256, (2, 1, 4, 4), dtype=torch.uint8)
    assert [images.shape[1] for images in without_copies(gray.expand(-1, 3, -1, -1), gray.expand(-1, 3, -1, -1))] == [1, 1]
    colored = gray.repeat(1, 3, 1, 1)
    colored[0, 2, 0, 0] += 1
    assert [images.shape[1] for images in without_copies(gray.repeat(1, 3, 1, 1), colored)] == [3, 3]
    assert pixels(gray).tolist() == (gray.flatten(1) / 255).tolist()


def test_a_pixel_classifier_learns_color_and_position_and_skips_what_does_not_count() -> None:
    """Above the middle class 0 whatever the color; below it class 1 where it is red, else 2; ignored pixels would say class 3."""

    def scene(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        red = torch.randint(2, (16, 12), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
        image = torch.stack((red * 255, red * 0 + 30, red * 0))
        label_map = torch.where(torch.arange(16)[:, None] < 8, 0, torch.where(red == 1, 1, 2)).to(torch.uint8)
        label_map[:, 0] = 255
        return image, label_map

    classifier = PixelClassifier((scene(seed) for seed in range(10)), 4, seed=0)
    image, label_map = scene(99)
    answer = classifier(image)
    assert answer.dtype == torch.uint8
    rows = [row for row in range(16) if row not in (7, 8)]
    assert float((answer[rows, 1:] == label_map[rows, 1:]).float().mean()) > 0.95


def test_features_of_a_pixel() -> None:
    image = torch.tensor([[[0, 255]], [[51, 102]]], dtype=torch.uint8)
    found = pixel_features(image)
    assert found.shape == (2, 4 + 10)
    assert found[1, :4].tolist() == pytest.approx([1.0, 0.4, -1.0, 1.0])
    assert sorted(found[1, 4:].tolist()) == pytest.approx(sorted([1, 0.4, -1, 1, 0.16, -0.4, 0.4, 1, -1, 1]))
