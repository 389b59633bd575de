"""A verb's config from the arguments that follow its name; all that is wrong with them is said, one line each."""

from __future__ import annotations

import contextlib
import difflib
import io
import re
from typing import Any, TypeVar

import tyro

from beitkit.command.habits import meant
from beitkit.command.options import option_names, with_options
from beitkit.errors import UserError

Config = TypeVar("Config")
SETTINGS = (tyro.conf.FlagCreatePairsOff, tyro.conf.PositionalMetavarFromFieldName)
"""How tyro makes options of a config: `--scratch` without `--no-scratch`, inputs named as their fields."""
USAGE_ERROR = 2
OPTION = re.compile(r"--[a-z][\w.-]*\w")
TITLES = re.compile(r"^(Unrecognized options|Required options|Value error|Invalid choice|Missing argument|Parsing error) (?=\S)")
BOX = re.compile(r"[╭╮╰╯│─]+|-{3,}")
KINDS = {"INT": "an integer", "FLOAT": "a number", "PATH": "a path", "STR": "a word"}
"""tyro's names of types, in words."""
MOST_MISTAKES = 12
ANYTHING = "x"
"""In place of what is missing, to find what else is wrong."""


class Mistakes(UserError):  # noqa: N818 - what they are, and there are several
    """Several things that are wrong with one command."""

    def __init__(self, lines: list[str]) -> None:
        """`lines` are sentences that each stand alone."""
        super().__init__("; ".join(lines))
        self.lines = lines


def parse(config: type[Config], arguments: list[str], program: str, default: Any = None) -> Config:
    """A command's config from the arguments that follow its name.

    The values of `default`, if there is one, take the place of the fields' defaults. What is wrong is left out to find what else
    is.

    Raises:
        Mistakes: options that there are not, or wrong values; each once.
    """
    left, lines = arguments, list[str]()
    left_out: set[str] = set()
    has_stand_ins = False
    while len(lines) < MOST_MISTAKES:
        try:
            found = _parsed(config, left, default)
        except _Wrong as wrong:
            line, usage, is_config = with_options(str(wrong), config), f"; see {program} --help", wrong.is_config
        except UserError as error:
            line, usage, is_config = with_options(str(error), config), "", True
        else:
            if not lines:
                return found
            break
        if left_out & {*OPTION.findall(line)} or (is_config and lines and (has_stand_ins or not _culprit(line, left))):
            break  # it may be wrong because of what was left out or stands in
        lines.append(line + usage)
        if missing := _missing(line):
            left = [*(ANYTHING for name in missing if not name.startswith("--")), *left]
            left += [word for name in missing if name.startswith("--") for word in (name, ANYTHING)]
            has_stand_ins = True
        elif wrong_one := _culprit(line, left):
            left = _without(left, wrong_one)
            left_out.add(wrong_one)
        else:
            break
    raise Mistakes(lines)


class _Wrong(Exception):  # noqa: N818 - it never leaves this file
    """tyro's complaint as one line."""

    def __init__(self, line: str, *, is_config: bool) -> None:
        """`is_config` is whether the config itself complained, of values that go with each other."""
        super().__init__(line)
        self.is_config = is_config


def _parsed(config: type[Config], arguments: list[str], default: Any) -> Config:
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(config, prog="-", args=arguments, default=default, config=SETTINGS)
    except SystemExit as stop:
        if stop.code != USAGE_ERROR:
            raise
    words = " ".join(BOX.sub(" ", complaint.getvalue()).split())
    words = TITLES.sub("", re.split(r"For full helptext|Argument helptext", words)[0].strip())
    line = _usage_line(words, config)
    if line is not None:
        raise _Wrong(line, is_config=False)
    raise _Wrong(re.sub(r"^Error parsing \w+: ", "", words).rstrip("."), is_config=True)


def _missing(line: str) -> list[str]:
    """The options and inputs that a line says are missing."""
    found = re.match(r"missing required (?:options?|arguments?) (.*)", line)
    return [entry.split()[0] for entry in found[1].split(", ")] if found else []


def _culprit(line: str, arguments: list[str]) -> str | None:
    """The argument that a line is about: the first option that the command has, or the input; None where there is none."""
    typed = {argument.split("=", 1)[0] for argument in arguments if argument.startswith("--")}
    if extra := re.match(r"unexpected argument '(.*?)'", line):
        return extra[1] if extra[1] in arguments else None
    return next((name for name in OPTION.findall(line) if name in typed), None)


def _without(arguments: list[str], wrong: str) -> list[str]:
    """The arguments without an input, or without an option and its values."""
    left, is_its_value = list[str](), False
    if not wrong.startswith("--"):
        place = arguments.index(wrong)
        return arguments[:place] + arguments[place + 1 :]
    for argument in arguments:
        if argument.startswith("--"):
            is_its_value = argument.split("=", 1)[0] == wrong
        if not is_its_value:
            left.append(argument)
    return left


def _usage_line(words: str, config: type[Any]) -> str | None:
    """The point of tyro's own complaint, given as running text; None for what a config complains of."""
    if unknown := re.match(r"Unrecognized options: ([^,\s]+)", words):
        if not unknown[1].startswith("-"):
            return f"unexpected argument {unknown[1]!r}"
        hint = meant(unknown[1].split("=", 1)[0], option_names(config))
        return f"there is no option {unknown[1]}" + (f", {with_options(hint, config)}" if hint else "")
    if missing := re.match(r"Missing from [^:]+: (.*)\(required\)", words):
        names = [entry.split()[0] for entry in missing[1].split("(required)")]
        what = "option" if all(name[0] == "-" for name in names) else "argument"
        listed = ", ".join(name if name[0] == "-" else f"{name} (before the options)" for name in names)
        return f"missing required {what}{'s' if len(names) > 1 else ''} {listed}"
    if short := re.match(r"Missing value for argument '(.*?)'. Expected (\d+) values", words):
        if not short[1].startswith("-"):
            return f"missing required argument {short[1].upper()} (before the options)"
        return f"{short[1]} needs {'a value' if short[2] == '1' else f'{short[2]} values'}"
    if wrong := re.match(r"invalid choice '(.*?)' for argument '(.*?)'\. Expected one of \((.*)\)", words):
        return _wrong_choice(wrong[2], wrong[1], re.findall(r"'(.*?)'", wrong[3]))
    if wrong := re.match(r"Error parsing (--[\w.-]+): no type matching (.*?) could be instantiated from \[(.*?)\]", words):
        given = " ".join(re.findall(r"'(.*?)'", wrong[3]))
        if "{INT INT}" in wrong[2]:
            return f"{wrong[1]} expects a whole number, or two (the height, then the width), got {given!r}"
        kinds = [str(kind) for kind in re.findall(r"[A-Za-z]\w*", wrong[2]) if kind != "None"]
        return f"{wrong[1]} expects {' or '.join(dict.fromkeys(KINDS.get(kind, kind) for kind in kinds))}, got {given!r}"
    if wrong := re.match(
        r"Error parsing (--[\w.-]+): (?:invalid literal for (int)|could not convert string to float).*?'(.*)'", words
    ):
        return f"{wrong[1]} expects {KINDS['INT' if wrong[2] else 'FLOAT']}, got {wrong[3]!r}"
    return None


def _wrong_choice(option: str, given: str, choices: list[str]) -> str:
    """What an option expects instead; tyro names the choices in no order."""
    close = difflib.get_close_matches(given, choices, n=1)
    near = f"; did you mean {close[0]!r}?" if close else ""
    return f"{option} expects one of {', '.join(sorted(set(choices) - {'None'}))}, got {given!r}{near}"
