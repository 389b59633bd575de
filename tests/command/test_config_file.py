"""A configuration file goes in as it comes out."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import beitkit
from beitkit.cli import main
from beitkit.command.config_file import arguments_of
from beitkit.command.options import options_of
from beitkit.command.parse import parse
from beitkit.configs.codec import to_json
from beitkit.errors import UserError
from beitkit.verbs import VERBS

SMALL = ["--size", "nano", "--image-size", "16", "--patch", "4", "--target", "pixels", "--steps", "2", "--batch-size", "4"]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(8):
        Image.new("RGB", (16, 16), (index * 30, 255 - index * 30, 100)).save(folder / f"{index}.png")
    return folder


def run(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 0


def config_of(path: Path, **changes: Any) -> dict[str, Any]:
    return json.loads((path / "config.json").read_text(encoding="utf-8")) | changes


def read(path: Path, verb: str, *given: str, inputs: int = 0) -> Any:
    """The config that a file alone makes."""
    kind = VERBS[verb].config_class()
    names = {argument for argument in given if argument.startswith("--")}
    return parse(kind, [*arguments_of(path, verb, kind, names, inputs), *given], f"beitkit {verb}")


def test_a_runs_config_repeats_it_on_the_command_line_and_in_python(images: Path, tmp_path: Path) -> None:
    first, second, third = tmp_path / "first", tmp_path / "second", tmp_path / "third"
    run(["pretrain", str(images), *SMALL, "--mask.kind", "random", "--optim.betas", "0.9", "0.98", "--out", str(first)])
    run(["pretrain", "--config", str(first / "config.json"), "--out", str(second)])
    beitkit.pretrain(**config_of(first, out=str(third)))
    for again in (second, third):
        assert config_of(again, out="") == config_of(first, out="")
        assert (again / "model.safetensors").read_bytes() == (first / "model.safetensors").read_bytes()


def test_options_win_over_the_file(images: Path, tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text(f'images = "{images}"\nsteps = 7\nsize = "nano"\ntarget = "pixels"\nout = "from-file"\n[mask]\nratio = 0.3\n')
    found = read(path, "pretrain", "--mask.ratio", "0.5", "--epochs", "2", "--out", "typed")
    assert (found.mask.ratio, found.train.epochs, found.train.steps, found.out) == (0.5, 2, None, Path("typed"))
    assert (found.size, found.images) == ("nano", images)
    assert read(path, "pretrain", "other", inputs=1).images == Path("other")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "c.toml",
            'model = "m"\nimages = "i"\nout = "o"\n"optim.betas" = [0.8, 0.9]\nscratch = true\nfreeze = ["attn", "mlp"]\n',
        ),
        ("c.yaml", "model: m\nimages: i\nout: o\noptim:\n  betas: [0.8, 0.9]\nscratch: true\nfreeze: [attn, mlp]\n"),
        ("c.json", '{"model":"m","images":"i","out":"o","optim":{"betas":[0.8,0.9]},"scratch":true,"freeze":["attn","mlp"]}'),
    ],
)
def test_every_format_says_the_same(name: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(text.replace("scratch = true\n", "").replace("scratch: true\n", "").replace('"scratch":true,', ""))
    found = read(path, "finetune")
    assert (found.model, found.images, found.out) == (Path("m"), Path("i"), Path("o"))
    assert (found.optim.betas, found.freeze) == ((0.8, 0.9), ("attn", "mlp"))
    assert found.scratch is False


@pytest.mark.parametrize("verb", [verb for verb, entry in VERBS.items() if entry.trains and verb != "demo"])
def test_what_a_verb_stores_is_read_again(verb: str, tmp_path: Path) -> None:
    kind = VERBS[verb].config_class()
    required = [option for option in options_of(kind) if option.is_required]
    arguments = [option.name.lower() for option in required if option.is_positional]
    arguments += [word for option in required if not option.is_positional for word in (option.name, "x")]
    arguments += {"finetune": ["--model", "m"], "segment": ["--model", "m"], "pretrain": ["--tokenizer", "t"]}.get(verb, [])
    config = parse(kind, arguments, verb)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"verb": verb, **to_json(config)}))
    assert read(path, verb) == config


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("c.json", '{"learning_rate": 1}', "has no option 'learning_rate', it is `lr` here"),
        ("c.json", '{"optim": {"beta": 1}}', "has no option 'optim.beta', did you mean `optim.betas`?"),
        ("c.json", '{"verb": "finetune"}', "is the config of a run of beitkit 'finetune', not of beitkit pretrain"),
        ("c.json", "[1]", "must hold options and their values, got [1]"),
        ("c.json", "{", "cannot be read as a configuration"),
        ("c.toml", "a = ", "cannot be read as a configuration"),
        ("c.yaml", "a: [", "cannot be read as a configuration"),
        ("c.yaml", "a: &x [1]\nb: *x\n", "it has an alias"),
        ("c.yaml", "[" * 3000, "cannot be read as a configuration"),
        ("c.json", '{"target": true}', "`target` is true; expected {tokens,pixels}"),
        ("c.json", '{"optim": {"betas": [{}, 1]}}', "`optim.betas` must be FLOAT FLOAT, got {}"),
        ("c.txt", "", "must be a configuration file that ends in .json, .toml, .yaml, .yml"),
        ("c.toml", "out = " + "[" * 3000, "nested too deeply"),
    ],
)
def test_a_wrong_file_is_one_line(name: str, text: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(UserError) as raised:
        read(path, "pretrain")
    assert str(path) in str(raised.value)
    assert expected in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_missing_file_and_a_missing_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--config", str(tmp_path / "none.json")], ["--config"], ["--config", "--out", "o"]):
        with pytest.raises(SystemExit) as stopped:
            main(["pretrain", *arguments])
        assert stopped.value.code == 2
        assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(SystemExit):
        main(["probe", "images", "--model", "m", "--config", "c.json"])
    assert "there is no option --config" in capsys.readouterr().err


@pytest.mark.parametrize(("part", "expected"), [({"ratoi": 1}, "unknown `mask.ratoi`"), ({"ratio": "x"}, "mask.ratio must be")])
def test_a_part_as_a_dict_is_checked_in_python(part: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        beitkit.pretrain("images", out="o", mask=part)
