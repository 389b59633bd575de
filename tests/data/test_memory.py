"""Images held in memory: the same samples as read one by one, within the limit, shared by the processes that read."""

from __future__ import annotations

import itertools
import random
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from beitkit.configs.data import INCEPTION, MaskConfig, ViewConfig
from beitkit.contracts import Batch, Share
from beitkit.data import dataset as datasets
from beitkit.data.budget import MIB, Budget, budget, memory_up_to
from beitkit.data.dataset import ImageDataset
from beitkit.data.memory import HeldImages
from beitkit.data.sources.find import find_images, find_labeled
from beitkit.data.sources.image_list import ImageList
from beitkit.data.stream import evaluation_stream, training_stream, with_limit_on_broken
from beitkit.data.views.augment import RandAugment
from beitkit.data.views.image import EvaluationView, PretrainView, TrainView, View
from beitkit.data.views.masking import masker
from beitkit.system import resident_bytes


def write(folder: Path, sizes: list[tuple[int, int]], mode: str = "RGB", seed: int = 0) -> ImageList:
    """Images of these (height, width), noise and flat colors, in two classes."""
    rng = np.random.default_rng(seed)
    for number, size in enumerate(sizes):
        pixels = rng.integers(0, 256, (*size, 3) if mode == "RGB" else size).astype(np.uint8)
        if number % 3 == 0:
            pixels = np.where(pixels > 128, 255, 0).astype(np.uint8)
        path = folder / "ab"[number % 2] / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return find_labeled(folder)


def take(stream: Generator[Batch, None, None], count: int) -> list[Batch]:
    batches = list(itertools.islice(stream, count))
    stream.close()
    return batches


def assert_same(first: list[Batch], second: list[Batch]) -> None:
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            assert a[key].dtype == b[key].dtype, key
            assert torch.equal(a[key], b[key]), key


def drawn_view(rng: random.Random) -> View:
    """A view of any kind, with any options."""
    view = ViewConfig(
        crop_scale=rng.choice([(0.08, 1.0), (0.5, 1.0), (1.0, 1.0)]),
        flip=rng.choice([0.0, 0.5, 1.0]),
        vertical_flip=rng.choice([0.0, 0.5]),
        quarter_turns=rng.choice([0.0, 0.75]),
        color_jitter=rng.choice([0.0, 0.4, 0.9]),
        shift=rng.choice([None, 0, 3]),
    )
    size = rng.choice([(16, 16), (28, 28), (32, 32), (24, 40)])
    if rng.random() < 0.4:
        return TrainView(view, (28, 28), erasing=rng.choice([0.0, 0.5]))
    return PretrainView(view, size, rng.choice([None, (16, 16), (56, 56)]), only_tokens=False)


def one_by_one(files: ImageList, view: View, **options: object) -> ImageDataset:
    """The dataset that holds nothing."""
    with memory_up_to(0.0):
        data = ImageDataset(files, view, **options)  # type: ignore[arg-type]
        data.hold()
    return data


@pytest.mark.parametrize("case", range(24))
def test_a_batch_from_memory_is_that_of_its_images_one_by_one(tmp_path: Path, case: int) -> None:
    rng = random.Random(case)
    sizes = [(28, 28)] * 14 if case % 3 else [(rng.randint(9, 40), rng.randint(9, 40)) for _ in range(14)]
    mode = rng.choice(["RGB", "L"])
    files, view = write(tmp_path, sizes, mode, case), drawn_view(rng)
    options: dict[str, object] = {
        "channels": 1 if mode == "L" else 3,
        "masker": masker(MaskConfig(kind=rng.choice(["block", "random"])), (7, 7)),
        "seed": case,
        "views": rng.choice([None, 3]),
    }
    if options["views"] is None:
        options |= {"repeats": rng.choice([1, 2]), "balanced": rng.random() < 0.5}
    held = ImageDataset(files, view, **options)  # type: ignore[arg-type]
    batches = take(training_stream(held, 5), 9)
    assert held._is_checked == (isinstance(view, PretrainView) or case % 3 > 0)  # others are resized by Pillow
    assert held._is_together
    assert_same(batches, take(training_stream(one_by_one(files, view, **options), 5), 9))


