"""`beitkit audit`: every planted fault is found and nothing else, the clean list is read by the verbs, nothing is changed."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import beitkit
from beitkit.cli import main
from beitkit.data.scenes.scenes import find_scenes
from beitkit.data.sources.find import find_images, find_labeled
from beitkit.errors import UserError
from tests.runs.audit.test_alike import natural, recompressed


def names(paths: object) -> list[str]:
    return [Path(str(path)).name for path in paths]  # type: ignore[attr-defined]


def state_of(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 images in order, and one of each fault in the folder odd/."""
    folder = tmp_path_factory.mktemp("photos")
    odd = folder / "odd"
    odd.mkdir()
    images = [natural(seed) for seed in range(40)]
    for index, image in enumerate(images[:30]):
        image.save(folder / f"{index:02d}.png")
    shutil.copy(folder / "03.png", odd / "copy.png")
    recompressed(images[4], 50).save(odd / "recompressed.jpg", quality=50)
    images[5].resize((50, 40)).save(odd / "resized.png")
    Image.new("RGB", (96, 96), (250, 250, 248)).save(odd / "blank.jpg")
    images[30].convert("L").convert("RGB").save(odd / "gray.jpg", quality=90)
    images[31].convert("L").save(odd / "plain_gray.png")
    images[32].convert("CMYK").save(odd / "cmyk.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    images[33].resize((120, 60)).save(odd / "turned.jpg", exif=exif)
    images[34].putalpha(images[35].convert("L"))
    images[34].save(odd / "transparent.png")
    images[36].resize((5, 9)).save(odd / "tiny.png")
    (odd / "cut.jpg").write_bytes(b"".join([(odd / "gray.jpg").read_bytes()[:1500]]))
    (odd / "text.png").write_text("no image")
    (odd / "empty.png").write_bytes(b"")
    (odd / "notes.txt").write_text("x")
    (odd / "film.mov").write_bytes(b"x")
    return folder


def test_planted_faults(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = state_of(photos)
    found = beitkit.audit(photos, task="none", out=tmp_path / "audit", list=tmp_path / "clean.csv", workers=0)
    said = capsys.readouterr().out
    assert state_of(photos) == before
    assert (found.kind, found.images, found.left_out) == ("images", 43, {".txt": 1, ".mov": 1})
    assert sorted(names(one.path for one in found.broken)) == ["cut.jpg", "empty.png", "text.png"]
    assert [names(group) for group in found.exact] == [["03.png", "copy.png"]]
    assert sorted((pair.other.name, pair.path.name) for pair in found.near) == [
        ("04.png", "recompressed.jpg"),
        ("05.png", "resized.png"),
    ]
    assert names(found.blank) == ["blank.jpg"]
    assert names(found.gray_as_color) == ["gray.jpg"]
    assert names(found.cmyk) == ["cmyk.jpg"]
    assert names(found.turned) == ["turned.jpg"]
    assert names(found.transparent) == ["transparent.png"]
    assert names(found.tiny) == ["tiny.png"]
    assert set(names(found.small)) == {"resized.png", "tiny.png", "turned.jpg"}
    assert found.formats == {"PNG": 35, "JPEG": 5}
    assert (found.width.least, found.width.median, found.height.most) == (5, 96, 120)
    assert found.value_range is not None
    assert (found.leaks, found.conflicts) == ((), ())
    assert "--image-size 96" in said
    assert found.left_out_of_list == {"broken": 3, "blank": 1, "a copy of another file": 1}
    kept = find_images(tmp_path / "clean.csv")
    assert len(kept) == 38
    assert {"copy.png", "cut.jpg", "blank.jpg"}.isdisjoint(names(kept.path(index) for index in range(38)))
    page = (tmp_path / "audit" / "report.html").read_text()
    assert all(word in page for word in ("recompressed.jpg", "Turned by EXIF", "cut.jpg", "--image-size 96", "data:image/jpeg"))
    stored = json.loads((tmp_path / "audit" / "audit.json").read_text())
    assert names(stored["blank"]) == ["blank.jpg"]
    assert (stored["width"]["median"], len(stored["near"])) == (96, 2)


def test_workers_find_the_same(photos: Path) -> None:
    alone, others = (beitkit.audit(photos, task="none", workers=workers) for workers in (0, 2))
    assert alone._replace(seconds=0) == others._replace(seconds=0)


def test_each_image_is_read_once(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from beitkit.runs.audit import look

    opened: list[Path] = []
    original = look.opened_file
    monkeypatch.setattr(look, "opened_file", lambda path: (opened.append(path), original(path))[1])
    beitkit.audit(photos, task="none", workers=0)
    assert len(opened) == len(set(opened)) == 43


@pytest.fixture(scope="module")
def labeled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes, 24 to train on and 8 to validate on; three of the latter are among the former, and one has two labels."""
    folder = tmp_path_factory.mktemp("labeled")
    for index in range(32):
        path = folder / ("train" if index < 24 else "val") / ("a", "b")[index % 2] / f"{index:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        natural(100 + index, 48).save(path)
    shutil.copy(folder / "train" / "a" / "02.png", folder / "val" / "a" / "same.png")
    recompressed(natural(103, 48), 50).save(folder / "val" / "b" / "like.jpg", quality=75)
    natural(104, 48).resize((30, 30)).save(folder / "val" / "a" / "small.png")
    shutil.copy(folder / "train" / "a" / "06.png", folder / "train" / "b" / "wrong.png")
    return folder


def test_leaks_and_labels(labeled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = beitkit.audit(labeled, list=tmp_path / "clean.csv", workers=0)
    assert found.kind == "labeled images"
    assert [(part.name, part.images, part.classes) for part in found.parts] == [
        ("train", 25, {"a": 12, "b": 13}),
        ("val", 11, {"a": 6, "b": 5}),
    ]
    assert {(pair.path.name, pair.other.name, pair.distance == 0) for pair in found.leaks} == {
        ("same.png", "02.png", True),
        ("like.jpg", "03.png", False),
        ("small.png", "04.png", False),
    }
    assert [(pair.path.name, pair.other.name) for pair in found.conflicts] == [("wrong.png", "06.png")]
    assert "warning: 3 images in two parts (1 byte for byte)" in capsys.readouterr().out
    train, val = (find_labeled(tmp_path / "clean.csv", split) for split in ("train", "val"))
    assert (len(train), len(val), train.classes) == (20, 11, ("a", "b"))  # without 02, 03, 04 and both of 06
    assert beitkit.audit(tmp_path / "clean.csv", workers=0).leaks == ()


def test_val_given_and_nothing_in_both(labeled: Path, tmp_path: Path) -> None:
    found = beitkit.audit(labeled / "train", val=labeled / "val", workers=0)
    assert [part.name for part in found.parts] == ["train", "val"]
    assert len(found.leaks) == 3
    found = beitkit.audit(labeled / "train" / "a", val=labeled / "val" / "b", workers=0)
    assert (found.kind, found.leaks) == ("images", ())


def test_what_a_run_would_divide_keeps_one_of_each(tmp_path: Path) -> None:
    for index in range(8):
        path = tmp_path / "images" / ("a", "b")[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        natural(index // 4, 48).resize((40 + index, 48)).save(path) if index % 4 == 0 else natural(index + 50, 48).save(path)
    natural(1, 48).save(tmp_path / "images" / "a" / "again.png")
    found = beitkit.audit(tmp_path / "images", list=tmp_path / "clean.csv", workers=0)
    assert [(pair.path.name, pair.other.name) for pair in found.near] == [("again.png", "4.png")]
    assert found.left_out_of_list == {"like another image": 1}
    assert any("may part these" in line.sentence for line in found.lines if line.state == "warn")
    assert len(find_labeled(tmp_path / "clean.csv")) == 8


def test_a_list_with_several_labels(tmp_path: Path) -> None:
    for index in range(4):
        natural(index, 32).save(tmp_path / f"{index}.png")
    rows = [("0.png", "x|y"), ("1.png", ""), ("2.png", "y"), ("3.png", "z")]
    (tmp_path / "list.csv").write_text("path,labels\n" + "".join(f"{path},{labels}\n" for path, labels in rows))
    found = beitkit.audit(tmp_path / "list.csv", list=tmp_path / "clean.csv", workers=0)
    assert found.parts[0].classes == {"x": 1, "y": 2, "z": 1}
    kept = find_labeled(tmp_path / "clean.csv")
    assert kept.targets is not None
    assert kept.targets.tolist() == [[True, True, False], [False, False, False], [False, True, False], [False, False, True]]


def test_scenes(tmp_path: Path) -> None:
    for index in range(6):
        mask = np.zeros((48, 48), dtype=np.uint8)
        mask[: 8 + index] = 1
        for part, image in (("images", natural(index, 48)), ("masks", Image.fromarray(mask))):
            path = tmp_path / "scenes" / part / ("train" if index < 4 else "val") / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
    natural(1, 48).save(tmp_path / "scenes/images/val/4.png", compress_level=1)
    found = beitkit.audit(tmp_path / "scenes", list=tmp_path / "clean" / "list.csv", workers=0)
    assert found.kind == "images with masks"
    assert [(part.name, part.images, list(part.classes.values())) for part in found.parts] == [
        ("train", 4, [4, 4]),
        ("val", 2, [2, 2]),
    ]
    assert [(pair.path.name, pair.other.name) for pair in found.leaks] == [("4.png", "1.png")]
    kept = find_scenes(tmp_path / "clean" / "list.csv", split="train")
    assert names(kept.files.path(index) for index in range(len(kept))) == ["0.png", "2.png", "3.png"]
    assert kept.classes == find_scenes(tmp_path / "scenes", split="train").classes
    Image.new("L", (7, 7)).save(tmp_path / "scenes/masks/train/0.png")
    found = beitkit.audit(tmp_path / "scenes", workers=0)
    assert any("0.png" in line.sentence and line.state == "warn" for line in found.lines)


def test_depth_and_channels(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for index in range(5):
        np.save(tmp_path / f"{index}.npy", (1000 + rng.integers(0, 3000, (5, 40, 40))).astype(np.uint16))
    np.save(tmp_path / "flat.npy", np.full((5, 40, 40), 2000, dtype=np.uint16))
    np.save(tmp_path / "again.npy", np.load(tmp_path / "2.npy"))
    found = beitkit.audit(tmp_path, workers=0)
    assert found.formats == {"NUMPY": 7}
    assert found.kinds == {"uint16 5 channels": 7}
    assert names(found.blank) == ["flat.npy"]
    assert [names(group) for group in found.exact] == [["2.npy", "again.npy"]]
    options = {proposal.option: proposal.value for proposal in found.proposals}
    assert options["--channels"] == "5"
    low, high = map(float, options["--value-range"].split())
    assert 1000 <= low < 1010
    assert 3990 < high <= 4000
    Image.fromarray(rng.integers(0, 255, (40, 40, 3)).astype(np.uint8)).save(tmp_path / "8.png")
    assert any("channels, but" in line.sentence for line in beitkit.audit(tmp_path, workers=0).lines if line.state == "warn")


def test_proposals_for_gray_dark_large_and_unbalanced(tmp_path: Path) -> None:
    for index in range(30):
        path = tmp_path / "images" / ("rare" if index < 1 else "common") / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((np.asarray(natural(index, 32).convert("L")) // 16).astype(np.uint8)).save(path)
    Image.new("L", (300, 300), 3).save(tmp_path / "images" / "rare" / "large.png")
    found = beitkit.audit(tmp_path / "images", read=beitkit.configs.data.ReadLimit(max_pixels=0.05), workers=0)
    options = {proposal.option: proposal.value for proposal in found.proposals}
    assert options.keys() == {"--channels", "--value-range", "--image-size", "--patch", "--balanced", "--read.max-pixels"}
    assert (options["--channels"], options["--image-size"], options["--patch"], options["--read.max-pixels"]) == (
        "1",
        "32",
        "4",
        "1",
    )
    assert float(options["--value-range"].split()[1]) <= 15
    assert found.blank == ()  # dark, but not without detail


def test_the_command_line_and_its_mistakes(labeled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["audit", str(labeled), "--json", "--workers", "0"])
    assert stopped.value.code == 0
    assert json.loads(capsys.readouterr().out)["parts"][1]["name"] == "val"
    (tmp_path / "there.csv").write_text("mine")
    for list_file, message in (("x.txt", "must end in .csv"), ("there.csv", "is there already")):
        with pytest.raises(SystemExit) as stopped:
            main(["audit", str(labeled), "--list", str(tmp_path / list_file)])
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err
    assert (tmp_path / "there.csv").read_text() == "mine"
    with pytest.raises(UserError, match="holds no images with masks|images/ and masks/"):
        beitkit.audit(labeled, task="segment")
    with pytest.raises(UserError, match="does not exist"):
        beitkit.audit(tmp_path / "nowhere")
    stray = shutil.copytree(labeled / "train", tmp_path / "stray")
    natural(0).save(stray / "stray.png")
    assert any("lies beside the class folders" in line.sentence for line in beitkit.audit(stray, workers=0).lines)
    with pytest.raises(UserError, match="lies beside the class folders"):
        beitkit.audit(stray, task="classify")


def test_archives_are_audited_but_not_listed(labeled: Path, tmp_path: Path) -> None:
    beitkit.pack(labeled, out=tmp_path / "shards")
    packed = beitkit.audit(tmp_path / "shards", workers=0)
    assert (packed.images, len(packed.exact), packed.left_out) == (36, 2, {})
    with pytest.raises(UserError, match="lie in archives"):
        beitkit.audit(tmp_path / "shards", list=tmp_path / "clean.csv")


def test_names_with_odd_bytes_are_listed(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for index, name in enumerate(('a "quoted", name.png', "b\nline.png", "c.png")):
        natural(index, 32).save(tmp_path / "images" / name)
    beitkit.audit(tmp_path / "images", list=tmp_path / "clean.csv", workers=0)
    with (tmp_path / "clean.csv").open(newline="") as file:
        assert len(list(csv.reader(file))) == 4
    assert len(find_images(tmp_path / "clean.csv")) == 3
