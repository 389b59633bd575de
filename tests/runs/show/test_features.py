"""Principal components against NumPy's SVD, and neighbors against every pair compared by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from beitkit.runs.show.features import Nearest, principal_components


def test_principal_components_are_those_of_an_svd() -> None:
    features = torch.randn(50, 8, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 9) + 5
    found, shares = principal_components(features, 3)
    values = features.double().numpy()
    left, singular, right = np.linalg.svd(values - values.mean(0), full_matrices=False)
    signs = np.sign(right[np.arange(8), np.abs(right).argmax(1)])
    np.testing.assert_allclose(found, (left * singular * signs)[:, :3], atol=1e-4)
    np.testing.assert_allclose(shares, (singular**2 / (singular**2).sum())[:3], rtol=1e-5)


def test_components_that_are_not_there_are_zero() -> None:
    found, shares = principal_components(torch.tensor([[1.0, 2.0], [3.0, 6.0]]), 3)
    assert found[:, 1:].abs().max() < 1e-6
    assert shares.tolist() == pytest.approx([1, 0, 0])


def test_neighbors_are_those_of_every_pair_compared() -> None:
    generator = torch.Generator().manual_seed(1)
    gallery, queries = torch.randn(11, 6, 5, generator=generator), torch.randn(4, 5, generator=generator)
    own = torch.tensor([0, 3, 3, 10])
    nearest = Nearest(queries, own, 3)
    for places in torch.arange(11).split(4):
        nearest.update(places, gallery[places])
    for query in range(4):
        pairs = []
        for image in range(11):
            cosines = [float(row @ queries[query] / row.norm() / queries[query].norm()) for row in gallery[image]]
            if image != own[query]:
                pairs.append((-max(cosines), image, int(np.argmax(cosines))))
        expected = sorted(pairs)[:3]
        assert nearest.image[query].tolist() == [image for _, image, _ in expected]
        assert nearest.patch[query].tolist() == [patch for _, _, patch in expected]
        assert nearest.similarity[query].tolist() == pytest.approx([-value for value, _, _ in expected], abs=1e-6)
    assert nearest.found == 3


def test_of_equal_images_the_earlier_is_nearer_and_too_few_are_fewer() -> None:
    nearest = Nearest(torch.ones(1, 2), torch.tensor([1]), 5)
    nearest.update(torch.arange(3), torch.ones(3, 1, 2))
    assert nearest.found == 2
    assert nearest.image[0, :2].tolist() == [0, 2]
