"""`beitkit verdict` end to end on tiny images: the table is what the runs say, it resumes, and mistakes are one line."""

import json
import random
import shlex
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

import beitkit
from beitkit.cli import main
from beitkit.configs.model import BackboneConfig, MaskedImageModelConfig
from beitkit.data.sources.find import find_labeled
from beitkit.data.sources.split import few_per_class
from beitkit.errors import UserError
from beitkit.evaluation import verdict as verdicts
from beitkit.evaluation.floors import neighbor_answers, pixels
from beitkit.evaluation.longer import Gain
from beitkit.runs.finetune import run as finetune
from beitkit.runs.verdict.config import VerdictRun
from beitkit.runs.verdict.measured import Kept, Outcome, entry, named_starts
from beitkit.runs.verdict.report import Verdict, as_json, table
from beitkit.runs.verdict.run import finetune_run, segment_run

MACHINE = ["--device", "cpu", "--precision", "float32", "--threads", "1", "--workers", "0"]
SHORT = ["--steps", "2", "--batch-size", "4", "--speed.compile", "off"]


def tiny(path: Path) -> None:
    """A pre-trained network of four narrow blocks."""
    torch.manual_seed(0)
    backbone = BackboneConfig(width=12, depth=4, heads=2, hidden=24, image_size=(16, 16), patch=(8, 8), mask_token=True)
    beitkit.save(beitkit.MaskedImageModel(MaskedImageModelConfig(backbone=backbone, vocabulary=8)), path)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of two classes that their brightness tells apart, 24 to train and 16 to compare on; scenes; a network."""
    folder = tmp_path_factory.mktemp("world")
    for index in range(40):
        chance = random.Random(index)
        image = Image.new("RGB", (16, 16), (90 + 60 * (index % 2) + chance.randrange(20), 100, 110))
        ImageDraw.Draw(image).rectangle((3, 2, 8 + index % 4, 9), fill=(200 - 100 * (index % 2), 40, 90))
        path = folder / "labeled" / ("train" if index < 24 else "val") / ("dark", "light")[index % 2] / f"{index:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    for index in range(8):
        image, mask = Image.new("RGB", (32, 32), (20, 30, 150)), Image.new("L", (32, 32), 0)
        for canvas, fill in ((image, (220, 40, 30)), (mask, 1)):
            ImageDraw.Draw(canvas).rectangle((4, 4 + index, 15, 15 + index), fill=fill)
        for part, canvas in (("images", image), ("masks", mask)):
            (folder / "scenes" / part).mkdir(parents=True, exist_ok=True)
            canvas.save(folder / "scenes" / part / f"{index}.png")
    tiny(folder / "pre")
    return folder


def run(*words: object, code: int = 0) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in words])
    assert stopped.value.code == code


def result(out: Path) -> dict[str, Any]:
    return json.loads((out / "verdict.json").read_text())


def test_classifiers_end_to_end_and_continued(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "verdict"
    command = ["verdict", world / "labeled", "--from", "scratch", world / "pre", "--labels", 8, 16]
    command += ["--seeds", 3, 5, "--out", out, *SHORT, *MACHINE]

    done = 0
    real = finetune.run

    def stopping(config: Any, said: set[str]) -> Any:
        nonlocal done
        done += 1
        if done == 4:
            raise KeyboardInterrupt
        return real(config, said=said)

    monkeypatch.setattr(finetune, "run", stopping)
    run(*command, code=130)
    assert not (out / "verdict.json").exists()
    capsys.readouterr()
    run(*command)
    assert done == 1 + 8  # the three that were finished are not asked for again

    printed, told = capsys.readouterr()
    lines = [line for line in told.splitlines() if line.startswith("--")]
    assert len(lines) == len(set(lines)) > 5, "a choice is printed once, however many trainings it is for"
    found = result(out)
    assert found["seeds"] == [3, 5]
    assert [contest["labels"] for contest in found["contests"]] == [8, 16]
    for contest in found["contests"]:
        assert {row["name"] for row in contest["starts"]} == {"scratch", "pre"}
        assert len(contest["floors"]) == 3
        assert contest["starts"] == sorted(contest["starts"], key=lambda row: -row["mean"])
        for row in contest["starts"]:
            folders = [out / "finetune" / f"{row['name']}-{contest['labels']}-{seed}" for seed in (3, 5)]
            runs = [json.loads((folder / "result.json").read_text()) for folder in folders]
            assert row["scores"] == pytest.approx([run["top1"] for run in runs], abs=1e-6)
            assert all(run["labels"] == contest["labels"] and run["scratch"] == (row["name"] == "scratch") for run in runs)
            assert row["mean"] == pytest.approx(mean(row["scores"]))
            assert row["deviation"] == pytest.approx(stdev(row["scores"]))
            assert (row["probe"] is None) == (row["name"] == "scratch")
            assert row["seconds"] > 0
            assert f"{100 * row['mean']:.1f}%" in printed
        pixels = next(row for row in contest["floors"] if "pixels" in row["name"])
        assert pixels["mean"] == 1.0  # brightness tells them apart
        assert contest["sentence"] in printed
        assert contest["floor_sentence"] in printed
    assert printed.splitlines()[-1].startswith(f"done: {out}")
    page = (out / "report.html").read_text()
    assert "Which start is best?" in page
    assert "Luck or not?" in page

    before = {path: path.stat().st_mtime_ns for path in out.glob("*/*/model.safetensors")}
    assert len(before) == 8
    capsys.readouterr()
    run(*command, "--json")
    assert json.loads(capsys.readouterr().out) == found
    assert {path: path.stat().st_mtime_ns for path in out.glob("*/*/model.safetensors")} == before
    run("verdict", world / "labeled", "--from", "scratch", world / "pre", "--out", out, *SHORT, *MACHINE, code=2)
    assert "holds the run of another command" in capsys.readouterr().err


def test_floors_and_probe_see_the_labels_of_the_fine_tuning(world: Path, tmp_path: Path) -> None:
    """The same answers as the floors and the probe verb give on the subset that fine-tuning draws."""
    verdict = beitkit.verdict(
        world / "labeled", starts=world / "pre", labels=(6,), seeds=(4,), out=tmp_path / "out", steps=1, batch_size=4,
        device="cpu", threads=1, workers=0, precision="float32",
    )  # fmt: skip
    (contest,) = verdict.contests
    train, val = (find_labeled(world / "labeled", split) for split in ("train", "val"))
    few = few_per_class(train, 6, 4)

    def shown(files: Any) -> torch.Tensor:
        images = [torch.from_numpy(np.array(Image.open(files.path(i)))) for i in range(len(files))]
        return pixels(torch.stack(images).permute(0, 3, 1, 2))

    answers = neighbor_answers(shown(few), torch.from_numpy(few.labels), shown(val), 2)
    row = next(entry for entry in contest.floors if "k-NN" in entry.name)
    assert row.images[0].tolist() == (answers == torch.from_numpy(val.labels)).double().tolist()
    probed = beitkit.probe(world / "labeled", model=world / "pre", limit=6, seed=4, threads=1, workers=0, device="cpu")
    assert contest.best.probe == (probed.linear.test[probed.linear.chosen],)
    assert verdict.best is None
    assert "there is no other start" in contest.sentence


def follow(printed: str) -> None:
    """Run the command after the last `Next:`."""
    run(*shlex.split(printed.rpartition("Next: beitkit ")[2]), *MACHINE)


def test_images_that_are_not_divided_are_divided_once(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All seeds are compared on the images that the first one set aside."""
    out = tmp_path / "out"
    run("verdict", world / "labeled" / "train", "--from", world / "pre", "--seeds", 1, 2, "--out", out, *SHORT, *MACHINE,
        "--no-floors", "--no-probe")  # fmt: skip
    splits = [(out / "finetune" / f"pre-20-{seed}" / "split.csv").read_bytes() for seed in (1, 2)]
    assert splits[0] == splits[1]
    assert result(out)["images"] == 4
    assert result(out)["contests"][0]["floors"] == []
    follow(capsys.readouterr().out)  # of the images that were set aside, not of those that were trained on
    assert f"the val part of {out / 'split.csv'}: top-1" in capsys.readouterr().out


