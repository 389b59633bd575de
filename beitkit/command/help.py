"""The help of a verb: one screen of what people change (`--help`), and everything (`--help-all`)."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import tyro

from beitkit.command.beside import TEXTS
from beitkit.command.options import REQUIRED, Option, options_of, with_options, written
from beitkit.command.parse import SETTINGS

WIDEST = 129
"""Characters: tyro sets help that is wider in columns, with the groups in an order of its own."""
NAMES = 30
"""Characters: longer names of options have a line of their own."""
LONG_NUMBER = re.compile(r"\d+\.\d{5,}")


def usage(verb: str, config: type[Any]) -> str:
    """How a command looks: inputs and required options first."""
    needed = [option for option in options_of(config) if option.is_positional or option.is_required]
    words = [_in_usage(option) for option in sorted(needed, key=lambda option: not option.is_positional)]
    return " ".join([f"beitkit {verb}", *words, "[options]"])


def _in_usage(option: Option) -> str:
    if not option.is_positional:
        return f"{option.name} {option.metavar}".strip()
    return option.name if option.is_required else f"[{option.name}]"


def short_help(verb: str, config: type[Any], common: Sequence[str], example: str, beside: Sequence[str]) -> str:
    """One screen: what the verb does, its inputs, what it needs, and the options that people change.

    Args:
        verb: its name.
        config: the class that holds its options.
        common: fields of the options that are shown besides those that have to be given.
        example: arguments that show its use.
        beside: options of the command line alone that work (`command.beside`).
    """
    options = options_of(config)
    by_field = {option.field: option for option in options}
    first = [option for option in options if option.is_positional or option.is_required]
    shown = sorted(first, key=lambda option: not option.is_positional) + [by_field[field] for field in (*common, "json")]
    width = min(shutil.get_terminal_size().columns, WIDEST)
    purpose = with_options(" ".join((config.__doc__ or "").split("\n\n")[0].split()), config)
    lines = [
        *textwrap.wrap(f"usage: {usage(verb, config)}", width, subsequent_indent="    "),
        "",
        *textwrap.wrap(purpose, width),
        *textwrap.wrap(f"example: beitkit {verb} {example}".rstrip(), width, subsequent_indent="    ", break_on_hyphens=False),
        "",
    ]
    for option in dict.fromkeys(shown):
        lines += _entry(
            option.name if option.is_positional else f"{option.name} {option.metavar}".strip(), _first_words(option), width
        )
    for name in beside:
        metavar, text = TEXTS[name]
        lines += _entry(f"{name} {metavar}", text, width)
    hidden = len(options) - len({*shown})
    if hidden:
        lines += ["", f"{hidden} more: beitkit {verb} --help-all"]
    return "\n".join([*lines, ""])


def _entry(name: str, text: str, width: int) -> list[str]:
    """A name and what can be said of it on one line; a long name has a line of its own."""
    indent = " " * (NAMES + 2)
    said = textwrap.shorten(text, width - len(indent), placeholder=" ...", break_on_hyphens=False)
    if len(name) >= NAMES - 1:
        shown = name if len(name) <= width - 2 else f"{name[: width - 5]}..."
        return [f"  {shown}", f"{indent}{said}"]
    return [f"  {name}".ljust(len(indent)) + said]


def _first_words(option: Option) -> str:
    """Its default where that says something, and the first sentence of its text."""
    text = re.split(r"(?<=[a-z0-9)])[.;] ", option.text, maxsplit=1)[0].rstrip(".")
    told = option.default not in (REQUIRED, None, False, True) and option.default != () and not option.choices
    return f"{text} ({written(option.default)})" if told else text


def full_help(verb: str, config: type[Any], default: Any = None) -> str:
    """Every option with its whole text, by groups, as tyro sets it; plain where NO_COLOR asks for it or nobody looks."""
    printed = io.TextIOWrapper(io.BytesIO(), encoding=sys.stdout.encoding, errors="backslashreplace", newline="")  # no terminal
    is_plain = bool(os.environ.get("NO_COLOR")) or not sys.stdout.isatty()
    with _narrow(), contextlib.suppress(SystemExit), contextlib.redirect_stdout(printed if is_plain else sys.stdout):
        tyro.cli(config, prog=f"beitkit {verb}", args=["--help"], default=default, config=SETTINGS, registry=_registry(config))
    printed.seek(0)
    return LONG_NUMBER.sub(lambda number: written(float(number[0])), printed.read())


@contextlib.contextmanager
def _narrow() -> Iterator[None]:
    """Where the terminal is no wider than one column of help: what people change comes first, then the rest."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(min(shutil.get_terminal_size().columns, WIDEST))
    try:
        yield
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before


def _registry(config: type[Any]) -> Any:
    """tyro's rules for dataclasses, whose help then names options where docstrings name fields, and has the verb's own texts."""
    from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructTypeInfo

    registry = ConstructorRegistry()
    is_inner = False
    texts = {(option.owner, option.path.rpartition(".")[2]): option.text for option in options_of(config)}

    @registry.struct_rule
    def rule(info: StructTypeInfo) -> StructConstructorSpec | None:
        nonlocal is_inner
        if is_inner:
            return None  # asked by the line below: tyro's own rule is wanted
        is_inner = True
        spec = ConstructorRegistry.get_struct_spec(info)
        is_inner = False
        if not isinstance(spec, StructConstructorSpec):
            return None
        fields = [replace(field, helptext=texts.get((info.type, field.name), field.helptext)) for field in spec.fields]
        return replace(spec, fields=tuple(fields))

    return registry
