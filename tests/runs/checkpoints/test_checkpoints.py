"""`inspect`, `show-load`, `convert` and `export` from the command line."""

import json
from pathlib import Path

import pytest
import torch

import beitkit
from beitkit.cli import main
from beitkit.configs.model import BackboneConfig, ClassifierConfig, MaskedImageModelConfig


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    torch.manual_seed(0)
    masked = BackboneConfig.named("nano/16", image_size=32, mask_token=True)
    beitkit.save(
        beitkit.MaskedImageModel(MaskedImageModelConfig(backbone=masked, vocabulary=16)), folder / "pre.pth", format="microsoft"
    )
    classify = BackboneConfig.named("nano/16", image_size=32, relative_positions="per_block", final_norm=False)
    beitkit.save(beitkit.Classifier(ClassifierConfig(backbone=classify, classes=("cat", "dog"))), folder / "cls")
    return folder


def succeed(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    assert stopped.value.code == 0, printed.err
    return printed.out


def fail(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    assert stopped.value.code == 2
    assert printed.err.count("\n") == 1, printed.err
    return printed.err


def test_inspect_says_what_a_file_is(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = succeed(capsys, "inspect", world / "pre.pth", "--verbose")
    for expected in ("masked-image modeling", "width 96", "shared relative", "32x32", "blocks.3.mlp.fc2.weight"):
        assert expected in printed
    described = json.loads(succeed(capsys, "inspect", world / "cls", "--json"))
    assert described["config"]["classes"] == ["cat", "dog"]


def test_show_load_names_every_fate(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = succeed(capsys, "show-load", world / "pre.pth", "--task", "classify", "--num-classes", 3, "--image-size", 48)
    for fate in ("resized", "dropped", "fresh", "kept"):
        assert f"\n{fate} " in printed
    assert "head.weight" in printed


def test_convert_there_and_back_is_the_identity(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "hf"
    table = succeed(capsys, "convert", world / "pre.pth", "--to", "huggingface", "--out", folder, "--dry-run")
    assert "beit.encoder.layer.0" in table
    assert not folder.exists()
    succeed(capsys, "convert", world / "pre.pth", "--to", "huggingface", "--out", folder)
    succeed(capsys, "convert", folder, "--to", "microsoft", "--out", tmp_path / "back.pth")
    before, after = (beitkit.load(path).state_dict() for path in (world / "pre.pth", tmp_path / "back.pth"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert "already there" in fail(capsys, "convert", world / "pre.pth", "--to", "huggingface", "--out", folder)


def test_export_writes_a_program_and_a_checkpoint(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = succeed(capsys, "export", "--model", world / "cls", "--format", "torch", "--out", tmp_path / "cls.pt2")
    assert "differ from the network's by at most" in printed
    images = torch.randn(5, 3, 32, 32)
    program = torch.export.load(tmp_path / "cls.pt2").module()
    with torch.no_grad():
        assert torch.allclose(program(images), beitkit.load(world / "cls")(images), atol=1e-5)
    succeed(capsys, "export", "--model", world / "cls", "--format", "timm", "--out", tmp_path / "timm")
    assert json.loads((tmp_path / "timm" / "config.json").read_text())["num_classes"] == 2
    assert ".onnx" in fail(capsys, "export", "--model", world / "cls", "--format", "onnx", "--out", tmp_path / "cls.bin")


def test_what_is_no_checkpoint_is_said_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "page.pth").write_text("<html>404 Not Found</html>")
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "page.pth", tmp_path / "empty", tmp_path / "missing.pth"):
        for verb in ("inspect", "show-load"):
            assert str(path) in fail(capsys, verb, path)
