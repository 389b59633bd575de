"""`beitkit run` on a few drawn images: all stages, cut in each of them and continued, and its rules as arithmetic."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import beitkit
from beitkit.configs.train import MachineConfig
from beitkit.data.sources.find import find_labeled
from beitkit.errors import UserError
from beitkit.runs.audit import run as audit
from beitkit.runs.checkpoints import programs
from beitkit.runs.finetune import run as finetune
from beitkit.runs.pipeline import choose, rehearse
from beitkit.runs.pipeline import run as pipeline
from beitkit.runs.pipeline.choose import Pace, PipelineFacts
from beitkit.runs.pipeline.config import PipelineRun
from beitkit.runs.pipeline.ledger import Ledger
from beitkit.runs.probe import run as probe
from beitkit.runs.tokenizer import kmeans
from beitkit.runs.verdict.classifiers import LabeledImages
from beitkit.runs.verdict.measured import Kept
from beitkit.train import loop
from beitkit.verbs import VERBS
from tests.command.test_answers import KEYS, check_command, next_commands
from tests.runs.finetune.test_finetune import draw_red_and_blue
from tests.runs.segment.test_segment import draw_scene

MACHINE = MachineConfig(device="cpu", threads=1, workers=0, precision="float32")


@pytest.fixture(scope="module")
def labeled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Red and blue noise of 8 pixels."""
    return draw_red_and_blue(tmp_path_factory.mktemp("images"), 90, 70, 8)


@pytest.fixture(scope="module")
def whole(labeled: Path, tmp_path_factory: pytest.TempPathFactory) -> PipelineRun:
    """A run that was not cut, of a budget that is far too small, so that every stage is as short as there is."""
    config = PipelineRun(
        labeled / "train", labels=labeled, out=tmp_path_factory.mktemp("runs") / "whole", budget="1s", machine=MACHINE
    )
    pipeline.run(config)
    return config


def results(out: Path) -> list[bytes]:
    """What must be the same however often a run was cut."""
    names = ("tokenizer/model.safetensors", "pretrain/model.safetensors", "finetune/model.safetensors", "probe/probe.json")
    scores = json.loads((out / "verdict" / "verdict.json").read_text())
    for contest in scores["contests"]:
        for entry in contest["starts"] + contest["floors"]:
            entry.pop("seconds")
    return [*((out / name).read_bytes() for name in names), json.dumps(scores).encode()]


def test_it_leaves_ordinary_runs_a_page_and_a_program(whole: PipelineRun) -> None:
    out = whole.out
    for name in ("audit", "tokenizer", "pretrain", "probe", "verdict", "finetune"):
        assert (out / name / "config.json").exists(), name
        assert (out / name / "report.html").exists(), name
    assert isinstance(beitkit.load(out / "pretrain"), beitkit.MaskedImageModel)
    assert isinstance(beitkit.load(out / "finetune"), beitkit.Classifier)
    assert (out / "model.onnx").exists() or (out / "model.pt2").exists()
    assert not (out / "rehearsal").exists()
    page = (out / "report.html").read_text()
    verdict = json.loads((out / "verdict" / "verdict.json").read_text())["verdict"]
    assert page.index(verdict) < page.index('<section id="stages">')
    assert 'href="pretrain/report.html"' in page
    kept = json.loads((out / "progress.json").read_text())
    assert kept["began"] is None
    assert all(kept["stages"][stage]["done"] for stage in choose.SHARES)
    assert sum(found.get("seconds", 0) for found in kept["stages"].values()) <= kept["spent"]


CUTS: list[tuple[object, str, int]] = [
    (audit, "write_report", 1),
    (kmeans, "learn", 1),
    (rehearse, "_timed", 1),
    (loop, "_evaluate", 1),
    (probe, "write_report", 1),
    (Kept, "get", 4),
    (finetune, "write_report", 1),
    (programs, "export", 1),
]
"""In each stage: the function at whose so-manieth call the run is cut."""


