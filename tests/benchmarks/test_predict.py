"""`python -m benchmarks.predict`: a tiny race and a tiny first prediction, to their tables."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import predict


@pytest.mark.parametrize("is_first", [False, True])
def test_everybody_has_a_row(
    is_first: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(tmp_path / "a.jpg")
    monkeypatch.setattr(predict, "SIZES", {"60x45": (60, 45)})
    small = ["--size", "nano", "--image-size", "32", "--images", "2", "--rounds", "1"]
    monkeypatch.setattr(sys, "argv", ["predict", str(tmp_path), *small, *(["--first"] if is_first else [])])
    predict.main()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in capsys.readouterr().out.splitlines() if "|" in line]
    assert [row[1] for row in rows[2:]] == ["ours"] + ([] if is_first else ["transformers"])
    assert all(float(row[2].split(",")[0]) > 0 and row[0] == "60x45" for row in rows[2:])
    assert rows[2][2].endswith(", 1.00")
