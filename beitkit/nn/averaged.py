"""Test-time views of a classifier: the logits of an image averaged over zoomed, mirrored and shifted versions of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from beitkit.configs.model import Pair
from beitkit.configs.segmentation import InferenceConfig
from beitkit.errors import UserError


def check_views(config: InferenceConfig, size: Pair) -> None:
    """Raise a `UserError` for what only segmenters can do, or a shift that leaves nothing of an image of (height, width)."""
    config.refuse_windows()
    if config.shift >= min(size):
        raise UserError(
            f"`inference.shift` must be less than the {min(size)} pixels of an image's short side, got {config.shift}"
        )


def averaged_logits(
    model: Callable[[Tensor], Tensor], images: Float[Tensor, "b c h w"], config: InferenceConfig
) -> Float[Tensor, "b classes"]:
    """The mean over views of the logits, in float32; with the usual settings the logits themselves.

    Every scale is shown as it is and, where asked for, mirrored, and each of these where it is and shifted in four directions.
    """
    views = [model(view).float() for view in views_of(images, config)]
    return sum(views[1:], views[0]) / len(views)


def views_of(images: Float[Tensor, "b c h w"], config: InferenceConfig) -> Iterator[Float[Tensor, "b c h w"]]:
    """The views that are averaged, all of the same size; what lies outside of an image repeats its edge."""
    for scale in config.scales:
        zoomed = _zoomed(images, scale)
        for turned in (zoomed, zoomed.flip(-1)) if config.flip else (zoomed,):
            yield turned
            if config.shift:
                yield from _shifted(turned, config.shift)


def _zoomed(images: Float[Tensor, "b c h w"], scale: float) -> Float[Tensor, "b c h w"]:
    """The images enlarged (or made smaller) around their center, at the same size."""
    height, width = images.shape[-2:]
    rows, columns = max(1, round(height * scale)), max(1, round(width * scale))
    if (rows, columns) == (height, width):
        return images
    resized = F.interpolate(images, size=(rows, columns), mode="bilinear", antialias=True)
    above, before = (height - rows) // 2, (width - columns) // 2
    inside = resized[..., max(0, -above) : max(0, -above) + height, max(0, -before) : max(0, -before) + width]
    below, after = height - rows - above, width - columns - before
    return F.pad(inside, [max(0, side) for side in (before, after, above, below)], mode="replicate")


def _shifted(images: Float[Tensor, "b c h w"], pixels: int) -> Iterator[Float[Tensor, "b c h w"]]:
    """The images moved up, down, left and right."""
    height, width = images.shape[-2:]
    padded = F.pad(images, [pixels] * 4, mode="replicate")
    for top, left in ((2 * pixels, pixels), (0, pixels), (pixels, 2 * pixels), (pixels, 0)):
        yield padded[..., top : top + height, left : left + width]
