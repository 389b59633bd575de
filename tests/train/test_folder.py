"""A run folder continues the same command and refuses all else."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from beitkit.configs.train import LoopConfig, MachineConfig, TrainConfig
from beitkit.errors import UserError
from beitkit.runs.tokenizer.config import TokenizerRun
from beitkit.train.folder import RunFolder, _git_revision


@pytest.fixture
def config(tmp_path: Path) -> TokenizerRun:
    return TokenizerRun(Path("images"), out=tmp_path / "run")


def test_a_new_folder_gets_the_whole_configuration_and_the_environment(config: TokenizerRun) -> None:
    folder = RunFolder(config.out, "tokenizer", config)
    written = json.loads((config.out / "config.json").read_text())
    assert written["verb"] == "tokenizer"
    assert written["train"]["batch_size"] == config.train.batch_size
    assert written["dvae"]["vocabulary"] == config.dvae.vocabulary
    assert {"torch", "python", "command", "git"} <= set(json.loads((config.out / "environment.json").read_text()))
    assert not folder.is_finished()


def test_a_folder_of_runs_continues_too(config: TokenizerRun) -> None:
    """The demo keeps images and whole runs below its folder, and no journal of its own."""
    RunFolder(config.out, "demo", config)
    (config.out / "pretrain").mkdir()
    RunFolder(config.out, "demo", config)
    with pytest.raises(UserError, match="train.lr was"):
        RunFolder(config.out, "demo", replace(config, train=TrainConfig(lr=1.0)))


def test_what_does_not_change_the_result_may_change(config: TokenizerRun) -> None:
    RunFolder(config.out, "tokenizer", config)
    other = replace(config, machine=MachineConfig(threads=3, workers=2), loop=LoopConfig(log_every=1, save_every=7))
    RunFolder(config.out, "tokenizer", other)


def test_a_start_that_came_to_nothing_binds_nobody_to_its_images(config: TokenizerRun) -> None:
    """As where images could not be read and were repaired; a run that has begun is bound to them."""
    folder = RunFolder(config.out, "tokenizer", config)
    folder.pin(pictures="before")
    folder.note_broken(Path("a.jpg"), "damaged")
    (config.out / "checkpoints").mkdir()
    again = RunFolder(config.out, "tokenizer", config)
    again.pin(pictures="after")
    assert json.loads((config.out / "inputs.json").read_text()) == {"pictures": "after"}
    assert again.broken_facts() == []
    again.note_broken(Path("b.jpg"), "damaged")
    (config.out / "checkpoints" / "step-00000001.json").touch()
    begun = RunFolder(config.out, "tokenizer", config)
    with pytest.raises(UserError, match="the images changed since the run in"):
        begun.pin(pictures="others")
    assert begun.broken_facts() != []


def test_another_configuration_is_refused_and_nothing_is_overwritten(config: TokenizerRun) -> None:
    folder = RunFolder(config.out, "tokenizer", config)
    RunFolder(config.out, "tokenizer", replace(config, train=TrainConfig(steps=7)))  # nothing has begun: no harm done
    RunFolder(config.out, "tokenizer", config)
    folder.journal.touch()
    before = (config.out / "config.json").read_bytes()
    other = replace(config, train=TrainConfig(lr=1.0, seed=9))
    with pytest.raises(
        UserError, match=r"train.lr was 0.005 and is now 1.0; train.seed was 0 and is now 9.*choose another `out`"
    ):
        RunFolder(config.out, "tokenizer", other)
    with pytest.raises(UserError, match="holds a run of 'tokenizer', not of 'probe'; choose another `out`"):
        RunFolder(config.out, "probe", config)
    assert (config.out / "config.json").read_bytes() == before


def test_a_folder_that_is_no_run_is_left_alone(config: TokenizerRun) -> None:
    config.out.mkdir()
    (config.out / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        RunFolder(config.out, "tokenizer", config)
    with pytest.raises(UserError, match="is a file"):
        RunFolder(config.out / "notes.txt", "tokenizer", config)
    with pytest.raises(UserError, match="cannot be written"):
        RunFolder(config.out / "notes.txt" / "below", "tokenizer", config)


def test_a_damaged_configuration_of_a_run_is_said(config: TokenizerRun) -> None:
    RunFolder(config.out, "tokenizer", config).journal.touch()
    (config.out / "config.json").write_text("{broken")
    with pytest.raises(UserError, match="not valid JSON"):
        RunFolder(config.out, "tokenizer", config)


def test_a_folder_that_another_process_writes_to_is_refused(config: TokenizerRun) -> None:
    RunFolder(config.out, "tokenizer", config)
    program = (
        f"import fcntl, sys\nlock = open({str(config.out / '.lock')!r}, 'w')\n"
        "fcntl.lockf(lock, fcntl.LOCK_EX)\nprint(1, flush=True)\nsys.stdin.read()"
    )
    holder = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdin is not None
    # This process holds the lock from above until its descriptor is closed; POSIX locks go with the process's descriptors.
    (config.out / ".lock").open().close()
    assert holder.stdout.readline()
    with pytest.raises(UserError, match="another process is writing"):
        RunFolder(config.out, "tokenizer", config)
    holder.stdin.close()
    holder.wait()
    RunFolder(config.out, "tokenizer", config)
    holder.stdout.close()


def test_a_broken_file_is_listed_once(config: TokenizerRun) -> None:
    folder = RunFolder(config.out, "tokenizer", config)
    for name in ("a.png", "b.png", "a.png"):
        folder.note_broken(Path(name), "truncated")
    listed = [json.loads(line)["path"] for line in folder.broken_list.read_text().splitlines()]
    assert listed == ["a.png", "b.png"]


def test_inputs_that_changed_are_refused(config: TokenizerRun) -> None:
    RunFolder(config.out, "tokenizer", config).pin(images="a", tokenizer="b")
    again = RunFolder(config.out, "tokenizer", config)
    again.pin(images="a", tokenizer="b")
    with pytest.raises(UserError, match="the tokenizer changed since the run in .* began"):
        again.pin(images="a", tokenizer="other")


def test_damage_in_what_a_run_notes_stops_nothing(config: TokenizerRun) -> None:
    folder = RunFolder(config.out, "tokenizer", config)
    folder.note_broken(Path("a.png"), "truncated")
    folder.journal.touch()
    with folder.broken_list.open("ab") as file:
        file.write(b"\xff\xfe\n")
    environment = config.out / "environment.json"
    environment.write_text(json.dumps(json.loads(environment.read_text()) | {"continued": 5}))
    again = RunFolder(config.out, "tokenizer", config)
    again.note_broken(Path("a.png"), "truncated")
    again.note_broken(Path("b.png"), "truncated")
    assert again.broken_facts() == [("Unreadable files", "3, listed in broken_files.jsonl")]
    assert len(json.loads(environment.read_text())["continued"]) == 1


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_revision_is_told_without_writing_to_the_clone(tmp_path: Path) -> None:
    """git would store in its index that a file is the same as before, with a lock that is in the way of a commit."""

    def git(*words: str) -> None:
        author = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run(["git", "-C", tmp_path, *author, *words], check=True, capture_output=True)

    assert _git_revision(tmp_path) is None
    git("init")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-m", "a")
    os.utime(tmp_path / "a", (1, 1))
    index = (tmp_path / ".git" / "index").read_bytes()
    revision = _git_revision(tmp_path)
    assert revision is not None
    assert len(revision) >= 7
    assert (tmp_path / ".git" / "index").read_bytes() == index
    (tmp_path / "a").write_text("2")
    assert _git_revision(tmp_path) == f"{revision}-dirty"
