"""The k-means tokenizer, against loops over patches in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from beitkit.configs.tokenizer import KMeansConfig
from beitkit.contracts import Tokenizer
from beitkit.errors import UserError
from beitkit.tokenizers.clusters import Whitening, kmeans, whitening_of
from beitkit.tokenizers.frozen import encoder_of
from beitkit.tokenizers.kmeans import KMeansTokenizer, contrast_normalized

CONFIG = KMeansConfig(vocabulary=10, stride=4, margin=2, channels=3, patches=500)


def waves(count: int, channels: int = 3) -> torch.Tensor:
    """Images (count, channels, 16, 20) with structure, in [0, 1]."""
    generator = torch.Generator().manual_seed(channels)
    coarse = torch.rand(count, channels, 5, 6, generator=generator)
    return torch.nn.functional.interpolate(coarse, (16, 20), mode="bicubic").clamp(0, 1)


def made(config: KMeansConfig, images: torch.Tensor) -> tuple[KMeansTokenizer, Whitening, torch.Tensor]:
    """A tokenizer whose centers are from all patches of these images, with its whitening and centers."""
    tokenizer = KMeansTokenizer(config)
    raw = tokenizer.windows(images).flatten(0, 1)
    windows = contrast_normalized(raw, config.contrast_eps)
    whitening = whitening_of(windows, config.whitening)
    whitening.apply_(windows)
    centers, ids = kmeans(windows, config.vocabulary, 10, torch.Generator().manual_seed(0))
    tokenizer.set_centers(whitening, centers, ids, tokenizer.patches_of(raw))
    return tokenizer, whitening, centers


def naive_ids(config: KMeansConfig, whitening: Whitening, centers: torch.Tensor, images: torch.Tensor) -> np.ndarray:
    mean, matrix, centers_ = (part.double().numpy() for part in (*whitening, centers))
    m, s = config.margin, config.stride
    found = []
    for image in images.double().numpy():
        padded = np.pad(image, ((0, 0), (m, m), (m, m)), mode="edge")
        for top in range(0, image.shape[1], s):
            for left in range(0, image.shape[2], s):
                x = padded[:, top : top + s + 2 * m, left : left + s + 2 * m].ravel()
                x = (x - x.mean()) / np.sqrt(x.var() + config.contrast_eps)
                found.append(((matrix @ (x - mean) - centers_) ** 2).sum(1).argmin())
    return np.array(found).reshape(len(images), images.shape[2] // s, images.shape[3] // s)


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        KMeansConfig(vocabulary=10, stride=4, margin=0, channels=1, patches=500),
        KMeansConfig(vocabulary=7, stride=2, margin=5, channels=5, patches=500),
    ],
    ids=["margin 2", "no margin, gray", "wide margin, 5 channels"],
)
def test_tokens_are_those_of_a_loop_and_decode_to_the_means_of_their_patches(config: KMeansConfig) -> None:
    images = waves(25, config.channels)
    tokenizer, whitening, centers = made(config, images)
    assert isinstance(tokenizer, Tokenizer)
    expected = naive_ids(config, whitening, centers, images)
    ids = tokenizer.encode(images)
    assert ids.dtype == torch.int64
    assert (ids.numpy() == expected).mean() > 0.999  # rounding may decide between two near centers
    assert len(np.unique(expected)) == config.vocabulary
    s = config.stride
    patches = images.unfold(2, s, s).unfold(3, s, s).permute(0, 2, 3, 1, 4, 5).double().numpy()  # (b, gh, gw, c, s, s)
    decoded = tokenizer.decode(ids)
    assert decoded.shape == images.shape
    for code in range(config.vocabulary):
        at = np.argwhere(ids.numpy() == code)[0]
        top, left = at[1:] * s
        shown = decoded[at[0], :, top : top + s, left : left + s].numpy()
        assert np.allclose(shown, patches[ids.numpy() == code].mean(0), atol=2e-3)


def test_contrast_and_brightness_of_a_patch_hardly_matter() -> None:
    tokenizer, _, _ = made(CONFIG, waves(25))
    images = waves(5)
    assert (tokenizer.encode(images) == tokenizer.encode(0.6 * images + 0.3)).float().mean() > 0.9


def test_only_the_margin_is_seen_of_the_neighbors() -> None:
    tokenizer, _, _ = made(CONFIG, waves(25))
    image = waves(1)
    changed = image.clone()
    changed[..., :2] = 1 - changed[..., :2]  # 2 pixels away from the second column of patches' margin
    assert not torch.equal(tokenizer.windows(image)[:, 0], tokenizer.windows(changed)[:, 0])
    same = tokenizer.windows(image) == tokenizer.windows(changed)
    assert same.all(2).view(4, 5)[:, 1:].all()
    changed[..., 2] = 0
    assert not (tokenizer.windows(image) == tokenizer.windows(changed)).all(2).view(4, 5)[:, 1].any()


def test_a_code_without_patches_decodes_to_the_mean_of_all() -> None:
    tokenizer = KMeansTokenizer(KMeansConfig(vocabulary=3, stride=2, margin=0, channels=1, patches=3))
    patches = torch.tensor([[0.0, 0, 0, 0], [0.2, 0.4, 0.6, 0.8]])
    whitening = Whitening(torch.zeros(4), torch.eye(4))
    tokenizer.set_centers(whitening, torch.randn(3, 4), torch.tensor([0, 2]), patches)
    decoded = tokenizer.decode(torch.tensor([[[0, 1, 2]]]))[0, 0]
    assert torch.allclose(decoded, torch.tensor([[0, 0, 0.1, 0.2, 0.2, 0.4], [0, 0, 0.3, 0.4, 0.6, 0.8]]))


def test_the_same_tokens_under_autocast() -> None:
    tokenizer, _, _ = made(CONFIG, waves(25))
    assert encoder_of(tokenizer, waves(8), torch.bfloat16).agreement == 1


def test_the_fingerprint_is_of_what_decides_the_tokens() -> None:
    tokenizer, _, _ = made(CONFIG, waves(25))
    before = tokenizer.fingerprint
    tokenizer.mean_patches.zero_()
    assert tokenizer.fingerprint == before
    tokenizer.filters[3, 5] += 1e-3
    assert tokenizer.fingerprint != before


def test_large_patches_are_whitened_less_unless_it_is_given() -> None:
    assert [KMeansConfig(stride=stride, margin=margin).whitening for stride, margin in ((4, 2), (8, 0), (8, 2), (16, 4))] == [
        0.1,
        0.1,
        10,
        10,
    ]
    assert KMeansConfig(stride=16, whitening_eps=0.1).whitening == 0.1


def test_wrong_use() -> None:
    tokenizer = KMeansTokenizer(CONFIG)
    with pytest.raises(UserError, match="18x16 pixels do not divide into the tokenizer's cells of 4x4.*: 16x16"):
        tokenizer.encode(torch.rand(1, 3, 18, 16))
    with pytest.raises(UserError, match="1 channels, the tokenizer was made for 3"):
        tokenizer.encode(torch.rand(1, 1, 16, 16))
    with pytest.raises(UserError, match="from 0 to 10, the tokenizer has codes 0 to 9"):
        tokenizer.decode(torch.tensor([[[0, 10]]]))
    with pytest.raises(UserError, match="`kmeans.patches` must be at least `kmeans.vocabulary`.*got 500 and 501"):
        KMeansConfig(vocabulary=501, patches=500)
    with pytest.raises(UserError, match="`kmeans.vocabulary` must be at least 2, got 1"):
        KMeansConfig(vocabulary=1)