def test_segmentation_end_to_end(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    command = ["verdict", world / "scenes", "--from", "scratch", world / "pre", "--seeds", 0, 1, "--image-size", 32]
    command += ["--head", "linear", "--out", out, *SHORT, *MACHINE]
    run(*command)
    found = result(out)
    assert found["measure"] == "mIoU"
    (contest,) = found["contests"]
    for row in contest["starts"]:
        runs = [json.loads((out / "finetune" / f"{row['name']}-6-{seed}" / "result.json").read_text()) for seed in (0, 1)]
        assert row["scores"] == pytest.approx([run["miou"] for run in runs])
        assert row["pixel_accuracy"] == pytest.approx([run["aacc"] for run in runs])
        assert row["class_iou"] == {
            name: pytest.approx([run["class_iou"][name] for run in runs]) for name in runs[0]["class_iou"]
        }
    floors = {row["name"]: row for row in contest["floors"]}
    share = 1 - 12 * 12 / 32 / 32
    assert floors["commonest class"]["pixel_accuracy"] == pytest.approx([share, share])
    assert floors["commonest class"]["mean"] == pytest.approx(share / 2)
    assert list(floors["commonest class"]["class_iou"].values()) == [pytest.approx([share, share]), [0.0, 0.0]]
    assert floors["linear head on color and position"]["mean"] > 0.99
    printed = capsys.readouterr().out
    first, second = next(iter(contest["starts"][0]["class_iou"].values()))
    assert f"{100 * (first + second) / 2:.1f}% ({100 * abs(first - second) / 2**0.5:.1f})" in printed
    assert "A floor is ahead, though not clearly: linear head on color and position" in printed
    follow(printed)
    assert f"the val part of {out / 'scenes.csv'}" in capsys.readouterr().out
    before = (out / "measured" / "pre-6-0.json").stat().st_mtime_ns
    run(*command)
    assert (out / "measured" / "pre-6-0.json").stat().st_mtime_ns == before


def test_test_time_views_are_those_of_evaluate(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    noise = np.random.default_rng(0).integers(0, 256, (120, 16, 16, 3), dtype=np.uint8)
    for index, values in enumerate(noise):  # nothing to be learned, so that answers turn with the view
        path = tmp_path / "noise" / ("train" if index < 20 else "val") / "ab"[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(path)
    views = ["--inference.flip", "--inference.shift", 2, "--inference.scales", 1, 1.5]
    command = ["verdict", tmp_path / "noise", "--from", world / "pre", "--labels", 8, "--seeds", 0, "--out", out, *views]
    run(*command, "--no-floors", "--no-probe", *SHORT, *MACHINE)
    printed = capsys.readouterr().out
    assert "--inference.scales 1 1.5 --inference.flip --inference.shift 2" in printed
    follow(printed)
    (row,) = result(out)["contests"][0]["starts"]
    model = out / "finetune" / "pre-8-0"
    measured = [
        beitkit.evaluate(tmp_path / "noise", model=model, out=tmp_path / name, device="cpu", **options).top1
        for name, options in (("views", {"inference": {"flip": True, "shift": 2, "scales": (1, 1.5)}}), ("one", {}))
    ]
    assert measured[0] != measured[1]
    assert row["scores"] == [pytest.approx(measured[0])]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere", "--from", "pre"], "nowhere does not exist"),
        (["labeled", "--from", "pre", "nothing"], "nothing does not exist"),
        (["labeled", "--from", "pre", "labeled/val/dark/24.png"], "24.png"),
        (
            ["labeled", "--from", "pre", "--labels", "100"],
            "--labels 100 must lie between 4 (two images of each of 2 classes) and",
        ),
        (["labeled", "--from", "pre", "--labels", "2"], "--labels 2 must lie between 4"),
        (["labeled", "--from", "pre", "pre"], "--from must name each at most once"),
        (["labeled", "--from", "pre", "labeled/../pre"], "--from names labeled/../pre and pre, which are the same"),
        (["labeled", "--from", "pre", "--seeds", "1", "1"], "--seeds must name each at most once"),
        (["labeled", "--from", "scratch"], "--from names scratch alone; give --size"),
        (["labeled", "--from", "pre", "--size", "nano"], "--size describes the network of scratch, which --from does not name"),
        (["labeled", "--from", "pre", "--head", "linear"], "--head has no meaning for class folders"),
        (["scenes", "--from", "pre", "--labels", "3"], "--labels has no meaning for images with masks"),
        (["labeled", "--from", "pre", "--steps", "2", "--epochs", "2"], "give --epochs or --steps, not both"),
        (["labeled", "--from", "pre", "--inference.stride", "8"], "--inference.stride is for segmentation"),
        (["scenes", "--from", "pre", "--inference.shift", "1"], "--inference.shift is for classifiers"),
        (["labeled", "--from", "pre", "--inference.shift", "99"], "--inference.shift must be less than the"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(
    words: list[str],
    message: str,
    world: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(world)
    run("verdict", *words, "--out", tmp_path / "out", *MACHINE, code=2)
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_starts_are_named_by_what_tells_them_apart() -> None:
    starts = named_starts([Path("scratch"), Path("a/run"), Path("b/run"), Path("beit.pth"), Path("runs/scratch")])
    assert [start.name for start in starts] == ["scratch", "a/run", "b/run", "beit.pth", "runs/scratch"]
    assert [start.slug for start in starts] == ["scratch", "a_run", "b_run", "beit.pth", "runs_scratch"]
    assert [start.path is None for start in starts] == [True, False, False, False, False]
    assert len({start.slug for start in named_starts([Path("a b/x"), Path("a_b/x")])}) == 2


def test_each_start_gets_its_settings() -> None:
    """Rates and layer decay are chosen for the start; from scratch there is no layer decay, in the network of the first other."""
    config = VerdictRun(
        Path("labeled"), starts=(Path("pre"), Path("scratch")), lr=1e-3, scratch_lr=2e-3, layer_decay=0.7, steps=5, head="uper"
    )
    pre, scratch = named_starts(config.starts)
    runs = [finetune_run(config, start, 10, 2) for start in (pre, scratch)]
    assert [(run.model, run.scratch, run.train.lr, run.optim.layer_decay) for run in runs] == [
        (Path("pre"), False, 1e-3, 0.7),
        (Path("pre"), True, 2e-3, 1.0),
    ]
    assert {(run.labels, run.train.seed, run.train.steps) for run in runs} == {(10, 2, 5)}
    described = VerdictRun(Path("labeled"), starts=(Path("scratch"),), size="tiny", patch=8, image_size=32)
    run = finetune_run(described, named_starts(described.starts)[0], 10, 2)
    assert (run.model, run.size, run.patch, run.image_size) == (None, "tiny", 8, 32)
    assert segment_run(config, scratch, 10, 2).optim.schedule == "linear"


def test_several_labels_an_image_are_refused(world: Path, tmp_path: Path) -> None:
    rows = [f"labeled/val/{name}/{index}.png,{label}" for name, index, label in (("dark", 24, "a|b"), ("light", 25, "b"))]
    table = world / "several.csv"
    rows += [f"labeled/val/{name}/{index}.png,{label}" for name, index, label in (("dark", 26, "a"), ("light", 27, "b"))]
    table.write_text("\n".join(["path,labels", *rows]))
    with pytest.raises(UserError, match="takes one"):
        beitkit.verdict(table, starts=world / "pre", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_twice_the_steps_would_bring_is_kept_and_shown(tmp_path: Path) -> None:
    kept = Kept(tmp_path, images=2)
    outcomes = [Outcome(0.5 + shift, [1.0, 0.0], 1.0, twice=Gain(0.01 + shift, 0.0, 0.02 + shift)) for shift in (0.0, 0.02)]
    for seed, outcome in enumerate(outcomes):
        kept.get("pre", 10, seed, lambda found=outcome: found)
    again = [kept.get("pre", 10, seed, lambda: pytest.fail("measured again")) for seed in (0, 1)]
    assert again == outcomes
    floor = Outcome(0.4, [1.0, 0.0], 1.0)

    def found(*outcomes: Outcome) -> Verdict:
        entries = [entry("pre", outcomes, is_floor=False), entry("pixels", [floor, floor], is_floor=True)]
        return Verdict("top-1", "labels", (0, 1), 2, (verdicts.contest(10, entries),))

    shown = table(found(*again))
    assert shown.header[-1] == "twice the steps"
    assert [row[-1] for row in shown.cells] == ["+2.0 points (0.0 to 3.0)", ""]
    (pre,), (pixel_floor,) = (as_json(found(*again))["contests"][0][kind] for kind in ("starts", "floors"))
    assert pre["twice_the_steps"] == pytest.approx({"expected": 0.02, "low": 0.0, "high": 0.03})
    assert "twice_the_steps" not in pixel_floor
    assert "twice the steps" not in table(found(again[0], floor)).header  # one seed without an answer: none for their mean
    path = tmp_path / "measured" / "pre-10-0.json"
    path.write_text(json.dumps({name: value for name, value in json.loads(path.read_text()).items() if name != "twice"}))
    assert kept.get("pre", 10, 0, lambda: pytest.fail("measured again")).twice is None  # as earlier versions wrote it


@pytest.mark.parametrize(
    "damage",
    [
        {"score": [1]},
        {"images": "ab"},
        {"images": [[]]},
        {"seconds": None},
        {"twice": [1]},
        {"twice": {"low": "x"}},
        {"pixel_accuracy": {}},
        {"images": [1.0]},
        {"class_iou": [0.5]},
    ],
)
def test_a_measured_file_with_something_else_in_it_is_named(damage: dict[str, Any], tmp_path: Path) -> None:
    kept = Kept(tmp_path, images=2)
    kept.get("pre", 10, 0, lambda: Outcome(0.5, [1.0, 0.0], 1.0))
    path = tmp_path / "measured" / "pre-10-0.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | damage))
    with pytest.raises(UserError, match=r"pre-10-0\.json is damaged; remove it"):
        kept.get("pre", 10, 0, lambda: pytest.fail("measured again"))
    path.write_text("[]")
    with pytest.raises(UserError, match="damaged"):
        kept.get("pre", 10, 0, lambda: pytest.fail("measured again"))