def test_a_run_cut_in_every_stage_ends_the_same(whole: PipelineRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the first run decided by its clock is given to this one."""
    config = replace(whole, out=tmp_path / "cut")
    decided = json.loads((whole.out / "progress.json").read_text())["stages"]
    settings = {stage: {"settings": found["settings"]} for stage, found in decided.items() if "settings" in found}
    last = settings.pop("pretrain")
    config.out.mkdir()
    shutil.copy(whole.out / "config.json", config.out)
    progress = config.out / "progress.json"
    progress.write_text(json.dumps({"stages": settings, "spent": 0.0, "began": None}))
    for owner, name, number in CUTS:
        with monkeypatch.context() as patched:
            function, calls = getattr(owner, name), []

            def cut(*arguments: object, function=function, calls=calls, number=number, **named: object) -> object:
                calls.append(None)
                if len(calls) == number:
                    raise KeyboardInterrupt
                return function(*arguments, **named)

            patched.setattr(owner, name, cut)
            with pytest.raises(KeyboardInterrupt):
                pipeline.run(config)
        kept = json.loads(progress.read_text())
        if name == "_timed":
            kept["stages"]["pretrain"] |= last
            progress.write_text(json.dumps(kept))
    assert {stage for stage, found in kept["stages"].items() if found.get("done")} == {*choose.SHARES} - {"export"}
    pipeline.run(config)
    assert results(config.out) == results(whole.out)


def test_a_finished_run_does_nothing_again(whole: PipelineRun, capfd: pytest.CaptureFixture[str]) -> None:
    def times() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in whole.out.rglob("*.safetensors")}

    before = times()
    verdict = VERBS["run"].function()(replace(whole, json=True))
    printed = capfd.readouterr()
    assert times() == before
    assert verdict is not None
    answer = json.loads(printed.out)
    assert {*KEYS["run"]} <= answer.keys()
    assert answer["stages"].keys() >= {*choose.SHARES} - {"labels"}
    assert answer["verdict"]["best"] == verdict.best
    (line,) = next_commands(printed.err)
    check_command(line, Path())


def test_without_labels_it_ends_after_pretraining(labeled: Path, tmp_path: Path) -> None:
    assert pipeline.run(PipelineRun(labeled / "train", out=tmp_path / "out", budget="1s", machine=MACHINE)) is None
    assert not (tmp_path / "out" / "verdict").exists()
    assert "pretrain/report.html" in (tmp_path / "out" / "report.html").read_text()


def test_scenes_are_segmented(tmp_path: Path) -> None:
    for number in range(12):
        draw_scene(tmp_path / "scenes", number)
    config = PipelineRun(
        tmp_path / "scenes" / "images", labels=tmp_path / "scenes", out=tmp_path / "out", budget="1s", machine=MACHINE
    )
    with pytest.raises(UserError, match="at least 4 blocks, and that of `size` has 3"):
        pipeline.run(replace(config, size="micro"))
    verdict = pipeline.run(config)
    assert verdict is not None
    assert verdict.measure == "mIoU"
    assert isinstance(beitkit.load(config.out / "segment"), beitkit.Segmenter)
    assert not (config.out / "probe").exists()
    assert 'href="segment/report.html"' in (config.out / "report.html").read_text()


def test_budgets_are_read(tmp_path: Path) -> None:
    for text, seconds in (("90s", 90), ("20m", 1200), ("1h30m", 5400), ("2h", 7200), ("1d", 86400), ("0.5h", 1800)):
        assert PipelineRun(tmp_path, out=tmp_path, budget=text).seconds == seconds
    for text in ("", "20", "m", "20m1h", "0s", "-1h", "two hours"):
        with pytest.raises(UserError, match="`budget` is a time such as"):
            PipelineRun(tmp_path, out=tmp_path, budget=text)


def test_labels_that_no_later_stage_would_take_are_refused_before_anything_is_trained(labeled: Path, tmp_path: Path) -> None:
    table = tmp_path / "several.csv"
    rows = [f"{path},red|blue" for path in sorted((labeled / "train" / "red").iterdir())]
    table.write_text("path,labels\n" + "\n".join(rows) + "\n")
    with pytest.raises(UserError, match="has several labels an image"):
        pipeline.run(PipelineRun(labeled / "train", labels=table, out=tmp_path / "out", machine=MACHINE))
    assert not (tmp_path / "out" / "tokenizer").exists()


def test_shares_follow_what_is_left() -> None:
    stages = tuple(choose.SHARES)
    assert sum(choose.SHARES.values()) == pytest.approx(1)
    assert choose.share_of("audit", stages, 1000.0) == pytest.approx(40)
    assert choose.share_of("pretrain", stages, 910.0) == pytest.approx(
        480
    )  # as planned where the stages before took their shares
    assert choose.share_of("export", stages, 12.0) == pytest.approx(12)  # the last stage has all that is left
    assert choose.share_of("verdict", stages, -5.0) == 0


def test_steps_fill_the_time() -> None:
    """By brute force: one step after another until the time is over."""
    pace = Pace(first=0.3, later=0.1, overhead=5.0, batch=64)
    for seconds in (6.0, 20.0, 35.0, 100.0):
        spent, steps = pace.overhead, 0
        while spent + (cost := pace.first if steps < 50 else pace.later) <= seconds + 1e-9:
            spent, steps = spent + cost, steps + 1
        assert pace.steps(seconds, 50.0) == pytest.approx(max(choose.LEAST_STEPS, steps), abs=1)


def test_few_seconds_cost_seeds_before_steps() -> None:
    pace, floors = Pace(0.1, 0.1, 2.0, 32), (1.0, 2.0, 3.0)
    assert choose.rounds_of(1000.0, pace, 2, floors, 10.0).seeds == 3
    assert choose.rounds_of(51.0, pace, 2, floors, 10.0) == choose.Rounds(2, 102)  # 49 s for 4 trainings: 12.25 s each
    assert choose.rounds_of(3.0, pace, 2, floors, 10.0) == choose.Rounds(1, choose.LEAST_STEPS)
    assert choose.rounds_of(1e6, pace, 2, floors, 10.0).steps == choose.LONG_STEPS


def test_floors_are_timed_on_a_quarter_of_the_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for index in range(800):
        path = tmp_path / "images" / ("red", "blue")[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    files, now, asked = find_labeled(tmp_path / "images"), 0.0, []

    def measured(images: LabeledImages, labels: tuple[int, ...], seeds: tuple[int, ...], kept: Kept) -> dict[str, object]:
        nonlocal now
        now += (len(images.train) + len(images.val)) / 100
        asked.append((len(images.train), len(images.val), labels, seeds))
        return {}

    monkeypatch.setattr(rehearse, "measured_floors", measured)
    monkeypatch.setattr(rehearse.time, "monotonic", lambda: now)
    images = LabeledImages(files, files.evenly_spread(200))
    assert rehearse.floors_pace(images, 400, tmp_path) == pytest.approx(10)
    assert asked == [(200, 50, (100,), (0,))]
    assert rehearse.floors_pace(images, 399, tmp_path) is None
    assert choose.floor_seconds(400, 200, 3, 10.0, is_dense=False) == pytest.approx(22)


def test_shapes() -> None:
    def shape(side: int, **changed: object) -> tuple[object, int]:
        return choose.shape_of(replace(PipelineFacts(images=100, side=side, device="cpu"), **changed))[:2]

    assert [shape(side) for side in (16, 28, 32, 64, 100, 500)] == [(16, 2), (28, 4), (32, 4), (64, 8), (96, 16), (128, 16)]
    assert shape(500, device="cuda") == (224, 16)
    assert shape(360, is_dense=True) == (128, 8)


def test_a_start_that_was_killed_counts_until_it_last_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Ledger(tmp_path)
    first.decided("tokenizer", lambda: {"patches": 3})
    content = json.loads((tmp_path / "progress.json").read_text())
    (tmp_path / "progress.json").write_text(json.dumps(content | {"spent": 10.0, "began": 1e9}))
    journal = tmp_path / "pretrain" / "journal.jsonl"
    journal.parent.mkdir()
    journal.touch()
    for path in (journal, tmp_path / "progress.json"):
        os.utime(path, (1e9, 1e9 + 20))
    again = Ledger(tmp_path)
    assert 30 <= again.spent < 35
    assert again.decided("tokenizer", lambda: {"patches": 4}) == {"patches": 3}
    for damaged in ("[]", '{"stages": 5, "spent": 0, "began": null}', '{"stages": {"audit": 5}, "spent": 0, "began": null}'):
        (tmp_path / "progress.json").write_text(damaged)
        with pytest.raises(UserError, match="is damaged"):
            Ledger(tmp_path)
