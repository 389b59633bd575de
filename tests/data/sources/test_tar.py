"""Members against those that the standard library finds by itself, and archives that mean no good."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from beitkit.data.sources import tar as headers
from beitkit.data.sources.tar import BLOCK, TarMember, tar_members
from beitkit.errors import UserError

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def scanned(content: bytes) -> list[TarMember]:
    return list(tar_members(lambda start, length: content[start : start + length], len(content), "x.tar"))


def referee(content: bytes) -> list[TarMember]:
    """What the standard library finds."""
    with tarfile.open(fileobj=io.BytesIO(content), errors="surrogateescape") as archive:
        return [TarMember(os.fsencode(m.name), m.offset_data, m.size) for m in archive if m.isreg() and not m.issparse()]


def archive(*members: tuple[str, bytes], kind: int = tarfile.PAX_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=kind) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


def raw(name: bytes, kind: bytes = b"0", size: bytes = b"00000000000\0", magic: bytes = b"ustar\x0000") -> bytes:
    """One header with a right checksum."""
    header = bytearray(BLOCK)
    header[: len(name)] = name
    header[124:136], header[156:157], header[257:265] = size, kind, magic
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


END = bytes(2 * BLOCK)


@pytest.mark.parametrize("kind", FORMATS.values(), ids=FORMATS)
@settings(max_examples=60, deadline=None)
@given(
    members=some.lists(
        some.tuples(
            some.text("ab/.é", min_size=1, max_size=99).filter(lambda name: not name.endswith("/")), some.binary(max_size=1200)
        ),
        max_size=6,
    )
)
def test_members_are_those_of_the_standard_library(kind: int, members: list[tuple[str, bytes]]) -> None:
    content = archive(*members, kind=kind)
    assert scanned(content) == referee(content)


@pytest.mark.parametrize("kind", ["gnu", "pax"])
def test_long_names_and_names_that_are_no_text(kind: str) -> None:
    names = ["d" * 90 + "/" + "e" * 90 + ".jpg", "x" * 3000 + ".jpg", os.fsdecode(b"caf\xe9.jpg"), "ü.jpg"]
    content = archive(*((name, name.encode("utf-8", "surrogateescape")) for name in names), kind=FORMATS[kind])
    found = scanned(content)
    assert [member.name for member in found] == [os.fsencode(name) for name in names]
    assert [content[m.start : m.start + m.length] for m in found] == [m.name for m in found]


def test_only_regular_members_count() -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE):
            info = tarfile.TarInfo(f"{kind.decode()}.jpg")
            info.type, info.linkname = kind, "../../etc/passwd"
            tar.addfile(info)
        info = tarfile.TarInfo("last.jpg")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"abc"))
    assert [member.name for member in scanned(file.getvalue())] == [b"last.jpg"]


def test_sparse_members_are_passed_over() -> None:
    after = archive(("last.jpg", b"abc"))
    content = sparse() + bytes(BLOCK) + bytes(BLOCK) + after
    assert [member.name for member in scanned(content)] == [b"last.jpg"] == [m.name for m in referee(content)]
    record = b"22 GNU.sparse.major=1\n"
    content = raw(b"p", b"x", b"%011o\0" % len(record)) + record.ljust(BLOCK, b"\0") + raw(b"new.jpg") + after
    assert [member.name for member in scanned(content)] == [b"last.jpg"]


def test_headers_from_before_posix() -> None:
    content = raw(b"a.jpg", b"\0", magic=bytes(8)) + raw(b"folder/", b"\0", magic=bytes(8)) + END
    assert scanned(content) == referee(content) == [TarMember(b"a.jpg", 512, 0)]


def test_sizes_in_base_256_and_in_extended_headers() -> None:
    content = raw(b"a.jpg", size=b"\x80" + (3).to_bytes(11, "big")) + b"abc".ljust(BLOCK, b"\0") + END
    assert scanned(content) == referee(content) == [TarMember(b"a.jpg", 512, 3)]
    record = b"10 size=3\n"
    content = (
        raw(b"p", b"x", b"%011o\0" % len(record)) + record.ljust(BLOCK, b"\0") + raw(b"a.jpg") + b"abc".ljust(BLOCK, b"\0") + END
    )
    assert scanned(content) == referee(content) == [TarMember(b"a.jpg", 1536, 3)]


def sparse() -> bytes:
    """A header of an old GNU sparse member whose map goes on in another block."""
    header = bytearray(raw(b"old.jpg", b"S", b"00000001000\0", b"ustar  \0"))
    header[482] = 1
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def pax(record: bytes, kind: bytes = b"x") -> bytes:
    return raw(b"p", kind, b"%011o\0" % len(record)) + record + bytes(-len(record) % BLOCK) + raw(b"a.jpg") + END


HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "x.tar is empty"),
    "a page": (lambda: b"<html>" * 200, "x.tar is no tar archive"),
    "compressed": (lambda: b"\x1f\x8b" + bytes(600), "x.tar is no tar archive"),
    "short": (lambda: b"\1" * 100, "x.tar is no tar archive"),
    "no end": (lambda: archive(("a.jpg", b"abc"))[: 2 * BLOCK], "is cut short: its end is missing"),
    "cut in a member": (lambda: archive(("a.jpg", bytes(4000)))[:2000], "is cut short: its member 'a.jpg' goes on"),
    "cut in a header": (lambda: archive(("a.jpg", b"abc"), ("b.jpg", b"abc"))[:1300], "is cut short: its end is missing"),
    "flipped": (lambda: archive(("a.jpg", b"abc")).replace(b"a.jpg", b"b.jpg"), "x.tar is no tar archive"),
    "flipped later": (lambda: archive(("a.jpg", b""), ("b.jpg", b"")).replace(b"b.jpg", b"c.jpg"), "is damaged at byte 512"),
    "beyond the end": (lambda: raw(b"a.jpg", size=b"77777777777\0") + END, "is cut short: its member 'a.jpg' goes on"),
    "beyond all ends": (lambda: raw(b"a.jpg", size=b"\x80" + b"\xff" * 11) + END, "is cut short: its member 'a.jpg' goes on"),
    "negative": (lambda: raw(b"a.jpg", size=b"\xff" * 12) + END, "x.tar is no tar archive|a member of negative size"),
    "negative later": (lambda: raw(b"a.jpg") + raw(b"b.jpg", size=b"\xff" * 12) + END, "is damaged at byte 512"),
    "far before": (lambda: raw(b"a.jpg") + raw(b"b.jpg", size=b"\xff" * 10 + b"\0\0") + END, "is damaged at byte 512"),
    "no octal number": (lambda: raw(b"a.jpg") + raw(b"b.jpg", size=b"0000000009x\0") + END, "is damaged at byte 512"),
    "huge name": (lambda: raw(b"././@LongLink", b"L", b"00100000001\0") + END, "has headers of 16,777,728 bytes at byte 512"),
    "huge pax": (lambda: raw(b"p", b"x", b"77777777777\0") + END, "has headers of 8,589,934,592 bytes at byte 512"),
    "many pax": (lambda: pax(b"9 a=bcde\n")[: 2 * BLOCK] * 1500 + END, "is damaged at byte 0|has headers of"),
    "many sparse maps": (lambda: sparse() + (bytes(504) + b"\1" + bytes(7)) * 3000 + END, "has headers of 512 bytes at byte"),
    "cut in pax": (lambda: raw(b"p", b"x", b"00000010000\0") + END, "is cut short: its end is missing"),
    "pax of length 0": (lambda: pax(b"0 path=a.jpg\n"), "is damaged at byte 0"),
    "pax with a negative size": (lambda: pax(b"11 size=-5\n"), "is damaged at byte 0"),
    "pax with a huge size": (lambda: pax(b"29 size=99999999999999999999\n"), "is cut short: its member 'a.jpg' goes on"),
    "global size": (lambda: pax(b"10 size=3\n", kind=b"g"), "a global header that renames"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "message"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_archive_is_one_line(make: Callable[[], bytes], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        scanned(make())
    assert "\n" not in str(caught.value)


def test_too_many_members_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(headers, "MOST_MEMBERS", 3)
    assert len(scanned(archive(*[("a.jpg", b"")] * 3))) == 3
    with pytest.raises(UserError, match="holds more than 3 members"):
        scanned(archive(*[("a.jpg", b"")] * 4))


@settings(max_examples=300, deadline=None)
@given(data=some.data())
def test_damaged_bytes_never_do_more_than_raise(data: some.DataObject) -> None:
    names = ["d" * 120 + "/é.jpg", "b.jpg"]
    content = bytearray(
        archive(*((name, b"abc") for name in names), kind=data.draw(some.sampled_from(list(FORMATS.values())[1:])))
    )
    for _ in range(data.draw(some.integers(1, 4))):
        content[data.draw(some.integers(0, min(len(content), 4096) - 1))] = data.draw(some.integers(0, 255))
    if data.draw(some.booleans()):
        del content[data.draw(some.integers(0, len(content))) :]
    if data.draw(some.booleans()):  # so that damage gets behind the checksum
        for place in range(0, len(content) - BLOCK + 1, BLOCK):
            if content[place + 257 : place + 262] == b"ustar":
                content[place + 148 : place + 156] = b" " * 8
                content[place + 148 : place + 156] = b"%06o\0 " % sum(content[place : place + BLOCK])
    try:
        found = scanned(bytes(content))
    except UserError as error:
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert all(0 <= m.start <= m.start + m.length <= len(content) for m in found)


def test_a_scan_reads_headers_only(tmp_path: Path) -> None:
    content = archive(*((f"{index}.jpg", bytes(10**6)) for index in range(5)))
    read = []

    def noting(start: int, length: int) -> bytes:
        read.append(length)
        return content[start : start + length]

    assert len(list(tar_members(noting, len(content), "x.tar"))) == 5
    assert sum(read) == 6 * BLOCK + 5  # and the last byte of each member
