"""What an audit finds: the facts of all images, the odd ones by kind, and what is to be set."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from beitkit.configs.model import Pair
from beitkit.report.normal import Line


class Quantiles(NamedTuple):
    """How a number is spread over the images."""

    least: float
    lower: float
    """A tenth is below this."""
    median: float
    upper: float
    """A tenth is above this."""
    most: float


class BrokenFile(NamedTuple):
    """A file that cannot be read as an image."""

    path: Path
    reason: str


class SamePair(NamedTuple):
    """An image and an earlier one like it."""

    path: Path
    part: str
    other: Path
    other_part: str
    distance: float
    """Of their reduced versions; 0 where the files are the same byte for byte."""


class PartSummary(NamedTuple):
    """A split, or all images where there are none."""

    name: str
    images: int
    classes: dict[str, int]
    """Images of each class, or that show it; empty without labels."""


class Proposal(NamedTuple):
    """An option for the verb that comes next."""

    option: str
    value: str
    reason: str


class ImageAudit(NamedTuple):
    """What `beitkit.audit` returns. Paths are in the order of the list."""

    where: Path
    kind: str
    images: int
    parts: tuple[PartSummary, ...]
    left_out: dict[str, int]
    """Files that are no images, by ending."""
    formats: dict[str, int]
    kinds: dict[str, int]
    """How pixels are stored, in words."""
    width: Quantiles
    """In pixels, upright."""
    height: Quantiles
    aspect: Quantiles
    """Width / height."""
    network_size: Pair
    """(height, width) of the network's images, as given or proposed."""
    network_patch: int
    value_range: tuple[float, float] | None
    """The lowest and highest values used, but for a thousandth; of images of more than 8 bits as training would take it."""
    broken: tuple[BrokenFile, ...]
    blank: tuple[Path, ...]
    """Nearly of one color."""
    small: tuple[Path, ...]
    """With a side below the network's images."""
    tiny: tuple[Path, ...]
    """Below a patch: no network of this patch reads them."""
    turned: tuple[Path, ...]
    """By EXIF."""
    gray_as_color: tuple[Path, ...]
    """Gray, saved with three channels."""
    cmyk: tuple[Path, ...]
    transparent: tuple[Path, ...]
    exact: tuple[tuple[Path, ...], ...]
    """Groups of files that are the same byte for byte."""
    near: tuple[SamePair, ...]
    """Pairs of near duplicates, the nearest first."""
    leaks: tuple[SamePair, ...]
    """Images of a part that are in another one too: each once, with its nearest."""
    conflicts: tuple[SamePair, ...]
    """The same image with different labels."""
    lines: tuple[Line, ...]
    """What it means, most important first."""
    proposals: tuple[Proposal, ...]
    left_out_of_list: dict[str, int]
    """Images that a clean list does without, by reason."""
    seconds: float
    """What the looking took."""
