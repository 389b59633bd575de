"""One ordered pass over images and label maps at their own sizes, for evaluation and reports."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from jaxtyping import Shaped, UInt8
from torch import Tensor

from beitkit.configs.data import ValueRange
from beitkit.contracts import WHOLE, Share
from beitkit.data.decoding.decode import BrokenImage
from beitkit.data.scenes.scenes import Scenes
from beitkit.errors import UserError


class NumberedScene(NamedTuple):
    """A scene, and where it stands."""

    place: int
    """Its index in the list."""
    image: Shaped[Tensor, "c h w"]
    label_map: UInt8[Tensor, "h w"]


def readable_scenes(
    scenes: Scenes,
    channels: int,
    max_broken: float,
    report: Callable[[Path, str], None],
    value_range: ValueRange | None = None,
    share: Share = WHOLE,
) -> Iterator[NumberedScene]:
    """The scenes of a share that can be read, in order; `report(path, reason)` is called for each of the others.

    Raises:
        UserError: more than the share `max_broken` cannot be read.
    """
    broken = 0
    for index in range(share.rank, len(scenes), share.of):
        try:
            scene = scenes.read(index, channels, value_range)
        except BrokenImage as error:
            broken += 1
            report(error.path, error.reason)
            if broken > max_broken * len(scenes):
                raise UserError(
                    f"{broken} of the first {index + 1} of {len(scenes)} pairs cannot be read, more than the "
                    f"{max_broken:.2%} of all allowed, the last one {error.path}; repair them, or raise `read.max_broken`"
                ) from None
            continue
        yield NumberedScene(index, scene.image, scene.label_map)
