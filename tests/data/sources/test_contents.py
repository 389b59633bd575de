"""Files with the same bytes: what comparing all of them in full says, from folders and from archives, opening few."""

from __future__ import annotations

import random
import tarfile
from pathlib import Path

import pytest

from beitkit.data.decoding import decode
from beitkit.data.sources import contents
from beitkit.data.sources.contents import file_sizes, shared_contents
from beitkit.data.sources.find import find_images


def written(folder: Path, *files: bytes) -> Path:
    folder.mkdir()
    for number, content in enumerate(files):
        (folder / f"{number}.png").write_bytes(content)
    return folder


def test_as_comparing_all_in_full(tmp_path: Path) -> None:
    chance = random.Random(0)
    long = bytes(50_000)
    files = [chance.randbytes(chance.choice((5, 9000))) for _ in range(20)]
    files += [long[:12_000] + bytes([number]) + long[12_001:] for number in (1, 2)]  # alike in all pieces that are looked at
    one, two = ([chance.choice(files) for _ in range(15)] + [b""] for _ in range(2))
    train, val = find_images(written(tmp_path / "a", *one)), find_images(written(tmp_path / "b", *two))
    read = [[files.path(index).read_bytes() for index in range(len(files))] for files in (train, val)]
    expected = [(index, read[0].index(content)) for index, content in enumerate(read[1]) if content and content in read[0]]
    assert 3 < len(expected) < 15
    assert shared_contents(train, val) == expected
    with tarfile.open(tmp_path / "b.tar", "w") as archive:
        archive.add(tmp_path / "b", arcname="x")
    packed = find_images(tmp_path / "b.tar")
    assert sorted(file_sizes(packed)) == sorted(map(len, two))
    found = shared_contents(train, packed)
    assert found is not None
    assert {(Path(packed.path(a).name).name, b) for a, b in found} == {(val.path(a).name, b) for a, b in expected}


def test_what_cannot_be_the_same_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = written(tmp_path / "a", b"1", b"22", b"4444"), written(tmp_path / "b", b"333", b"55555", b"9999")
    opened: list[Path] = []

    def counted(source: Path) -> object:
        opened.append(source)
        return decode.opened_file(source)

    monkeypatch.setattr(contents, "opened_file", counted)
    assert shared_contents(find_images(one), find_images(two)) == []
    assert {path.name for path in opened} == {"2.png"}
    monkeypatch.setattr(contents, "MOST_OPENED", 1)
    assert shared_contents(find_images(one), find_images(two)) is None
