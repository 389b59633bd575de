"""Build the documentation as a site: `python tools/site/build.py [FOLDER]` (`make docs`).

The pages are the Markdown files of the repository, as they are. A copy of them gets what is in no file: the navigation,
a page for each verb (its options), the Python interface (from docstrings), a list of decisions. New pages in docs/guide and
docs/decisions are found by themselves. A link that leads nowhere ends the build.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import beitkit
from beitkit.cli import main
from beitkit.verbs import VERBS, Verb

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "benchmarks/README.md", "docs/**/*.md")
FILES = ("docs/**/*.png", "docs/**/*.svg", "docs/**/*.jpg", "LICENSE", "CITATION.cff", "examples/**/*")
"""What pages show or link to."""
HELP_WIDTH = "100"
BOX = re.compile(r"^[╭│╰─]+ ?|[ ─]*[╮│╯]$")

FIRST = ("docs/tutorial", "docs/concepts/tokens", "docs/concepts/objective", "docs/expectations")
GUIDE_FIRST = ("run", "data", "audit", "tokenizer", "continue", "finetune", "evaluate", "verdict", "predict", "show", "segment")
PROJECT = ("docs/method", "docs/results", "docs/performance", "docs/robustness", "docs/interop", "docs/architecture")
ABOUT = ("docs/decisions/index", "benchmarks/README", "CONTRIBUTING", "SECURITY", "CHANGELOG")


def build(out: Path) -> None:
    """The site in a folder, which is made anew.

    Raises:
        CalledProcessError: if Sphinx warns of anything, such as a link that leads nowhere.
    """
    with tempfile.TemporaryDirectory() as made:
        source = Path(made)
        write_source(source)
        shutil.rmtree(out, ignore_errors=True)
        command = [
            sys.executable,
            "-m",
            "sphinx",
            "-q",
            "-W",
            "--keep-going",
            "-c",
            str(Path(__file__).parent),
            "-d",
            f"{made}/.doctrees",
        ]
        subprocess.run([*command, str(source), str(out)], check=True)
    shutil.copyfile(out / "README.html", out / "index.html")
    (out / ".buildinfo").unlink(missing_ok=True)


def write_source(source: Path) -> None:
    """Copies of the pages, and those that are made from the code."""
    for pattern in (*PAGES, *FILES):
        for path in ROOT.glob(pattern):
            target = source / path.relative_to(ROOT)
            if path.is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
    for path in source.glob("docs/**/*.md"):
        path.write_text(path.read_text(encoding="utf-8").replace("(decisions/)", "(decisions/index.md)"), encoding="utf-8")
    for verb in VERBS:
        write(source / "docs" / "verbs" / f"{verb}.md", verb_page(verb))
    write(source / "docs" / "api.md", api_page())
    decisions = sorted(path.stem for path in (ROOT / "docs" / "decisions").glob("*.md"))
    why = "Choices between ways that both work: what was tried, with numbers, and what would change our mind.\n\n"
    write(source / "docs" / "decisions" / "index.md", "# Decisions\n\n" + why + contents(decisions, is_hidden=False))
    front = source / "README.md"
    write(front, front.read_text(encoding="utf-8") + navigation(source))


def write(path: Path, text: str) -> None:
    """A page; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def navigation(source: Path) -> str:
    """The tables of contents of all pages, by subject."""
    there = [name for name in FIRST if (source / f"{name}.md").is_file()]
    found = sorted(path.stem for path in source.glob("docs/guide/*.md"))
    guide = [name for name in GUIDE_FIRST if name in found] + [name for name in found if name not in GUIDE_FIRST]
    parts = {
        "Start": there,
        "Guide": [f"docs/guide/{name}" for name in guide],
        "Reference": ["docs/api", *(f"docs/verbs/{verb}" for verb in VERBS)],
        "Facts": list(PROJECT),
        "Project": list(ABOUT),
    }
    return "\n" + "\n".join(contents(names, caption) for caption, names in parts.items())


def contents(names: list[str], caption: str | None = None, is_hidden: bool = True) -> str:
    """A table of contents as MyST writes it."""
    options = (f":caption: {caption}\n" if caption else "") + (":hidden:\n" if is_hidden else "") + ":maxdepth: 1\n"
    return f"```{{toctree}}\n{options}\n" + "\n".join(names) + "\n```\n"