def test_views_that_cannot_be_drawn_together_are_drawn_one_by_one(tmp_path: Path) -> None:
    files = write(tmp_path, [(28, 28)] * 6)
    for view in (
        TrainView(ViewConfig(), (28, 28), RandAugment(2, 9.0, 0.5, INCEPTION.mean)),
        TrainView(ViewConfig(), (32, 32)),  # resized by Pillow
        TrainView(ViewConfig(), (40, 40)),
    ):
        held = ImageDataset(files, view)
        assert_same(take(training_stream(held, 4), 4), take(training_stream(one_by_one(files, view), 4), 4))
        assert held._held is not None
        assert held._held.sizes.tolist() == [[28, 28]] * 6


def test_what_rounds_otherwise_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, view = write(tmp_path, [(28, 28)] * 6), PretrainView(ViewConfig(), (28, 28), None)
    right = PretrainView.together
    monkeypatch.setattr(PretrainView, "together", lambda *given: {"images": right(*given)["images"] ^ 1})
    held = ImageDataset(files, view)
    assert_same(take(training_stream(held, 4), 3), take(training_stream(one_by_one(files, view), 4), 3))
    assert not held._is_together


def test_the_middle_and_the_ranks_of_a_stream(tmp_path: Path) -> None:
    files = write(tmp_path, [(28, 28)] * 10)
    view = PretrainView(ViewConfig(), (28, 28), (14, 14))
    whole = take(training_stream(ImageDataset(files, view), 6), 8)
    assert_same(whole[5:], take(training_stream(ImageDataset(files, view), 6, start_batch=5), 3))
    assert_same(whole, take(training_stream(ImageDataset(files, view), 6, workers=2), 8))
    ranks = [take(training_stream(ImageDataset(files, view), 3, rank=rank, world=2), 8) for rank in range(2)]
    joined = [{key: torch.cat([a[key], b[key]]) for key in a} for a, b in zip(*ranks, strict=True)]
    assert_same(whole, joined)


def test_processes_share_what_they_decode(tmp_path: Path) -> None:
    files = write(tmp_path, [(28, 28)] * 10)
    data = ImageDataset(files, PretrainView(ViewConfig(), (28, 28), None))
    take(training_stream(data, 5, workers=2), 4)
    assert data._held is not None
    assert data._held.sizes.tolist() == [[28, 28]] * 10
    for index in range(10):
        pixels = data._held.get(index)
        assert pixels is not None
        assert np.array_equal(pixels.permute(1, 2, 0).numpy(), np.asarray(Image.open(files.path(index))))


def test_broken_and_larger_images_go_the_usual_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "LOOKED_AT", 1)
    files = write(tmp_path, [(20, 20)] * 9 + [(60, 90)])
    files.path(4).write_bytes(files.path(4).read_bytes()[:60])
    view, reported = PretrainView(ViewConfig(), (16, 16), (8, 8)), []
    held = ImageDataset(files, view, masker=masker(MaskConfig(), (4, 4)))
    stream = with_limit_on_broken(training_stream(held, 4), held, 0.2, lambda path, reason: reported.append(path), None)
    batches = list(itertools.islice(stream, 10))
    alone = one_by_one(files, view, masker=masker(MaskConfig(), (4, 4)))
    assert_same(batches, take(training_stream(alone, 4), 10))
    assert reported == [files.path(4)]
    assert {int(broken) for batch in batches for broken in batch["broken"]} == {-1, 4}
    assert held._held is not None
    assert held._held.pixels.shape[2:] == (20, 20)
    large = [index for index in range(10) if files.path(index).name == "009.png"]
    assert [index for index in range(10) if held._held.refuses(index)] == sorted([4, *large])


