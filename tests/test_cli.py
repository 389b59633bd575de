"""The command line: help without torch, one line for a mistake, exit codes."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import beitkit
from beitkit.cli import main
from beitkit.command.options import with_options
from beitkit.configs import train
from beitkit.configs.model import BackboneConfig, ClassifierConfig
from beitkit.configs.train import OptimConfig
from beitkit.errors import UserError
from beitkit.train.machine import together
from beitkit.verbs import VERBS


def fails(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a mistake prints."""
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    printed = capsys.readouterr()
    assert stopped.value.code == 2
    assert printed.out == ""
    assert printed.err.startswith("beitkit: ")
    assert printed.err.count("\n") == 1, printed.err
    return printed.err


QUICK = [
    [],
    ["--help"],
    ["--version"],
    ["--completion", "bash"],
    ["pretrian"],
    *([verb, "--help"] for verb in VERBS),
    *([verb, "photos", "--bach", "3"] for verb in VERBS),
    *([verb] for verb in VERBS if verb not in ("demo", "doctor", "recipes")),
    ["pretrain", "photos", "--tokenizer", "t", "--out", "o", "--mask.ratio", "2"],
    ["finetune", "labeled", "--out", "o", "--recipe", "none"],
    ["recipes"],
    ["recipes", "v2"],
    ["recipes", "--json"],
]
"""Commands that need no network: what is asked for is told, or what is wrong with the command."""


def succeeds(code: str, *arguments: Path) -> None:
    """Run a program in a process of its own, with nothing imported yet."""
    found = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr[-2000:]


def test_what_loads_a_network_does_not_import_the_compiler(tmp_path: Path) -> None:
    """Which takes seconds, and torch imports it where one would not think of it."""
    backbone = BackboneConfig.named("nano/16", image_size=32, final_norm=False)
    beitkit.save(beitkit.Classifier(ClassifierConfig(backbone=backbone, classes=("a", "b"))), tmp_path / "cls")
    Image.new("RGB", (32, 32)).save(tmp_path / "image.png")
    code = (
        "import sys, beitkit\n"
        "folder = sys.argv[1]\n"
        "beitkit.inspect(f'{folder}/cls')\n"
        "beitkit.show_load(f'{folder}/cls')\n"
        "beitkit.predict(f'{folder}/image.png', model=f'{folder}/cls', device='cpu', threads=1)\n"
        "assert 'torch._dynamo' not in sys.modules\n"
    )
    succeeds(code, tmp_path)


def test_no_verb_imports_what_few_runs_need_before_it_runs() -> None:
    """PyTorch's compiler and FSDP2, each most of a second."""
    code = (
        "import sys\nfrom beitkit.verbs import VERBS\n"
        "for verb, entry in VERBS.items():\n"
        "    entry.function()\n"
        "    assert not {'torch._dynamo', 'torch.distributed.fsdp'} & {*sys.modules}, verb\n"
    )
    succeeds(code)


