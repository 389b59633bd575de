"""`make gpu` runs to its end on a CPU, with tiny sizes."""

import json
from pathlib import Path

import pytest

from benchmarks import gpu


@pytest.mark.parametrize("stage", ["waiting", "parity", "steps", "copies"])
def test_a_stage_writes_what_it_found(stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "STEPS", 1)
    assert gpu.main(["--stage", stage, "--out", str(tmp_path), "--tiny"]) == 0
    found = json.loads((tmp_path / f"{stage}.json").read_text())
    assert "cpu" in found["device"]
    result = found["result"]
    if stage == "parity":
        for places in result.values():
            assert places["float32"] == places["CPU, float32"], "here the device is the CPU"
            assert places["bfloat16"]["loss"] == pytest.approx(places["float32"]["loss"], rel=0.02)
    if stage == "steps":
        assert [row["form"] for row in result if row.get("images_per_second", 0) > 0] == ["as it is"] * 2
        assert len(result) == 8
    if stage == "copies":
        assert result["images_per_second"] > 0


def test_a_run_is_stopped_and_continued(tmp_path: Path) -> None:
    assert gpu.main(["--stage", "run", "--out", str(tmp_path), "--tiny"]) == 0
    result = json.loads((tmp_path / "run.json").read_text())["result"]
    assert result["stopped_with"] in (0, 143), "143: by the signal; 0: it was too fast for it"
    assert result["last"]["step"] == 6


def test_a_stage_that_fails_says_why_and_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(runtime: object, options: object) -> None:
        raise RuntimeError("no such kernel")

    monkeypatch.setitem(gpu.STAGES, "copies", broken)
    assert gpu.main(["--stage", "copies", "--out", str(tmp_path), "--tiny"]) == 1
    assert json.loads((tmp_path / "copies.json").read_text())["error"] == "RuntimeError: no such kernel"
    assert "no such kernel" in capsys.readouterr().out
