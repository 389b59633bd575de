"""Evaluate frozen features of every block: nearest neighbors and linear classifiers.

Either the features of every image are computed once, for nearest neighbors and logistic regression; or, as in the official script
and the paper, linear layers (`objectives.probe`) are trained on random crops, whose features are a stage of the stream.

BEiT's last block is trained to predict tokens; the most semantic features are in the middle (arXiv 2106.08254, table 9 uses the
9th of 12 blocks). So every block is probed, and the block is selected on images held out of the training set, never on the
images that are reported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from beitkit.contracts import WHOLE, Autocast, Batch, Share
from beitkit.errors import UserError
from beitkit.nn.backbone import Backbone, Features
from beitkit.nn.models import grid_means

NEIGHBORS = 20
TEMPERATURE = 0.07
"""Neighbors vote with weight exp(cosine / temperature), as in DINO's protocol."""
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1)
"""Weight penalties tried by the linear probe; each is multiplied by half the squared norm and compared on held-out images."""
STEADY_PENALTY = 1e-2
"""The one that repeated probes take (`HeldOutProbe`)."""
HELD_OUT = 5
"""Every fifth image of each class is held out to select the block and the penalty."""


class BlockFeatures(NamedTuple):
    """Features of one set of images, of every block that is probed."""

    features: Float[Tensor, "blocks n f"]
    labels: Int[Tensor, " n"]


class ProbeResult(NamedTuple):
    """Accuracies (shares) of one kind of probe."""

    chosen: int
    """Index of the block that is best on the held-out part of the training images."""
    held_out: list[float]
    """Per block, on the held-out part."""
    test: list[float]
    """Per block, on the test images, after training on all training images."""


Pool = Callable[[Features], Float[Tensor, "b f"]]
"""How the tokens of an image become its features."""


def token_and_mean(tokens: Features) -> Float[Tensor, "b f"]:
    """Class token and mean patch side by side: the official probe's (method 6.2)."""
    return torch.cat((tokens.cls, tokens.patches.mean(1)), dim=1)


def mean_patch(tokens: Features) -> Float[Tensor, "b d"]:
    """The mean patch alone: the paper's (method 6.1)."""
    return tokens.patches.mean(1)


@dataclass(frozen=True)
class GridMeans:
    """Means over `cells` x `cells` parts of the image side by side, as grid pooling takes them: they keep where something is."""

    cells: int

    def __call__(self, tokens: Features) -> Float[Tensor, "b f"]:
        """The features."""
        return grid_means(tokens, self.cells).flatten(1)


@torch.no_grad()
def frozen_features(
    backbone: Backbone,
    images: Float[Tensor, "b c h w"],
    blocks: Sequence[int],
    precision: Autocast,
    pool: Pool = token_and_mean,
) -> Float[Tensor, "blocks b f"]:
    """Features of raw block outputs (0-based, ascending), in float32 and without a gradient."""
    with precision():
        outputs = backbone.intermediates(images, blocks)
    return torch.stack([pool(out) for out in outputs]).float()


def block_features(
    backbone: Backbone,
    batches: Iterator[Batch],
    precision: Autocast,
    blocks: Sequence[int],
    pool: Pool = token_and_mean,
) -> BlockFeatures:
    """`frozen_features` of all readable images, on the CPU."""
    return _put_together(list(_batch_features(backbone, batches, precision, blocks, pool)))


def _batch_features(
    backbone: Backbone,
    batches: Iterator[Batch],
    precision: Autocast,
    blocks: Sequence[int],
    pool: Pool = token_and_mean,
) -> Iterator[BlockFeatures]:
    """`block_features` of each batch."""
    for batch in batches:
        readable = (batch["broken"] < 0).cpu()
        features = frozen_features(backbone, batch["images"], blocks, precision, pool)
        yield BlockFeatures(features.cpu()[:, readable], batch["labels"].cpu()[readable])


def _put_together(parts: list[BlockFeatures]) -> BlockFeatures:
    return BlockFeatures(torch.cat([part.features for part in parts], dim=1), torch.cat([part.labels for part in parts]))


