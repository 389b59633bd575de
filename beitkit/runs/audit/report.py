"""An audit for people: tables on the terminal, and one page with sheets of what was found."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

from PIL import Image

from beitkit.command.following import command, kept, unused
from beitkit.errors import few
from beitkit.report.document import Report, Tile
from beitkit.report.images import CELL
from beitkit.report.table import Column, Table, percent, thousands
from beitkit.runs.audit.config import AuditRun
from beitkit.runs.audit.look import shown_image
from beitkit.runs.audit.result import ImageAudit, PartSummary, Quantiles
from beitkit.runs.audit.seen import Alike, Seen

SHOWN = 24
"""Images of a sheet."""
MOST_CLASSES = 12
"""Classes that the terminal shows; of more the commonest and the rarest."""
SIGNS = {"ok": "ok", "note": "note", "warn": "warning"}
GAP = 4
"""Pixels between the two images of a pair."""
KINDS = {
    "blank": (
        "Blank",
        "Nearly of one color. Most of a network's work on them is lost, and masked patches cannot be told from others.",
    ),
    "tiny": ("Smaller than a patch", "No network of this patch reads them."),
    "turned": ("Turned by EXIF", "As they are shown here, upright."),
    "gray_as_color": ("Gray, saved with three channels", "They take three times the room of a gray file."),
    "cmyk": ("CMYK", "Their colors may be off, as no color profile is applied."),
    "transparent": ("With transparency", "Laid on white, as every verb reads them."),
}
"""Kinds of odd images that are shown, with title and explanation."""


def print_result(found: ImageAudit, seen: Seen, config: AuditRun) -> None:
    """Tables, what they mean, what to set; the last line says what to do next."""
    _table_of_all(found).print()
    if any(part.classes for part in found.parts):
        _table_of_classes(found.parts, MOST_CLASSES).print()
    for line in found.lines:
        print(f"{SIGNS[line.state]}: {line.sentence}")
    for proposal in found.proposals:
        print(f"set {_written(proposal.option, proposal.value)}: {proposal.reason}")
    print(f"{found.images:,} images in {found.seconds:.1f} s, {found.images / max(found.seconds, 1e-9):,.0f} a second")
    said = (
        "give --out to keep a page with sheets" if config.out is None else f"written: {config.out} (report.html shows the images)"
    )
    dropped = sum(found.left_out_of_list.values())
    images = config.images if config.list is None else config.list
    if config.list is not None:
        said += f"; {config.list} lists {found.images - dropped:,} images{_without(found)}"
    elif dropped and all(files.members is None for files in seen.lists):
        said += f"; --list FILE.csv writes a list of {found.images - dropped:,} images{_without(found)}"
    print(f"{said}. Next: {_following(found, images, config)}")


def _following(found: ImageAudit, images: Path, config: AuditRun) -> str:
    """The command that goes on with the images, with the options that are proposed."""
    options = {proposal.option: tuple(proposal.value.split()) or True for proposal in found.proposals}
    options |= kept(config, "columns") if config.list is None else {}
    patch = options.pop("--patch", None)  # of fine-tuning the model's
    if found.kind == "images":
        tokens = {"--kmeans.stride": patch} | options
        return command("tokenizer", images, kind="kmeans", out=unused(Path("runs/tok")), **tokens)
    verb, name = ("finetune", "cls") if found.kind == "labeled images" else ("segment", "seg")
    return command(verb, images, model="MODEL", out=unused(Path("runs", name)), **kept(config, "val"), **options)


def _without(found: ImageAudit) -> str:
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in found.left_out_of_list.items())
    return f" (without {reasons})" if reasons else ""


def _written(option: str, value: str) -> str:
    return f"{option} {value}".rstrip()


def _table_of_all(found: ImageAudit) -> Table:
    """What there is, in one column."""
    rows = [("what", found.kind), ("images", f"{found.images:,}")]
    rows += [(f"  {part.name}", f"{part.images:,}") for part in found.parts if len(found.parts) > 1]
    if found.left_out:
        rows.append(("other files", few([f"{count:,} {ending}" for ending, count in found.left_out.items()], 6)))
    rows += [
        ("formats", few([f"{count:,} {name}" for name, count in found.formats.items()], 6)),
        ("stored as", few([f"{count:,} {name}" for name, count in found.kinds.items()], 4)),
        ("width", _pixels(found.width)),
        ("height", _pixels(found.height)),
        ("aspect", f"{found.aspect.least:.2f} to {found.aspect.most:.2f}, median {found.aspect.median:.2f}"),
    ]
    if found.value_range is not None:
        rows.append(("values used", "{:g} to {:g}".format(*found.value_range)))
    return Table(["", Column("", align="left")], rows)


def _pixels(spread: Quantiles) -> str:
    if spread.least == spread.most:
        return f"{spread.median:,.0f} pixels, all"
    return (
        f"{spread.least:,.0f} to {spread.most:,.0f} pixels, median {spread.median:,.0f}, four fifths in "
        f"{spread.lower:,.0f} to {spread.upper:,.0f}"
    )


def _table_of_classes(parts: Sequence[PartSummary], most: int | None = None) -> Table:
    """Images of each class in each part, the commonest first."""
    names = list(dict.fromkeys(name for part in parts for name in part.classes))
    names.sort(key=lambda name: -sum(part.classes.get(name, 0) for part in parts))
    total = max(1, sum(sum(part.classes.values()) for part in parts))
    rows = []
    for name in names:
        counts = [part.classes.get(name, 0) for part in parts]
        rows.append([name, *counts, sum(counts) / total])
    if most is not None and len(rows) > most:
        rows = rows[: most // 2] + rows[-most // 2 :]
    columns = ["class", *(Column(part.name or "images", thousands) for part in parts), Column("share", percent)]
    what = "Images of each class." if len(rows) == len(names) else f"The commonest and the rarest of {len(names)} classes."
    return Table(columns, rows, what)


def write_report(path: Path, found: ImageAudit, seen: Seen, alike: Alike, odd: dict[str, list[int]]) -> None:
    """The page: what it means, what to set, and sheets of pairs and of odd images."""
    report = Report("Images", str(found.where))
    report.facts([("Images", f"{found.images:,}"), ("Read as", found.kind), ("Time", f"{found.seconds:.1f} s")])
    report.section("What was found", "Every image was read once, and none was changed.")
    report.normal_lines(found.lines)
    if found.proposals:
        report.section("What to set", "Options for the runs that come next, and why.")
        report.table(
            Table(
                ["option", "because"],
                [(_written(one.option, one.value), one.reason) for one in found.proposals],
                "A checkpoint to start from may ask for another size or patch.",
            )._replace(columns=["option", Column("because", align="left")])
        )
    report.section("What there is")
    report.table(_table_of_all(found))
    if any(part.classes for part in found.parts):
        report.table(_table_of_classes(found.parts))
    pairs = alike.pairs()
    across = sorted((pair for pair in pairs if seen.part[pair[0]] != seen.part[pair[1]]), key=lambda pair: pair[2])
    _pairs(report, seen, across, "In two parts", "The same image where networks are trained and where they are judged.")
    labels = [pair for pair in pairs if seen.label(pair[0]) != seen.label(pair[1])]
    _pairs(report, seen, labels, "With different labels", "The same image, or one much like it, in two classes.")
    within = [pair for pair in alike.near if seen.part[pair[0]] == seen.part[pair[1]]]
    _pairs(report, seen, within, "Near duplicates", "Pairs in one part, the nearest first.")
    _pairs(
        report, seen, within[-SHOWN // 2 :] if len(within) > SHOWN else [], "The least alike of these", "Judge `near` by them."
    )
    same = [(group[0], group[1], 0.0) for group in alike.exact]
    _pairs(report, seen, same, "Copies", "Files that are the same byte for byte; of each group two.")
    for kind, (title, lead) in KINDS.items():
        tiles = (tile for place in odd[kind] if (tile := _tile(seen, [place], seen.path(place).name)) is not None)
        _sheet(report, tiles, title, lead, len(odd[kind]))
    if found.broken:
        report.section("Broken", "Files that cannot be read to their end.")
        rows = [(str(one.path), one.reason) for one in found.broken[:200]]
        report.table(Table(["file", Column("why", align="left")], rows, f"{len(rows)} of {len(found.broken):,}."))
    report.write(path)


def _pairs(report: Report, seen: Seen, pairs: Sequence[tuple[int, int, float]], title: str, lead: str) -> None:
    tiles = (
        tile
        for one, two, distance in pairs
        if (tile := _tile(seen, [one, two], f"{_name(seen, one)} | {_name(seen, two)}", distance)) is not None
    )
    _sheet(report, tiles, title, lead, len(pairs))


def _name(seen: Seen, place: int) -> str:
    """The end of a path: its part or class, and the file."""
    path, label = seen.path(place), seen.label(place)
    part = seen.names[seen.part[place]]
    return "/".join(filter(None, (part, *(label or ()), path.name)))


def _sheet(report: Report, tiles: Iterable[Tile], title: str, lead: str, total: int) -> None:
    shown = list(islice(tiles, SHOWN))
    if shown:
        report.section(title, lead)
        report.gallery(shown, f"{len(shown)} of {total:,}.")


def _tile(seen: Seen, places: Sequence[int], caption: str, distance: float | None = None) -> Tile | None:
    """One image, or two side by side; None where they cannot be read any more."""
    images = [shown_image(seen.source(place), CELL) for place in places]
    if any(image is None for image in images):
        return None
    found = [_enlarged(image) for image in images if image is not None]
    page = Image.new("RGB", (sum(one.width for one in found) + GAP * (len(found) - 1), max(one.height for one in found)), "white")
    left = 0
    for one in found:
        page.paste(one, (left, 0))
        left += one.width + GAP
    note = "" if distance is None else "same bytes" if distance == 0 else f"distance {distance:.2f}"
    return Tile(page, caption, note)


def _enlarged(image: Image.Image) -> Image.Image:
    factor = max(1, CELL // max(image.size))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
