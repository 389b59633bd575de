"""Datasets and iterables as images: the same samples as of files, labels, and what is said of wrong ones."""

import random
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, Subset

from beitkit.configs.data import ViewConfig
from beitkit.data.dataset import ImageDataset
from beitkit.data.own.images import HEAD, OwnImages, Repeated
from beitkit.data.seeds import seeded
from beitkit.data.sources.find import find_images, labeled_source
from beitkit.data.sources.image_list import ImageList
from beitkit.data.sources.split import train_and_val
from beitkit.data.stream import training_stream, with_limit_on_broken
from beitkit.data.views.image import PretrainView
from beitkit.errors import UserError


def image(index: int) -> np.ndarray:
    return np.random.default_rng(index).integers(0, 256, (20, 24, 3), dtype=np.uint8)


class Photos(Dataset[Any]):
    """Twelve images of three classes."""

    classes = ("ant", "bee", "cow")

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Any:
        return Image.fromarray(image(index)), index % 3


def listed(given: object) -> ImageList:
    return find_images(OwnImages.of(given))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index in range(12):
        Image.fromarray(image(index)).save(tmp_path / f"{index:02d}.png")
    return tmp_path


@pytest.mark.parametrize("workers", [0, 2])
def test_samples_are_those_of_a_folder_of_the_same_images(folder: Path, workers: int) -> None:
    mappings = [{"image": image(index), "label": 0} for index in range(12)]
    tensors = torch.stack([torch.from_numpy(image(index)).permute(2, 0, 1) for index in range(12)])
    view = PretrainView(ViewConfig(), (16, 16), (8, 8))
    expected = training_stream(ImageDataset(find_images(folder), view), 8)
    for given in (Photos(), mappings, tensors):
        stream = training_stream(ImageDataset(listed(given), view), 8, workers=workers)
        for _ in range(3):
            there, here = next(expected), next(stream)
            assert here.keys() == there.keys()
            assert all(torch.equal(here[name], there[name]) for name in there)
        stream.close()
        expected = training_stream(ImageDataset(find_images(folder), view), 8)


def test_chance_in_a_dataset_is_frozen_by_the_index_and_leaves_the_generators_alone() -> None:
    class Noise(Photos):
        def __getitem__(self, index: int) -> Any:
            return np.random.randint(0, 256, (8, 8, 3)).astype(np.uint8) // 2 + random.randrange(2) + int(torch.randint(2, ()))

    before = np.random.get_state()[1].copy(), torch.get_rng_state()
    files = listed(Noise())
    first = [files.source(index) for index in range(12)]
    assert first == [files.source(index) for index in range(12)]
    assert len({source.content for source in first}) == 12
    assert files.items is not None
    assert files.items.is_repeatable
    assert np.array_equal(np.random.get_state()[1], before[0])
    assert torch.equal(torch.get_rng_state(), before[1])


def test_generators_begin_at_the_seed_inside_and_go_on_outside_as_if_nothing_had_been() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    expected = draw()
    random.setstate(before[0])
    np.random.set_state(before[1])
    torch.set_rng_state(before[2])
    drawn = []
    for seed in (1, 1, 2**63 - 1):
        with suppress(ZeroDivisionError), seeded(seed):
            drawn.append(draw())
            raise ZeroDivisionError
    assert drawn[0] == drawn[1] != drawn[2]
    assert draw() == expected


def test_a_digest_knows_class_length_and_contents() -> None:
    class Other(Photos):
        pass

    class Longer(Photos):
        def __len__(self) -> int:
            return 13

    class Changed(Photos):
        def __getitem__(self, index: int) -> Any:
            return image(99 if index == 5 else index)

    digests = [OwnImages.of(given).fingerprint for given in (Photos(), Photos(), Other(), Longer(), Changed())]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 4
    assert listed(Photos()).digest != listed(Changed()).digest


