"""Positions of the regular members of tar archives, by the standard library's `tarfile`.

Nothing is ever extracted, so names are only names. Regular members count (ustar, pax and GNU headers, long names, sizes in
base 256); links, devices, pipes, folders and sparse members are passed over. Archives come from anywhere: `tarfile` takes damage
for the end of an archive and reads headers of any length, so both are looked at here, and whatever is wrong becomes one line.
"""

from __future__ import annotations

import itertools
import tarfile
from collections.abc import Callable, Iterator
from typing import IO, NamedTuple, NoReturn, cast

from beitkit.errors import UserError

BLOCK = tarfile.BLOCKSIZE
MOST_MEMBERS = 20_000_000
"""Members in one archive."""
LARGEST_HEADER = 2**20
"""Bytes of a member's headers together: long names, pax records, the map of a sparse member."""

ReadAt = Callable[[int, int], bytes]
"""(start, length) to bytes; fewer where the archive ends."""


class TarMember(NamedTuple):
    """A regular member, whose bytes lie at [start, start + length) of the archive."""

    name: bytes
    start: int
    length: int


def tar_members(read: ReadAt, size: int, called: str) -> Iterator[TarMember]:
    """The regular members of an archive of `size` bytes, in order; `called` is its name in errors.

    Raises:
        UserError: it is no tar archive, is damaged or cut short, or holds more than `MOST_MEMBERS`.
    """

    def refuse(what: str) -> NoReturn:
        raise UserError(f"{called} {what}")

    file = _Headers(read, refuse)
    archive: tarfile.TarFile | None = None
    place = 0
    for count in itertools.count():
        file.left, is_damaged, member = LARGEST_HEADER, False, None
        try:
            if archive is None:
                # It only reads, seeks and tells.
                archive = tarfile.TarFile(fileobj=cast(IO[bytes], file), encoding="utf-8", errors="surrogateescape")
            member = archive.next()
            archive.members.clear()  # type: ignore[attr-defined] - it would keep all members
        except (OSError, UserError):
            raise
        except Exception:  # it raises nearly every type there is on damaged headers
            is_damaged = True
        if member is None or archive is None:
            if not is_damaged and file.last == bytes(BLOCK):
                return
            if not size or (place == 0 and file.place <= BLOCK):
                refuse("is no tar archive" if size else "is empty")
            refuse("is cut short: its end is missing" if file.is_short else f"is damaged at byte {place}: no header is there")
        if count == MOST_MEMBERS:
            refuse(f"holds more than {MOST_MEMBERS:,} members; divide it into shards")
        if archive.pax_headers.keys() & {"path", "size"}:
            refuse("has a global header that renames its members; pack the images anew")
        if member.size < 0 or archive.offset <= place:
            refuse(f"is damaged at byte {place}: a member of negative size")
        place = archive.offset
        is_sparse = member.issparse() or any(key.startswith("GNU.sparse") for key in member.pax_headers)
        if member.isreg() and not is_sparse and not member.name.endswith("/"):
            if member.offset_data + member.size > size:
                refuse(f"is cut short: its member {member.name[:200]!a} goes on after the archive's end")
            yield TarMember(member.name.encode("utf-8", "surrogateescape"), member.offset_data, member.size)


class _Headers:
    """What `tarfile` reads an archive from: no more than `left` bytes, which is set before each member."""

    def __init__(self, read: ReadAt, refuse: Callable[[str], NoReturn]) -> None:
        self._read, self._refuse = read, refuse
        self.left = self.place = 0
        self.last = b""
        """What was read last."""
        self.is_short = False
        """Whether that was less than was asked for."""

    def tell(self) -> int:
        return self.place

    def seek(self, place: int) -> None:
        self.place = place

    def read(self, length: int) -> bytes:
        if not 0 <= length <= self.left:
            self._refuse(f"has headers of {length:,} bytes at byte {self.place}; {LARGEST_HEADER:,} are allowed for a member")
        self.left -= length
        self.last = self._read(self.place, length)
        self.place += len(self.last)
        self.is_short = len(self.last) < length
        return self.last