def test_help_mistakes_and_recipes_import_no_torch_and_the_overview_nothing_at_all() -> None:
    code = (
        "import contextlib, io, sys\nfrom beitkit.cli import main\n"
        f"for arguments in {QUICK!r}:\n"
        "    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):\n"
        "        try:\n            main(arguments)\n"
        "        except SystemExit as stopped:\n            assert stopped.code in (0, 2)\n"
        "    assert 'torch' not in sys.modules, arguments\n"
        "    if arguments in ([], ['--help'], ['--version']):\n"
        "        assert not {'tyro', 'rich', 'numpy', 'PIL'} & {*sys.modules}, arguments\n"
    )
    succeeds(code)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_that_names_its_options(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([verb, "--help-all"])
    assert stopped.value.code == 0
    without = ("evaluate", "inspect", "show-load", "recipes", "plan", "replay", "doctor")
    assert "--out" in capsys.readouterr().out or verb in without


def test_the_overview_fits_the_terminal_and_has_examples_where_there_is_room(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for columns, has_examples in ((80, False), (140, True)):
        monkeypatch.setenv("COLUMNS", str(columns))
        with pytest.raises(SystemExit):
            main([])
        lines = capsys.readouterr().out.splitlines()
        assert max(map(len, lines)) <= columns
        assert all(any(line.startswith(f"  {'beitkit ' * has_examples}{verb} ") for line in lines) for verb in VERBS)
        assert ("photos/ --out runs/tok" in "".join(lines)) == has_examples


def test_no_color_is_obeyed(tmp_path: Path) -> None:
    if not hasattr(os, "openpty"):
        pytest.skip("no terminals here")
    for arguments in (["--help"], ["pretrain", "--help-all"], ["recipes"], ["pretrain", "x", "--bach"]):
        ours, theirs = os.openpty()
        environment = os.environ | {"NO_COLOR": "1", "TERM": "xterm-256color", "COLUMNS": "80"}
        done = subprocess.Popen(
            [sys.executable, "-m", "beitkit", *arguments], stdin=theirs, stdout=theirs, stderr=theirs, env=environment
        )
        os.close(theirs)
        shown = b""
        with suppress(OSError):  # how a terminal whose other side is closed ends
            while part := os.read(ours, 65536):
                shown += part
        done.wait()
        os.close(ours)
        assert b"beitkit" in shown
        assert b"\x1b[" not in shown


def test_version_and_overview(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    for arguments, expected in ((["--version"], beitkit.__version__), ([], "beitkit demo"), (["-h"], "beitkit pretrain")):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 0
        assert expected in capsys.readouterr().out


def test_a_misspelled_option_names_the_right_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--batch-size" in fails(["pretrain", "photos", "--tokenizer", "t", "--out", "o", "--bach-size", "3"], capsys)
    assert "--mask.ratio" in fails(["pretrain", "photos", "--tokenizer", "t", "--out", "o", "--mask.ration", ".4"], capsys)


def test_a_misspelled_verb_names_the_right_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean 'pretrain'" in fails(["pretrian"], capsys)


def test_a_missing_option_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    line = fails(["probe"], capsys)
    assert "--model" in line
    assert "IMAGES (before the options)" in line
    assert "missing required option --out" in fails(["pretrain", "photos"], capsys)
    assert "missing required option --tokenizer" in fails(["pretrain", "photos", "--out", "o"], capsys)


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--batch-size", "0", "--batch-size must be at least 1, got 0"),
        ("--steps", "1.5", "--steps"),
        ("--mask.kind", "blok", "block"),
        ("--mask.ratio", "1.2", "--mask.ratio must lie in (0, 1), got 1.2"),
        (
            "--size",
            "bas",
            "--size expects one of base, giant, huge, large, micro, nano, small, tiny, got 'bas'; did you mean 'base'?",
        ),
        ("--lr", "fast", "--lr expects a number, got 'fast'"),
        ("--seed", "first", "--seed expects an integer, got 'first'"),
        ("--mask.ratio", "half", "--mask.ratio expects a number, got 'half'"),
        ("--cls-branch", "last", "--cls-branch expects an integer, got 'last'"),
        ("--optim.clip", "-1", "--optim.clip must be positive"),
    ],
)
def test_an_impossible_value_says_what_is_possible(
    option: str, value: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert expected in fails(["pretrain", "photos", "--tokenizer", "t", "--out", "o", option, value], capsys)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["finetune", "labeled", "--out", "o", "--recipe"], "--recipe needs a value"),
        (["finetune", "labeled", "--out", "o", "--optim.betas", "0.9"], "--optim.betas needs 2 values"),
        (["finetune", "labeled", "more", "--out", "o"], "unexpected argument 'more'"),
        (["probe", "labeled", "--model", "m", "--blocks", "last"], "--blocks expects an integer, got 'last'"),
        (
            ["embed", "new", "--model", "m", "--out", "o.npy", "--block", "last"],
            "--block expects an integer or all, got 'last'",
        ),
        (["finetune", "--scratch"], "missing required arguments IMAGES (before the options), --out"),
    ],
)
def test_what_is_missing_or_too_much_is_said_in_words(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert f"beitkit: {expected}; see beitkit {arguments[0]} --help\n" == fails(arguments, capsys)


@pytest.mark.parametrize("columns", ["80", "200"])
def test_help_begins_with_what_people_change(
    columns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    with pytest.raises(SystemExit):
        main(["finetune", "--help-all"])
    printed = capsys.readouterr().out
    assert os.environ["COLUMNS"] == columns
    assert max(map(len, printed.splitlines())) <= 129
    groups = ("positional arguments", "-h, --help", "network options", "augment options")
    positions = [printed.index(words) for words in groups]
    assert positions == sorted(positions)


def test_help_names_options_where_docstrings_name_fields(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["pretrain", "--help-all"])
    printed = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "Optimizer steps, instead of --epochs." in printed
    assert "at a batch of --optim.lr-batch images" in printed
    assert "Needed for --target tokens." in printed
    assert "(needs --recover all)" in printed
    assert "instead of `epochs`." in Path(train.__file__).read_text(encoding="utf-8")


@pytest.mark.parametrize("verb", ["predict", "embed"])
def test_inputs_of_a_verb_have_no_empty_default(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([verb, "--help-all"])
    printed = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "mixed. (one or more)" in printed
    assert "(default: )" not in printed


def test_wrong_paths_say_what_was_expected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("no image")
    out = tmp_path / "out"
    assert "does not exist" in fails(["tokenizer", str(tmp_path / "none"), "--out", str(out)], capsys)
    assert "holds no images" in fails(["tokenizer", str(empty), "--out", str(out)], capsys)
    assert "holds no images" in fails(["tokenizer", str(tmp_path / "texts"), "--out", str(out)], capsys)
    assert str(tmp_path / "none") in fails(["probe", str(empty), "--model", str(tmp_path / "none")], capsys)
    assert not out.exists()


def test_a_folder_with_other_things_is_left_alone(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "precious"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    line = fails(["tokenizer", str(images), "--out", str(out), "--image-size", "16"], capsys)
    assert "not empty" in line
    assert [path.name for path in out.iterdir()] == ["thesis.txt"]


def test_another_command_in_a_run_folder_is_refused(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    command = ["tokenizer", str(images), "--out", str(out), "--image-size", "16", "--batch-size", "4"]
    command += ["--dvae.vocabulary", "8", "--steps", "1"]
    with pytest.raises(SystemExit) as stopped:
        main(command)
    assert stopped.value.code == 0
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    capsys.readouterr()
    line = fails([*command[:-1], "2"], capsys)
    assert "another command" in line
    assert "train.steps was 1 and is now 2" in line
    assert "choose another --out" in line
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == before
    with pytest.raises(SystemExit) as stopped:
        main(command)  # the same command again
    assert stopped.value.code == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_says_how_to_continue(images: Path, tmp_path: Path, number: int, code: int) -> None:
    out = tmp_path / "run"
    command = [
        sys.executable, "-m", "beitkit", "tokenizer", str(images), "--out", str(out), "--image-size", "16",
        "--steps", "1000000", "--batch-size", "2", "--dvae.vocabulary", "8", "--loop.log-every", "1", "--threads", "1",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment)
    journal = out / "journal.jsonl"
    deadline = time.monotonic() + 120
    while not (journal.exists() and journal.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(number)
    _, printed = process.communicate(timeout=120)
    assert process.returncode == code, printed
    assert "Traceback" not in printed
    last = f"everything is saved, the same command continues: beitkit {' '.join(command[3:])}"
    assert printed.splitlines()[-1].endswith(last)  # to be pasted
    assert list((out / "checkpoints").glob("step-*.json"))


@pytest.mark.parametrize(
    ("field", "option", "value"),
    [
        ("batch_size", "--batch-size", 64),  # of a flat part
        ("image_size", "--image-size", 15),  # of the verb itself
        ("optim.warmup_steps", "--optim.warmup-steps", 9),  # of a part that is given as a config
    ],
)
def test_python_reads_the_field_and_the_command_line_the_option(
    field: str, option: str, value: int, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small: dict[str, Any] = {"image_size": 16, "batch_size": 4, "steps": 1}
    part, _, name = field.partition(".")
    given: dict[str, Any] = {part: replace(OptimConfig(), **{name: value}) if name else value}
    with pytest.raises(UserError) as raised:
        beitkit.tokenizer(images, out=tmp_path / "run", **{**small, **given})
    assert f"`{field}`" in str(raised.value)
    options = {"--image-size": 16, "--batch-size": 4, "--steps": 1} | {option: value}
    line = fails(["tokenizer", str(images), "--out", str(tmp_path / "run"), *map(str, chain(*options.items()))], capsys)
    assert line == f"beitkit: {str(raised.value).replace(f'`{field}`', option)}\n"


@pytest.mark.parametrize(
    ("verb", "message", "typed"),
    [
        ("finetune", "repair them, or raise `read.max_broken`", "repair them, or raise --read.max-broken"),
        ("finetune", "lower `lr`, or use `precision='float32'`", "lower --lr, or use --precision float32"),
        ("finetune", "give `model`, or `scratch=True`", "give --model, or --scratch"),
        ("finetune", "was made for another `images`", "was made for another IMAGES"),
        ("pretrain", "was made for another `view`; `view.flip=0.5`", "was made for another --view; --view.flip 0.5"),
        (
            "demo",
            "raise `workers` or `read.max_broken` in `load_tokenizer`",
            "raise --workers or `read.max_broken` in `load_tokenizer`",
        ),
        ("verdict", "give `floors=False`, or `probe`", "give --no-floors, or --no-probe"),
        ("show-load", "`num_classes` of `path`", "--num-classes of PATH"),
    ],
)
def test_fields_of_the_verb_become_its_options(verb: str, message: str, typed: str) -> None:
    assert with_options(message, VERBS[verb].config_class()) == typed


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small images."""
    folder = tmp_path_factory.mktemp("images")
    for index in range(12):
        Image.new("RGB", (20, 24), (index * 20, 255 - index * 20, 100)).save(folder / f"{index}.png")
    return folder


def test_a_verb_of_one_process_is_refused_in_several(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    launched = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
    for name, value in launched.items():
        monkeypatch.setenv(name, value)
    line = fails(["probe", "images", "--model", "run"], capsys)
    assert "beitkit probe runs in one process, but torchrun or srun started 2" in line
    monkeypatch.delenv("RANK")
    assert "the environment variable RANK is not set" in fails(["pretrain", "images"], capsys)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--devices", "0"], "--devices expects a number of processes from 1 on, or all for one on each GPU, got '0'"),
        (["--devices=-2"], "from 1 on, or all for one on each GPU, got '-2'"),
        (["--devices=0,1"], "got '0,1'"),
        (["--devices"], "--devices needs a number of processes, or all for one on each GPU"),
        (["--devices", "2", "--devices=3"], "--devices needs a number"),
        (["--gpus", "2"], "there is no option --gpus, it is --devices here"),
        (["--nproc-per-node=2"], "there is no option --nproc-per-node, it is --devices here"),
        (["--devices", "2", "--stesp", "3"], "there is no option --stesp, did you mean --steps?"),
        (["--devices", "2", "--device", "cpu", "--loop.accumulate", "3"], "--loop.accumulate 3 cannot be shared evenly by 2"),
    ],
)
def test_mistakes_with_devices_are_told_before_anything_starts(
    arguments: list[str], expected: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(together, "run_together", lambda *_: pytest.fail("processes were started"))
    assert expected in fails(["pretrain", "photos", "--target", "pixels", "--out", "o", *arguments], capsys)


def test_devices_are_for_verbs_that_several_processes_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = fails(["probe", "labeled", "--model", "m", "--devices", "2"], capsys)
    assert "beitkit probe runs in one process; --devices is for tokenizer, pretrain, finetune, segment" in line
    assert "there is no option --gpus" not in fails(["plan", "--images", "9", "--gpus", "many"], capsys)  # plan has it
    monkeypatch.setenv("WORLD_SIZE", "1")
    line = fails(["pretrain", "photos", "--target", "pixels", "--out", "o", "--devices", "2"], capsys)
    assert "--devices starts the processes itself, and torchrun or srun has done so already" in line
    with pytest.raises(UserError, match="by the command line alone, with --devices, or by torchrun"):
        beitkit.pretrain("photos", target="pixels", out="o", devices=2)


def in_two(images: Path, out: Path) -> list[str]:
    command = [sys.executable, "-m", "beitkit", "pretrain", str(images), "--target", "pixels", "--size", "nano", "--patch", "8"]
    command += ["--image-size", "32", "--batch-size", "2", "--steps", "60", "--loop.log-every", "1", "--threads", "1"]
    command += ["--device", "cpu", "--precision", "float32", "--workers", "0", "--loop.accumulate", "2"]
    return [*command, "--out", str(out), "--devices", "2"]


def test_two_processes_without_a_launcher_end_where_one_does(images: Path, tmp_path: Path) -> None:
    """Ctrl-C in the middle, then the same command again."""
    two = tmp_path / "two"
    started = subprocess.Popen(in_two(images, two), stderr=subprocess.PIPE, text=True)
    assert started.stderr is not None
    said = []
    for line in started.stderr:
        said.append(line)
        if line.startswith("step 2/"):
            started.send_signal(signal.SIGINT)
    assert started.wait() == 128 + signal.SIGINT, said
    started.stderr.close()
    assert said[-1].startswith("beitkit: stopped after step ")
    assert "everything is saved, the same command continues: beitkit pretrain" in said[-1]
    assert said[-1].endswith("--devices 2\n")
    done = subprocess.run(in_two(images, two), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "continuing after step" in done.stderr
    assert "devices" not in (two / "config.json").read_text()
    with pytest.raises(SystemExit):
        main(in_two(images, tmp_path / "one")[3:-2])
    states = [load_file(folder / "model.safetensors") for folder in (two, tmp_path / "one")]
    for name, tensor in states[0].items():
        torch.testing.assert_close(tensor, states[1][name], rtol=1e-4, atol=1e-5, msg=name)


def test_a_mistake_of_several_processes_is_said_once(tmp_path: Path) -> None:
    done = subprocess.run(in_two(tmp_path / "missing", tmp_path / "out"), capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    lines = done.stderr.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("beitkit: ")
    assert "missing does not exist" in lines[0]
