"""What the pixels of a list of images are: how many channels, which values they hold, their mean and deviation.

One pass over the headers of a sample tells 8-bit gray and RGB from everything else. Only where there is something else, or
where mean and deviation are asked for, pixels are read: of up to 512 images, evenly spread over the list, about 4,096 each.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Shaped

from beitkit.configs.data import Preprocessing, ValueRange
from beitkit.data.decoding.decode import Bands, BrokenImage, StoredImage, is_plain, opened_image
from beitkit.data.decoding.raw import RawImage, read_raw
from beitkit.data.decoding.reading import BYTES, readable_image
from beitkit.data.sources.image_list import ImageList
from beitkit.errors import UserError

HEADERS = 64
"""Images whose headers are read to find out whether all have 8 bits."""
IMAGES = 512
"""Images whose pixels are read where they have not."""
PLAIN_IMAGES = 16
"""8-bit images whose pixels are looked at, to see whether they use their range."""
PIXELS = 4096
"""Pixels of an image, on a regular grid."""
PERCENTILES = (0.1, 99.9)
"""What is darker and what is brighter is cut off, so that a broken pixel does not decide."""
MUCH_OUTSIDE = 0.5
"""Where more than this share of the values lies outside of a range, they are of another one."""
SMALL_SHARE = 0.1
"""Images that use less of their range than this are named."""


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What a sample of a list holds; values are the files' own."""

    images: int
    """How many were read."""
    total: int
    channels: int
    """Of the files: 1 and 3 where these can be mixed; 3 of 8-bit images."""
    is_deep: bool
    """Whether the files are no 8-bit gray or RGB images."""
    kind: str
    """Type of the numbers."""
    samples: Shaped[np.ndarray, "c n"]
    """Pixels of all of them."""
    windows: tuple[tuple[float, float], ...] = ()
    """What the files say is black and white, where all do (DICOM)."""
    found: ValueRange = field(default=())
    """Of each channel the percentiles, the window, or 0 and 255 where the numbers have 8 bits."""

    def statistics(self, preprocessing: Preprocessing, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and deviation of the samples, in [0, 1], for a network of these channels."""
        low, high = np.array(preprocessing.value_range or (BYTES,) * channels).T[:, :, None]
        values = fitted(self.samples, channels).astype(np.float64)
        shown = np.nan_to_num((values - low) / (high - low)).clip(0, 1)
        return tuple(shown.mean(axis=1).tolist()), tuple(np.maximum(shown.std(axis=1), 1e-3).tolist())


def survey(files: ImageList, *, with_values: bool = False, is_range_given: bool = False) -> Survey:
    """Look at a sample of a list.

    Args:
        files: the list.
        with_values: whether the pixels of 8-bit images are read too, as many as of others.
        is_range_given: whether it is known what values mean, so that images of 8 and of more bits may lie side by side.

    Raises:
        UserError: images of different kinds, whose values cannot mean the same.
    """
    kinds: dict[str, int] = {}
    for index in _spread(len(files), HEADERS):
        try:
            kinds.setdefault("8-bit" if _has_8_bits(files.source(index)) else "deep", index)
        except BrokenImage:
            continue  # the run that reads it counts and names it
    if "deep" not in kinds and not is_range_given:
        raws = _plain_samples(files, IMAGES if with_values else PLAIN_IMAGES)
        samples = np.concatenate(raws, axis=1) if raws else np.zeros((3, 1), dtype=np.uint8)
        return Survey(
            images=len(raws), total=len(files), channels=3, is_deep=False, kind="uint8", samples=samples, found=(BYTES,) * 3
        )
    return _deep_survey(files, is_range_given=is_range_given)


def _deep_survey(files: ImageList, *, is_range_given: bool) -> Survey:
    parts: list[RawImage] = []
    first: dict[tuple[int, bool], int] = {}
    for index in _spread(len(files), IMAGES):
        try:
            raw = read_raw(files.source(index))
        except BrokenImage:
            continue
        channels = len(raw.values) - raw.has_alpha
        first.setdefault((channels, raw.values.dtype == np.uint8), index)
        step = max(1, int((raw.values[0].size / PIXELS) ** 0.5))
        parts.append(raw._replace(values=np.ascontiguousarray(raw.values[:channels, ::step, ::step]).reshape(channels, 1, -1)))
    if not parts:
        raise UserError(f"none of the images looked at in {files.root} can be read; see what its files hold")
    _check_alike(files, first, is_range_given=is_range_given)
    channels = max(channels for channels, _ in first)
    samples = np.concatenate([fitted(part.values[:, 0], channels) for part in parts], axis=1)
    windows = tuple(part.window for part in parts if part.window is not None)
    kind = str(np.result_type(*{part.values.dtype for part in parts}))
    if len(windows) == len(parts):
        found = ((min(low for low, _ in windows), max(high for _, high in windows)),) * channels
    elif kind == "uint8":
        found = (BYTES,) * channels
    else:
        windows = ()
        ends = np.nanpercentile(np.where(np.isfinite(samples), samples, np.nan), PERCENTILES, axis=1).T
        found = tuple((float(low), float(high)) if low < high else (float(low), float(low) + 1) for low, high in ends)
    return Survey(
        images=len(parts),
        total=len(files),
        channels=channels,
        is_deep=True,
        kind=kind,
        samples=samples,
        windows=windows,
        found=found,
    )


def _check_alike(files: ImageList, first: dict[tuple[int, bool], int], *, is_range_given: bool) -> None:
    """Raise a `UserError` that names two images which cannot be read as one kind."""
    counts = {channels: index for (channels, _), index in first.items()}
    if len(counts) > 1 and set(counts) != {1, 3}:
        (one, here), (other, there) = list(counts.items())[:2]
        raise UserError(f"{files.path(here)} has {one} channels, but {files.path(there)} {other}; give images of one kind")
    depths = {is_byte: index for (_, is_byte), index in first.items()}
    if len(depths) > 1 and not is_range_given:
        raise UserError(
            f"{files.path(depths[True])} has 8 bits a channel, but {files.path(depths[False])} more, so that a value cannot "
            "mean the same in both; give images of one kind"
        )


def fitted(values: Shaped[np.ndarray, "c n"], channels: int) -> Shaped[np.ndarray, "d n"]:
    """Samples of other channels as those of a network that shows gray to all channels, and RGB as gray."""
    if len(values) == channels:
        return values
    return np.repeat(values.mean(axis=0, keepdims=True), channels, axis=0)


def _plain_samples(files: ImageList, count: int) -> list[Shaped[np.ndarray, "3 n"]]:
    """Pixels of 8-bit images, in RGB."""
    samples = []
    for index in _spread(len(files), count):
        try:
            image = readable_image(files.source(index), 3)
            pixels = np.asarray(image.decoded(8) if isinstance(image, StoredImage) else image)
        except BrokenImage:
            continue
        step = max(1, int((pixels.size / 3 / PIXELS) ** 0.5))
        samples.append(pixels[::step, ::step].reshape(-1, 3).T)
    return samples


def _has_8_bits(source: object) -> bool:
    if isinstance(source, Bands):
        return False
    try:
        with opened_image(source) as image:  # type: ignore[arg-type] - a source that is not in several files
            return is_plain(image)
    except BrokenImage:
        read_raw(source)  # type: ignore[arg-type] - what Pillow cannot open is either deep or broken
        return False


def _spread(total: int, count: int) -> list[int]:
    """Places of at most `count` images, evenly spread over a list."""
    count = min(count, total)
    return [index * total // count for index in range(count)]


def preprocessing_for(
    found: Survey,
    base: Preprocessing,
    channels: int,
    *,
    value_range: tuple[float, float] | None = None,
    own_statistics: bool = False,
) -> Preprocessing:
    """How images are prepared for a network of these channels.

    Args:
        found: the images.
        base: of the network's checkpoint, or as it was asked for.
        channels: of the network.
        value_range: the values shown as 0 and 1, as given; else those of `base`, else those that were found where images have
            more than 8 bits.
        own_statistics: take mean and deviation from the images.
    """
    if value_range is not None:
        ranges: ValueRange | None = (value_range,) * channels
    elif base.value_range is not None:
        ranges = fitted_range(base.value_range, channels)
    else:
        ranges = fitted_range(found.found, channels) if found.is_deep or channels not in (1, 3) else None
    result = replace(base, value_range=ranges)
    if own_statistics:
        mean, std = found.statistics(result, channels)
        return replace(result, mean=mean, std=std)
    if ranges is not None and len(base.mean) != channels:
        mean, std = (sum(part) / len(part) for part in (base.mean, base.std))
        return replace(result, mean=(mean,) * channels, std=(std,) * channels)
    return result


def fitted_range(ranges: ValueRange, channels: int) -> ValueRange:
    """The range for another number of channels: from the lowest to the highest of all."""
    if len(ranges) == channels:
        return ranges
    return ((min(low for low, _ in ranges), max(high for _, high in ranges)),) * channels


def described(found: Survey, preprocessing: Preprocessing, channels: int) -> list[str]:
    """What is to be said of the images before they are trained on; nothing of 8-bit images that use their range."""
    lines = []
    ranges = preprocessing.value_range
    if ranges is not None:
        how = "as given, or as the model has it"
        if ranges == fitted_range(found.found, channels) and found.is_deep:
            how = f"percentiles {PERCENTILES[0]:g} and {PERCENTILES[1]:g} of {found.images} of {found.total} images"
            how = f"the windows of {found.images} of {found.total} images" if found.windows else how
            how = "all that 8 bits hold" if found.kind == "uint8" else how
        lines.append(f"pixels: {_counted(channels)} of {found.kind}, values {_ranges(ranges)} are shown as 0 to 1 ({how})")
    samples = fitted(found.samples, channels)
    used = np.nanpercentile(np.where(np.isfinite(samples), samples, np.nan), PERCENTILES, axis=1).T
    shown = ranges or (BYTES,) * channels
    shares = [
        (min(high, most) - max(low, least)) / (most - least) for (low, high), (least, most) in zip(used, shown, strict=True)
    ]
    low, high = np.array(shown).T[:, :, None]
    outside = float(((samples < low) | (samples > high)).mean())
    if outside > MUCH_OUTSIDE:
        lines.append(f"note: {outside:.0%} of the images' values lie outside of {_ranges(shown)}, and are cut off")
    elif max(shares) < SMALL_SHARE and found.images:
        advice = "`value_range` says which are black and white"
        lines.append(
            f"note: the images use {_ranges(tuple((float(a), float(b)) for a, b in used))} of {_ranges(shown)}, "
            f"{max(0, max(shares)):.1%} of their range; {advice}"
        )
    return lines


def other_range(raw: RawImage, ranges: ValueRange) -> str | None:
    """Why the values of an image are not those that a network knows, if they are not.

    That is where most lie outside of its range, where they take up hardly any of it, or where the file has 8 bits and it more.
    """
    values = fitted(raw.values.reshape(len(raw.values), -1)[: len(raw.values) - raw.has_alpha], len(ranges))
    low, high = np.array(ranges).T[:, :, None]
    outside = float(((values < low) | (values > high)).mean())
    span = float(((values.max(axis=1) - values.min(axis=1)) / (high - low)[:, 0]).max())
    is_narrower = raw.values.dtype == np.uint8 and max(high for _, high in ranges) > 2 * BYTES[1]
    if outside <= MUCH_OUTSIDE and span >= SMALL_SHARE / 2 and not is_narrower:
        return None
    lowest, highest = float(np.nanmin(values)), float(np.nanmax(values))
    return f"holds values {lowest:g} to {highest:g}, the network's images {_ranges(ranges)}"


def name_other_ranges(files: ImageList, ranges: ValueRange | None) -> None:
    """Say on stderr which of a sample of images are of another range than a network's; nothing for a network of 8-bit images."""
    if ranges is None:
        return
    named, looked = [], 0
    for index in _spread(len(files), HEADERS):
        try:
            reason = other_range(read_raw(files.source(index)), ranges)
        except BrokenImage:
            continue  # whoever reads it names it
        looked += 1
        if reason is not None:
            named.append(f"{files.path(index)} {reason}")
    if named:
        print(
            f"note: {len(named)} of {looked} images looked at are of another range than the network's: {named[0]}",
            file=sys.stderr,
        )


def _counted(channels: int) -> str:
    return f"{channels} channel{'' if channels == 1 else 's'}"


def _ranges(ranges: ValueRange) -> str:
    """One range, or several in a row where channels differ."""
    distinct = list(dict.fromkeys(ranges))
    shown = ", ".join(f"{low:,.6g} to {high:,.6g}" for low, high in distinct[:3])
    return shown + (f" and {len(distinct) - 3} more" if len(distinct) > 3 else "")
