"""The size of a list's images, from a sample of their headers."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from beitkit.data.sources.find import find_images
from beitkit.errors import UserError
from beitkit.runs.training.reader import SAMPLE, median_side


def test_the_median_of_the_shorter_sides_of_what_can_be_read(tmp_path: Path) -> None:
    for index, size in enumerate([(10, 99), (99, 20), (31, 30)]):
        Image.new("L", size).save(tmp_path / f"{index}.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    assert median_side(find_images(tmp_path), 0) == 20


def test_a_sample_is_enough_and_its_seed_fixes_it(tmp_path: Path) -> None:
    for index in range(SAMPLE + 40):
        Image.new("L", (index + 1, 200)).save(tmp_path / f"{index:03d}.png")
    files = find_images(tmp_path)
    sides = [median_side(files, seed) for seed in range(6)]
    assert sides == [median_side(files, seed) for seed in range(6)]
    assert len(set(sides)) > 1
    assert all(abs(side - 52) < 20 for side in sides)


def test_nothing_readable_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="none of the first images"):
        median_side(find_images(tmp_path), 0)
