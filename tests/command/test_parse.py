"""All mistakes of a command are told at once, one line each."""

import pytest

from beitkit.cli import main
from beitkit.command.habits import NOT_NEEDED, OTHER_NAMES, meant
from beitkit.command.options import option_names
from beitkit.verbs import VERBS


def lines(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What a command with mistakes prints."""
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert all(line.startswith("beitkit: ") for line in printed.err.splitlines())
    return [line.removeprefix("beitkit: ") for line in printed.err.splitlines()]


def test_every_mistake_has_a_line_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    wrong = ["--bach-size", "3", "--mask.kind", "blok", "--lr", "fast", "--epochs", "3", "--steps", "4", "--mask.ratio", "1.2"]
    told = lines(["pretrain", "photos", "--tokenizer", "t", "--out", "o", *wrong], capsys)
    for words in (
        "there is no option --bach-size, did you mean --batch-size?",
        "--mask.kind expects one of block, none, official, random, got 'blok'; did you mean 'block'?",
        "--lr expects a number, got 'fast'",
        "give --epochs or --steps, not both",
        "--mask.ratio must lie in (0, 1), got 1.2",
    ):
        assert sum(line.startswith(words) for line in told) == 1, told
    assert len(told) == 5


def test_what_is_missing_is_told_with_the_rest(capsys: pytest.CaptureFixture[str]) -> None:
    told = lines(["pretrain", "--learning-rate", "3", "--seed", "first"], capsys)
    assert [line.partition(";")[0] for line in told] == [
        "missing required argument IMAGES (before the options)",
        "missing required option --out",
        "there is no option --learning-rate, it is --lr here",
        "--seed expects an integer, got 'first'",
    ] or {line.partition(";")[0] for line in told} == {
        "missing required arguments IMAGES (before the options), --out",
        "there is no option --learning-rate, it is --lr here",
        "--seed expects an integer, got 'first'",
    }


def test_what_follows_from_a_mistake_is_not_told(capsys: pytest.CaptureFixture[str]) -> None:
    # Without its --size, --scratch does not say which network; that is no second mistake.
    (line,) = lines(["finetune", "labeled", "--out", "o", "--scratch", "--size", "bas"], capsys)
    assert line.startswith("--size expects one of base")
    (line,) = lines(["finetune", "labeled", "more", "--out", "o", "--model", "more"], capsys)
    assert line.startswith("unexpected argument 'more'")


@pytest.mark.parametrize(
    ("verb", "typed", "expected"),
    [
        ("finetune", "--learning-rate", "it is `lr` here"),
        ("finetune", "weights", "it is `model` here"),
        ("pretrain", "--model", "it is `init` here"),
        ("pretrain", "--weight_decay", "it is `optim.weight_decay` here"),
        ("pretrain", "mask_ratio", "it is `mask.ratio` here"),
        ("predict", "--source", "it is `inputs` here"),
        ("finetune", "--ema", "it is `loop.ema` here"),
        ("finetune", "--resume", NOT_NEEDED["resume"]),
        ("finetune", "--crop-shar", "did you mean `crop_share`?"),
        ("finetune", "--erasing", "did you mean `augment.erasing`?"),
        ("pretrain", "--wandb", "it is `log` here"),
        ("finetune", "--early_stopping", "it is `patience` here"),
        ("finetune", "--xyzzy", None),
    ],
)
def test_words_of_other_tools_are_known(verb: str, typed: str, expected: str | None) -> None:
    assert meant(typed, option_names(VERBS[verb].config_class())) == expected


def test_what_other_tools_call_it_exists_here() -> None:
    here = {field for entry in VERBS.values() for field in option_names(entry.config_class())}
    for word, fields in OTHER_NAMES.items():
        assert here & {*fields}, f"{word} stands for {fields}, which no verb has"
    # A word that a verb itself has is never an error there, so it may be in the table for the others.
