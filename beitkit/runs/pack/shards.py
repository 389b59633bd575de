"""Writing images into tar shards in WebDataset's layout: the same list and settings give the same bytes.

Files are copied as they are, under the names that the list has below its common folder, and in its order. Each shard is written
beside its place and moved there when it is whole; `packing.json` says which are, so that a second start goes on after them.
"""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, NamedTuple

from beitkit.command.following import command, unused
from beitkit.data.decoding.decode import Bands, BrokenImage, Encoded
from beitkit.data.decoding.formats import DEEP, FORMATS, has_ending
from beitkit.data.decoding.limit import LARGEST_FILE
from beitkit.data.decoding.raw import whole_format
from beitkit.data.sources.archives import CLASSES, Archives, archive_images, label_member
from beitkit.data.sources.image_list import ImageList, below_common_folder, common_folder
from beitkit.data.sources.index import INDEX, write_index
from beitkit.data.sources.tar import BLOCK
from beitkit.errors import UserError
from beitkit.files import MOST_OWN, read_json, read_regular, why
from beitkit.system import usable_cores, write_atomically

PACKING = "packing.json"
END = bytes(2 * BLOCK)
"""What an archive ends with."""
AHEAD = 4
"""Images that a thread has read before the shard takes them."""


class Packed(NamedTuple):
    """What lies in the folder of shards at the end."""

    images: int
    shards: int
    skipped: int


class _Member(NamedTuple):
    place: int
    name: bytes
    content: bytes


@dataclass(frozen=True, kw_only=True)
class _Settings:
    """What the bytes of the shards depend on, besides the images' own."""

    pictures: str  # digest of the list of images; named as it is in packing.json
    shard_bytes: int


def pack(
    files: ImageList,
    out: Path,
    shard_bytes: int,
    max_broken: float,
    report: Callable[[Path, str], None],
    said: Callable[[int], None],
) -> Packed:
    """Write the images that can be read into shards of about `shard_bytes`, with their labels if they have any, and an index.

    `report(path, reason)` is called for each image that is left out, `said(done)` after each shard.

    Raises:
        UserError: the folder holds other shards, too many images cannot be read, or a name or a label cannot be kept.
    """
    if files.targets is not None:
        raise UserError("an image in a shard has one label, but these can have several; leave --labels out, and keep the list")
    _check_classes(files.classes)
    named = _named(files)
    settings = _Settings(pictures=files.digest, shard_bytes=shard_bytes)
    done, skipped = _whole_shards(out, settings)
    for index, reason in skipped:
        report(files.path(index), reason)
    if files.classes:
        write_atomically(out / CLASSES, "".join(f"{name}\n" for name in files.classes).encode("utf-8", "surrogateescape"))
    readable = _Readable(files, named, done[-1] if done else 0, skipped, max_broken, report)
    while readable.following is not None:
        write_atomically(out / f"{len(done):06d}.tar", lambda file: _write_shard(file, readable, files, shard_bytes))
        done.append(readable.taken)
        _note(out, settings, done, skipped)
        said(readable.taken)
    _note(out, settings, done, skipped)
    shards = tuple(str(out / f"{number:06d}.tar") for number in range(len(done)))
    if not shards:
        raise UserError(f"none of the {len(files)} images can be read; the reasons are named above")
    packed = archive_images(Archives(str(out), "tar", shards), labeled=files.labels is not None)
    return Packed(write_index(out / INDEX, packed), len(shards), len(skipped))


class _Readable:
    """The images of a list that can be read, from a place on, in order."""

    def __init__(
        self,
        files: ImageList,
        named: ImageList,
        start: int,
        skipped: list[tuple[int, str]],
        max_broken: float,
        report: Callable[[Path, str], None],
    ) -> None:
        self.files, self.named, self.skipped, self.max_broken, self.report = files, named, skipped, max_broken, report
        self.taken = start
        """Images of the list that are in shards or were left out before the one that follows."""
        self._members = self._read(start)
        self.following = next(self._members, None)

    def take(self) -> None:
        """Go on to the next image."""
        self.following = next(self._members, None)
        self.taken = len(self.files) if self.following is None else self.following.place

    def _read(self, start: int) -> Iterator[_Member]:
        total = len(self.files)
        with ThreadPoolExecutor(usable_cores()) as pool:
            span = AHEAD * usable_cores()
            for first in range(start, total, span):
                for index, found in enumerate(pool.map(self._look, range(first, min(first + span, total))), start=first):
                    if isinstance(found, _Member):
                        yield found
                        continue
                    self.skipped.append((index, found.reason))
                    self.report(found.path, found.reason)
                    if len(self.skipped) > self.max_broken * total:
                        raise UserError(
                            f"{len(self.skipped)} of {total} images cannot be read, more than the {self.max_broken:.2%} "
                            "allowed; they are named above: remove or repair them, or raise --read.max-broken"
                        )

    def _look(self, index: int) -> _Member | BrokenImage:
        name = self.named.name(index)
        try:
            source = self.files.source(index)
            if isinstance(source, Bands):
                return BrokenImage(source.path, "is one of several files of an image; a shard holds one file an image")
            if isinstance(source, Path):
                source = Encoded(source, _content(source))
            kind = whole_format(source)
        except BrokenImage as broken:
            return broken
        return _Member(index, name if has_ending(name) else name + (FORMATS | DEEP)[kind][0].encode(), source.content)


