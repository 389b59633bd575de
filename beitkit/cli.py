"""The command line: verbs to functions. The only place that prints for people and exits.

Nothing here imports torch until a verb runs, and nothing but the standard library until one is named, so the overview, `--help`
and mistyped options answer at once.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import os
import re
import shutil
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from beitkit.errors import Interrupted, NotSaved, NumericalError, ProcessLost, UserError
from beitkit.system import free_bytes, is_full
from beitkit.terminal import one_line
from beitkit.train.machine.launch import Rank, rank_from_environment
from beitkit.verbs import VERBS, option_names
from beitkit.version import __version__

Config = TypeVar("Config")

PURPOSE = "beitkit pre-trains a vision Transformer on your own images the BEiT way, fine-tunes it, and measures the gain."
HINT = "`beitkit VERB --help` shows a verb's options, `beitkit --version` the version. The same command again continues a run."
USAGE_ERROR = 2
BOX = re.compile(r"[╭╮╰╯│─]+|-{3,}")
WIDEST_HELP = 129
"""Characters: tyro sets help that is wider in columns, with the groups in an order of its own."""
KINDS = {"INT": "an integer", "FLOAT": "a number", "PATH": "a path", "STR": "a word"}
"""tyro's names of types, in words."""
FIELD = re.compile(r"`([a-z_.]+)(?:=['\"]?([^`'\"]*)['\"]?)?`")
"""A field of a config in a message, alone or with a value: `read.max_broken`, `precision='float32'`."""


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run one command and exit: 0 done, 1 the run failed, 2 a mistake in the command, 128 + n stopped by signal n."""
    arguments = sys.argv[1:] if arguments is None else arguments
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files need not be valid text
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_overview())
        sys.exit(0)
    if arguments[0] == "--version":
        print(__version__)
        sys.exit(0)
    verb = arguments[0]
    if verb not in VERBS:
        close = difflib.get_close_matches(verb, VERBS, n=1)
        meant = f", did you mean {close[0]!r}?" if close else ""
        _fail(f"there is no verb {verb!r}{meant}; the verbs are {', '.join(VERBS)}")
    rank, config = Rank(), None
    try:
        rank = rank_from_environment()
        if rank.world_size > 1 and not VERBS[verb].is_shared:
            shared = ", ".join(name for name, entry in VERBS.items() if entry.is_shared)
            raise UserError(
                f"beitkit {verb} runs in one process, but torchrun or srun started {rank.world_size}; start it without them "
                f"({shared} run in several)"
            )
        default = _from_recipe(verb, arguments[1:])
        config = parse(VERBS[verb].config_class(), arguments[1:], f"beitkit {verb}", default)
        VERBS[verb].function()(config)
        sys.stdout.flush()
    except UserError as error:
        _fail(with_options(str(error), VERBS[verb].config_class()), process=rank.rank)
    except (Interrupted, NotSaved, NumericalError, ProcessLost) as error:
        code = error.exit_code if isinstance(error, Interrupted) else 1
        if rank.rank:
            sys.exit(code)  # only rank 0 says why
        _fail(with_options(str(error), VERBS[verb].config_class()), code)
    except KeyboardInterrupt:
        _fail(f"stopped at once; {_kept(verb)}", code=128 + signal.SIGINT)
    except BrokenPipeError:
        # Whoever read our output is gone; the interpreter must not complain about that while it shuts down.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:
        reason, out = error.strerror or str(error), getattr(config, "out", None)
        if error.filename:
            reason += f": {error.filename}"
        elif is_full(error) and isinstance(out, Path):
            reason += f" on the disk of `out` {out} ({free_bytes(out) / 1e6:.3g} MB are free)"
        _fail(with_options(reason, VERBS[verb].config_class()), code=1)
    except RuntimeError as error:
        # torch's own class on GPUs, a plain RuntimeError on the CPU; torch may not be imported here
        if type(error).__name__ != "OutOfMemoryError" and "allocate memory" not in str(error):
            raise
        _fail("the device is out of memory; lower --batch-size and raise --loop.accumulate to match, in another --out", code=1)
    sys.exit(0)


def _overview() -> str:
    """What the program is for, and a line a verb."""
    commands = {f"beitkit {verb.ljust(9)} {entry.example}": entry.summary for verb, entry in VERBS.items()}
    width = max(map(len, commands))
    lines = [f"  {command.ljust(width)}  {summary}" for command, summary in commands.items()]
    return "\n".join([PURPOSE, "", *lines, "", HINT])


def parse(config: type[Config], arguments: list[str], program: str, default: Any = None) -> Config:
    """A command's config from the arguments that follow its name; tyro's boxed complaint becomes one line.

    The values of `default`, if there is one, take the place of the fields' defaults.

    Raises:
        UserError: options that there are not, or wrong values.
    """
    import tyro  # here, because the overview and a mistyped verb do without

    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint), _narrow():
            return tyro.cli(
                config,
                prog=program,
                args=arguments,
                default=default,
                config=(tyro.conf.FlagCreatePairsOff, tyro.conf.PositionalMetavarFromFieldName),
                registry=_help_registry(config) if {"-h", "--help"} & {*arguments} else None,
            )
    except SystemExit as stop:
        if stop.code != USAGE_ERROR:
            raise
    words = " ".join(BOX.sub(" ", complaint.getvalue()).split())
    raise UserError(f"{with_options(_one_line(words), config)}; see {program} --help")


def with_options(text: str, config: type[Any]) -> str:
    """A text with options where it names fields of a verb's config: --read.max-broken for `read.max_broken`.

    Messages and help are written for Python callers, who set fields. What is no field of this config stays as it is.
    """
    options = option_names(config)

    def typed(found: re.Match[str]) -> str:
        name, value = found[1], found[2]
        if name not in options:
            return found[0]
        return options[name] if value in (None, "True") else f"{options[name]} {value}"

    return FIELD.sub(typed, text)


def _help_registry(config: type[Any]) -> Any:
    """tyro's rules for dataclasses, whose help then names options where docstrings name fields."""
    from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

    registry = ConstructorRegistry()
    is_inner = False

    def translated(field: StructFieldSpec) -> StructFieldSpec:
        text = field.helptext() if callable(field.helptext) else field.helptext
        return replace(field, helptext=text and with_options(text, config))

    @registry.struct_rule
    def rule(info: StructTypeInfo) -> StructConstructorSpec | None:
        nonlocal is_inner
        if is_inner:
            return None  # asked by the line below: tyro's own rule is wanted
        is_inner = True
        spec = ConstructorRegistry.get_struct_spec(info)
        is_inner = False
        return replace(spec, fields=tuple(map(translated, spec.fields))) if isinstance(spec, StructConstructorSpec) else None

    return registry


