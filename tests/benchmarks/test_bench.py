"""`python -m benchmarks.bench`: tiny races from the command line, what they write, and what a mistake or Ctrl-C leaves."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from beitkit.errors import UserError
from benchmarks import bench as command
from benchmarks.compare.ours import CACHED, OURS, UNCACHED
from benchmarks.compare.races import TOLERANCE
from benchmarks.compare.rivals import present_rivals
from benchmarks.compare.with_transformers import OFFICIAL, REDUCED, TRANSFORMERS

TINY = ["--size", "tiny", "--image-size", "32", "--batch-size", "2", "--rounds", "2", "--turn", "0", "--threads", "1"]


def bench(*arguments: str) -> int | str | None:
    with pytest.raises(SystemExit) as stopped:
        command.main([*TINY, "--device", "cpu", *arguments])
    return stopped.value.code


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bench") / "out"
    what = ("--what", "pretraining", "inference", "--precision", "bfloat16", "--against", "transformers")
    assert bench(*what, "--no-memory", "--out", str(out)) == 0
    return out


def test_the_result_has_what_readers_rely_on(written: Path) -> None:
    result = json.loads((written / "bench.json").read_text())
    assert list(result) == ["version", "device", "software", "settings", "matrix_rate", "share", "jobs"]
    assert result["version"] == 1
    assert result["device"] == "cpu, bfloat16, 1 thread"
    assert result["matrix_rate"].keys() == {"bfloat16", "float32"}
    assert result["share"].keys() == {"pretraining", "tokenizer", "inference"}
    assert all(0 < share < 2 for share in result["share"].values())
    assert {"python", "beitkit", "torch", "transformers"} == result["software"].keys()
    pretraining, inference = result["jobs"]
    assert (pretraining["job"], inference["job"]) == ("pretraining", "inference")
    assert [one["name"] for one in pretraining["contestants"]] == [CACHED, UNCACHED, "tokenizer", TRANSFORMERS, OFFICIAL]
    assert [one["name"] for one in inference["contestants"]] == [OURS, TRANSFORMERS, REDUCED]
    for job in result["jobs"]:
        assert 0 <= job["parity"][TRANSFORMERS] <= TOLERANCE
        assert len(job["products"]) == 6
        best = {name: max(rate for key, rate in job["products"].items() if name in key) for name in ("float32", "bfloat16")}
        assert all(best[name] <= result["matrix_rate"][name] for name in best)
        for one in job["contestants"]:
            assert len(one["seconds"]) == 2
            assert one["images_per_second"] == pytest.approx(2 / median(one["seconds"]))
            alone = sum(2 * count / best[precision] for precision, count in one["flops_per_image"].items())
            assert one["share"] == pytest.approx(alone / median(one["seconds"]))


def test_ratios_are_of_the_seconds_beside_them(written: Path) -> None:
    for job in json.loads((written / "bench.json").read_text())["jobs"]:
        seconds = {one["name"]: one["seconds"] for one in job["contestants"]}
        assert job["comparisons"]
        for one in job["comparisons"]:
            first, second = seconds[one["first"]], seconds[one["second"]]
            assert one["ratio"]["of_medians"] == pytest.approx(median(second) / median(first))
            assert one["ratio"]["median_by_round"] == pytest.approx(median(b / a for a, b in zip(first, second, strict=True)))


def test_the_page_shows_every_candidate(written: Path) -> None:
    page = (written / "bench.html").read_text()
    assert page.count('<svg class="chart"') == 2
    assert all(name in page for name in (CACHED, UNCACHED, OFFICIAL, REDUCED, "10x192 @ 192x768"))


def test_memory_is_measured_in_a_process_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = ("--what", "finetuning", "--precision", "float32", "--against", "--out", str(tmp_path))
    assert bench(*chosen, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result == json.loads((tmp_path / "bench.json").read_text())
    (ours,) = result["jobs"][0]["contestants"]
    parameters = 5.5e6  # of the tiny size: weights, gradients and two moments, 4 bytes each
    assert 0.8 * 16 * parameters < ours["peak_bytes"] < 4 * 16 * parameters
    assert result["share"].keys() == {"finetuning"}


def test_the_data_path_is_raced_on_one_core(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench("--what", "data", "--rounds", "1", "--against", "--out", str(tmp_path)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"written: {tmp_path / 'bench.json'}, and bench.html beside it shows it"
    jobs = json.loads((tmp_path / "bench.json").read_text())["jobs"]
    assert [job["job"] for job in jobs] == ["data, JPEG of 500x375", "data, JPEG of 4000x3000"]
    assert all([one["share"] for one in job["contestants"]] == [None, None] for job in jobs)


def test_a_profile_names_the_operators(tmp_path: Path) -> None:
    chosen = ("--what", "finetuning", "--precision", "float32", "--against", "--out", str(tmp_path))
    assert bench(*chosen, "--profile") == 0
    text = (tmp_path / "profile.txt").read_text()
    assert "finetuning, tiny/16 at 32, batch 2: ours" in text
    assert "matrix products" in text
    assert "aten::addmm" in text
    assert not (tmp_path / "bench.json").exists()


def test_a_rival_that_is_missing_is_an_error_only_where_it_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name.split('.')[0]!r}")

    with monkeypatch.context() as patch:
        patch.setattr(importlib, "import_module", missing)
        with pytest.raises(UserError, match=r"--against timm: it cannot be imported .*; pip install timm"):
            present_rivals(("timm",))
        assert present_rivals(None, command.say) == []
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert said[0].startswith("transformers is left out, it cannot be imported (No module named 'transformers')")


def test_ctrl_c_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    (tmp_path / "bench.json").write_text("an older one")
    monkeypatch.setattr(command, "interleaved", stopped)
    assert bench("--what", "inference", "--against", "--no-memory", "--out", str(tmp_path)) == 130
    assert "stopped at once; nothing more was written" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["bench.json"]
    assert (tmp_path / "bench.json").read_text() == "an older one"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--rounds", "0"], "--rounds must be at least 1, got 0"),
        (["--size", "tiny", "tiny"], "--size must name each at most once, and at least one, got tiny tiny"),
        (["--turn", "-1"], "--turn must not be negative, got -1"),
        (["--image-size", "30", "--what", "inference"], "image size 30x30 is not a whole number of 16x16 patches"),
        (["--image-size", "16", "--what", "pretraining"], "a grid of 1x1 patches cannot be masked in part"),
        (["--what", "data", "--profile"], "--profile shows the operators of networks"),
        (["--profile", "--json"], "leave one of them out"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench("--against", "--out", str(tmp_path / "out"), *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("bench: ")
    assert expected in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
