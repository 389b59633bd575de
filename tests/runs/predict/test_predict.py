"""`beitkit predict`: tables of predictions, in parts, in shards, after a kill."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import beitkit

Command = Callable[..., int]


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def broken(world: Path, tmp_path: Path) -> Path:
    """A folder with a good image, one with a name that is no text, and two that cannot be read."""
    folder = tmp_path / "some images"
    folder.mkdir()
    good = next((world / "new").rglob("*.png"))
    shutil.copy(good, folder / "a, b.png")
    shutil.copy(good, folder / os.fsdecode(b"\xff.png"))
    (folder / "cut.png").write_bytes(good.read_bytes()[:100])
    (folder / "text.jpg").write_text("no image")
    return folder


def test_the_table_says_what_evaluate_measures(
    world: Path, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("evaluate", world / "new", "--model", world / "cls", "--json") == 0
    measured = json.loads(capsys.readouterr().out)
    out = tmp_path / "predictions.csv"
    assert command("predict", world / "new", "--model", world / "cls", "--out", out, "--top", 2) == 0
    assert capsys.readouterr().out.startswith(f"written: {out} (40 images). Next")
    rows = table(out)
    assert list(rows[0]) == ["path", "predicted", "probability", "name_1", "probability_1", "name_2", "probability_2", "error"]
    assert [row["path"] for row in rows] == sorted(str(path) for path in (world / "new").rglob("*.png"))
    assert np.mean([row["predicted"] == Path(row["path"]).parent.name for row in rows]) == pytest.approx(measured["top1"])
    assert all(row["name_1"] == row["predicted"] and row["probability_1"] == row["probability"] for row in rows)
    assert not out.with_name("predictions.csv.parts").exists()


def test_all_formats_say_the_same(world: Path, tmp_path: Path, broken: Path, command: Command) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    for ending in ("csv", "jsonl", "parquet"):
        assert command("predict", broken, world / "new", "--model", world / "cls", "--out", tmp_path / f"p.{ending}") == 0
    rows = table(tmp_path / "p.csv")
    objects = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    columns = parquet.read_table(tmp_path / "p.parquet").to_pylist()
    model = beitkit.load(world / "cls")
    assert isinstance(model, beitkit.Classifier)
    assert len(rows) == len(objects) == len(columns) == 44
    assert os.fsencode(rows[3]["path"]) == os.fsencode(broken) + b"/\xff.png"
    assert columns[3]["path"] == f"{broken}/\\xff.png"
    for row, said, column in zip(rows, objects, columns, strict=True):
        assert row["path"] == said["path"]
        assert row["error"] == (said["error"] or "") == (column["error"] or "")
        if row["error"]:
            assert (row["predicted"], said["predicted"], column["predicted"]) == ("", None, None)
            assert said["probabilities"] == {}
            assert column["names"] == []
            continue
        expected = model.predict(said["path"])
        assert row["predicted"] == said["predicted"] == column["predicted"] == expected.name
        assert list(said["probabilities"]) == column["names"] == [guess.name for guess in expected.best]
        assert list(said["probabilities"].values()) == pytest.approx([guess.probability for guess in expected.best], abs=1e-5)
        assert column["probabilities"] == pytest.approx(list(said["probabilities"].values()))
        assert float(row["probability_3"]) == pytest.approx(expected.best[2].probability, abs=1e-5)
    assert [row["error"] for row in rows[:4]].count("") == 2


def test_without_out_it_prints(world: Path, broken: Path, command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    model = beitkit.load(world / "cls")
    assert isinstance(model, beitkit.Classifier)
    expected = model.predict(broken / "a, b.png")
    assert command("predict", broken, "--model", world / "cls", "--json") == 0
    printed = capsys.readouterr()
    lines = [json.loads(line) for line in printed.out.splitlines()]
    assert [line["predicted"] for line in lines] == [expected.name, None, None, expected.name]
    assert printed.err.count("unreadable: ") == 2
    assert command("predict", broken / "a, b.png", "--model", world / "cls", "--top", 1) == 0
    first, last = capsys.readouterr().out.splitlines()
    assert first == f"{broken / 'a, b.png'}: {expected.name} {expected.probability:.1%}"
    assert "--out predictions.csv" in last


def test_shards_together_are_the_whole(world: Path, tmp_path: Path, command: Command) -> None:
    arguments = ["predict", world / "new", "--model", world / "cls", "--batch-size", 1, "--out"]
    assert command(*arguments, tmp_path / "p.csv") == 0
    for number in (1, 2, 3, 4):
        assert command(*arguments, tmp_path / "p.csv", "--shard", f"{number}/4") == 0
    header, *whole = (tmp_path / "p.csv").read_bytes().splitlines()
    shards = [(tmp_path / f"p-0000{number}-of-00004.csv").read_bytes().splitlines() for number in (1, 2, 3, 4)]
    assert all(shard[0] == header for shard in shards)
    # 40 images are blocks of 16, 16 and 8: the fourth shard has none.
    assert [line for shard in shards for line in shard[1:]] == whole
    assert [len(shard) - 1 for shard in shards] == [16, 16, 8, 0]


SLOW = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background starts programs that ignore it
from beitkit.inference.result import PartedOutput
write = PartedOutput.write
def slowly(self, number, part):
    write(self, number, part)
    time.sleep(0.3)
PartedOutput.write = slowly
from beitkit.cli import main
main(sys.argv[1:])
"""
"""The program, with time between two parts in which a signal can arrive."""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_a_stopped_command_goes_on_and_ends_the_same(
    world: Path, tmp_path: Path, number: int, code: int, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "many"
    images.mkdir()
    random = np.random.default_rng(1)
    for index in range(256):
        Image.fromarray(random.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(images / f"{index:03d}.bmp")
    arguments = ["predict", images, "--model", world / "cls", "--batch-size", 1, "--out"]
    assert command(*arguments, tmp_path / "unbroken.csv") == 0
    out = tmp_path / "p.csv"
    whole = [sys.executable, "-c", SLOW, *map(str, [*arguments, out])]
    whole += ["--threads", "1", "--device", "cpu", "--precision", "float32", "--workers", "0"]
    process = subprocess.Popen(whole, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    first = tmp_path / "p.csv.parts" / "part-00000.json"
    deadline = time.monotonic() + 120
    while not first.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    assert process.returncode == code, said
    assert "Traceback" not in said
    assert not out.exists()
    kept = first.stat().st_mtime_ns
    there = len(list(first.parent.glob("part-*.json")))
    assert 1 <= there < 16
    if number == signal.SIGINT:
        kept_in = f"they are kept in {first.parent}, the same command continues"
        stopped = f"beitkit: stopped after part {there} of 16; {kept_in}: beitkit predict "
        assert said.splitlines()[-1].startswith(stopped)

    capsys.readouterr()
    assert command(*arguments, out, "--top", 1) == 2  # another command's parts
    line = capsys.readouterr().err
    assert "holds the parts of another command (top was 3 and is now 1)" in line
    assert line.count("\n") == 1
    assert first.stat().st_mtime_ns == kept
    assert command(*arguments, out) == 0
    assert capsys.readouterr().err.splitlines()[0] == f"{there + 1} of 16 parts"
    assert out.read_bytes() == (tmp_path / "unbroken.csv").read_bytes()
    assert not first.parent.exists()


def test_the_same_command_again_does_nothing_and_another_is_refused(
    world: Path, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "p.csv"
    arguments = ["predict", world / "new" / "cat", "--model", world / "cls", "--out", out]
    assert command(*arguments) == 0
    before = out.stat().st_mtime_ns
    capsys.readouterr()
    assert command(*arguments) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "14 images" in printed.out
    for other in (["--model", world / "several"], ["--batch-size", 3]):
        assert command(*arguments, *other) == 2
        assert "holds the result of another command" in capsys.readouterr().err
    assert out.stat().st_mtime_ns == before
    (tmp_path / "p.csv.command.json").unlink()
    assert command(*arguments) == 2
    assert f"{out} is already there" in capsys.readouterr().err
    assert out.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["{world}/nowhere"], "nowhere does not exist"),
        (["{world}/new/x*.png"], "nothing matches"),
        (["{world}/new", "--out", "{here}/p.txt"], "--out must end in .csv, .jsonl or .parquet, got"),
        (["{world}/new", "--model", "{world}/pre"], "holds a MaskedImageModel, which names nothing in images"),
        (["{world}/new", "--model", "{world}/gone"], "gone"),
        (["{world}/new", "--shard", "0/3"], "--shard must be one of 1/n to n/n, such as 3/8, got '0/3'"),
        (["{world}/new", "--shard", "3"], "--shard must be one of"),
        (["{world}/new", "--top", "0"], "--top must be at least 1"),
        (["{world}/new", "--batch-size", "0"], "--batch-size must be at least 1"),
        (["{world}/new", "--engine", "spark"], "ray"),
        ([], "INPUTS must name at least 1, got none"),
        (["{here}/text.jpg"], "none of the 1 images can be read"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(
    world: Path, tmp_path: Path, arguments: list[str], expected: str, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.jpg").write_text("no image")
    given = [argument.format(world=world, here=tmp_path) for argument in arguments]
    defaults = [] if "--model" in given else ["--model", world / "cls"]
    defaults += [] if "--out" in given else ["--out", tmp_path / "p.csv"]
    assert command("predict", *given, *defaults) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("beitkit: ")
    assert expected in line
    assert [path.name for path in tmp_path.iterdir()] == ["text.jpg"]


def test_it_is_a_function_too(world: Path, tmp_path: Path) -> None:
    image = str(next((world / "new").rglob("*.png")))
    one = beitkit.predict(image, model=world / "cls", out=str(tmp_path / "one.csv"), workers=0)
    two = beitkit.predict([image, world / "new"], model=str(world / "cls"), out=tmp_path / "two.csv", workers=0)
    assert (one.images, one.unreadable, one.out) == (1, 0, tmp_path / "one.csv")
    assert two.images == 40  # an image that is named twice is there once
