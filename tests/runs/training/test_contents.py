"""Image files that hold something else when a run goes on than when it began."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import beitkit
from beitkit.configs.train import LoopConfig
from beitkit.data.sources.find import find_images
from beitkit.errors import UserError
from beitkit.runs.training.contents import check_contents
from beitkit.train.folder import CONTENTS, RunFolder


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for index in range(6):
        path = tmp_path / "images" / f"{index}.bmp"  # of one size whatever it shows
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((16, 16, 3), 40 * index, np.uint8)).save(path)
    return tmp_path / "images"


def checked(run: Path, images: Path, how: str = "sizes") -> list[str]:
    said: list[str] = []
    run.mkdir(exist_ok=True)
    check_contents(_folder(run), [find_images(images)], how, said.append)  # type: ignore[arg-type]
    return said


def overwrite(path: Path, *, keeps_time: bool = False) -> None:
    """Another image in the same number of bytes."""
    status = path.stat()
    Image.fromarray(np.full((16, 16, 3), 255, np.uint8)).save(path)
    assert path.stat().st_size == status.st_size
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + (0 if keeps_time else 10**9)))


def test_sizes_stop_a_run_and_times_are_said(tmp_path: Path, images: Path) -> None:
    run = tmp_path / "run"
    assert checked(run, images) == checked(run, images) == []
    overwrite(images / "3.bmp")
    (note,) = checked(run, images)
    assert note.startswith("note: 1 of 6 files were written since the run began, with the same sizes (")
    assert "3.bmp" in note
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(images / "4.bmp")
    with pytest.raises(UserError, match=r"1 of 6 files have other sizes than when the run .*4\.bmp.*`loop.check_contents='off'`"):
        checked(run, images)
    assert checked(run, images, "off") == []


def test_digests_notice_what_neither_size_nor_time_tells(tmp_path: Path, images: Path) -> None:
    run = tmp_path / "run"
    assert checked(run, images, "digests") == []
    overwrite(images / "2.bmp", keeps_time=True)
    assert checked(run, images) == []
    with pytest.raises(UserError, match=r"1 of 6 files have other digests .*2\.bmp"):
        checked(run, images, "digests")


def test_digests_may_be_asked_for_later(tmp_path: Path, images: Path) -> None:
    run = tmp_path / "run"
    checked(run, images)
    assert "those of now are kept" in checked(run, images, "digests")[0]
    overwrite(images / "2.bmp", keeps_time=True)
    with pytest.raises(UserError, match="other digests"):
        checked(run, images, "digests")


def test_what_was_written_down_may_be_damaged(tmp_path: Path, images: Path) -> None:
    run = tmp_path / "run"
    checked(run, images)
    (run / CONTENTS).write_bytes(b"\x93NUMPY\x01")
    assert checked(run, images) == []


def test_a_run_is_not_continued_over_other_images_and_a_copied_model_does_not_finish_it(tmp_path: Path, images: Path) -> None:
    options = {"target": "pixels", "size": "nano", "image_size": 16, "patch": 8, "batch_size": 2}
    options |= {"threads": 1, "device": "cpu", "workers": 0}
    done = beitkit.pretrain(images, out=tmp_path / "done", steps=2, **options)
    begun = tmp_path / "begun"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("beitkit.runs.pretrain.run.write_report", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            beitkit.pretrain(images, out=begun, steps=3, loop=LoopConfig(save_every=1), **options)
    for name in ("model.json", "model.safetensors"):
        (begun / name).write_bytes((done / name).read_bytes())
    kept = (images / "1.bmp").read_bytes()
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(images / "1.bmp")
    with pytest.raises(UserError, match="other sizes"):
        beitkit.pretrain(images, out=begun, steps=3, loop=LoopConfig(save_every=1), **options)
    (images / "1.bmp").write_bytes(kept)
    beitkit.pretrain(images, out=begun, steps=3, loop=LoopConfig(save_every=1), **options)
    assert (begun / "done.json").exists()
    assert (begun / "model.safetensors").read_bytes() != (done / "model.safetensors").read_bytes()
    # Runs from before have no such file, and are finished all the same.
    (begun / "done.json").unlink()
    assert not RunFolder.is_finished(_folder(begun))
    environment = (begun / "environment.json").read_text().replace('"marks_end": true', '"marks_end": false')
    (begun / "environment.json").write_text(environment)
    assert RunFolder.is_finished(_folder(begun))


def _folder(path: Path) -> RunFolder:
    folder = RunFolder.__new__(RunFolder)
    folder.path = path
    return folder
