"""What a training run decides of its pixels: how many channels, which values are black and white, mean and deviation."""

from __future__ import annotations

from typing import NamedTuple

from beitkit.configs.data import Preprocessing, ValueLimits
from beitkit.data.own.images import HEAD
from beitkit.data.sources.image_list import ImageList
from beitkit.data.survey import described, preprocessing_for, survey
from beitkit.errors import UserError


class Pixels(NamedTuple):
    """How a run's images are prepared."""

    channels: int
    preprocessing: Preprocessing
    lines: tuple[str, ...]
    """What is to be said of it."""


def decided_pixels(
    files: ImageList,
    base: Preprocessing,
    base_channels: int,
    *,
    channels: int | None = None,
    value_range: ValueLimits | None = None,
    own_statistics: bool = False,
) -> Pixels:
    """Look at a run's images and decide.

    Args:
        files: the images.
        base: statistics and range as the checkpoint or the tokenizer has them, or as they were asked for.
        base_channels: of the checkpoint or the tokenizer, or RGB's.
        channels: as given; else those of the images where they are neither gray nor RGB, else `base_channels`.
        value_range: as given (see `data.survey.preprocessing_for`).
        own_statistics: take mean and deviation from the images.

    Raises:
        UserError: images of different kinds, or of other channels than are asked for.
    """
    if value_range is not None and not value_range[0] < value_range[1]:
        low, high = value_range
        raise UserError(f"`value_range` is the lowest and the highest value, the lowest first, got {low:g} {high:g}")
    looked_at = files.evenly_spread(HEAD) if files.is_stream else files
    found = survey(looked_at, with_values=own_statistics, is_range_given=value_range is not None)
    count = channels or (found.channels if found.channels not in (1, 3) else base_channels)
    if found.channels != count and not {found.channels, count} <= {1, 3}:
        raise UserError(
            f"the images have {found.channels} channels, not {count}; give `channels` {found.channels}, or leave it out"
        )
    preprocessing = preprocessing_for(found, base, count, value_range=value_range, own_statistics=own_statistics)
    return Pixels(count, preprocessing, tuple(described(found, preprocessing, count)))
