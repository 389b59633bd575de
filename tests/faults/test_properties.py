"""What holds for any input: crop boxes, resized positions, manifests, lists. Masks and configs: beside their modules."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from beitkit.data.sources.find import find_images
from beitkit.data.views.image import crop_box
from beitkit.errors import UserError
from beitkit.nn.position import table_rows
from beitkit.nn.resize import resize_absolute_positions, resize_relative_positions
from beitkit.train.checkpoints.manifest import Manifest, RowRange, StoredFile, StoredTensor, parse_manifest

SIDES = st.integers(1, 9)
CALM = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@CALM
@given(st.tuples(st.integers(1, 3000), st.integers(1, 3000)), st.floats(0.01, 1.0), st.floats(0.1, 9.0), st.integers(0, 2**32))
def test_a_crop_lies_in_its_image_and_holds_a_pixel(image: tuple[int, int], share: float, ratio: float, seed: int) -> None:
    box = crop_box(image, (share / 2, share), (ratio / 2, ratio), random.Random(seed))
    top, left, height, width = box
    assert 0 <= top < top + height <= image[0]
    assert 0 <= left < left + width <= image[1]


@CALM
@given(st.tuples(SIDES, SIDES), st.tuples(SIDES, SIDES), st.floats(-5, 5))
def test_resized_positions_keep_constants_and_the_same_grid(old: tuple[int, int], new: tuple[int, int], value: float) -> None:
    table = torch.full((table_rows(old), 2), value)
    resized = resize_relative_positions(table, old, new)
    assert torch.allclose(resized, torch.full((table_rows(new), 2), value), atol=1e-4)
    positions = torch.full((1, 1 + old[0] * old[1], 3), value)
    assert torch.allclose(
        resize_absolute_positions(positions, old, new), torch.full((1, 1 + new[0] * new[1], 3), value), atol=1e-4
    )
    drawn = torch.randn(table_rows(old), 2)
    assert torch.equal(resize_relative_positions(drawn, old, old), drawn)


@CALM
@given(
    st.integers(0, 2**40),
    st.dictionaries(st.text(max_size=8), st.floats(allow_nan=False, allow_infinity=False), max_size=4),
    st.dictionaries(st.text(max_size=8), st.lists(st.integers(1, 5), min_size=1, max_size=4), max_size=4),
)
def test_a_manifest_comes_back_as_it_was(step: int, numbers: dict[str, float], cuts: dict[str, list[int]]) -> None:
    files = {number: StoredFile(10 * number, f"{number:032x}") for number in range(4)}
    tensors = {}
    for name, parts in cuts.items():
        ends = [sum(parts[: place + 1]) for place in range(len(parts))]
        rows = tuple(RowRange(place, end - part, end) for place, (part, end) in enumerate(zip(parts, ends, strict=True)))
        tensors[name] = StoredTensor("F32", (sum(parts), 3), rows)
    manifest = Manifest(step, numbers, files, tensors)
    assert parse_manifest(manifest.encode()) == manifest


@CALM
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3)))
def test_what_is_no_manifest_is_a_value_error(content: object) -> None:
    for data in (repr(content).encode(), str({"format": 1, "step": content}).replace("'", '"').encode()):
        with pytest.raises(ValueError, match=r"."):
            parse_manifest(data)


@CALM
@given(st.binary(max_size=200))
def test_any_bytes_are_a_list_or_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "list.txt").write_bytes(content)
    with contextlib.suppress(UserError):
        assert len(find_images(tmp_path / "list.txt")) > 0
