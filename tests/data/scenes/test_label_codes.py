"""What a classes.json says is what pixels become, and what it must not say is refused with file and key."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from beitkit.configs.segmentation import Color
from beitkit.data.decoding.decode import BrokenImage
from beitkit.data.scenes.label_codes import LabelMapping, plain_code, read_classes, voc_palette
from beitkit.data.scenes.masks import Mask
from beitkit.errors import UserError


def code(path: Path, **content: object) -> LabelMapping:
    file = path / "classes.json"
    file.write_text(json.dumps(content))
    return read_classes(file)


def ids(code: LabelMapping, values: object, palette: tuple[Color, ...] = ()) -> list[int]:
    return code.label_map(Mask(path=Path("m.png"), pixels=np.array([values]), palette=palette))[0].tolist()


def test_without_more_value_i_is_class_i_and_255_is_ignored(tmp_path: Path) -> None:
    assert ids(code(tmp_path, names=["a", "b", "c"]), [2, 0, 1, 255]) == [2, 0, 1, 255]


def test_ids_name_classes_or_number_them_and_several_values_may_be_one_class(tmp_path: Path) -> None:
    made = code(tmp_path, names=["a", "b"], ids={"7": "b", "300": 0, "0": "b"}, ignore=[11, 255])
    assert ids(made, [7, 300, 0, 11, 255]) == [1, 0, 1, 255, 255]


def test_reduce_zero_label_ignores_zero_and_shifts_the_rest(tmp_path: Path) -> None:
    assert ids(code(tmp_path, names=["a", "b"], reduce_zero_label=True), [0, 1, 2, 255]) == [255, 0, 1, 255]


def test_colors_become_classes_and_ignored_colors_are_ignored(tmp_path: Path) -> None:
    made = code(tmp_path, names=["a", "b"], colors=[[200, 0, 0], [0, 0, 9]], ignore=[[0, 0, 0]])
    assert ids(made, [[0, 0, 9], [200, 0, 0], [0, 0, 0]]) == [1, 0, 255]
    assert made.palette == ((200, 0, 0), (0, 0, 9))
    with pytest.raises(BrokenImage, match=r"has the color \[1, 2, 3\], which .* does not list"):
        ids(made, [[0, 0, 9], [1, 2, 3]])


def test_255_can_be_a_class_and_is_an_error_where_nothing_is_ignored(tmp_path: Path) -> None:
    assert ids(code(tmp_path, names=["a", "b"], ids={"0": 0, "255": 1}), [255, 0]) == [1, 0]
    with pytest.raises(BrokenImage, match="value 255, but .*classes.json says that nothing is ignored"):
        ids(code(tmp_path, names=["a", "b"], ignore=[]), [0, 255])


def test_an_unknown_value_is_refused_with_what_is_known(tmp_path: Path) -> None:
    with pytest.raises(BrokenImage, match="value 3, 9; .* 2 classes with values from 0 to 1 and ignores 255"):
        ids(code(tmp_path, names=["a", "b"]), [0, 9, 3])


def test_a_palette_that_was_renumbered_is_refused(tmp_path: Path) -> None:
    made = code(tmp_path, names=["a", "b"], colors=[[1, 1, 1], [2, 2, 2]])
    assert ids(made, [0, 1], ((1, 1, 1), (2, 2, 2))) == [0, 1]
    with pytest.raises(BrokenImage, match=r"index 0 has the color \[2, 2, 2\] of class 'b'"):
        ids(made, [0, 1], ((2, 2, 2), (1, 1, 1)))


@pytest.mark.parametrize(
    "content",
    [
        {"names": ["a", "b"], "ids": {"3": 0, "9": 1}, "ignore": [255, 0]},
        {"names": ["a", "b"], "colors": [[1, 2, 3], [4, 5, 6]], "ignore": [255, [0, 0, 0]]},
        {"names": ["a", "b"], "reduce_zero_label": True},
        {"names": ["ä", "b"], "ignore": []},
    ],
)
def test_a_code_is_written_so_that_it_reads_back(tmp_path: Path, content: dict[str, object]) -> None:
    made = code(tmp_path, **content)
    again = tmp_path / "again.json"
    again.write_text(made.as_json())
    read = read_classes(again)
    assert (read.classes, read.values, sorted(read.colors)) == (made.classes, made.values, sorted(made.colors))
    assert read.palette == made.palette


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "names must be a list"),
        ({"names": ["a"]}, "names lists 1 classes; there must be 2 to 255"),
        ({"names": ["a", "a"]}, "names lists 'a' twice"),
        ({"names": ["a", "b"], "palette": []}, "found .'palette'."),
        ({"names": ["a", "b"], "colors": [[0, 0, 0]]}, "one .red, green, blue. for each of the 2 names, found 1"),
        ({"names": ["a", "b"], "colors": [[0, 0, 0], [0, 0, 256]]}, r"colors holds \[0, 0, 256\]"),
        ({"names": ["a", "b"], "colors": [[0, 0, 0], [0, 0, 0]]}, r"colors lists \[0, 0, 0\] twice"),
        ({"names": ["a", "b"], "ids": {"x": 0}}, "ids has the key 'x'"),
        ({"names": ["a", "b"], "ids": {"1": "c"}}, 'ids gives value 1 to "c"'),
        ({"names": ["a", "b"], "ids": {"1": True}}, "ids gives value 1 to true"),
        ({"names": ["a", "b"], "ids": {"1": 0}, "reduce_zero_label": True}, "ids and reduce_zero_label"),
        ({"names": ["a", "b"], "reduce_zero_label": 1}, "reduce_zero_label must be true or false"),
        ({"names": ["a", "b"], "ignore": 255}, "ignore must be a list"),
        ({"names": ["a", "b"], "ignore": [1]}, "value 1 is ignored and is class 'b'"),
        ({"names": ["a", "b"], "ignore": ["x"]}, 'ignore holds "x"'),
        (
            {"names": ["a", "b"], "colors": [[0, 0, 0], [1, 1, 1]], "ignore": [[0, 0, 0]]},
            r"color \[0, 0, 0\] is ignored and is the color of 'a'",
        ),
    ],
)
def test_a_faulty_file_is_refused_in_one_line(tmp_path: Path, content: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        code(tmp_path, **content)
    assert str(caught.value).startswith(str(tmp_path / "classes.json"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[1]", "\xff"])
def test_what_is_no_object_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "classes.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match="classes.json"):
        read_classes(tmp_path / "classes.json")


def test_the_palette_is_that_of_pascal_voc() -> None:
    published = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128), (0, 128, 128), (128, 128, 128)]
    assert list(voc_palette(21)[:9]) == [*published, (64, 0, 0)]
    assert voc_palette(21)[20] == (0, 64, 128)


def test_values_that_are_not_numbered_through(tmp_path: Path) -> None:
    assert ids(plain_code(["x", "y"], "here", values=[5, 90], ignored=[0]), [90, 0, 5]) == [1, 255, 0]


def test_the_examples_of_the_guide_are_valid(tmp_path: Path) -> None:
    guide = Path(__file__).parents[3] / "docs" / "guide" / "segment.md"
    examples = re.findall(r"```json\n(.*?)```", guide.read_text(encoding="utf-8"), re.DOTALL)
    assert len(examples) == 4
    for example in examples:
        assert len(code(tmp_path, **json.loads(example)).classes) >= 2