def test_a_dataset_that_is_never_the_same_is_known_by_length_alone() -> None:
    generator = np.random.default_rng()

    class Unsteady(Photos):
        def __getitem__(self, index: int) -> Any:
            return generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)

    first, second = OwnImages.of(Unsteady()), OwnImages.of(Unsteady())
    assert not first.is_repeatable
    assert first.fingerprint == second.fingerprint


def test_broken_items_are_replaced_counted_and_named(tmp_path: Path) -> None:
    class Torn(Photos):
        def __getitem__(self, index: int) -> Any:
            if index in (3, 7):
                raise OSError(f"no sector {index}")
            return image(index)

    dataset = ImageDataset(listed(Torn()), PretrainView(ViewConfig(), (16, 16), None))
    told: list[tuple[str, str]] = []

    def stream(limit: float) -> Iterator[Any]:
        return with_limit_on_broken(
            training_stream(dataset, 12), dataset, limit, lambda *one: told.append((str(one[0]), one[1])), None
        )

    batch = next(stream(0.5))
    assert sorted(batch["broken"].unique().tolist()) == [-1, 3, 7]
    assert not {3, 7} & set(batch["index"].tolist())
    assert sorted(told) == [(f"{dataset.files.root}: item {index}", f"OSError: no sector {index}") for index in (3, 7)]
    with pytest.raises(UserError, match="2 of 12 images cannot be read, more than the 1.00% allowed"):
        next(stream(0.01))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["a.jpg"], "<python: list, 1 images>: item 0 is a str; expected a Pillow image"),
        ([(1, 2, 3)], "item 0 is a tuple of 3; expected a pair"),
        ([{"pixels": 1}], "item 0 is a mapping without `image`; it has pixels"),
        ([], "<python: list, 0 images> is empty"),
        (5, "int has no `__len__` and `__getitem__`, and is no iterable"),
        (iter([image(0)]), "list_iterator has no length: pre-training takes it with `steps`"),
    ],
)
def test_wrong_images_are_refused_in_one_line(given: object, told: str) -> None:
    with pytest.raises(UserError, match=told) as error:
        OwnImages.of(given)
    assert "\n" not in str(error.value)


def test_a_dataset_of_which_nothing_can_be_read_is_refused() -> None:
    class Gone(Photos):
        def __getitem__(self, index: int) -> Any:
            raise FileNotFoundError("the disk is not there")

    with pytest.raises(UserError, match="none of the 12 items .* can be read: FileNotFoundError: the disk is not there"):
        OwnImages.of(Gone())


def test_labels_come_from_pairs_targets_mappings_and_names() -> None:
    class Listed(Photos):
        targets = torch.arange(12) % 3

        def __getitem__(self, index: int) -> Any:
            return image(index)

    named = [{"image": image(index), "label": Photos.classes[index % 3]} for index in range(12)]
    half = Subset(Photos(), range(0, 12, 2))
    for given, expected in ((Photos(), np.arange(12) % 3), (Listed(), np.arange(12) % 3), (named, np.arange(12) % 3)):
        files = labeled_source(OwnImages.of(given)).read(None)
        assert files.classes == Photos.classes
        assert np.array_equal(files.labels, expected)
    files = labeled_source(OwnImages.of(half)).read(None)
    assert files.classes == Photos.classes
    assert np.array_equal(files.labels, np.arange(0, 12, 2) % 3)
    bare = labeled_source(OwnImages.of([(image(index), np.int64(10 - index)) for index in range(11)])).read(None)
    assert bare.classes == tuple(map(str, range(11)))  # by number, not as text
    assert bare.labels is not None
    assert bare.labels.tolist() == list(range(10, -1, -1))


