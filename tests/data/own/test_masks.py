"""Label maps in memory as mask files: what is read of them is what was given, and what files of the same pixels give."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from beitkit.data.decoding.decode import Encoded
from beitkit.data.own.images import LastItem, OwnImages
from beitkit.data.own.masks import OwnMasks, encoded_label_map
from beitkit.data.scenes.audit import audit
from beitkit.data.scenes.masks import Mask, read_mask
from beitkit.data.scenes.scenes import Scenes, find_scenes
from beitkit.errors import UserError

VALUES = np.random.default_rng(0).integers(0, 21, (7, 9), dtype=np.uint8)
VALUES[0] = 255
WIDE = VALUES.astype(np.int64) * 257  # up to 65535


def read(label_map: object) -> Mask:
    return read_mask(Encoded(Path("x"), encoded_label_map(label_map)))


def with_palette(values: np.ndarray, colors: int) -> Image.Image:
    image = Image.fromarray(values)
    image.putpalette([value for color in range(colors) for value in (color, 2 * color, 3 * color)])
    return image


@pytest.mark.parametrize(
    ("label_map", "expected"),
    [
        (VALUES, VALUES),
        (torch.from_numpy(VALUES), VALUES),
        (VALUES.astype(np.int64), VALUES),
        (VALUES[:, ::-1].copy()[:, ::-1], VALUES),
        (Image.fromarray(VALUES), VALUES),
        (with_palette(VALUES, 21), VALUES),
        (with_palette(VALUES, 3), VALUES),  # a file would have 2 bits, and cut 255 off
        (Image.fromarray(VALUES).convert("I"), VALUES),
        (WIDE, WIDE),
        (torch.from_numpy(WIDE), WIDE),
        (Image.fromarray(WIDE.astype(np.int32)), WIDE),
        (Image.fromarray(WIDE.astype(np.uint16)), WIDE),
        (VALUES > 9, VALUES > 9),
        (Image.fromarray(VALUES > 9), VALUES > 9),
        (Image.fromarray(np.dstack([VALUES] * 3)), np.dstack([VALUES] * 3)),
    ],
)
def test_values_come_back(label_map: object, expected: np.ndarray) -> None:
    assert np.array_equal(read(label_map).pixels, expected)


def test_a_palette_comes_back() -> None:
    assert read(with_palette(VALUES, 21)).palette == tuple((color, 2 * color, 3 * color) for color in range(21))


def turned(image: Image.Image, orientation: int) -> Image.Image:
    """As a file with this EXIF orientation is opened."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    image.save(file, "PNG", exif=exif)
    return Image.open(file)


def test_orientation_is_obeyed() -> None:
    for label_map in (Image.fromarray(VALUES), with_palette(VALUES, 21)):
        assert np.array_equal(read(turned(label_map, 6)).pixels, np.rot90(VALUES, -1))


def own(pairs: list[Any]) -> Scenes:
    return find_scenes(OwnImages.of(pairs))


def test_label_maps_are_turned_with_their_images_as_files_are(tmp_path: Path) -> None:
    """Sideways the sizes tell whether a label map is from before the turn; of a square they do not, which is told."""
    chance = np.random.default_rng(1)
    pairs = []
    for index, (orientation, size, mask_size) in enumerate(
        [(6, (8, 12), (8, 12)), (6, (8, 12), (12, 8)), (6, (8, 8), (8, 8)), (3, (8, 12), (8, 12)), (1, (8, 12), (8, 12))]
    ):
        image = turned(Image.fromarray(chance.integers(0, 256, (*size, 3), dtype=np.uint8)), orientation)
        mask = Image.fromarray(chance.integers(0, 2, mask_size, dtype=np.uint8))
        for part, saved, options in (("images", image, {"exif": image.getexif()}), ("masks", mask, {})):
            (tmp_path / part).mkdir(exist_ok=True)
            saved.save(tmp_path / part / f"{index}.png", **options)
        pairs.append((image, mask))
    here, there = own(pairs), find_scenes(tmp_path)
    assert here.classes == there.classes
    for index in range(len(pairs)):
        for ours, theirs in zip(here.read(index), there.read(index), strict=True):
            assert torch.equal(ours, theirs), index
    ours, theirs = audit(here), audit(there)
    assert (ours.pixels, ours.turned, len(ours.taken_upright)) == (theirs.pixels, 1, 2)
    assert [path.name.removesuffix(".png")[-1] for path in ours.taken_upright] == ["2", "3"]


class Drawn:
    """Pairs; counts what is read of them."""

    def __init__(self, values: list[np.ndarray]) -> None:
        self.values, self.read = values, 0

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.read += 1
        return {"image": np.zeros((7, 9, 3), dtype=np.uint8), "label_map": self.values[index]}


def test_a_pair_is_read_once_for_all_of_its_parts() -> None:
    dataset = Drawn([VALUES, VALUES.T.copy().T, VALUES])
    scenes = own([dataset[index] for index in range(3)])
    assert np.array_equal(np.asarray(scenes.label_map(0))[0], np.full(9, 255))
    images, masks = OwnMasks.beside(OwnImages.of(dataset))
    before = dataset.read
    for index in (0, 1, 1, 2, 0):
        images.source(index), masks.source(index), images.header(index)
    assert dataset.read - before == 4
    assert LastItem(range(5))[3] == 3


def test_a_digest_knows_the_label_maps() -> None:
    maps = [[VALUES] * 3, [VALUES] * 3, [VALUES, VALUES, VALUES[::-1]]]
    digests = [find_scenes(OwnImages.of(Drawn(values)), all_values=True).digest for values in maps]
    assert digests[0] == digests[1] != digests[2]


def test_a_dataset_whose_label_maps_are_never_the_same_is_told() -> None:
    generator = np.random.default_rng()

    class Unsteady(Drawn):
        def __getitem__(self, index: int) -> dict[str, Any]:
            return super().__getitem__(index) | {"label_map": generator.integers(0, 9, (7, 9))}

    images = OwnImages.of(Unsteady([VALUES] * 3))
    assert images.is_repeatable
    assert not OwnMasks.beside(images)[0].is_repeatable


def test_an_item_that_cannot_be_read_is_skipped_and_one_without_a_label_map_is_not() -> None:
    class Torn(Drawn):
        def __getitem__(self, index: int) -> Any:
            if index == 1:
                raise OSError("torn")
            return super().__getitem__(index)

    scenes = own_named(Torn([VALUES % 2] * 3))
    assert [path.name for path in audit(scenes).unreadable] == [scenes.files.path(1).name]
    with pytest.raises(UserError, match="item 0 is a mapping without `image`; it has label_map"):
        OwnImages.of([{"label_map": VALUES}])


def own_named(dataset: Any) -> Scenes:
    dataset.classes = ["even", "odd"]
    found = find_scenes(OwnImages.of(dataset))
    assert found.classes == ("even", "odd")
    return found
