"""What the numbers of an audit mean, in sentences, and which options they propose."""

from __future__ import annotations

import re
import statistics
from pathlib import Path

from beitkit.configs.data import ReadConfig
from beitkit.configs.model import Pair, as_pair
from beitkit.errors import few
from beitkit.report.normal import Level, Line
from beitkit.runs.audit.config import AuditRun
from beitkit.runs.audit.result import ImageAudit, PartSummary, Proposal
from beitkit.runs.finetune.choose import IMBALANCE, LARGEST_SCRATCH_SIZE

PATCHES = (16, 8, 4, 2)
LEAST_GRID = 7
"""Patches along the short side from which on a patch of that side is proposed; 224 pixels in patches of 16 are 14."""
LARGEST_CROP = 512
"""For images with masks, of which crops are cut; as in the official runs."""
ALLOWED = re.compile(r"`read\.max_pixels=(\d+)`")


def shape_for(config: AuditRun, short_sides: list[int], *, has_masks: bool) -> tuple[Pair, int, list[Proposal]]:
    """Image size (height, width) and patch of the network: as given, or proposed for these images with a reason."""
    side = round(statistics.median(short_sides)) if short_sides else LARGEST_SCRATCH_SIZE
    given = None if config.image_size is None else as_pair(config.image_size)
    measured = side if given is None else min(given)
    patch = config.patch or next((one for one in PATCHES if measured >= LEAST_GRID * one), PATCHES[-1])
    largest = LARGEST_CROP if has_masks else LARGEST_SCRATCH_SIZE
    size = min(largest // patch, max(1, round(side / patch))) * patch
    proposals = []
    if given is None:
        reason = f"the median short side is {side} pixels" + (
            f", and {largest} is what most networks take" if side > largest else ""
        )
        proposals.append(Proposal("--image-size", str(size), reason))
    if config.patch is None:
        cells = (size if given is None else measured) // patch
        proposals.append(Proposal("--patch", str(patch), f"the short side then has {cells} patches"))
    return given or (size, size), patch, proposals


def pixel_proposals(
    *,
    channels: set[int],
    is_all_gray: bool,
    is_deep: bool,
    value_range: tuple[float, float] | None,
    used_share: float | None,
    has_masks: bool,
) -> list[Proposal]:
    """Channels and range.

    Args:
        channels: of the files; 3 for color, 1 for gray.
        is_all_gray: whether every image shows gray.
        is_deep: whether there are images of more than 8 bits, or of other channels.
        value_range: the values used.
        used_share: of 0 to 255 that 8-bit images use; None for others.
        has_masks: whether the verb is that of segmentation, which names the option otherwise.
    """
    proposals = []
    option = "--image-channels" if has_masks else "--channels"
    count = max(channels, default=3)
    if is_deep and count not in (1, 3):
        proposals.append(Proposal(option, str(count), f"the images have {count} channels"))
    elif is_all_gray:
        reason = "all images are gray; weights of an RGB network are made to fit"
        proposals.append(Proposal(option, "1", reason))
    if value_range is not None and (is_deep or (used_share is not None and used_share < SMALL_SHARE)):
        used = "more than 8 bits; what a run would find itself, given so that all runs have the same"
        reason = used if is_deep else f"of 0 to 255 only {used_share:.1%} are used"
        proposals.append(Proposal("--value-range", f"{value_range[0]:g} {value_range[1]:g}", reason))
    return proposals


SMALL_SHARE = 0.1
"""Images that use less of their range than this should be given another one; as in training (`data.survey`)."""


def reading_proposals(reasons: list[str], total: int, allowed: float) -> list[Proposal]:
    """For files that are refused: larger ones let in, more broken ones put up with."""
    proposals = []
    needed = [int(found[1]) for reason in reasons if (found := ALLOWED.search(reason)) is not None]
    if needed:
        proposals.append(Proposal("--read.max-pixels", str(max(needed)), f"{counted(len(needed), 'image')} larger than is read"))
    broken = len(reasons) - len(needed)
    if broken > allowed * total:
        share = broken / total
        reason = f"{share:.1%} of the files are broken, and a run stops at {allowed:.0%}; the list does without them"
        proposals.append(Proposal("--read.max-broken", f"{min(1.0, share * 1.1):.2g}", reason))
    return proposals


def balance_proposal(counts: dict[str, int]) -> list[Proposal]:
    """For classes of very different sizes."""
    some = [count for count in counts.values() if count]
    if len(some) < 2 or max(some) <= IMBALANCE * min(some):
        return []
    ratio = max(some) / min(some)
    return [Proposal("--balanced", "", f"the commonest class has {ratio:.0f} times the images of the rarest")]


def sentences(found: ImageAudit, *, looks_alike: bool, is_divided_later: bool) -> list[Line]:
    """What matters of it, worst first.

    Args:
        found: all but the sentences.
        looks_alike: whether so many have a near duplicate that these are hardly copies.
        is_divided_later: whether a run sets images aside to validate on by itself.
    """
    lines: list[Line] = []
    total = max(1, found.images)
    if found.leaks:
        exact, first = sum(pair.distance == 0 for pair in found.leaks), found.leaks[0]
        number = f"{counted(len(found.leaks), 'image')} in two parts ({exact:,} byte for byte)"
        lines.append(_warn(f"{number}, so results on them are too good: first {first.path}, which is like {first.other}"))
    elif len(found.parts) > 1:
        lines.append(Line("ok", f"no image is in two of {', '.join(part.name for part in found.parts)}"))
    if found.conflicts:
        first, number = found.conflicts[0], counted(len(found.conflicts), "pair")
        lines.append(_warn(f"the same image with different labels, {number}: first {first.path}, which is like {first.other}"))
    if found.broken:
        share = len(found.broken) / total
        first_broken = f"{found.broken[0].path} ({found.broken[0].reason})"
        text = f"{counted(len(found.broken), 'file')} that cannot be read ({share:.2%}): first {first_broken}"
        lines.append(Line("warn" if share > ReadConfig().max_broken else "note", text))
    else:
        lines.append(Line("ok", "every file can be read to its end"))
    lines += _about_copies(found, looks_alike=looks_alike, is_divided_later=is_divided_later)
    lines += _about_kinds(found, total)
    for part in found.parts:
        lines += _about_classes(part, next(iter(found.parts)))
    return sorted(lines, key=lambda line: ("warn", "note", "ok").index(line.state))


def _about_copies(found: ImageAudit, *, looks_alike: bool, is_divided_later: bool) -> list[Line]:
    lines = []
    surplus = sum(len(group) - 1 for group in found.exact)
    if surplus:
        lines.append(Line("note", f"{counted(surplus, 'copy', 'copies')} of another file, byte for byte"))
    in_near = {path for pair in found.near for path in (pair.path, pair.other)}
    if looks_alike:
        text = "frames of a film, or different things that look alike; the sheet shows which, and for those give a smaller --near"
        lines.append(Line("note", f"{counted(len(in_near), 'image')} with a near duplicate: {text}"))
    elif in_near:
        text = f"{counted(len(in_near), 'image')} with a near duplicate: recompressed, resized, recolored or slightly cut"
        lines.append(Line("note", text))
    if is_divided_later and (surplus or in_near):
        lines.append(_warn("a run sets a fifth aside to validate on, and may part these; --list keeps one of each"))
    return lines


def _about_kinds(found: ImageAudit, total: int) -> list[Line]:
    height, width = found.network_size
    patch = found.network_patch
    told: list[tuple[Level, tuple[Path, ...], str]] = [
        ("note", found.blank, "blank, nearly of one color"),
        ("warn", found.tiny, f"smaller than a patch of {patch}, counted as broken by runs"),
        ("note", found.small, f"smaller than the network's {width}x{height}, which a run enlarges or pads"),
        ("ok", found.turned, "turned by EXIF, which is obeyed"),
        ("note", found.gray_as_color, "gray, saved with three channels"),
        ("note", found.cmyk, "CMYK, made RGB without a color profile"),
        ("note", found.transparent, "with transparency, laid on white"),
    ]
    return [
        Line(state, f"{counted(len(paths), 'image')} ({len(paths) / total:.1%}) {what}") for state, paths, what in told if paths
    ]


def _about_classes(part: PartSummary, first: PartSummary) -> list[Line]:
    """Classes that only one of two parts has."""
    if part is first or not part.classes:
        return []
    lacking = [name for name in first.classes if not part.classes.get(name)]
    surplus = [name for name in part.classes if not first.classes.get(name)]
    lines = (
        [_warn(f"no image in {part.name} of {counted(len(lacking), 'class', 'classes')}: {few(lacking, 5)}")] if lacking else []
    )
    return lines + ([_warn(f"classes in {part.name} that {first.name} lacks: {few(surplus, 5)}")] if surplus else [])


def _warn(text: str) -> Line:
    return Line("warn", text)


def counted(number: int, name: str, names: str | None = None) -> str:
    """A number of things, in words."""
    return f"{number:,} {name if number == 1 else names or f'{name}s'}"