def test_the_limit_holds_and_the_first_images_use_it(tmp_path: Path) -> None:
    files, view = write(tmp_path, [(28, 28)] * 10), PretrainView(ViewConfig(), (28, 28), None)
    each = 3 * 28 * 28 + 4
    with memory_up_to(4.5 * each / MIB):
        some = ImageDataset(files, view)
        batches = take(training_stream(some, 5), 6)
        assert some._held is not None
        assert (some._held.count, some._held.bytes) == (4, 4 * each)
        assert budget().left < each
        other = ImageDataset(files, view)
        assert_same(take(training_stream(other, 5), 6), batches)
        assert other._held is None
        del some
        assert budget().left > 4 * each
    assert_same(batches, take(training_stream(ImageDataset(files, view), 5), 6))


def test_a_budget_by_hand() -> None:
    class Owner:
        pass

    total, first, second = Budget(10), Owner(), Owner()
    assert [total.taken(2, 3, first), total.taken(2, 3, second), total.left] == [2, 1, 1]
    del first
    assert total.left == 7


def test_floats_are_held_as_floats(tmp_path: Path) -> None:
    for number in range(5):
        np.save(tmp_path / f"{number}.npy", np.random.default_rng(number).random((5, 12, 12), dtype=np.float32))
    files, view = find_images(tmp_path), PretrainView(ViewConfig(), (8, 8), None)
    options: dict[str, object] = {"channels": 5, "value_range": ((0.0, 1.0),) * 5}
    held = ImageDataset(files, view, **options)  # type: ignore[arg-type]
    assert_same(take(training_stream(held, 4), 5), take(training_stream(one_by_one(files, view, **options), 4), 5))
    assert held._held is not None
    assert held._held.bytes == 5 * (5 * 12 * 12 * 4 + 4)
    assert held._held.sizes.tolist() == [[12, 12]] * 5


def test_repeated_passes_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, view = write(tmp_path, [(28, 28)] * 10), EvaluationView(INCEPTION, (16, 16))
    opened: list[object] = []
    original = datasets.readable_image
    monkeypatch.setattr(datasets, "readable_image", lambda *given, **named: (opened.append(given), original(*given, **named))[1])
    once = list(evaluation_stream(ImageDataset(files, view, kind="evaluate"), 4))
    opened.clear()
    data = ImageDataset(files, view, kind="evaluate", is_repeated=True)
    next(evaluation_stream(data, 4))  # a pass that is given up is not kept
    for _ in range(3):
        assert_same(list(evaluation_stream(data, 4)), once)
    assert len(opened) == 4 + 10
    assert [len(batch["index"]) for batch in evaluation_stream(data, 5)] == [5, 5]
    opened.clear()
    with memory_up_to(0.0):
        data = ImageDataset(files, view, kind="evaluate", is_repeated=True)
        for _ in range(2):
            assert_same(list(evaluation_stream(data, 4)), once)
    assert len(opened) == 20


def test_it_is_said_how_images_are_held(tmp_path: Path) -> None:
    view = PretrainView(ViewConfig(), (28, 28), None)
    said = ImageDataset(write(tmp_path / "alike", [(28, 28)] * 10), view).describe()
    assert said == (
        "10 of 10 images of up to 28x28 pixels are decoded once and held in memory (0.0225 MiB of 512), "
        "where their views are drawn batch by batch"
    )
    mixed = ImageDataset(write(tmp_path / "mixed", [(28, 28), (200, 200)]), view).describe()
    assert mixed == "the images are not held in memory, each is decoded whenever it is shown: they are of mixed size"
    assert ImageDataset(write(tmp_path / "large", [(200, 200)] * 2), view).describe() is None
    with memory_up_to(2 / 1024):
        none = ImageDataset(find_images(tmp_path / "alike"), view).describe()
    assert none == "the images are not held in memory, each is decoded whenever it is shown: `read.cache` holds 0.00195 MiB"


def test_memory_that_nobody_touches_takes_no_room() -> None:
    held = HeldImages(1000, (3, 32, 32), torch.uint8)
    assert held.count == 1000
    assert held.bytes == 1000 * (3 * 32 * 32 + 4)
    assert not held.pixels.any()
    assert held.get(3) is None
    assert held.put(3, torch.ones(3, 5, 6, dtype=torch.uint8))
    assert held.size(3) == (5, 6)
    assert not held.put(4, torch.ones(3, 33, 6, dtype=torch.uint8))
    assert held.refuses(4)