@pytest.mark.parametrize(
    ("label", "told"),
    [
        (0.5, "item 1 has a label of type float; expected a whole number or a name$"),
        (
            image(0)[..., 0],
            "item 1 has a label of type ndarray; expected a whole number or a name; label maps are for segmentation",
        ),
        (None, r"item 1 has no label; expected a pair \(image, label\)"),
        (7, r"item 1: label 7 is not one of the 3 known classes \('ant', 'bee', 'cow'\)"),
    ],
)
def test_wrong_labels_are_refused_with_their_item(label: object, told: str) -> None:
    class Wrong(Photos):
        def __getitem__(self, index: int) -> Any:
            return image(index), label if index == 1 else 0

    with pytest.raises(UserError, match=told):
        labeled_source(OwnImages.of(Wrong())).read(None, Photos.classes)


def test_an_item_without_image_and_label_is_named() -> None:
    class Torn(Photos):
        def __getitem__(self, index: int) -> Any:
            if index == 4:
                raise OSError("torn")
            return super().__getitem__(index)

    with pytest.raises(UserError, match=r"item 4 cannot be read \(OSError: torn\), and so its label is not known; .*`targets`"):
        labeled_source(OwnImages.of(Torn())).read(None)


def test_validation_is_a_dataset_of_its_own_or_a_part_of_the_training_images() -> None:
    train, val = train_and_val(OwnImages.of(Photos()), None, 0)
    numbers = [[int(files.name(index)) for index in range(len(files))] for files in (train, val)]
    assert sorted(numbers[0] + numbers[1]) == list(range(12))
    assert val.counts().tolist() == [1, 1, 1]
    train, val = train_and_val(OwnImages.of(Photos()), OwnImages.of(Photos()), 0)
    assert (len(train), len(val)) == (12, 12)
    one = Photos()
    with pytest.raises(UserError, match="is given for training and for validation; give two datasets"):
        train_and_val(OwnImages.of(one), OwnImages.of(one), 0)


class Stream(IterableDataset[Any]):
    """A hundred images, counted as they come."""

    def __init__(self) -> None:
        self.read = 0

    def __iter__(self) -> Iterator[np.ndarray]:
        for index in range(100):
            self.read += 1
            yield image(index)


def test_an_iterable_gives_its_items_by_number_and_begins_again() -> None:
    items = Repeated(range(100), 10_000)
    for index in [*range(250), 3, HEAD, 249, 248, 120, 1234]:  # forward, back to what is kept, back to what is not
        assert items[index] == index % 100


def test_what_is_near_is_kept_and_not_read_again() -> None:
    source = Stream()
    items = Repeated(source, 1000)
    for index in (*range(90), 88, 5, HEAD - 1):
        assert np.array_equal(items[index], image(index))
    assert source.read == 90


def test_a_stream_is_shown_in_its_own_order_by_any_number_of_processes() -> None:
    files = find_images(OwnImages.of(Stream(), 400))
    view = PretrainView(ViewConfig(), (16, 16), None)
    whole = training_stream(ImageDataset(files, view), 8, workers=2)
    batches = [next(whole) for _ in range(20)]
    assert torch.cat([batch["index"] for batch in batches]).tolist() == list(range(160))
    for start, rank in ((0, 1), (15, 0)):  # a later start skips, and two processes share a batch
        dataset = ImageDataset(find_images(OwnImages.of(Stream(), 400)), view)
        part = next(training_stream(dataset, 4, start_batch=start, rank=rank, world=2))
        assert torch.equal(part["images"], batches[start]["images"][4 * rank : 4 * rank + 4])
    assert [int(one) for one in map(files.evenly_spread(1000).name, range(HEAD))] == list(range(HEAD))


def test_a_stream_that_breaks_or_is_empty_is_told() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise ValueError("no more")

    class Broken:
        def __iter__(self) -> Iterator[int]:
            return broken()

    with pytest.raises(UserError, match="Broken raised ValueError: no more in place of item 1, and cannot go on"):
        Repeated(Broken(), 5)[1]
    with pytest.raises(UserError, match="set gives no image"):
        Repeated(set(), 5)[0]
    with pytest.raises(UserError, match="list_iterator is an iterator, which can be read once only"):
        OwnImages.of(iter([image(0)]), 5)
