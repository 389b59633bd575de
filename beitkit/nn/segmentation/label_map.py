"""Label map of a whole image at its own size, with the area and mean probability of each class."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor
from torch.nn import functional as F

from beitkit.configs.model import Pair
from beitkit.configs.segmentation import InferenceConfig
from beitkit.contracts import Autocast, ImageInput, in_unit_range, pixel_statistics
from beitkit.errors import UserError
from beitkit.nn.prediction import ScenePrediction, check_outputs
from beitkit.nn.segmentation.enlarged import labeled_bands, sampled_step
from beitkit.nn.segmentation.heads import map_size
from beitkit.nn.segmentation.segmenter import Segmenter
from beitkit.nn.segmentation.windows import ScoreFunction, SlidingScores, resized_rows

BAND_BYTES = 64 << 20
"""Limit on the full-resolution scores in memory at once."""
LONGEST = 4
"""Maximum aspect ratio after resizing (official configs)."""


@dataclass(frozen=True)
class SceneLabeler:
    """Labels images in any form; what `Segmenter.predict` uses, set by `beitkit.load`."""

    read: Callable[[ImageInput], Tensor]
    """From an image to its pixels (c, h, w) at its own size: uint8, or of deep images float32 in [0, 1]."""

    def __call__(self, model: Segmenter, image: ImageInput, config: InferenceConfig | None) -> ScenePrediction:
        """The label map of an image, with the area of each class and the confidence in it."""
        return predict_scene(model, self.read(image), config)


@torch.no_grad()
def predict_label_map(
    model: Segmenter,
    image: Shaped[Tensor, "c h w"],
    config: InferenceConfig | None = None,
    precision: Autocast = nullcontext,
) -> UInt8[Tensor, "h w"]:
    """The class of every pixel, at the image's size, on the CPU (method 7.5).

    The image is resized, aspect kept, so that its short side is that of the network, or shorter if its long side would be
    more than four times as long; windows are slid over it, and their averaged scores brought back to the image's size.
    With several scales the short side is never less than the network's and the long side is free (as the official code
    does, after SETR); the probabilities of all scales and flips are averaged. Where a resized image is smaller than a
    window it is padded right and below with zeros after normalization, and the scores of the padding are dropped: the
    network's positions stay those it was trained with. With `mode` whole the image is squeezed into one window instead.

    Args:
        model: in eval mode, on any device.
        image: of any size, as it was read.
        config: windows, scales and flips; None takes the network's own (`SegmenterConfig.inference`).
        precision: a context to run the network in, such as `Runtime.precision`.

    Raises:
        UserError: if the model is in training mode, the image does not fit it, or the stride is larger than its window.
    """
    views = _views(model, image, config, precision)
    if (scores := _enlarged_alone(views, model, image)) is not None:
        return _enlarged(scores, model, image)[0]
    # Kept on the device until the last band, so that no band waits for the one before.
    label_map = torch.empty(map_size(image), dtype=torch.uint8, device=model.backbone.cls_token.device)
    for first, band in _score_bands(model, image, views, want_probabilities=False):
        label_map[first : first + band.shape[1]] = band.argmax(0).to(torch.uint8)
    return label_map.cpu()


@torch.no_grad()
def predict_scene(
    model: Segmenter,
    image: Shaped[Tensor, "c h w"],
    config: InferenceConfig | None = None,
    precision: Autocast = nullcontext,
) -> ScenePrediction:
    """The label map as from `predict_label_map`, with the area of each class and the confidence in it.

    The confidence is the mean probability over all pixels of a class. Where an image is at least four times as large as its
    scores, a CPU computes it on every second pixel, or fewer, but no less than two for a score, along each axis.
    """
    views = _views(model, image, config, precision)
    if (scores := _enlarged_alone(views, model, image)) is not None:
        labels, certainties = _enlarged(scores, model, image, with_certainty=True)
        area, confidence = certainties[:, 0] / labels.numel(), certainties[:, 1] / certainties[:, 0]
        return ScenePrediction(model.config.classes, labels, area, confidence)
    device = model.backbone.cls_token.device
    if device.type == "mps":  # it has no float64
        device = torch.device("cpu")
    label_map = torch.empty(map_size(image), dtype=torch.uint8, device=device)
    count = torch.zeros(len(model.config.classes), dtype=torch.float64, device=device)
    certainty = torch.zeros_like(count)
    for first, probabilities in _score_bands(model, image, views, want_probabilities=True):
        best = probabilities.max(0)
        labels, values = best.indices.to(device), best.values.to(device, torch.float64).flatten()
        label_map[first : first + len(labels)] = labels.to(torch.uint8)
        # On a GPU in any order, which rounds the sums of float64 differently from one time to the next.
        count.index_add_(0, labels.flatten(), torch.ones_like(values))
        certainty.index_add_(0, labels.flatten(), values)
    area, confidence = (count / label_map.numel()).cpu(), (certainty / count).cpu()
    return ScenePrediction(model.config.classes, label_map.cpu(), area, confidence)


def _enlarged_alone(views: list[tuple[SlidingScores, bool]], model: Segmenter, image: Tensor) -> SlidingScores | None:
    """The scores, where labels can be found from few of them: one view, enlarged, on a CPU. A GPU would have to wait."""
    (scores, _), *others = views
    size, is_on_cpu = map_size(image), model.backbone.cls_token.device.type == "cpu"
    is_enlarged = scores.size != size and all(part <= whole for part, whole in zip(scores.size, size, strict=True))
    return scores if is_on_cpu and is_enlarged and not others else None


def _enlarged(
    scores: SlidingScores, model: Segmenter, image: Tensor, *, with_certainty: bool = False
) -> tuple[UInt8[Tensor, "h w"], Float[Tensor, "classes 2"]]:
    """The label map, and for each class the number of its pixels and the sum of their probabilities, if wanted."""
    size, classes = map_size(image), len(model.config.classes)
    label_map, certainties = torch.empty(size, dtype=torch.uint8), torch.zeros(classes, 2, dtype=torch.float64)
    steps = tuple(sampled_step(part, whole) for part, whole in zip(scores.size, size, strict=True))
    is_finite = torch.ones((), dtype=torch.bool)
    for band in labeled_bands(scores, classes, size):
        label_map[band.first : band.first + len(band.labels)] = band.labels
        is_finite &= band.is_finite
        if with_certainty:
            certainties += band.certainty(classes, (steps[0], steps[1]))
    check_outputs(torch.where(is_finite, 0.0, torch.nan)[None, None])
    return label_map, certainties


def _score_bands(
    model: Segmenter,
    image: Shaped[Tensor, "c h w"],
    views: list[tuple[SlidingScores, bool]],
    *,
    want_probabilities: bool,
) -> Iterator[tuple[int, Float[Tensor, "classes rows w"]]]:
    """Yield bands from top to bottom: first row, and scores (or probabilities, if wanted or averaged)."""
    size = map_size(image)
    are_averaged = len(views) > 1
    not_finite = torch.zeros((), dtype=torch.bool, device=model.backbone.cls_token.device)
    for first, end in _bands(size, len(model.config.classes), [scores.size for scores, _ in views]):
        total: Tensor | None = None
        for scores, is_flipped in views:
            band = scores.rows(first, end) if scores.size == size else resized_rows(scores.rows, scores.size[0], size, first, end)
            band = band.softmax(0) if want_probabilities or are_averaged else band
            band = band.flip(-1) if is_flipped else band
            total = band if total is None else total.add_(band)
        assert total is not None
        not_finite |= (~total.isfinite()).any()
        yield first, total.div_(len(views)) if are_averaged else total
    check_outputs(torch.where(not_finite, torch.nan, 0.0)[None, None])


def _check(model: Segmenter, image: Tensor) -> None:
    channels = model.config.backbone.channels
    if model.training:
        raise UserError("the network is in training mode; call model.eval() before it labels images")
    if image.dtype not in (torch.uint8, torch.float32) or image.dim() != 3 or image.shape[0] != channels or not image.numel():
        raise UserError(
            f"this network labels uint8 images of shape ({channels}, height, width), or floats in [0, 1], "
            f"got {str(image.dtype).removeprefix('torch.')} of shape {tuple(image.shape)}"
        )


def _views(
    model: Segmenter, image: Shaped[Tensor, "c h w"], wished: InferenceConfig | None, precision: Autocast
) -> list[tuple[SlidingScores, bool]]:
    """One per scale and flip: the scores of the resized image, and whether it is mirrored."""
    _check(model, image)
    config = model.config.inference if wished is None else wished
    window = model.config.backbone.image_size
    stride = _stride(config, window)
    score = _scorer(model, precision)
    views = []
    for size in _sizes(map_size(image), config, window):
        resized = _resized(image, size)
        for is_flipped in (False, True) if config.flip else (False,):
            shown = resized.flip(-1) if is_flipped else resized
            views.append((SlidingScores(score, shown, window, stride, config.window_batch), is_flipped))
    return views


def _stride(config: InferenceConfig, window: Pair) -> Pair:
    if config.mode == "whole":
        return window
    if config.stride is None:
        return max(1, 2 * window[0] // 3), max(1, 2 * window[1] // 3)
    if config.stride > min(window):
        raise UserError(
            f"`inference.stride` {config.stride} is larger than the network's windows of {window[0]}x{window[1]} pixels, "
            "so some pixels would not be seen"
        )
    return config.stride, config.stride


def _sizes(size: Pair, config: InferenceConfig, window: Pair) -> list[Pair]:
    """Size of the resized image for each scale."""
    if config.mode == "whole":
        return [window]
    short, long = min(size), max(size)
    side = config.short_side or min(window)
    if config.scales == (1.0,):
        factors = [min(side / short, LONGEST * side / long)]
    else:
        factors = [max(scale * side, min(window)) / short for scale in config.scales]
    return [(max(1, int(size[0] * factor + 0.5)), max(1, int(size[1] * factor + 0.5))) for factor in factors]


def _resized(image: Shaped[Tensor, "c h w"], size: Pair) -> Shaped[Tensor, "c oh ow"]:
    """The image at another size, bilinear and antialiased, rounded to whole values as training images are."""
    if map_size(image) == size:
        return image
    # On the CPU, where 8-bit images are resized without becoming floats, four times as large.
    return F.interpolate(image[None].cpu(), size=size, mode="bilinear", antialias=True)[0]


def _scorer(model: Segmenter, precision: Autocast) -> ScoreFunction:
    """Normalize, pad to the window's size, and run the network as far as its own resolution."""
    weight, (height, width) = model.backbone.cls_token, model.config.backbone.image_size
    preprocessing = model.config.preprocessing
    mean, std = pixel_statistics(preprocessing.mean, preprocessing.std, model.config.backbone.channels, weight)

    def score(parts: Shaped[Tensor, "b c h w"]) -> Float[Tensor, "b classes mh mw"]:
        images = in_unit_range(parts.to(weight.device), weight.dtype).sub_(mean).div_(std)
        padded = F.pad(images, (0, width - images.shape[-1], 0, height - images.shape[-2]))
        with precision():
            logits = model.coarse_logits(padded)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    return score


def _bands(size: Pair, classes: int, sources: list[Pair]) -> Iterator[Pair]:
    """First row, and the row after the last, of bands that keep the scores in memory below `BAND_BYTES`."""
    height, width = size
    # Rows of a map that is shrunk to the image's size are larger than those of the result.
    widest = max([width, *(source_width * -(-source_height // height) for source_height, source_width in sources)])
    rows = max(1, BAND_BYTES // (4 * classes * widest))
    for first in range(0, height, rows):
        yield first, min(first + rows, height)