def featured(
    stream: Iterable[Batch],
    backbone: Backbone,
    blocks: Sequence[int],
    precision: Autocast,
    held_out: Bool[Tensor, " images"],
    pool: Pool,
) -> Iterator[Batch]:
    """Batches with `features` (blocks, b, f) in place of `images`, and `held_out` (b,): which images choose the block."""
    for batch in stream:
        features = frozen_features(backbone, batch["images"], blocks, precision, pool)
        rest = {key: value for key, value in batch.items() if key != "images"}
        yield rest | {"features": features, "held_out": held_out[batch["index"]]}


@dataclass
class ProbeAccuracy:
    """The best block's top-1 accuracy on one set of images, and which block that is; a `contracts.Evaluator`."""

    name: str
    predict: Callable[[Tensor], Tensor]
    """Features (blocks, b, f) to logits (blocks, b, classes)."""
    images: BlockFeatures
    blocks: Sequence[int]
    """What the blocks are called."""

    def run(self, share: Share = WHOLE) -> Iterator[tuple[str, float]]:
        """Yield best (a share) and block; the features are rank 0's."""
        if share.rank:
            return
        accuracies = block_accuracies(self.predict, self.images)
        best = max(range(len(accuracies)), key=accuracies.__getitem__)
        yield "best", accuracies[best]
        yield "block", float(self.blocks[best])


@dataclass
class HeldOutProbe:
    """How well classes can be read off the frozen blocks, on every fifth of some labeled images; a `contracts.Evaluator`.

    Cheap enough to be repeated while the network is trained: one pass over the images, and one penalty. The block is chosen on
    the images that are reported, so a score by itself is a little too good; scores of the same images can be compared.
    """

    backbone: Backbone
    batches: Callable[[Share], Iterator[Batch]]
    """A share of a fresh pass over the labeled images."""
    classes: int
    precision: Autocast
    name: str = "labels"

    def run(self, share: Share = WHOLE) -> Iterator[tuple[str, float]]:
        """Yield linear (a share) and its block, counted from 1, and the same for nearest neighbors."""
        parts = share.together(_batch_features(self.backbone, self.batches(share), self.precision, range(self.backbone.depth)))
        if parts is None:
            return
        images = _put_together(parts)
        kept, out = held_out_split(images.labels)
        for name, answer in (("linear", self._linear), ("neighbors", self._neighbors)):
            scores = [
                _share(answer((block[kept], images.labels[kept]), block[out]), images.labels[out]) for block in images.features
            ]
            best = max(range(len(scores)), key=scores.__getitem__)
            yield name, scores[best]
            yield f"{name}_block", float(best + 1)

    @torch.enable_grad()
    def _linear(self, fit: tuple[Tensor, Tensor], ask: Tensor) -> Tensor:
        return logistic(*fit, ask, self.classes, STEADY_PENALTY)

    def _neighbors(self, fit: tuple[Tensor, Tensor], ask: Tensor) -> Tensor:
        return _vote(fit, ask, self.classes, NEIGHBORS)


@torch.no_grad()
def block_accuracies(predict: Callable[[Tensor], Tensor], images: BlockFeatures) -> list[float]:
    """Top-1 accuracy of every block; `predict` maps features (blocks, b, f) to logits (blocks, b, classes)."""
    right = torch.zeros(len(images.features))
    for features, labels in zip(images.features.split(1024, dim=1), images.labels.split(1024), strict=True):
        right += (predict(features).argmax(-1).cpu() == labels).sum(1)
    return (right / len(images.labels)).tolist()


def nearest_neighbors(train: BlockFeatures, test: BlockFeatures, classes: int, neighbors: int = NEIGHBORS) -> ProbeResult:
    """k-nearest-neighbor vote, weighted by cosine similarity."""
    return _probe(train, test, lambda fit, ask: _vote(fit, ask, classes, neighbors))


