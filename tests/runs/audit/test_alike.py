"""Near duplicates: all recompressed and resized images are found, no others, and sorting finds what comparing all does."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from beitkit.runs.audit.alike import SIDE, descriptors, near_pairs

NEAR = 0.3


def natural(seed: int, size: int = 96) -> Image.Image:
    """Noise with the spectrum of natural images, in color."""
    rng = np.random.default_rng(seed)
    frequency = np.maximum(np.hypot(*np.meshgrid(np.fft.fftfreq(size), np.fft.fftfreq(size))), 1 / size)
    waves = np.fft.fft2(rng.standard_normal((3, size, size))) / frequency
    pixels = np.fft.ifft2(waves).real + 0.7 * np.fft.ifft2(waves[:1]).real
    pixels = (pixels - pixels.min()) / (pixels.max() - pixels.min()) * 255
    return Image.fromarray(pixels.transpose(1, 2, 0).astype(np.uint8))


def thumbnail(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def recompressed(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer)


@pytest.mark.parametrize(
    "changed",
    [
        lambda image: recompressed(image, 50),
        lambda image: image.resize((48, 48), Image.Resampling.BICUBIC),
        lambda image: image.resize((131, 150), Image.Resampling.BILINEAR),
        lambda image: recompressed(image.resize((70, 70), Image.Resampling.LANCZOS), 50),
        lambda image: image.convert("L").point(lambda value: 30 + value * 0.7),
    ],
    ids=["quality 50", "half", "larger and stretched", "smaller and quality 50", "gray, paler"],
)
def test_copies_are_found_and_nothing_else(changed) -> None:
    images = [natural(seed) for seed in range(150)]
    thumbnails = np.stack([thumbnail(image) for image in (*images, *map(changed, images))])
    pairs, distances = near_pairs(descriptors(thumbnails), NEAR)
    assert {tuple(pair) for pair in pairs.tolist()} == {(index, index + 150) for index in range(150)}
    assert (np.diff(distances) >= 0).all()
    assert distances.max() <= NEAR


def test_descriptors_are_those_of_the_cosine_transform() -> None:
    scipy = pytest.importorskip("scipy.fft")
    thumbnails = np.random.default_rng(0).integers(0, 255, (5, SIDE, SIDE)).astype(np.uint8)
    across = np.hypot(*np.meshgrid(np.arange(SIDE), np.arange(SIDE)))
    is_kept = (across > 0) & (across <= 12)
    expected = np.stack([(scipy.dctn(one.astype(float), norm="ortho") * across)[is_kept] for one in thumbnails])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert np.allclose(descriptors(thumbnails), expected, atol=1e-5)


def test_sorting_finds_what_comparing_all_does() -> None:
    """Vectors at all distances from each other, many at the limit itself."""
    rng = np.random.default_rng(1)
    centers = rng.standard_normal((300, 122))
    spread = rng.uniform(0, 0.5, (300, 1))
    others = centers + spread * rng.standard_normal((300, 122))
    vectors = np.concatenate([centers, others]).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    apart = np.sqrt(np.maximum(0, 2 - 2 * vectors.astype(float) @ vectors.T.astype(float)))
    expected = {(one, two) for one, two in np.argwhere(apart <= NEAR).tolist() if one < two}
    assert 150 < len(expected) < 300
    pairs, distances = near_pairs(vectors, NEAR)
    found = {tuple(pair) for pair in pairs.tolist()}
    assert found <= expected
    assert len(found) >= 0.99 * len(expected)
    assert np.allclose(distances, [apart[one, two] for one, two in pairs], atol=1e-3)


def test_flat_and_single_images_are_like_none() -> None:
    flat = np.full((3, SIDE, SIDE), 200, dtype=np.uint8)
    assert len(near_pairs(descriptors(flat), NEAR)[0]) == 0
    assert len(near_pairs(descriptors(flat[:0]), NEAR)[0]) == 0


def test_many_of_one_kind_are_joined_in_bounded_time() -> None:
    one = thumbnail(natural(0))
    pairs, _ = near_pairs(descriptors(np.repeat(one[None], 500, axis=0)), NEAR)
    assert {two for _, two in pairs.tolist()} == set(range(1, 500))
    assert len(pairs) <= 500 * 64
