"""A pass over scenes: in order, broken ones told and counted."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from beitkit.data.scenes.reading import readable_scenes
from beitkit.data.scenes.scenes import Scenes, find_scenes
from beitkit.errors import UserError


@pytest.fixture
def scenes(tmp_path: Path) -> Scenes:
    for index in range(5):
        for name, mode in (("images", "RGB"), ("masks", "L")):
            (tmp_path / name).mkdir(exist_ok=True)
            image = Image.fromarray(np.full((4 + index, 6), index % 2, dtype=np.uint8)).convert(mode)
            image.save(tmp_path / name / f"{index}.png")
    found = find_scenes(tmp_path)
    (tmp_path / "images" / "1.png").write_bytes(b"broken")
    Image.new("L", (9, 9)).save(tmp_path / "masks" / "3.png")
    return found


def test_broken_pairs_are_told_and_left_out(scenes: Scenes) -> None:
    told: list[tuple[str, str]] = []
    passed = list(readable_scenes(scenes, 3, 0.5, lambda path, reason: told.append((path.parent.name, reason))))
    assert [scene.place for scene in passed] == [0, 2, 4]
    assert [tuple(scene.image.shape) for scene in passed] == [(3, 4, 6), (3, 6, 6), (3, 8, 6)]
    assert [scene.label_map.unique().tolist() for scene in passed] == [[0], [0], [0]]
    assert [folder for folder, _ in told] == ["images", "masks"]


def test_too_many_end_it(scenes: Scenes) -> None:
    with pytest.raises(UserError, match=r"2 of the first 4 of 5 pairs cannot be read, more than the 20.00% of all"):
        list(readable_scenes(scenes, 3, 0.2, lambda path, reason: None))