def linear_probe(train: BlockFeatures, test: BlockFeatures, classes: int) -> ProbeResult:
    """Multinomial logistic regression on standardized features; the penalty is selected on the held-out part."""
    kept, out = held_out_split(train.labels)
    penalties = []
    for features in train.features:
        fit, ask = (features[kept], train.labels[kept]), features[out]
        scores = [_share(logistic(*fit, ask, classes, penalty), train.labels[out]) for penalty in PENALTIES]
        penalties.append(PENALTIES[max(range(len(PENALTIES)), key=scores.__getitem__)])
    by_block = iter(penalties * 2)  # once for the held-out part, once for the test images
    return _probe(train, test, lambda fit, ask: logistic(*fit, ask, classes, next(by_block)))


def held_out_split(labels: Int[Tensor, " n"]) -> tuple[Int[Tensor, " kept"], Int[Tensor, " held_out"]]:
    """Indices kept for training and held out for choosing, the same share of every class."""
    position = torch.empty_like(labels)
    for label in labels.unique():
        members = (labels == label).nonzero().squeeze(1)
        position[members] = torch.arange(len(members))
    is_out = position % HELD_OUT == HELD_OUT - 1
    if not is_out.any():  # fewer than five images of every class: the second of each chooses
        is_out = position == 1
    if not is_out.any():
        raise UserError("every class has only one training image; two are needed, so that one can choose the block")
    return (~is_out).nonzero().squeeze(1), is_out.nonzero().squeeze(1)


def held_out_count(labels: NDArray[np.integer]) -> int:
    """How many of these images `held_out_split` holds out."""
    return len(held_out_split(torch.from_numpy(labels))[1])


def logistic(
    features: Float[Tensor, "n f"], labels: Int[Tensor, " n"], ask: Float[Tensor, "q f"], classes: int, penalty: float
) -> Int[Tensor, " q"]:
    """Fit a linear classifier (full-batch L-BFGS, zero start) and name the classes of `ask`."""
    mean, std = features.mean(0), features.std(0).clamp_min(1e-6)
    weight, bias = fit_logistic((features - mean) / std, labels, classes, penalty)
    return ((ask - mean) / std @ weight + bias).argmax(1)


def fit_logistic(
    features: Float[Tensor, "n f"],
    labels: Int[Tensor, " n"],
    classes: int,
    penalty: float | Float[Tensor, "f 1"],
    *,
    start: tuple[Tensor, Tensor] | None = None,
    steps: int = 100,
) -> tuple[Float[Tensor, "f classes"], Float[Tensor, " classes"]]:
    """Weights and bias of a linear classifier: mean cross-entropy + penalty / 2 * |weights|^2, by full-batch L-BFGS.

    It begins at `start`, or at zero. Features may have penalties of their own.
    """
    first = (torch.zeros(features.shape[1], classes), torch.zeros(classes)) if start is None else start
    weight, bias = (part.clone().requires_grad_() for part in first)
    optimizer = torch.optim.LBFGS((weight, bias), max_iter=steps, history_size=10, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(features @ weight + bias, labels) + 0.5 * (penalty * weight.square()).sum()
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]
    return weight.detach(), bias.detach()


def _probe(
    train: BlockFeatures,
    test: BlockFeatures,
    answer: Callable[[tuple[Tensor, Tensor], Tensor], Tensor],
) -> ProbeResult:
    kept, out = held_out_split(train.labels)
    held_out = [_share(answer((block[kept], train.labels[kept]), block[out]), train.labels[out]) for block in train.features]
    reported = [
        _share(answer((block, train.labels), ask), test.labels) for block, ask in zip(train.features, test.features, strict=True)
    ]
    chosen = max(range(len(held_out)), key=held_out.__getitem__)
    return ProbeResult(chosen, held_out, reported)


def _vote(fit: tuple[Tensor, Tensor], ask: Tensor, classes: int, neighbors: int) -> Tensor:
    features, labels = F.normalize(fit[0], dim=1), fit[1]
    answers = []
    for part in F.normalize(ask, dim=1).split(1024):
        similarity, index = (part @ features.T).topk(min(neighbors, len(features)), dim=1)
        votes = torch.zeros(len(part), classes).scatter_add_(1, labels[index], (similarity / TEMPERATURE).exp())
        answers.append(votes.argmax(1))
    return torch.cat(answers)


def _share(answers: Tensor, labels: Tensor) -> float:
    return (answers == labels).float().mean().item()
