"""Images of another task are refused with the verb that takes them."""

from pathlib import Path

import pytest
from PIL import Image

import beitkit
from beitkit.errors import UserError


def image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), 1).save(path)


@pytest.mark.parametrize("masks", ["labels", "masks"])
@pytest.mark.parametrize("part", ["", "train"])
def test_masks_are_not_classes(masks: str, part: str, tmp_path: Path) -> None:
    for index in range(3):
        image(tmp_path / part / "images" / f"{index}.png")
        image(tmp_path / part / masks / f"{index}.png")
    for verb, options in (("finetune", {"scratch": True, "size": "nano", "out": tmp_path / "out"}), ("probe", {"model": "m"})):
        with pytest.raises(UserError, match=r"holds images and masks, .* use beitkit segment$"):
            getattr(beitkit, verb)(tmp_path, **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("parts", [("",), ("train", "val")])
def test_classes_are_not_masks(parts: tuple[str, ...], tmp_path: Path) -> None:
    for part in parts:
        for name in ("cat", "dog"):
            image(tmp_path / "photos" / part / name / "0.png")
    with pytest.raises(UserError, match=r"holds class folders, .* use beitkit finetune$"):
        beitkit.segment(tmp_path / "photos", scratch=True, size="tiny", out=tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no images with masks"):
        beitkit.segment(tmp_path / "empty", scratch=True, size="tiny", out=tmp_path / "out")
