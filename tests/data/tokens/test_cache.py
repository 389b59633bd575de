"""The store of tokens: what survives a kill, its size, and which view an epoch shows."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from beitkit.configs.data import MaskConfig, ViewConfig
from beitkit.data.dataset import ImageDataset
from beitkit.data.decoding import decode as images
from beitkit.data.sources.find import find_images
from beitkit.data.sources.image_list import ImageList
from beitkit.data.stream import stored_views_stream
from beitkit.data.tokens import cache as token_cache
from beitkit.data.tokens.cache import TokenCache, bytes_per_view, open_cache
from beitkit.data.tokens.contents import contents_of, first_changed
from beitkit.data.tokens.key import CacheKey
from beitkit.data.views.image import PretrainView
from beitkit.data.views.masking import masker
from beitkit.errors import UserError


@pytest.fixture
def files(tmp_path: Path) -> ImageList:
    (tmp_path / "images").mkdir()
    for index in range(6):
        noise = np.random.default_rng(index).integers(0, 255, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "images" / f"{index}.png")
    return find_images(tmp_path / "images")


def key(vocabulary: int = 8192, views: int = 4, side: int = 14) -> CacheKey:
    return CacheKey(
        tokenizer="t", vocabulary=vocabulary, pictures="p", view=ViewConfig(), image_size=(16 * side, 16 * side), patch=(16, 16),
        token_size=(8 * side, 8 * side), channels=3, grid=(side, side), seed=0, views=views,
    )  # fmt: skip


def rows(*places: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    indices, views = zip(*places, strict=True)
    return torch.tensor(indices), torch.tensor(views)


@pytest.mark.parametrize(("vocabulary", "largest"), [(256, 255), (8192, 8191), (65536, 65535), (65537, 65536)])
def test_what_is_put_comes_back(vocabulary: int, largest: int, files: ImageList, tmp_path: Path) -> None:
    cache = open_cache(tmp_path / "c", key(vocabulary), files, is_writable=True)
    tokens = torch.full((2, 196), largest)
    tokens[1, 7] = 0
    places = rows((3, 1), (0, 2))
    assert cache.stored(*places).tolist() == [False, False]
    cache.put(*places, tokens)
    assert torch.equal(cache.tokens(*places), tokens)
    cache.flush()
    again = open_cache(tmp_path / "c", key(vocabulary), files, is_writable=False)
    assert torch.equal(again.tokens(*places), tokens)
    assert again.num_stored == 2
    assert not again.is_complete


def test_a_kill_before_the_flush_leaves_nothing_marked(files: ImageList, tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:  # dies as if by kill -9: nothing is closed
        cache = open_cache(tmp_path / "c", key(), files, is_writable=True)
        cache.put(*rows((0, 0)), torch.full((1, 196), 5))
        cache.flush()
        cache.put(*rows((1, 0)), torch.full((1, 196), 7))
        os._exit(0)
    os.waitpid(child, 0)
    cache = open_cache(tmp_path / "c", key(), files, is_writable=True)
    assert cache.stored(*rows((0, 0), (1, 0))).tolist() == [True, False]
    assert cache.tokens(*rows((0, 0))).unique().tolist() == [5]


def test_rows_are_marked_after_the_tokens_are_on_the_disk(
    files: ImageList, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    flush = np.memmap.flush

    def noting(array: np.memmap) -> None:
        order.append("tokens" if array.ndim == 3 else f"marks {int(array.sum())}")
        flush(array)

    cache = open_cache(tmp_path / "c", key(), files, is_writable=True)
    monkeypatch.setattr(np.memmap, "flush", noting)
    monkeypatch.setattr(token_cache, "ROWS_PER_FLUSH", 2)
    cache.put(*rows((0, 0)), torch.zeros(1, 196, dtype=torch.int64))
    assert order == []
    cache.put(*rows((1, 0)), torch.zeros(1, 196, dtype=torch.int64))
    assert order == ["tokens", "marks 2"]


def test_a_view_takes_less_than_500_bytes(files: ImageList, tmp_path: Path) -> None:
    cache = open_cache(tmp_path / "c", key(views=16), files, is_writable=True)
    everything = rows(*[(index, view) for index in range(6) for view in range(16)])
    cache.put(*everything, torch.randint(8192, (96, 196), generator=torch.Generator().manual_seed(0)))
    assert cache.is_complete
    assert bytes_per_view(key(views=16)) == 2 * 196 + 1 + 24 / 16
    headers = 3 * 128
    data = sum((tmp_path / "c" / name).stat().st_size for name in ("tokens.npy", "states.npy", "contents.npy")) - headers
    assert data / 96 == bytes_per_view(key(views=16)) < 500


def test_an_unreadable_image_is_tried_again_when_the_cache_is_completed(files: ImageList, tmp_path: Path) -> None:
    cache = open_cache(tmp_path / "c", key(views=1), files, is_writable=True)
    cache.put(*rows(*[(index, 0) for index in range(5)]), torch.zeros(5, 196, dtype=torch.int64))
    cache.set_unreadable(5)
    assert cache.is_complete
    cache.flush()
    assert open_cache(tmp_path / "c", key(views=1), files, is_writable=False).is_complete
    assert list(TokenCache(tmp_path / "c", key(views=1), is_writable=True).missing()) == [5]


def test_content_is_compared_where_size_or_time_differ(files: ImageList) -> None:
    before = contents_of(files)
    assert first_changed(files, before) is None
    path = files.path(2)
    os.utime(path, ns=(1, 1))
    assert first_changed(files, before) is None
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert first_changed(files, before) == 2
    path.write_bytes(content)
    files.path(4).unlink()
    assert first_changed(files, before) == 4


def test_a_damaged_or_another_versions_header_is_one_line(files: ImageList, tmp_path: Path) -> None:
    open_cache(tmp_path / "c", key(), files, is_writable=True)
    for content, match in (("{", "holds no token cache"), ('{"version": 0}', "is not of version 2")):
        (tmp_path / "c" / "cache.json").write_text(content)
        with pytest.raises(UserError, match=match):
            open_cache(tmp_path / "c", key(), files, is_writable=False)


def test_every_view_comes_once_before_one_comes_again(files: ImageList) -> None:
    data = ImageDataset(files, PretrainView(ViewConfig(), (8, 8), (4, 4)), views=5, seed=3)
    orders = {tuple(data.view_number(5 * turn + place, index) for place in range(5)) for turn in range(4) for index in range(6)}
    assert all(sorted(order) == list(range(5)) for order in orders)
    assert len(orders) > 15  # each image and each turn has its own order


def test_an_image_is_decoded_once_for_its_views(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for index in range(3):
        noise = np.random.default_rng(index).integers(0, 255, (150, 160, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{index}.{'png' if index == 1 else 'jpg'}")
    opened: list[Path] = []
    before = images.opened_image
    monkeypatch.setattr(images, "opened_image", lambda path: (opened.append(path), before(path))[1])
    files = find_images(tmp_path)

    def shown(order: list[int]) -> list[torch.Tensor]:
        data = ImageDataset(files, PretrainView(ViewConfig(), (64, 64), (32, 32)), views=4)
        data.hold()  # looks at headers, to learn that these are too large to be held
        opened.clear()
        stream = stored_views_stream(data, 5, lambda index, number: True, order)
        batches = list(stream)
        places = torch.stack([torch.cat([batch[name] for batch in batches]) for name in ("index", "view")], 1)
        views = torch.cat([batch["token_images"] for batch in batches])
        return [views[row] for row in sorted(range(12), key=lambda row: places[row].tolist())]

    together = shown([0, 1, 2])
    # Opened for its header, and a JPEG again for its pixels; each of the four views needs all of them.
    assert len(opened) == 2 + 1 + 2
    apart = []
    for index in (0, 1, 2):
        for number in range(4):
            data = ImageDataset(files, PretrainView(ViewConfig(), (64, 64), (32, 32)), views=4)
            epoch = next(epoch for epoch in range(4) if data.view_number(epoch, index) == number)
            apart.append(data.read(epoch, index)["token_images"])
    assert all(torch.equal(one, other) for one, other in zip(together, apart, strict=True))


def test_a_stored_view_repeats_and_its_mask_does_not(files: ImageList) -> None:
    def data(views: int | None) -> ImageDataset:
        return ImageDataset(files, PretrainView(ViewConfig(), (8, 8), (4, 4)), masker=masker(MaskConfig(), (4, 4)), views=views)

    first, again = (data(1).read(epoch, 2) for epoch in (0, 1))
    assert torch.equal(first["images"], again["images"])
    assert torch.equal(first["token_images"], again["token_images"])
    assert not torch.equal(first["mask"], again["mask"])
    assert torch.equal(data(None).read(1, 2)["mask"], again["mask"])
    # The same view number is the same view, however many there are.
    many = data(3)
    epoch = next(epoch for epoch in range(3) if many.view_number(epoch, 2) == 0)
    assert torch.equal(many.read(epoch, 2)["images"], first["images"])