MEASURED = """
import gc, torch
from beitkit.data.budget import budget
from beitkit.data.memory import HeldImages, KeptPass
from beitkit.system import resident_bytes

def grown():
    gc.collect()
    return resident_bytes() - before, left - budget().left

def batches(count):
    for first in range(0, count, 64):
        yield {
            "images": torch.full((64, 3, 32, 32), 7, dtype=torch.uint8), "labels": torch.zeros(64, dtype=torch.int64),
            "index": torch.arange(first, first + 64), "broken": torch.full((64,), -1),
        }

list(batches(640))
torch.ones(3, 32, 32, dtype=torch.uint8).clone()
before, left = resident_bytes(), budget().left
held = HeldImages(10000, (3, 32, 32), torch.uint8)
for index in range(held.count):
    held.put(index, torch.full((3, 32, 32), index % 251, dtype=torch.uint8))
print(*grown())
del held
before, left = resident_bytes(), budget().left
kept = KeptPass()
for which in ((64, 0, 1), (64, 0, 2)):  # another share takes the place of the first
    for batch in kept.batches(lambda: batches(9600), which, 9600):
        pass
print(*grown())
"""


@pytest.mark.skipif(resident_bytes() is None, reason="only Linux tells what a process holds")
def test_what_is_counted_is_what_is_held() -> None:
    """Resident memory of a process of its own against its own count; a list of decoded images took nearly twice its count."""
    said = subprocess.run([sys.executable, "-c", MEASURED], check=True, capture_output=True, text=True).stdout.splitlines()
    assert len(said) == 2
    for line in said:
        resident, counted = map(int, line.split())
        assert 28 * MIB < counted < 31 * MIB
        assert 0.85 < resident / counted < 1.15


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="only Linux lists what a process has open")
def test_a_pass_that_workers_read_is_kept_without_open_files(tmp_path: Path) -> None:
    files = write(tmp_path, [(28, 28)] * 12)
    data = ImageDataset(files, EvaluationView(INCEPTION, (16, 16)), kind="evaluate", is_repeated=True)
    before = len(list(Path("/proc/self/fd").iterdir()))
    batches = list(evaluation_stream(data, 2, workers=1))
    assert all(value.is_shared() for value in batches[0].values())  # each has a file
    del batches
    again = list(evaluation_stream(data, 2, workers=1))
    assert not any(value.is_shared() for batch in again for value in batch.values())
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 2
    assert_same(again, list(evaluation_stream(ImageDataset(files, data.view, kind="evaluate"), 2)))


def test_readers_of_several_processes_hold_one_tensor(tmp_path: Path) -> None:
    """What two workers and the process itself read is counted, and allowed, once."""
    files = write(tmp_path, [(28, 28)] * 10)
    each = 3 * 28 * 28 + 4
    with memory_up_to(4 * each / MIB):
        data = ImageDataset(files, PretrainView(ViewConfig(), (28, 28), None))
        take(training_stream(data, 5, workers=2), 6)
        assert data._held is not None
        assert (data._held.count, data._held.bytes, budget().left) == (4, 4 * each, 0)
        assert data._held.sizes.tolist() == [[28, 28]] * 4


def test_a_pass_gives_its_room_back(tmp_path: Path) -> None:
    files = write(tmp_path, [(28, 28)] * 10)
    with memory_up_to(1.0):
        data = ImageDataset(files, EvaluationView(INCEPTION, (16, 16)), kind="evaluate", is_repeated=True)
        whole = budget().left
        list(evaluation_stream(data, 4))
        taken = whole - budget().left
        assert taken > 10 * 3 * 16 * 16
        list(evaluation_stream(data, 4, share=Share(1, 2)))  # half of them in place of all
        assert 0 < whole - budget().left < taken
        del data
        assert budget().left == whole
