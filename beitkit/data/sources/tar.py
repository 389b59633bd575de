"""The headers of tar archives: where each regular member lies. A reader of our own, because archives come from anywhere.

Nothing is ever extracted, so names are only names. Regular members count (ustar, pax and GNU headers, long names, sizes in
base 256); links, devices, pipes, folders and sparse members are passed over. Whatever is wrong with an archive becomes one line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, NoReturn

from beitkit.errors import UserError

BLOCK = 512
MOST_MEMBERS = 20_000_000
"""Headers in one archive."""
LONGEST_NAME = 2**16  # bytes
LARGEST_PAX = 2**20  # bytes of an extended header
_REGULAR = (b"0", b"\0", b"7")
_WITHOUT_DATA = (b"1", b"2", b"3", b"4", b"5", b"6")  # links, devices, folders, pipes: a size there is no data

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
    return _Scan(read, size, called).members()


class _Scan:
    def __init__(self, read: ReadAt, size: int, called: str) -> None:
        self.read, self.size, self.called = read, size, called

    def members(self) -> Iterator[TarMember]:
        place = count = 0
        long_name: bytes | None = None
        extended: dict[bytes, bytes] = {}
        while True:
            header = self._header(place)
            if header is None:
                return
            count += 1
            if count > MOST_MEMBERS:
                self._refuse(f"holds more than {MOST_MEMBERS:,} members; divide it into shards")
            kind, length, start = header[156:157], self._size_in(header, place), place + BLOCK
            if kind == b"L":
                long_name = self._content(start, length, LONGEST_NAME, place).rstrip(b"\0")
            elif kind in (b"x", b"X"):
                extended = self._pax(start, length, place)
            elif kind == b"g":
                if self._pax(start, length, place).keys() & {b"path", b"size"}:
                    self._refuse("has a global header that renames its members; pack the images anew with beitkit pack")
            elif kind != b"K":
                if b"size" in extended:
                    length = self._number(extended[b"size"], place)
                name = extended.get(b"path", long_name if long_name is not None else _name_in(header))
                is_sparse = kind == b"S" or any(key.startswith(b"GNU.sparse") for key in extended)
                start = self._after_sparse_map(header, start) if kind == b"S" else start
                length = 0 if kind in _WITHOUT_DATA else length
                if start + length > self.size:
                    self._refuse(f"is cut short: its member {_shown(name)} goes on after the archive's end")
                if kind in _REGULAR and not is_sparse and not name.endswith(b"/"):
                    yield TarMember(name, start, length)
                long_name, extended = None, {}
            place = start + -(-length // BLOCK) * BLOCK

    def _header(self, place: int) -> bytes | None:
        """The header at a place; None where the archive ends."""
        header = self.read(place, BLOCK)
        if len(header) == BLOCK and not any(header):
            return None
        if len(header) < BLOCK:
            self._refuse("is empty" if not self.size else "is cut short: its end is missing" if place else "is no tar archive")
        if not _is_sum(header, self._octal(header[148:156], place)):
            self._refuse(f"is damaged at byte {place}: no header of a member is there" if place else "is no tar archive")
        return header

    def _size_in(self, header: bytes, place: int) -> int:
        field = header[124:136]
        if field[0] & 0x80:  # GNU: base 256 for what octal digits cannot hold
            if field[0] != 0x80:
                self._refuse(f"is damaged at byte {place}: a member of negative size")
            return int.from_bytes(field[1:], "big")
        return self._octal(field, place)

    def _octal(self, field: bytes, place: int) -> int:
        digits = field.partition(b"\0")[0].strip(b" ")
        if digits.strip(b"01234567"):
            self._refuse(f"is damaged at byte {place}: {digits!r} is no octal number" if place else "is no tar archive")
        return int(digits or b"0", 8)

    def _number(self, digits: bytes, place: int) -> int:
        if not digits.isdigit() or len(digits) > 20:
            self._refuse(f"is damaged at byte {place}: {digits[:20]!r} is no size")
        return int(digits)

    def _content(self, start: int, length: int, most: int, place: int) -> bytes:
        if length > most:
            self._refuse(f"has an extended header of {length:,} bytes at byte {place}, more than {most:,}")
        content = self.read(start, length)
        if len(content) < length:
            self._refuse("is cut short within an extended header")
        return content

    def _pax(self, start: int, length: int, place: int) -> dict[bytes, bytes]:
        """The records `LENGTH KEY=VALUE` of an extended header, lengths counting themselves and the line's end."""
        rest, records = self._content(start, length, LARGEST_PAX, place), {}
        while rest.strip(b"\0"):
            digits, blank, _ = rest[:20].partition(b" ")
            total = self._number(digits, place)
            record = rest[len(digits) + 1 : total]
            key, equals, value = record[:-1].partition(b"=")
            if not blank or not len(digits) + 2 < total <= len(rest) or record[-1:] != b"\n" or not equals:
                self._refuse(f"is damaged at byte {place}: an extended header that cannot be read")
            records[key] = value
            rest = rest[total:]
        return records

    def _after_sparse_map(self, header: bytes, start: int) -> int:
        """Where the data of an old GNU sparse member begins: after the blocks that continue its map."""
        goes_on = header[482]
        while goes_on:
            block = self._content(start, BLOCK, BLOCK, start)
            goes_on, start = block[504], start + BLOCK
        return start

    def _refuse(self, what: str) -> NoReturn:
        raise UserError(f"{self.called} {what}")


def _name_in(header: bytes) -> bytes:
    """The name of a header, behind its prefix where POSIX has one (old GNU headers keep times there)."""
    name = header[:100].partition(b"\0")[0]
    prefix = header[345:500].partition(b"\0")[0] if header[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _is_sum(header: bytes, checksum: int) -> bool:
    """Whether this is the sum of the header with a blank checksum; some old programs added signed bytes."""
    counted = header[:148] + b" " * 8 + header[156:]
    total = sum(counted)
    return checksum == total or checksum == total - 256 * sum(byte >= 128 for byte in counted)


def _shown(name: bytes) -> str:
    return repr(name[:200].decode("utf-8", "backslashreplace"))
