"""One screen of help, everything, Python's help, and completion."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tyro

import beitkit
from beitkit.cli import main
from beitkit.command.beside import TEXTS
from beitkit.command.options import docstrings, options_of, written
from beitkit.verbs import VERBS

LINES = 42


def printed(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("verb", VERBS)
def test_help_is_one_screen_and_begins_with_what_is_needed(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = printed([verb, "--help"], capsys).splitlines()
    assert len(lines) <= LINES
    assert max(map(len, lines)) <= 80
    needed = [option.name for option in options_of(VERBS[verb].config_class()) if option.is_required]
    usage = " ".join(lines[: lines.index("")])
    assert all(name in usage for name in needed)
    shown = [line.split()[0] for line in lines if line.startswith("  ") and line[2] != " "]
    assert {*shown[: len(needed)]} == {*needed} or not needed
    rest = len(options_of(VERBS[verb].config_class())) - len([name for name in shown if name not in TEXTS])
    assert (f"{rest} more: beitkit {verb} --help-all" in lines) == (rest > 0)


@pytest.mark.parametrize("verb", VERBS)
def test_the_options_are_those_that_tyro_makes(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    full = printed([verb, "--help-all"], capsys)
    here = {option.name for option in options_of(VERBS[verb].config_class()) if not option.is_positional}
    there = {*re.findall(r"^(?:[│|] |  )(--[a-z][\w.-]+)", full, re.MULTILINE)}
    assert there == here


def test_texts_are_written_for_the_verb(capsys: pytest.CaptureFixture[str]) -> None:
    full = " ".join(printed(["pretrain", "--help-all"], capsys).replace("│", " ").split())
    assert "None takes 300, or 30 where --init goes on from a network" in full
    assert "fine-tuning, is chosen" not in full
    assert "(default: 0.0816)" in full
    for entry in VERBS.values():
        config = entry.config_class()
        assert {*getattr(config, "TEXTS", {})} <= {option.field for option in options_of(config)}


def test_pythons_help_has_the_options() -> None:
    assert beitkit.finetune.__name__ == "finetune"
    text = beitkit.finetune.__doc__
    assert "lr: Peak learning rate at a batch of" in text
    assert "    optim: AdamW and its schedule" in text
    shown = subprocess.run(
        [sys.executable, "-c", "import beitkit; help(beitkit.show_load)"], capture_output=True, text=True, check=True
    )
    assert "num_classes:" in shown.stdout


def test_docstrings_are_those_that_tyro_finds(capsys: pytest.CaptureFixture[str]) -> None:
    config: Any = VERBS["finetune"].config_class()
    with pytest.raises(SystemExit):
        tyro.cli(config, args=["--help"])
    words = " ".join(re.sub(r"[│|]", " ", capsys.readouterr().out).split())
    for field, told in docstrings(config).items():
        is_shown = field != "augmentation"  # which the command line cannot give
        assert (told.split(". ")[0][:40] in words) == is_shown, field


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (16 / 196, "0.0816"),
        (1.0, "1"),
        ((0.08, 1.0), "0.08 1"),
        (1e-8, "1e-08"),
        (2048, "2048"),
        (2.5e7, "2.5e+07"),
        ("auto", "auto"),
    ],
)
def test_values_are_written_as_people_do(value: Any, expected: str) -> None:
    assert written(value) == expected


def completed(words: list[str], tmp_path: Path) -> list[str]:
    """What bash offers for a line whose last word is being typed."""
    (tmp_path / "c.bash").write_text(
        subprocess.run(
            [sys.executable, "-m", "beitkit", "--completion", "bash"], capture_output=True, text=True, check=True
        ).stdout
    )
    line = " ".join(f"'{word}'" for word in words)
    script = f"source c.bash; COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _beitkit; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    found = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert found.stderr == ""
    return found.stdout.split()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["beitkit", "pret"], ["pretrain"]),
        (["beitkit", "pretrain", "--mask.k"], ["--mask.kind"]),
        (["beitkit", "pretrain", "--mask.kind", "of"], ["official"]),
        (["beitkit", "pretrain", "--conf"], ["--config"]),
        (["beitkit", "pretrain", "--devices"], ["--devices"]),
        (["beitkit", "probe", "--devi"], ["--device"]),
        (["beitkit", "finetune", "--scr"], ["--scratch"]),
        (["beitkit", "finetune", "pho"], []),
    ],
)
def test_bash_completes(words: list[str], expected: list[str], tmp_path: Path) -> None:
    assert completed(words, tmp_path) == expected


def test_other_shells_and_no_shell(capsys: pytest.CaptureFixture[str]) -> None:
    assert "bashcompinit" in printed(["--completion", "zsh"], capsys)
    assert "complete -c beitkit -n '__fish_seen_subcommand_from pretrain' -l mask.ratio -r" in printed(
        ["--completion=fish"], capsys
    )
    with pytest.raises(SystemExit) as stopped:
        main(["--completion", "tcsh"])
    assert stopped.value.code == 2
    assert "bash, zsh, fish" in capsys.readouterr().err
