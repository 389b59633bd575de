"""`beitkit audit`: every image looked at once; what is odd, twice there or on both sides, and what is to be set."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import numpy as np

from beitkit.configs.data import ReadConfig
from beitkit.data.scenes.audit import audit as audit_masks
from beitkit.data.scenes.scenes import CLASSES_FILE, Scenes, as_csv
from beitkit.data.sources.image_list import ImageList
from beitkit.data.sources.split import list_table
from beitkit.data.survey import survey
from beitkit.errors import UserError
from beitkit.report.normal import Line
from beitkit.report.table import plain
from beitkit.runs.audit.config import AuditRun
from beitkit.runs.audit.judge import balance_proposal, pixel_proposals, reading_proposals, sentences, shape_for
from beitkit.runs.audit.parts import AuditedPart, Collection, collect
from beitkit.runs.audit.report import print_result, write_report
from beitkit.runs.audit.result import ImageAudit, PartSummary, Quantiles, SamePair
from beitkit.runs.audit.seen import Alike, Seen, find_alike, look_at_all, used_range
from beitkit.system import write_atomically
from beitkit.train.folder import RunFolder

LOOK_ALIKE, MANY_ALIKE = 0.1, 20
"""Where more than this share of the images, and more than so many, have a near duplicate, things look alike, or are frames."""


def run(config: AuditRun) -> ImageAudit:
    """Look, print a table, and write what is asked for."""
    began = time.perf_counter()
    collection = collect(config)
    if config.list is not None:
        _check_list(config.list, collection)
    folder = None if config.out is None else RunFolder(config.out, "audit", config)
    seen = look_at_all(collection.parts, config.workers)
    alike = find_alike(seen, config.near)
    without = left_out_of_list(seen, alike, is_divided_later=_is_divided_later(collection))
    found, odd = _judged(config, collection, seen, alike, time.perf_counter() - began)
    found = found._replace(left_out_of_list=dict(Counter(without.values()).most_common()))
    if config.list is not None:
        _write_list(config.list, collection, seen, without)
    if folder is not None:
        folder.write_json("audit.json", plain(found))
        write_report(folder.path / "report.html", found, seen, alike, odd)
    print_result(found, seen, config)
    return found


def _is_divided_later(collection: Collection) -> bool:
    """Whether a run sets images aside to validate on by itself."""
    return collection.kind != "images" and len(collection.parts) == 1


def left_out_of_list(seen: Seen, alike: Alike, *, is_divided_later: bool) -> dict[int, str]:
    """Places of the images that a clean list does without, and why each.

    Of the same files one stays, in the part that networks are judged by if there is one, so that results stay comparable; of near
    duplicates in two parts the same; of those in one part all, unless a run may set one of them aside to validate on. Where the
    same files have different labels, none stays.
    """
    reasons = dict.fromkeys(np.flatnonzero(~seen.table["is_read"]).tolist(), "broken")
    reasons |= dict.fromkeys(np.flatnonzero(seen.is_blank).tolist(), "blank")
    for group in alike.exact:
        if len({seen.label(place) for place in group}) > 1:
            reasons |= dict.fromkeys(group, "the same file with different labels")
            continue
        kept = max(group, key=lambda place: (seen.part[place], -place))
        reasons |= {place: "a copy of another file" for place in group if place != kept and place not in reasons}
    for one, two, distance in alike.pairs():
        early, late = sorted((one, two))
        if seen.part[early] != seen.part[late]:
            reasons.setdefault(early, "like an image of another part")
        elif distance > 0 and is_divided_later and not {early, late} & reasons.keys():
            reasons[late] = "like another image"
    return dict(sorted(reasons.items()))


def _judged(
    config: AuditRun, collection: Collection, seen: Seen, alike: Alike, seconds: float
) -> tuple[ImageAudit, dict[str, list[int]]]:
    """The result, and the places of odd images by kind."""
    table, is_read = seen.table, seen.table["is_read"]
    sides = np.minimum(table["width"], table["height"])[is_read].tolist()
    has_masks = collection.kind == "images with masks"
    size, patch, shape = shape_for(config, sides, has_masks=has_masks)
    odd = seen.odd(size, patch)
    lines, ranges = list(collection.lines), _value_range(collection, seen)
    if isinstance(ranges, UserError):
        lines.append(Line("warn", str(ranges)))
        ranges = None
    used, is_deep = used_range(seen.counts), bool(table["is_deep"].any())
    pixels = pixel_proposals(
        channels=set(table["channels"][is_read].tolist()),
        is_all_gray=bool(is_read.any()) and bool(table["is_gray"][is_read].all()),
        is_deep=is_deep,
        value_range=ranges,
        used_share=None if used is None or is_deep else (used[1] - used[0]) / 255,
        has_masks=has_masks,
    )
    summaries = tuple(_summary(part, lines) for part in collection.parts)
    balance = balance_proposal(summaries[0].classes) if collection.kind == "labeled images" else []
    reading = reading_proposals([one.reason for one in seen.broken], len(table), ReadConfig().max_broken)
    in_near = {place for one, two, _ in alike.near for place in (one, two)}
    looks_alike = len(in_near) > max(MANY_ALIKE, LOOK_ALIKE * len(table))
    pairs = alike.pairs()
    contradicting = [pair for pair in pairs if seen.label(pair[0]) != seen.label(pair[1]) and not (looks_alike and pair[2])]
    found = ImageAudit(
        where=config.images,
        kind=collection.kind,
        images=len(table),
        parts=summaries,
        left_out=dict(collection.left_out.most_common()),
        formats=seen.formats,
        kinds=seen.kinds,
        width=_spread(table["width"][is_read]),
        height=_spread(table["height"][is_read]),
        aspect=_spread(table["width"][is_read] / np.maximum(table["height"][is_read], 1)),
        network_size=size,
        network_patch=patch,
        value_range=ranges,
        broken=seen.broken,
        exact=tuple(tuple(map(seen.path, group)) for group in alike.exact),
        near=tuple(seen.pair(two, one, distance) for one, two, distance in alike.near),
        leaks=_leaks(seen, pairs),
        conflicts=tuple(seen.pair(two, one, distance) for one, two, distance in contradicting),
        lines=(),
        proposals=(*pixels, *shape, *balance, *reading),
        left_out_of_list={},
        seconds=seconds,
        **{name: tuple(map(seen.path, places)) for name, places in odd.items()},
    )
    said = sentences(found, looks_alike=looks_alike, is_divided_later=_is_divided_later(collection))
    return found._replace(lines=(*said, *lines)), odd


def _value_range(collection: Collection, seen: Seen) -> tuple[float, float] | UserError | None:
    """The values used; of images of more than 8 bits as a run finds them, or why it would refuse these."""
    if not seen.table["is_deep"].any():
        used = used_range(seen.counts)
        return None if used is None else (float(used[0]), float(used[1]))
    try:
        ranges = survey(collection.parts[0].files).found
    except UserError as error:
        return error
    return (min(low for low, _ in ranges), max(high for _, high in ranges)) if ranges else None


def _spread(values: np.ndarray) -> Quantiles:
    if not len(values):
        return Quantiles(*[float("nan")] * 5)
    return Quantiles(*(float(value) for value in np.quantile(values, [0, 0.1, 0.5, 0.9, 1])))


def _summary(part: AuditedPart, lines: list[Line]) -> PartSummary:
    """How many images there are of each class; of masks, which images show it, and what is odd about them."""
    files, counts = part.files, {}
    if files.classes:
        counts = dict(zip(files.classes, files.counts().tolist(), strict=True))
    elif part.scenes is not None:
        where = f"{part.name}: " if part.name else ""
        try:
            masks = audit_masks(part.scenes)
        except UserError as error:
            lines.append(Line("warn", f"{where}{error}"))
        else:
            counts = dict(zip(masks.classes, masks.images, strict=True))
            lines += [Line("note", f"{where}{note}") for note in masks.notes()]
    return PartSummary(part.name, len(files), counts)


def _leaks(seen: Seen, pairs: list[tuple[int, int, float]]) -> tuple[SamePair, ...]:
    """Each image that another part has too, with the nearest there."""
    nearest: dict[int, tuple[float, int]] = {}
    for one, two, distance in pairs:
        early, late = sorted((one, two))
        if seen.part[early] != seen.part[late]:
            nearest[late] = min(nearest.get(late, (distance, early)), (distance, early))
    order = sorted(nearest, key=lambda place: (nearest[place][0], place))
    return tuple(seen.pair(place, nearest[place][1], nearest[place][0]) for place in order)


def _check_list(path: Path, collection: Collection) -> None:
    """Raise a `UserError` where a list cannot be written, before anything is read."""
    if path.suffix.lower() != ".csv":
        raise UserError(f"--list {path} must end in .csv, as that is what is written")
    if path.exists():
        raise UserError(f"--list {path} is there already; choose another name, or remove it yourself")
    if any(part.files.members is not None for part in collection.parts):
        raise UserError("--list names files, but these images lie in archives; leave it out")
    if collection.kind == "images with masks" and any(part.scenes is None for part in collection.parts):
        raise UserError(f"--list needs masks that can be read: {collection.lines[0].sentence}")


def _write_list(path: Path, collection: Collection, seen: Seen, without: dict[int, str]) -> None:
    kept = np.ones(len(seen.table), dtype=np.bool_)
    kept[list(without)] = False
    files: dict[str, ImageList] = {}
    scenes: dict[str, Scenes] = {}
    for number, part in enumerate(collection.parts):
        chosen = seen.position[kept & (seen.part == number)]
        files[part.name] = part.files.subset(chosen)
        if part.scenes is not None:
            scenes[part.name] = part.scenes.subset(chosen.tolist())
    if not scenes:
        write_atomically(path, list_table(files).encode("utf-8", "surrogateescape"))
        return
    write_atomically(path, as_csv(scenes).encode("utf-8", "surrogateescape"))
    beside = path.parent / CLASSES_FILE
    if not beside.exists():
        write_atomically(beside, next(iter(scenes.values())).code.as_json().encode())
