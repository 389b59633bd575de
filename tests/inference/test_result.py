"""A result in parts, whose own notes are damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from beitkit.errors import UserError
from beitkit.inference.features import ArrayFile
from beitkit.inference.part import Rows
from beitkit.inference.result import PartedOutput

PART = Rows([Path("a.png")], [""], np.ones((1, 2), dtype=np.float32))


def begun(out: Path) -> PartedOutput:
    return PartedOutput({out: ArrayFile((2,), "float32")}, {"verb": "embed"}, 2)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"pictures": null, "unreadable": 0}', b'{"pictures": 1}'])
def test_a_part_whose_mark_is_damaged_is_computed_again(tmp_path: Path, content: bytes) -> None:
    out = tmp_path / "f.npy"
    first = begun(out)
    for number in range(2):
        first.write(number, PART)
    (first.folder / "part-00000.json").write_bytes(content)
    again = begun(out)
    assert again.missing() == [0]
    again.write(0, PART)
    assert again.finish() == (2, 0, out)
    assert np.load(out).shape == (2, 2)


@pytest.mark.parametrize(
    "content", [b"{", b"[]", b'{"command": 5, "outcome": null}', b'{"command": {}, "outcome": {"pictures": "x"}}']
)
def test_a_result_whose_note_is_damaged_is_not_overwritten(tmp_path: Path, content: bytes) -> None:
    out = tmp_path / "f.npy"
    out.write_bytes(b"somebody's")
    (tmp_path / "f.npy.command.json").write_bytes(content)
    with pytest.raises(UserError, match="is already there"):
        begun(out)
    assert out.read_bytes() == b"somebody's"
