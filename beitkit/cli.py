"""The command line: verbs to functions. The only place that prints for people and exits.

Nothing here imports torch until a verb runs, and nothing but the standard library until one is named, so the overview, `--help`
and mistyped options answer at once.
"""

from __future__ import annotations

import atexit
import difflib
import gc
import io
import os
import shlex
import shutil
import signal
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from beitkit.command.beside import CONFIG, DEVICES, Devices, devices_taken_out, taken_out
from beitkit.errors import CONTINUES, Interrupted, NotSaved, NumericalError, ProcessLost, UserError
from beitkit.system import free_bytes, is_full
from beitkit.terminal import one_line
from beitkit.train.machine.launch import LOST, Rank, failing_mark, joined_devices, rank_from_environment
from beitkit.verbs import VERBS
from beitkit.version import __version__

PURPOSE = "beitkit pre-trains a vision Transformer on your own images the BEiT way, fine-tunes it, and measures the gain."
HINTS = (
    "`beitkit VERB --help` shows a verb's options and an example, `beitkit --version` the version.",
    "The same command again continues a run.",
)
WIDE = 200
"""Columns where nobody says how many there are."""
USAGE_ERROR = 2


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run one command and exit: 0 done, 1 the run failed, 2 a mistake in the command, 128 + n stopped by signal n."""
    is_whole_program = arguments is None
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
    if arguments[0].split("=")[0] == "--completion":
        print(_completion(arguments))
        sys.exit(0)
    verb = arguments[0]
    if verb not in VERBS:
        close = difflib.get_close_matches(verb, VERBS, n=1)
        meant = f", did you mean {close[0]!r}?" if close else ""
        _fail(f"there is no verb {verb!r}{meant}; the verbs are {', '.join(VERBS)}")
    rank, config = Rank(), None
    is_started = joined_devices()  # by a command with --devices, as one of its processes
    try:
        if {"-h", "--help", "--help-all"} & {*arguments[1:]}:
            print(_help(verb, arguments[1:]), end="")
            sys.exit(0)
        rank = rank_from_environment()
        shared = ", ".join(name for name, entry in VERBS.items() if entry.is_shared)
        if rank.world_size > 1 and not VERBS[verb].is_shared:
            raise UserError(
                f"beitkit {verb} runs in one process, but torchrun or srun started {rank.world_size}; start it without them "
                f"({shared} run in several)"
            )
        if not VERBS[verb].is_shared and taken_out(arguments, DEVICES, "")[1] is not None:
            raise UserError(f"beitkit {verb} runs in one process; {DEVICES} is for {shared}")
        own, devices = devices_taken_out(arguments[1:]) if VERBS[verb].is_shared else (arguments[1:], None)
        if devices is not None and not is_started and (rank.world_size > 1 or "WORLD_SIZE" in os.environ):
            raise UserError(
                f"{DEVICES} starts the processes itself, and torchrun or srun has done so already; leave out one of them"
            )
        from beitkit.command.parse import parse  # here, because the overview and a mistyped verb do without

        given = _with_config_file(verb, own)
        config = parse(VERBS[verb].config_class(), given, f"beitkit {verb}", _from_recipe(verb, given))
        if devices is not None and not is_started:
            _together(devices, verb, config, arguments)
        function = _loaded(verb) if is_whole_program else VERBS[verb].function()
        found = function(config)
        sys.stdout.flush()
        if getattr(found, "is_broken", False):  # what was asked for was done, and says that something else is wrong
            sys.exit(1)
    except UserError as error:
        _fail(*_lines(error, verb), process=rank.rank)
    except (Interrupted, NotSaved, NumericalError, ProcessLost) as error:
        code = error.exit_code if isinstance(error, Interrupted) else 1
        if is_started and isinstance(error, ProcessLost):
            sys.exit(LOST)  # the command that started it knows more
        if rank.rank:
            sys.exit(code)  # only rank 0 says why
        lines = _lines(error, verb)
        if lines[-1].endswith(CONTINUES):
            launched = " (started by torchrun or srun as before)" if rank.world_size > 1 and not is_started else ""
            lines[-1] += f"{launched}: {shlex.join(['beitkit', *arguments])}"
        _fail(*lines, code=code)
    except KeyboardInterrupt:
        _fail(f"stopped at once; {_kept(verb)}", code=128 + signal.SIGINT, process=rank.rank)
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
        if is_full(error) and VERBS[verb].trains:
            reason += f"; make room, and {CONTINUES}: {shlex.join(['beitkit', *arguments])}"
        _fail(*_lines(OSError(reason), verb), code=1, process=rank.rank)
    except RuntimeError as error:
        # torch's own class on GPUs, a plain RuntimeError on the CPU; torch may not be imported here
        if type(error).__name__ != "OutOfMemoryError" and "allocate memory" not in str(error):
            raise
        line = "the device is out of memory; lower --batch-size and raise --loop.accumulate to match, in another --out"
        _fail(line, code=1, process=rank.rank)
    sys.exit(0)


def _loaded(verb: str) -> Callable[[Any], object]:
    """The function of a verb, without the half second in which Python looks for garbage among the classes that imports make.

    None of them is garbage: looking for it while they come takes 0.1 s with torch, and once more at the end 0.4 s. Whatever is
    there when the process ends is left to the system.
    """
    gc.disable()
    try:
        function = VERBS[verb].function()
    finally:
        gc.enable()
    gc.freeze()
    atexit.register(gc.freeze)
    return function


def _together(devices: Devices, verb: str, config: Any, arguments: list[str]) -> None:
    """Run the command as several processes and exit as they do; returns if one is enough."""
    from beitkit.train.machine.together import count_of, run_together

    count = count_of(devices, config.machine)
    config.loop.shared_by(count)  # a mistake is told before they start, once
    if count == 1:
        return
    ended = run_together([sys.executable, "-m", "beitkit", *arguments], count)
    lines = [*ended.lines]
    if ended.is_lost:
        lines[-1] += f"; the last saved step is kept, {CONTINUES}: {shlex.join(['beitkit', *arguments])}"
    if lines:
        _fail(*lines, code=ended.code)
    sys.exit(ended.code)


def _overview() -> str:
    """What the program is for, and a line a verb; without examples where the terminal is too narrow for them."""
    columns = shutil.get_terminal_size((WIDE, 24)).columns
    commands = {f"beitkit {verb.ljust(9)} {entry.example}": entry.summary for verb, entry in VERBS.items()}
    if max(map(len, commands)) + max(map(len, commands.values())) + 4 > columns:
        commands = {verb: entry.summary for verb, entry in VERBS.items()}
    width = max(map(len, commands))
    lines = [f"  {command.ljust(width)}  {summary}" for command, summary in commands.items()]
    return "\n".join(
        [
            *textwrap.wrap(PURPOSE, columns, break_on_hyphens=False),
            "",
            *lines,
            "",
            *(textwrap.fill(hint, columns) for hint in HINTS),
        ]
    )


def _help(verb: str, arguments: list[str]) -> str:
    """One screen of what people change; with --help-all every option."""
    from beitkit.command.help import full_help, short_help

    entry = VERBS[verb]
    if "--help-all" in arguments or any(argument.split("=", 1)[0] == "--recipe" for argument in arguments):
        return full_help(verb, entry.config_class(), _from_recipe(verb, arguments))
    return short_help(verb, entry.config_class(), entry.common.split(), entry.example, entry.beside)


def _completion(arguments: list[str]) -> str:
    """The script that makes a shell complete commands."""
    from beitkit.command.completion import SHELLS, script
    from beitkit.command.options import options_of

    shell = arguments[0].partition("=")[2] or next(iter(arguments[1:]), "")
    if shell not in SHELLS:
        _fail(f"--completion is for one of {', '.join(SHELLS)}, got {shell!r}")
    verbs = {verb: options_of(entry.config_class()) for verb, entry in VERBS.items()}
    beside = {verb: entry.beside for verb, entry in VERBS.items()}
    return script(shell, verbs, {verb: entry.summary for verb, entry in VERBS.items()}, beside)


def _with_config_file(verb: str, arguments: list[str]) -> list[str]:
    """The arguments, those that the file of `--config` stands for in front; without one they stay as they are."""
    if CONFIG not in VERBS[verb].beside:
        return arguments  # of a verb without it the parser says so
    rest, file = taken_out(arguments, CONFIG, "one file, such as runs/pre/config.json")
    if file is None:
        return arguments
    from beitkit.command.config_file import arguments_of

    given = {argument.split("=", 1)[0] for argument in rest if argument.startswith("--")}
    inputs = next((number for number, argument in enumerate(rest) if argument.startswith("--")), len(rest))
    return [*arguments_of(Path(file), verb, VERBS[verb].config_class(), given, inputs), *rest]


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


def _kept(verb: str) -> str:
    """What is left of a command that Ctrl-C ended where it had nothing to save."""
    if VERBS[verb].trains:
        return "the last saved step is kept, the same command continues"
    if verb == "tokenize":
        return "the tokens that were stored are kept, the same command continues"
    return "nothing more was written, the same command does it again"


def _lines(error: Exception, verb: str) -> list[str]:
    """What an error says, with options where it names fields."""
    from beitkit.command.options import with_options
    from beitkit.command.parse import Mistakes

    lines = error.lines if isinstance(error, Mistakes) else [str(error)]
    return [with_options(line, VERBS[verb].config_class()) for line in lines]


def _fail(*lines: str, code: int = USAGE_ERROR, process: int = 0) -> NoReturn:
    for line in lines:
        print(f"{failing_mark(process)}{one_line(line)}", file=sys.stderr)
    sys.exit(code)