def _from_recipe(verb: str, arguments: list[str]):
    """The config that the command's --recipe puts in place of the defaults, its paths missing; None without --recipe."""
    named = [arguments[place : place + 2] for place, argument in enumerate(arguments) if argument == "--recipe"]
    named += [argument.split("=", 1) for argument in arguments if argument.startswith("--recipe=")]
    if not VERBS[verb].takes_recipe or not named or len(named[0]) < 2:
        return None  # nothing to look up; what is wrong with the command is said where it is parsed
    if len(named) > 1:
        raise UserError(f"--recipe is given {len(named)} times; give one, and override its values by options")
    import tyro

    from beitkit.runs.recipes.table import recipe_named

    given = {argument.removeprefix("--").split("=", 1)[0].replace("-", "_") for argument in arguments}
    recipe = recipe_named(named[0][1], verb)
    config = recipe.config_without(given)  # a new one, nobody else's
    for path in recipe.paths:
        object.__setattr__(config, path, tyro.MISSING)  # tyro's mark of a required option; the config would not let it in
    return config


@contextlib.contextmanager
def _narrow() -> Iterator[None]:
    """Where the terminal is no wider than one column of help: what people change comes first, then the rest."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(min(shutil.get_terminal_size().columns, WIDEST_HELP))
    try:
        yield
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before


def _one_line(words: str) -> str:
    """The point of tyro's complaint, given as running text."""
    words = re.split(r"For full helptext|Argument helptext", words)[0].strip()
    titles = "Unrecognized options|Required options|Value error|Invalid choice|Missing argument|Parsing error"
    words = re.sub(rf"^({titles}) (?=\S)", "", words)
    if unknown := re.match(r"Unrecognized options: ([^,\s]+)", words):
        if not unknown[1].startswith("-"):
            return f"unexpected argument {unknown[1]!r}"
        meant = re.search(r"Perhaps you meant: (--[\w.-]+)", words)
        return f"there is no option {unknown[1]}" + (f", did you mean {meant[1]}?" if meant else "")
    if missing := re.match(r"Missing from [^:]+: (.*)\(required\)", words):
        names = [entry.split()[0] for entry in missing[1].split("(required)")]
        what = "option" if all(name[0] == "-" for name in names) else "argument"
        listed = ", ".join(name if name[0] == "-" else f"{name} (before the options)" for name in names)
        return f"missing required {what}{'s' if len(names) > 1 else ''} {listed}"
    if short := re.match(r"Missing value for argument '(.*?)'. Expected (\d+) values", words):
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
    return re.sub(r"^Error parsing \w+: ", "", words).rstrip(".")


def _wrong_choice(option: str, given: str, choices: list[str]) -> str:
    """What an option expects instead; tyro names the choices in no order."""
    close = difflib.get_close_matches(given, choices, n=1)
    meant = f"; did you mean {close[0]!r}?" if close else ""
    return f"{option} expects one of {', '.join(sorted(set(choices) - {'None'}))}, got {given!r}{meant}"


def _kept(verb: str) -> str:
    """What is left of a command that Ctrl-C ended where it had nothing to save."""
    if VERBS[verb].trains:
        return "the last saved step is kept, the same command continues"
    if verb == "tokenize":
        return "the tokens that were stored are kept, the same command continues"
    return "nothing more was written, the same command does it again"


def _fail(message: str, code: int = USAGE_ERROR, process: int = 0) -> NoReturn:
    print(f"beitkit{f' (process {process})' if process else ''}: {one_line(message)}", file=sys.stderr)
    sys.exit(code)