def _content(path: Path) -> bytes:
    try:
        return read_regular(path, LARGEST_FILE)
    except OSError as error:
        raise BrokenImage(path, why(error)) from error


def _write_shard(file: IO[bytes], readable: _Readable, files: ImageList, shard_bytes: int) -> None:
    """Members until the shard is full; at least one."""
    size = len(END)
    labels: dict[bytes, int] = {}
    while (member := readable.following) is not None:
        written = _encoded(member.name, member.content)
        if files.labels is not None:
            name, label = label_member(member.name), int(files.labels[member.place])
            if labels.setdefault(name, label) != label:
                raise UserError(
                    f"{files.path(member.place)} has another label than an image whose name differs in its ending only; "
                    "rename one of them"
                )
            written += _encoded(name, str(label).encode())
        if size > len(END) and size + len(written) > shard_bytes:
            break
        file.write(written)
        size += len(written)
        readable.take()
    file.write(END)


def _encoded(name: bytes, content: bytes) -> bytes:
    """Header and bytes of a member; nothing in it depends on when and by whom it is written."""
    header = tarfile.TarInfo(os.fsdecode(name))
    header.size = len(content)
    return header.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape") + content + bytes(-len(content) % BLOCK)


def _named(files: ImageList) -> ImageList:
    named = below_common_folder(files)
    if any(b".." in named.name(index).split(b"/") for index in range(len(named))):
        named = ImageList.of(Path("/"), [os.path.normpath(path) for path in files.paths()])
    shared = common_folder(named)
    named = ImageList.of(Path(), [named.name(index)[shared:] for index in range(len(named))])
    hidden = next((i for i in range(len(named)) if any(part.startswith(b".") for part in named.name(i).split(b"/"))), None)
    if hidden is not None:
        raise UserError(
            f"{files.path(hidden)} is hidden (a name that begins with a dot), which members of archives cannot be; rename it"
        )
    return named


def _check_classes(classes: tuple[str, ...]) -> None:
    wrong = next((name for name in classes if "\n" in name or "\r" in name), None)
    if wrong is not None:
        raise UserError(f"the class {wrong!r} has a line break in its name, which {CLASSES} cannot hold; rename it")


def _whole_shards(out: Path, settings: _Settings) -> tuple[list[int], list[tuple[int, str]]]:
    """How many images were taken up to the end of each shard that is there, and what was left out on the way."""
    try:
        content = read_json(out / PACKING, MOST_OWN)
        stored = content["settings"]
        there = _Settings(pictures=str(stored["pictures"]), shard_bytes=int(stored["shard_bytes"]))
        done = [int(taken) for taken in content["taken"]]
        skipped = [(int(index), str(reason)) for index, reason in content["skipped"]]
    except FileNotFoundError:
        return [], []
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{out / PACKING} is damaged ({error}); choose another --out, or remove the folder yourself") from None
    if there != settings:
        what = "other images" if there.pictures != settings.pictures else f"--shard-size {there.shard_bytes / 1e6:g}"
        raise UserError(f"--out {out} holds shards of {what}; choose another --out, or remove the folder yourself")
    whole = next((number for number in range(len(done)) if not (out / f"{number:06d}.tar").is_file()), len(done))
    done = done[:whole]
    return done, [(index, reason) for index, reason in skipped if done and index < done[-1]]


def _note(out: Path, settings: _Settings, done: list[int], skipped: list[tuple[int, str]]) -> None:
    content = {"settings": asdict(settings), "taken": done, "skipped": skipped}
    write_atomically(out / PACKING, json.dumps(content, indent=1).encode())


def following_pack(images: Path, *, has_labels: bool) -> str:
    """What one does with packed or listed images."""
    if has_labels:
        return command("finetune", images, model="MODEL", out=unused(Path("runs/cls")))
    return command("pretrain", images, tokenizer="TOKENIZER", out=unused(Path("runs/pre")))
