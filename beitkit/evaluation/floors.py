"""Floors: what simple methods reach with the same labels, without a pre-trained network.

Classification: nearest neighbors and logistic regression on raw pixels, and logistic regression on a dictionary of patches that
k-means finds in seconds (Coates, Lee and Ng, AISTATS 2011; Coates and Ng, "Learning feature representations with k-means", 2012).
Segmentation: the commonest class, and logistic regression on the color and the position of a pixel. A network that is not above
them is not worth its time.

Penalty and number of neighbors are chosen on training images that are held out, never on the images that are asked for.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped, UInt8
from torch import Tensor

from beitkit.contracts import IGNORED, in_unit_range
from beitkit.evaluation.probe import fit_logistic, held_out_split
from beitkit.tokenizers.codebook import gather_by_code

SIDE = 32
"""Images are made no larger than squares of this side (Coates et al.: CIFAR-10's 32)."""
PENALTIES = (1.0, 1e-1, 3e-2, 1e-2, 1e-3)
"""Weight penalties that are tried; the largest comes first, and each fit starts where the one before it ended."""
STEPS = 30
"""Most steps of L-BFGS for a penalty."""
NEIGHBORS = (1, 3, 5, 10, 20)
"""Numbers of neighbors that are tried."""
CENTERS = 400
PATCH = 6
PATCHES = 50_000
"""Patches that the dictionary is learned from."""
KMEANS_STEPS = 15
CONTRAST = 10 / 255**2
"""Added to the variance of a patch before it is divided by its root (Coates and Ng 2012: 10, for values up to 255)."""
WHITENING = 0.1
"""Added to the eigenvalues of the patches' covariance (Coates and Ng 2012)."""
SMALLEST_VARIANCE = 1e-6
"""Of a principal component, relative to the largest: what is smaller is rounding."""
SMALLEST_DEVIATION = 0.01
"""Of a feature, relative to the median one's: what hardly ever changes is not blown up to the size of the others."""
AT_A_TIME = 2**20
"""Numbers of a part of a computation (4 MiB), so that it stays in the cache."""
PIXELS = 200
"""Pixels of each image that the segmentation's floor learns from."""


class Standard(NamedTuple):
    """How features are standardized."""

    mean: Float[Tensor, " f"]
    deviation: Float[Tensor, " f"]

    @classmethod
    def of(cls, features: Float[Tensor, "n f"]) -> Standard:
        """Mean and deviation of these features."""
        deviation = features.std(0, correction=0)
        return cls(features.mean(0), deviation.clamp_min(max(SMALLEST_DEVIATION * float(deviation.median()), 1e-6)))

    def __call__(self, features: Float[Tensor, "n f"]) -> Float[Tensor, "n f"]:
        """Features of mean 0 and deviation 1."""
        return (features - self.mean) / self.deviation


def pixels(images: Shaped[Tensor, "n c h w"]) -> Float[Tensor, "n f"]:
    """All values of every image, in [0, 1]."""
    return in_unit_range(images).flatten(1)


def without_copies(*lists: Tensor) -> tuple[Tensor, ...]:
    """Images (n, c, h, w) with one channel, if all channels of all of them are equal: gray images that are stored as RGB."""
    is_gray = all(bool((images == images[:, :1]).all()) for images in lists)
    return tuple(images[:, :1] if is_gray else images for images in lists)


class Logistic:
    """Logistic regression on standardized features, for several penalties in turn.

    It is solved in the directions of the principal components, each stretched until the loss curves about equally along all of
    them: that is the same problem, which L-BFGS solves in a few steps instead of hundreds.
    """

    def __init__(self, features: Float[Tensor, "n f"], labels: Int[Tensor, " n"], classes: int) -> None:
        self.labels, self.classes = labels, classes
        self.standard = Standard.of(features)
        self._basis, self._variances = principal_components(known := self.standard(features))
        self._rotated = known @ self._basis
        self.weights = torch.zeros(features.shape[1], classes), torch.zeros(classes)

    def fit(self, penalty: float) -> None:
        """Minimize mean cross-entropy + penalty / 2 * |weights|^2, from the last solution on."""
        # The curvature of the cross-entropy where all classes are equally probable, and of the penalty.
        curvature = self._variances * (self.classes - 1) / self.classes**2 + penalty
        stretch = curvature.rsqrt()
        start = (self._basis.T @ self.weights[0]) / stretch[:, None], self.weights[1]
        penalties = penalty * stretch.square()[:, None]
        weight, bias = fit_logistic(self._rotated * stretch, self.labels, self.classes, penalties, start=start, steps=STEPS)
        self.weights = self._basis @ (stretch[:, None] * weight), bias

    def layer(self) -> tuple[Float[Tensor, "classes f"], Float[Tensor, " classes"]]:
        """Weight and bias of the linear layer that gives the same logits for features as they are."""
        weight, bias = self.weights
        weight = weight / self.standard.deviation[:, None]
        return weight.T, bias - self.standard.mean @ weight

    def answers(self, features: Float[Tensor, "q f"]) -> Int[Tensor, " q"]:
        """The most probable class of each."""
        weight, bias = self.weights
        return torch.cat([(self.standard(part) @ weight + bias).argmax(1) for part in features.split(4096)])


def principal_components(features: Float[Tensor, "n f"]) -> tuple[Float[Tensor, "f r"], Float[Tensor, " r"]]:
    """Orthonormal directions (columns) in which the features vary about zero, and their mean squares along them."""
    number, width = features.shape
    gram = features.T @ features if width <= number else features @ features.T
    values, vectors = torch.linalg.eigh(gram / number)
    is_used = values > SMALLEST_VARIANCE * values[-1]
    values, vectors = values[is_used], vectors[:, is_used]
    if width > number:
        vectors = F.normalize(features.T @ vectors, dim=0)
    return vectors, values


def chosen_logistic(features: Float[Tensor, "n f"], labels: Int[Tensor, " n"], classes: int) -> Logistic:
    """Logistic regression on standardized features, its penalty chosen on a fifth of them.

    Raises:
        UserError: no class has two images, so none can be held out.
    """
    kept, out = held_out_split(labels)
    model, scores = Logistic(features[kept], labels[kept], classes), []
    for penalty in PENALTIES:
        model.fit(penalty)
        scores.append(float((model.answers(features[out]) == labels[out]).float().mean()))
    model = Logistic(features, labels, classes)
    model.fit(PENALTIES[max(range(len(PENALTIES)), key=scores.__getitem__)])
    return model


def logistic_answers(
    features: Float[Tensor, "n f"], labels: Int[Tensor, " n"], ask: Float[Tensor, "q f"], classes: int
) -> Int[Tensor, " q"]:
    """What `chosen_logistic` names; raises what it raises."""
    return chosen_logistic(features, labels, classes).answers(ask)


def neighbor_answers(
    features: Float[Tensor, "n f"], labels: Int[Tensor, " n"], ask: Float[Tensor, "q f"], classes: int
) -> Int[Tensor, " q"]:
    """What the nearest training images say by a majority of votes (of a tie, the class of the nearest of them), by Euclidean
    distance; how many vote is chosen on a fifth of the training images.

    Raises:
        UserError: no class has two images, so none can be held out.
    """
    kept, out = held_out_split(labels)
    found = labels[kept][_nearest(features[kept], features[out])]
    scores = [float((_voted(found, count, classes) == labels[out]).float().mean()) for count in NEIGHBORS]
    chosen = NEIGHBORS[max(range(len(NEIGHBORS)), key=scores.__getitem__)]
    return _voted(labels[_nearest(features, ask)], chosen, classes)


@dataclass(frozen=True)
class PatchDictionary:
    """Centers of whitened patches: features of an image are how near its patches come to each, summed over its four quadrants."""

    side: int
    """Of a patch, in pixels."""
    mean: Float[Tensor, " p"]
    whitening: Float[Tensor, "p p"]
    centers: Float[Tensor, "k p"]

    @classmethod
    def learn(cls, images: Shaped[Tensor, "n c h w"], seed: int, num_centers: int = CENTERS) -> PatchDictionary:
        """Draw patches of these images, normalize their contrast, whiten them (ZCA) and find their centers."""
        generator = torch.Generator().manual_seed(seed)
        side = min(PATCH, images.shape[2], images.shape[3])
        patches = _drawn_patches(images, side, generator)
        mean = patches.mean(0)
        values, vectors = torch.linalg.eigh((patches - mean).T @ (patches - mean) / len(patches))
        whitening = vectors @ torch.diag((values.clamp_min(0) + WHITENING).rsqrt()) @ vectors.T
        return cls(side, mean, whitening, kmeans((patches - mean) @ whitening, num_centers, generator))

    def features(self, images: Shaped[Tensor, "n c h w"]) -> Float[Tensor, "n f"]:
        """Triangle activations max(0, mean distance - distance to a center), summed over quadrants: 4 for each center."""
        rows, columns = (size - self.side + 1 for size in images.shape[2:])
        at_a_time = max(1, AT_A_TIME // (rows * columns * len(self.centers)))
        return torch.cat([self._pooled(part, rows, columns) for part in images.split(at_a_time)])

    def _pooled(self, images: Tensor, rows: int, columns: int) -> Tensor:
        patches = normalized_patches(F.unfold(in_unit_range(images), self.side).transpose(1, 2))  # (b, rows * columns, p)
        activations = triangle((patches.flatten(0, 1) - self.mean) @ self.whitening, self.centers)
        maps = activations.view(len(images), rows, columns, -1)
        top, left = (rows + 1) // 2, (columns + 1) // 2
        halves = [part.sum(1) for part in (maps[:, :top], maps[:, top:])]  # (b, columns, k) each
        return torch.cat([part.sum(1) for half in halves for part in (half[:, :left], half[:, left:])], dim=1)


def normalized_patches(patches: Float[Tensor, "*n p"]) -> Float[Tensor, "*n p"]:
    """Each patch less its mean, divided by its deviation."""
    centered = patches - patches.mean(-1, keepdim=True)
    variance = centered.square().sum(-1, keepdim=True) / (patches.shape[-1] - 1)
    return centered.div_((variance + CONTRAST).sqrt_())


def triangle(points: Float[Tensor, "n p"], centers: Float[Tensor, "k p"]) -> Float[Tensor, "n k"]:
    """max(0, mean distance to all centers - distance to this one) (Coates, Lee and Ng 2011, equation 2)."""
    squares = points.square().sum(1, keepdim=True) + centers.square().sum(1)
    distances = torch.addmm(squares, points, centers.T, alpha=-2).clamp_min_(0).sqrt_()
    return distances.mean(1, keepdim=True).sub(distances).clamp_min_(0)


def kmeans(points: Float[Tensor, "n p"], num_centers: int, generator: torch.Generator) -> Float[Tensor, "k p"]:
    """Lloyd's algorithm from drawn points; a center that nothing is near to becomes a drawn point again.

    There are no more centers than points.
    """
    centers = points[torch.randperm(len(points), generator=generator)[:num_centers]]
    for _ in range(KMEANS_STEPS):
        owners = torch.cat([_owners(part, centers) for part in points.split(max(1, AT_A_TIME // len(centers)))])
        counts, sums = gather_by_code(points, owners, len(centers))
        again = points[torch.randint(len(points), (len(centers),), generator=generator)]
        centers = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], again)
    return centers


class PixelClassifier:
    """Logistic regression on the color and the position of a pixel, their squares and products: a segmentation without a network.

    It learns from some pixels of every image, drawn by `seed`.
    """

    def __init__(self, scenes: Iterable[tuple[Tensor, Tensor]], classes: int, seed: int) -> None:
        """`scenes` are images, uint8 or float in [0, 1] (c, h, w), with their label maps, uint8 (h, w).

        They may come as `Scene`s, or numbered.
        """
        generator = torch.Generator().manual_seed(seed)
        features, labels = [], []
        for image, label_map in scenes:
            counted = (label_map.flatten() != IGNORED).nonzero().squeeze(1)
            drawn = counted[torch.randint(len(counted), (PIXELS if len(counted) else 0,), generator=generator)]
            features.append(pixel_features(image)[drawn])
            labels.append(label_map.flatten()[drawn].long())
        known, names = torch.cat(features), torch.cat(labels)
        self.commonest = int(torch.bincount(names, minlength=classes).argmax())
        """The class of most of these pixels."""
        self._model = Logistic(known, names, classes)
        self._model.fit(PENALTIES[-1])

    def __call__(self, image: Shaped[Tensor, "c h w"]) -> UInt8[Tensor, "h w"]:
        """The class of every pixel."""
        return self._model.answers(pixel_features(image)).view(image.shape[1:]).to(torch.uint8)


def pixel_features(image: Shaped[Tensor, "c h w"]) -> Float[Tensor, "n f"]:
    """Of every pixel, in raster order: its values, its row and column in [-1, 1], and the squares and products of these."""
    height, width = image.shape[1:]
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    plain = torch.cat((in_unit_range(image), rows[None], columns[None])).flatten(1).T  # (n, c + 2)
    first, second = torch.triu_indices(plain.shape[1], plain.shape[1])
    return torch.cat((plain, plain[:, first] * plain[:, second]), dim=1)


def _drawn_patches(images: Tensor, side: int, generator: torch.Generator) -> Float[Tensor, "n p"]:
    """Patches from anywhere in the images, as many of each, contrast normalized."""
    num_images, _, height, width = images.shape
    count = min(PATCHES, num_images * (height - side + 1) * (width - side + 1))
    which = torch.arange(count) % num_images
    top = torch.randint(height - side + 1, (count,), generator=generator)[:, None, None] + torch.arange(side)[:, None]
    left = torch.randint(width - side + 1, (count,), generator=generator)[:, None, None] + torch.arange(side)
    patches = images[which[:, None, None], :, top, left]  # (n, side, side, c)
    return normalized_patches(in_unit_range(patches.permute(0, 3, 1, 2)).flatten(1))


def _owners(points: Tensor, centers: Tensor) -> Int[Tensor, " n"]:
    """The nearest center of every point."""
    return torch.addmm(centers.square().sum(1), points, centers.T, alpha=-2).argmin(1)


def _nearest(known: Tensor, ask: Tensor) -> Int[Tensor, "q k"]:
    """The nearest of the known points, nearest first."""
    most = min(max(NEIGHBORS), len(known))
    squares = known.square().sum(1)
    parts = ask.split(max(1, AT_A_TIME // len(known)))
    return torch.cat([torch.addmm(squares, part, known.T, alpha=-2).topk(most, largest=False).indices for part in parts])


def _voted(labels: Int[Tensor, "q k"], count: int, classes: int) -> Int[Tensor, " q"]:
    """The commonest label among the first `count`; of a tie the one that stands first."""
    near = labels[:, :count]
    # The weight of a vote falls a little with its place, by less in sum than one vote counts.
    places = torch.arange(near.shape[1], 0, -1) / (near.shape[1] + 1) ** 2
    votes = torch.zeros(len(near), classes).scatter_add_(1, near, (1 + places).expand(near.shape))
    return votes.argmax(1)
