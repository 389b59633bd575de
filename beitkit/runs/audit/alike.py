"""Near duplicates: the same image recompressed, resized, recolored or slightly cut, by an own perceptual hash.

An image is reduced to 16x16 gray pixels, of which the cosine transform is taken. Its coefficients are multiplied by their
frequency, as natural images have the less of a frequency the higher it is (the spectrum falls as 1/f; Field 1987): what is left
tells images apart by their details, not by a horizon that many share. Mean and contrast do not count, nor do the highest
frequencies, which compression and resizing change. Two images are near duplicates where these unit vectors are close.

To find those pairs without comparing all, the signs of random projections make a key of each image (Charikar 2002); images
are sorted by the key, and neighbors with the same one are compared. This is done with several sets of projections, so that a
pair that differs in a bit of one is found by another.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt8

SIDE = 16
"""Pixels of a reduced image's side."""
HIGHEST = 12.0
"""Frequencies above this are left out; 1 is half a wave over the image."""
TABLES = 32
NEIGHBORS = 64
"""Images with the same key that one is compared with; among more, all are alike, and a chain joins them."""
AT_ONCE = 2**16
"""Vectors that are multiplied together."""


def descriptors(thumbnails: UInt8[np.ndarray, "n 16 16"]) -> Float32[np.ndarray, "n d"]:
    """Unit vectors of reduced images; of one without any detail the zero vector."""
    places = np.arange(SIDE)
    transform = (np.cos(np.pi * places[:, None] * (2 * places[None] + 1) / (2 * SIDE))).astype(np.float32)
    frequency = np.hypot(places[:, None], places[None])
    weights = np.where((frequency > 0) & (frequency <= HIGHEST), frequency, 0).astype(np.float32)
    weights[0] /= math.sqrt(2)  # the transform's first row and column would have to be
    weights[:, 0] /= math.sqrt(2)
    found = np.empty((len(thumbnails), int((weights > 0).sum())), dtype=np.float32)
    for first in range(0, len(thumbnails), AT_ONCE):
        gray = thumbnails[first : first + AT_ONCE].astype(np.float32)
        values = (transform @ gray @ transform.T * weights)[:, weights > 0]
        length = np.sqrt((values**2).sum(axis=1, keepdims=True))
        found[first : first + AT_ONCE] = np.where(length > 1, values / np.maximum(length, 1), 0)
    return found


def near_pairs(vectors: Float32[np.ndarray, "n d"], near: float) -> tuple[Int64[np.ndarray, "m 2"], Float32[np.ndarray, " m"]]:
    """Pairs of images at most `near` apart, the earlier one first, and their distances; the nearest first."""
    count = len(vectors)
    bits = min(60, max(4, math.ceil(math.log2(max(2, count))) + 2))
    chance = np.random.default_rng(0)
    is_detailed = (vectors**2).sum(axis=1) > 0.5
    found: dict[int, float] = {}
    for _ in range(TABLES):
        directions = chance.standard_normal((vectors.shape[1], bits)).astype(np.float32)
        keys = np.empty(count, dtype=np.int64)
        for first in range(0, count, AT_ONCE):
            keys[first : first + AT_ONCE] = (vectors[first : first + AT_ONCE] @ directions > 0) @ (1 << np.arange(bits))
        for pairs in _with_same_key(keys, is_detailed):
            cosines = np.einsum("md,md->m", vectors[pairs[:, 0]], vectors[pairs[:, 1]])
            is_near = cosines >= 1 - near**2 / 2
            for (one, two), cosine in zip(pairs[is_near].tolist(), cosines[is_near].tolist(), strict=True):
                found[one * count + two] = math.sqrt(max(0.0, 2 - 2 * cosine))
    order = sorted(found, key=lambda pair: (found[pair], pair))
    pairs = np.array([divmod(pair, count) for pair in order], dtype=np.int64).reshape(-1, 2)
    return pairs, np.array([found[pair] for pair in order], dtype=np.float32)


def _with_same_key(keys: Int64[np.ndarray, " n"], is_used: Bool[np.ndarray, " n"]) -> Iterator[Int64[np.ndarray, "m 2"]]:
    """Pairs of images with the same key, some at a time; the earlier image first."""
    used = np.flatnonzero(is_used)
    order = used[np.argsort(keys[used], kind="stable")]
    ordered = keys[order]
    starts = np.arange(len(order))
    for distance in range(1, NEIGHBORS + 1):
        starts = starts[starts + distance < len(order)]
        starts = starts[ordered[starts] == ordered[starts + distance]]
        if not len(starts):
            return
        for first in range(0, len(starts), AT_ONCE):
            some = starts[first : first + AT_ONCE]
            yield np.stack([order[some], order[some + distance]], axis=1)
