"""The command line: verbs to functions. The only place that prints for people and exits.

Nothing here imports torch until a verb runs, and nothing but the standard library until one is named, so the overview, `--help`
and mistyped options answer at once.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import io
import os
import re
import signal
import sys
from typing import NoReturn

import beitkit
from beitkit.errors import Interrupted, NumericalError, UserError

VERBS = {
    "demo": "DemoRun",
    "tokenizer": "TokenizerRun",
    "pretrain": "PretrainRun",
    "finetune": "FinetuneRun",
    "probe": "ProbeRun",
    "evaluate": "EvaluateRun",
    "predict": "PredictRun",
    "embed": "EmbedRun",
    "inspect": "InspectRun",
    "show-load": "ShowLoadRun",
    "convert": "ConvertRun",
    "export": "ExportRun",
}
"""Name of a verb, and of its class in `beitkit.configs.verbs`."""
OVERVIEW = """\
beitkit pre-trains a vision Transformer on your own pictures the BEiT way, fine-tunes it, and shows what it bought.

  beitkit demo                                                    everything below on bundled pictures, in minutes
  beitkit tokenizer photos/ --out runs/tok                        train a discrete VAE on your pictures
  beitkit pretrain  photos/ --tokenizer runs/tok --out runs/pre   predict the visual tokens of masked patches
  beitkit probe     labelled/ --model runs/pre                    judge the frozen features of every block
  beitkit finetune  labelled/ --model runs/pre --out runs/cls     train a classifier from them
  beitkit evaluate  labelled/ --model runs/cls                    measure it
  beitkit predict   new/ --model runs/cls --out predictions.csv   name what new pictures show
  beitkit embed     new/ --model runs/pre --out features.npy      their features, of any block
  beitkit inspect   beit_base_patch16_224_pt22k.pth               what is this checkpoint? (show-load: every tensor)
  beitkit convert   beit.pth --to huggingface --out hf/           official, transformers, timm and own, both ways
  beitkit export    --model runs/cls --format onnx --out m.onnx   a program that runs without beitkit

`beitkit VERB --help` shows a verb's options, `beitkit --version` the version. The same command again continues a run."""
USAGE_ERROR = 2
BOX = re.compile(r"[╭╮╰╯│─]+")


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run one command and exit: 0 done, 1 the run failed, 2 a mistake in the command, 128 + n stopped by signal n."""
    arguments = sys.argv[1:] if arguments is None else arguments
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files need not be valid text
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(OVERVIEW)
        sys.exit(0)
    if arguments[0] == "--version":
        print(beitkit.__version__)
        sys.exit(0)
    verb = arguments[0]
    if verb not in VERBS:
        close = difflib.get_close_matches(verb, VERBS, n=1)
        meant = f", did you mean {close[0]!r}?" if close else ""
        _fail(f"there is no verb {verb!r}{meant}; the verbs are {', '.join(VERBS)}")
    try:
        config = _parse(verb, arguments[1:])
        importlib.import_module(f"beitkit.runs.{verb.replace('-', '_')}").run(config)
        sys.stdout.flush()
    except UserError as error:
        _fail(str(error))
    except Interrupted as error:
        _fail(str(error), code=error.exit_code)
    except NumericalError as error:
        _fail(str(error), code=1)
    except KeyboardInterrupt:
        _fail("stopped at once; the last saved step is kept, the same command continues", code=128 + signal.SIGINT)
    except BrokenPipeError:
        # Whoever read our output is gone; the interpreter must not complain about that while it shuts down.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:
        _fail(f"{error.strerror}: {error.filename}" if error.filename else str(error), code=1)
    except RuntimeError as error:
        # torch's own class on GPUs, a plain RuntimeError on the CPU; torch may not be imported here
        if type(error).__name__ != "OutOfMemoryError" and "allocate memory" not in str(error):
            raise
        _fail("the device is out of memory; lower --batch-size and raise --loop.accumulate to match, in another --out", code=1)
    sys.exit(0)


def _parse(verb: str, arguments: list[str]):
    """The verb's config from its options; tyro's boxed complaint becomes one line."""
    import tyro  # here, because the overview and a mistyped verb do without

    from beitkit.configs import verbs

    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(
                getattr(verbs, VERBS[verb]), prog=f"beitkit {verb}", args=arguments, config=(tyro.conf.FlagCreatePairsOff,)
            )
    except SystemExit as stop:
        if stop.code != USAGE_ERROR:
            raise
    words = " ".join(BOX.sub(" ", complaint.getvalue()).split())
    raise UserError(f"{_one_line(words)}; see beitkit {verb} --help")


def _one_line(words: str) -> str:
    """The point of tyro's complaint, given as running text."""
    words = re.split(r"For full helptext|Argument helptext", words)[0].strip()
    words = re.sub(r"^(Unrecognized options|Required options|Value error|Invalid choice|Parsing error) (?=\S)", "", words)
    if unknown := re.match(r"Unrecognized options: ([^,\s]+)", words):
        meant = re.search(r"Perhaps you meant: (--[\w.-]+)", words)
        return f"there is no option {unknown[1]}" + (f", did you mean {meant[1]}?" if meant else "")
    if words.startswith("Missing from"):
        names = re.findall(r"(--[\w.-]+|\bPATH\b)(?: [A-Z{][^ ]*)? [^()]*\(required\)", words)
        return f"this is required: {', '.join(names)}" if names else words
    if wrong := re.match(r"Error parsing (--[\w.-]+): no type matching (\S+) could be instantiated from \['(.*?)'\]", words):
        return f"{wrong[1]} takes {wrong[2]}, got {wrong[3]!r}"
    return re.sub(r"^Error parsing \w+: ", "", words).rstrip(".")


def _fail(message: str, code: int = USAGE_ERROR) -> NoReturn:
    print(f"beitkit: {message}", file=sys.stderr)
    sys.exit(code)