def verb_page(verb: str) -> str:
    """A verb: what it does, an example, the pages that use it, and all its options as `--help-all` prints them."""
    entry = VERBS[verb]
    pages = [
        page for page in sorted((ROOT / "docs" / "guide").glob("*.md")) if f"beitkit {verb}" in page.read_text(encoding="utf-8")
    ]
    used = ", ".join(f"[{page.stem}](../guide/{page.name})" for page in pages)
    lines = [f"# beitkit {verb}", "", f"```bash\nbeitkit {verb} {entry.example}\n```".replace(" \n", "\n"), ""]
    if used:
        lines += [f"In the guide: {used}.", ""]
    if entry.trains:
        lines += ["It saves as it goes; the same command again continues it.", ""]
    if "-" not in verb:
        lines += [f"In Python: `beitkit.{verb}(...)`, with the options as arguments ([Python](../api.md#verbs)).", ""]
    return "\n".join([*lines, *help_sections(verb)])


def help_sections(verb: str) -> list[str]:
    """The help of a verb as sections, without the boxes that it has on a terminal."""
    printed = io.StringIO()
    before = {key: os.environ.get(key) for key in ("COLUMNS", "NO_COLOR")}
    os.environ |= {"COLUMNS": HELP_WIDTH, "NO_COLOR": "1"}
    try:
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            main([verb, "--help-all"])
    finally:
        for key, value in before.items():
            os.environ.pop(key) if value is None else os.environ.__setitem__(key, value)
    lines: list[str] = []
    is_open = False
    for line in printed.getvalue().splitlines():
        if title := re.match(r"^╭─ (.+?) ─*╮$", line):
            lines += ["```", ""] if is_open else []
            lines += [f"## {title[1].capitalize()}", "", "```text"]
            is_open = True
        elif not is_open:
            lines += ["```text"] if line else []
            lines += [line] if line else []
            is_open = bool(line)
        elif not re.fullmatch(r"[╰│ ]*─+[╯│ ]*", line):
            lines.append(BOX.sub("", line).rstrip())
    return [*lines, "```", ""]


def api_page() -> str:
    """What `import beitkit` offers, from its docstrings."""
    lines = [
        "# Python",
        "",
        "What `import beitkit` offers. It is made from the docstrings; `help(beitkit.load)` shows the same.",
        "",
    ]
    lines += [
        "## Verbs",
        "",
        "Every verb of the command line is a function; its options are the arguments, and a mistake raises `beitkit.UserError`.",
        "",
    ]
    for verb in VERBS:
        if "-" not in verb:
            function = Verb(verb)
            lines += [f"- [`beitkit.{verb}`](verbs/{verb}.md): {first_line(function)}"]
    lines += ["", "## Functions and classes", ""]
    for name in sorted(beitkit.__all__, key=str.lower):
        lines += api_entry(name, getattr(beitkit, name))
    return "\n".join(lines) + "\n"


def api_entry(name: str, thing: Any) -> list[str]:
    """A function, or a class with its public methods."""
    lines = [f"### {name}", "", f"```python\n{called(f'beitkit.{name}', thing)}\n```", "", *as_markdown(thing), ""]
    if not inspect.isclass(thing):
        return lines
    for key, method in vars(thing).items():
        if not key.startswith("_") and inspect.isfunction(method) and inspect.getdoc(method):
            lines += [f"#### {name}.{key}", "", f"```python\n{called(key, method)}\n```", "", *as_markdown(method), ""]
    return lines


def called(name: str, thing: Any) -> str:
    """A name with its parameters; long ones are a line each."""
    try:
        parameters = [str(parameter) for key, parameter in inspect.signature(thing).parameters.items() if key != "self"]
    except (TypeError, ValueError):
        return name
    keyword = next(
        (place for place, key in enumerate(inspect.signature(thing).parameters.values()) if key.kind == key.KEYWORD_ONLY), None
    )
    if keyword is not None:
        parameters.insert(keyword - ("self" in inspect.signature(thing).parameters), "*")
    line = f"{name}({', '.join(parameters)})"
    return line if len(line) < 100 else f"{name}(\n" + "".join(f"    {parameter},\n" for parameter in parameters) + ")"


def as_markdown(thing: Any) -> list[str]:
    """A docstring as Markdown: its lists of arguments and errors become lists."""
    lines, is_list = [], False
    for line in (inspect.getdoc(thing) or "").splitlines():
        if re.fullmatch(r"(Args|Raises|Returns|Yields):", line):
            lines += [f"**{'Arguments' if line == 'Args:' else line[:-1]}**", ""]
            is_list = True
        elif is_list and (entry := re.match(r"^    (\w+): (.*)$", line)):
            lines.append(f"- `{entry[1]}`: {entry[2]}")
        elif is_list and line.startswith("    "):
            lines.append(f"  {line.strip()}")
        else:
            is_list = is_list and not line
            lines.append(line)
    return lines


def first_line(thing: Any) -> str:
    """The first line of a docstring."""
    return (thing.__doc__ or "").strip().splitlines()[0]


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "build/docs")
    build(folder)
    sys.stdout.write(f"written: {folder / 'index.html'}\n")
