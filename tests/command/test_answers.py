"""Every verb: with `--json` stdout is one JSON document, and the command that it names as the next one can be copied."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

import beitkit
from beitkit.cli import _from_recipe, main
from beitkit.command.following import command, kept, unused
from beitkit.command.parse import parse
from beitkit.runs.demo.run import answer as demo_answer
from beitkit.runs.plan.config import PlanRun
from beitkit.runs.tokenize.config import TokenizeRun
from beitkit.verbs import VERBS
from tests.docs.snippets import ROOT, tiny, world_in

COMMANDS = {
    "audit": "audit labeled",
    "index": "index photos --out photos.index",
    "pack": "pack labeled/train --labels --out shards",
    "tokenizer": "tokenizer photos --kind kmeans --out runs/made",
    "tokenize": "tokenize photos --tokenizer runs/tok --views 2 --seed 3 --out tokens",
    "pretrain": "pretrain photos --tokenizer runs/tok --out runs/again",
    "probe": "probe labeled --model runs/pre",
    "finetune": "finetune labeled --model runs/pre --out runs/fine",
    "segment": "segment scenes --model runs/pre --out runs/parts",
    "evaluate": "evaluate labeled --model runs/cls",
    "predict": "predict new --model runs/cls --out p.csv",
    "embed": "embed new --model runs/pre --out f.npy",
    "show": "show photos --model runs/pre --tokenizer runs/tok --only masks --out sheet.html",
    "inspect": "inspect runs/pre",
    "show-load": "show-load runs/pre --task classify --num-classes 3",
    "convert": "convert runs/pre --to microsoft --out pre.pth",
    "export": "export --model runs/pre --format huggingface --out 'a folder'",
    "ablate": "ablate photos labeled --tokenizer runs/tok --out runs/parts-of-it --variants full --seeds 0",
    "verdict": "verdict labeled --from scratch runs/pre --no-probe --out runs/best",
    "compare": "compare runs/cls runs/scratch",
    "recipes": "recipes pretrain-v2-base",
    "replay": "replay runs/pre --step 1",
    "plan": "plan --images 1000 --steps 5 --tflops 1 --share 0.5",
    "doctor": "doctor --seconds 0.01",
}
WITHOUT = {"embed", "inspect", "show", "show-load", "replay"}
"""Verbs after which no other has to come."""
PAGE = ROOT / "docs" / "guide" / "scripts.md"
KEYS = {
    row[1]: re.findall(r"`(\w+)`", row[2].partition(";")[0])
    for row in re.finditer(r"^\| `([a-z-]+)` \| (.*) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
}
"""Of each verb's answer, as the guide names them."""
WORDS = {
    word
    for row in re.findall(r"^\| (`[A-Z].*?) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    for word in re.findall(r"[A-Z]+", row)
}
"""What stands for what only the reader has."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return world_in(tmp_path_factory.mktemp("world"))


def succeed(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 0, arguments


def next_commands(printed: str) -> list[str]:
    """The commands behind `Next:` in what a verb printed, without what stands behind them in brackets."""
    return [re.sub(r" \([^()]*\)$", "", found) for found in re.findall(r"Next: (beitkit .*)$", printed, re.MULTILINE)]


def check_command(line: str, here: Path) -> None:
    """It is a command of ours that names what is there, or a word in capitals."""
    assert "..." not in line
    words = shlex.split(line)
    verb = words[1]
    for word in words[2:]:
        assert not word.isupper() or word in WORDS, line
    given = [word.lower() if word.isupper() else word for word in words[2:]]
    config = parse(VERBS[verb].config_class(), given, f"beitkit {verb}", _from_recipe(verb, given))
    for field in ("images", "labelled", "tokenizer", "path", "tokens"):
        named = getattr(config, field, None)
        if named is not None and str(named).upper() not in words:
            assert (here / named).exists(), line
    if verb in ("pretrain", "finetune", "segment"):
        assert not (here / config.out).exists()


def test_all_verbs_are_here() -> None:
    assert {*COMMANDS, "demo", "run"} == {*VERBS} == {*KEYS}  # tests/runs/pipeline has the latter
    assert all(hasattr(entry.config_class(), "json") for entry in VERBS.values())


@pytest.mark.parametrize("verb", COMMANDS)
def test_a_verb_answers_a_program_and_names_a_command(
    verb: str, world: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(world)
    succeed([*tiny(shlex.split(COMMANDS[verb])), "--json"])
    printed = capfd.readouterr()
    found = json.loads(printed.out)
    assert {*KEYS[verb]} <= found.keys()
    if verb == "ablate":
        assert "One seed has no spread" in printed.err
    commands = next_commands(printed.err)
    assert bool(commands) == (verb not in WITHOUT), printed.err
    for line in commands:
        check_command(line, world)


def test_the_demo_answers_as_the_verdict_does(world: Path) -> None:
    found = beitkit.verdict(
        world / "labeled", starts=("scratch", world / "runs/pre"), out=world / "runs/demo-verdict", seeds=(0,), labels=(4,),
        steps=1, batch_size=2, floors=False, probe=False, device="cpu", threads=1, workers=0,
    )  # fmt: skip
    config: Any = VERBS["demo"].config_class()()
    answer = demo_answer(config, found)
    assert {*KEYS["demo"]} <= answer.keys()
    assert answer["best"] == found.best
    assert answer["out"] == config.out


def test_without_out_predictions_are_a_line_each(
    world: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(world)
    succeed(tiny(["predict", "new", "--model", "runs/cls", "--json"]))
    printed = capfd.readouterr()
    assert len([json.loads(line) for line in printed.out.splitlines()]) == 8
    (line,) = next_commands(printed.err)
    assert "--out predictions.csv" in line
    check_command(line, world)


def test_a_plan_names_the_run_that_it_planned(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    options = ["--size", "tiny", "--image-size", "96", "--patch", "8", "--batch-size", "32", "--epochs", "7", "--recompute"]
    options += ["--accumulate", "4", "--views", "3", "--precision", "float32"]
    succeed(["plan", "--images", "1000", "--tflops", "1", "--share", "0.5", *options])
    (line,) = next_commands(capsys.readouterr().out)
    check_command(line, tmp_path)
    given = shlex.split(line.replace("TOKENIZER", "runs/tok"))[2:]
    run = parse(VERBS["pretrain"].config_class(), given, "beitkit pretrain")
    assert (run.size, run.image_size, run.patch, run.views, run.machine.precision) == ("tiny", 96, 8, 3, "float32")
    assert (run.train.batch_size, run.train.epochs, run.loop.accumulate, run.speed.recompute) == (32, 7, 4, True)


def test_a_command_is_quoted_and_keeps_what_is_not_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    line = command(
        "finetune", Path("my images"), model=Path("hf:/user/name"), lr=0.0015, labels=None, scratch=False, balanced=True
    )
    assert line == "beitkit finetune 'my images' --model hf://user/name --lr 0.0015 --balanced"
    words = "p --tokenizer t --out o --views 2 --view.crop-scale 0.5 1 --image-size 64 96 --view.flip 0"
    config = parse(TokenizeRun, words.split(), "beitkit tokenize")
    expected = {"--image-size": (64, 96), "--view.crop-scale": (0.5, 1.0), "--view.flip": 0.0}
    assert kept(config, "image_size", "patch", "view") == expected
    assert kept(PlanRun(images=3), "images") == {"--images": 3}
    Path("a.csv").touch()
    assert unused(Path("a.csv")) == Path("a-2.csv")
