"""Every command and Python block of README and docs is run, with tiny settings, or at least parsed."""

from __future__ import annotations

import re
import shutil
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import beitkit
from beitkit.cli import _from_recipe
from beitkit.command.options import option_names
from beitkit.command.parse import parse
from beitkit.errors import UserError
from beitkit.verbs import VERBS
from tests.docs.snippets import (
    INLINE,
    ROOT,
    Snippet,
    commands,
    outputs,
    pages,
    remove,
    run,
    run_python,
    snippets,
    tiny,
    verb_and_arguments,
    world_in,
)

SNIPPETS = [snippet for page in pages() for snippet in snippets(page)]
TOO_LONG = {"demo", "run"}
"""Verbs that choose their lengths themselves; tests/runs/pipeline and `make demo` run them."""
RUN = [snippet for snippet in SNIPPETS if snippet.reason is None]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return world_in(tmp_path_factory.mktemp("world"))


@pytest.fixture
def here(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the world, in which the test is."""
    shutil.copytree(world, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.mark.parametrize("snippet", [found for found in RUN if found.language == "bash"], ids=str)
def test_commands_run(snippet: Snippet, here: Path) -> None:
    for words in commands(snippet.text):
        arguments = verb_and_arguments(words)
        if arguments is None:
            check_other(words)
            continue
        if arguments[0] in TOO_LONG:
            parsed(arguments)
            continue
        for out in outputs(arguments):
            remove(here / out)
        run(*tiny(arguments))


@pytest.mark.parametrize("snippet", [found for found in RUN if found.language == "python"], ids=str)
def test_python_runs(snippet: Snippet, here: Path) -> None:
    for library in re.findall(r"^(?:import|from) (\w+)", snippet.text, re.MULTILINE):
        pytest.importorskip(library)
    for out in re.findall(r'out="([^"]+)"', snippet.text):
        remove(here / out)
    batch = torch.rand(2, 3, 32, 32).numpy()
    run_python(snippet.text, {"beitkit": beitkit, "torch": torch, "images": torch.rand(2, 3, 32, 32), "batch": batch})


@pytest.mark.parametrize("snippet", [found for found in SNIPPETS if found.reason is not None], ids=str)
def test_what_is_not_run_is_parsed(snippet: Snippet) -> None:
    if snippet.language == "python":
        compile(snippet.text, str(snippet), "exec")
        return
    for words in commands(snippet.text):
        arguments = verb_and_arguments(words)
        check_other(words) if arguments is None else parsed(arguments)


def parsed(arguments: list[str]) -> None:
    """Whether a command's options and values are right; what is on the disk does not matter."""
    parse(VERBS[arguments[0]].config_class(), arguments[1:], "beitkit", _from_recipe(arguments[0], arguments[1:]))


def check_other(words: list[str]) -> None:
    """A command of another program, as far as it is known here."""
    if words[0] == "make":
        made = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        assert set(words[1:]) <= made
    elif words[0] == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        for named in re.findall(r"\[([\w,-]+)\]", " ".join(words)):
            assert set(named.split(",")) <= set(extras)
    elif words[:2] == ["python", "-m"]:
        assert find_spec(words[2]) is not None
    else:
        assert words[0] in OTHERS, f"what is {words[0]}?"


OTHERS = {"docker", "sbatch", "git", "source", "cd", "tensorboard", "trtexec"}
"""Programs that the pages use and a test has not."""


def test_there_is_something_to_run() -> None:
    assert len([snippet for snippet in RUN if snippet.language == "bash"]) > 15
    assert len([snippet for snippet in RUN if snippet.language == "python"]) > 2


def test_options_in_running_text_are_there() -> None:
    """Commands in a sentence name no option that their verb has not."""
    wrong = []
    for page in pages():
        for command in INLINE.findall(page.read_text(encoding="utf-8")):
            verb, *words = command.split()[1:]
            if verb not in VERBS:
                wrong += [] if verb in ("VERB",) or not verb.isalpha() else [f"{page.name}: {command}"]
                continue
            known = all_options(verb)
            for word in words:
                option = word.partition("=")[0].rstrip(".,;)")
                if option.startswith("--") and option not in known:
                    wrong.append(f"{page.name}: {command}")
    assert wrong == []


def all_options(verb: str) -> set[str]:
    return {*option_names(VERBS[verb].config_class()).values(), "--help", "--help-all", *VERBS[verb].beside}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("beitkit plan --images 5  # few\n", [["beitkit", "plan", "--images", "5"]]),
        ("beitkit plan \\\n  --images 5\n\n# nothing\n", [["beitkit", "plan", "--images", "5"]]),
        (
            "for i in 1 2; do beitkit plan --images $i; done  # each\n",
            [["beitkit", "plan", "--images", "1"], ["beitkit", "plan", "--images", "2"]],
        ),
    ],
)
def test_commands_of_a_block(text: str, expected: list[list[str]]) -> None:
    assert commands(text) == expected


@pytest.mark.parametrize(
    "text", ["beitkit plan --imags 5", "beitkit probe labeled/", "beitkit pretrain photos/ --out x --recipe nothing"]
)
def test_a_wrong_command_is_found(text: str) -> None:
    with pytest.raises(UserError):
        parsed(commands(text)[0][1:])


def test_a_page_with_a_mark(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "<!-- not run: long -->\n```bash\nbeitkit demo\n```\n\ntext\n\n```\nbeitkit recipes\n```\n\n"
        "```json\n{}\n```\n\n    beitkit plan\n"
    )
    found = snippets(page, tmp_path)
    assert [(snippet.language, snippet.text.strip(), snippet.reason) for snippet in found] == [
        ("bash", "beitkit demo", "long"),
        ("bash", "beitkit recipes", None),
        ("bash", "beitkit plan", None),
    ]
    assert [snippet.line for snippet in found] == [2, 8, 15]
