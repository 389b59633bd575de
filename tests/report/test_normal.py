from __future__ import annotations

import math

import pytest

from beitkit.report.normal import (
    Line,
    Scaled,
    comparison_line,
    finetuning_lines,
    pixel_lines,
    pretraining_lines,
    tokenizer_lines,
    training_lines,
)
from beitkit.tokenizers.health import UsageStatistics, diagnose

GOOD = {"vocabulary": 64, "loss": 2.5, "accuracy": 0.3, "token_entropy": 3.5, "commonest_share": 0.12, "masked_share": 0.4}
STEADY = [0.5 + 0.01 * (step % 3) for step in range(50)]
FALLEN = [4.0 - 2.0 * (1 - math.exp(-step / 10)) for step in range(100)]


def states(lines: list[Line]) -> list[str]:
    return [line.state for line in lines]


def warnings(lines: list[Line]) -> str:
    return " | ".join(sentence for state, sentence in lines if state == "warn")


def test_a_good_pretraining_is_all_right() -> None:
    lines = pretraining_lines(**GOOD)
    assert set(states(lines)) == {"ok"}
    text = " ".join(sentence for _, sentence in lines)
    assert "ln 64 = 4.16" in text
    assert "1.00 below" in text  # 3.5 - 2.5
    assert "2.5 times the best guess" in text  # 0.3 / 0.12
    assert "1.6%" in text  # 1 / 64


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"masked_share": 0.0}, "Mask empty"),
        ({"masked_share": 0.02}, "2% of the patches were hidden"),
        ({"commonest_share": 0.97, "token_entropy": 0.05, "loss": 0.01, "accuracy": 0.98}, "Targets constant"),
        ({"token_entropy": math.log(6), "loss": 1.0}, "Targets poor"),
        ({"vocabulary": 8192, "token_entropy": math.log(300), "loss": 1.0}, "Targets poor"),
        ({"loss": 3.5}, "Loss at chance"),
        ({"loss": 4.3}, "worse than guessing"),
        ({"loss": math.nan}, "The loss is nan"),
        ({"accuracy": 0.12}, "no better than guessing"),
        ({"accuracy": 0.001}, "something is wrong"),
    ],
)
def test_each_fault_of_a_pretraining_has_its_name(change: dict[str, float], name: str) -> None:
    assert name in warnings(pretraining_lines(**{**GOOD, **change}))


def test_hiding_nothing_on_purpose_is_no_fault() -> None:
    lines = pretraining_lines(**{**GOOD, "masked_share": None})
    assert states(lines) == ["note", "ok", "ok", "ok"]
    assert "`mask.kind='none'`" in lines[0].sentence


def test_a_loss_of_pixels_is_judged_by_their_variance() -> None:
    lines = pixel_lines(loss=0.6, variance=0.8, masked_share=0.4)
    assert states(lines) == ["ok", "ok"]
    assert "explains 25% of the pixels' variance" in lines[1].sentence  # 1 - 0.6 / 0.8


@pytest.mark.parametrize(
    ("loss", "variance", "name"),
    [
        (0.8, 0.8, "Loss at chance"),
        (0.9, 0.8, "Loss at chance"),
        (math.nan, 0.8, "The loss is nan"),
        (0.0, 0.0, "Targets constant"),
    ],
)
def test_each_fault_of_predicting_pixels_has_its_name(loss: float, variance: float, name: str) -> None:
    assert name in warnings(pixel_lines(loss=loss, variance=variance, masked_share=0.4))


def test_the_official_numbers_are_normal() -> None:
    # The entropy and commonest share are invented; loss, accuracy and vocabulary are those of the published log.
    lines = pretraining_lines(
        vocabulary=8192, loss=6.2994, accuracy=0.0496, token_entropy=8.4, commonest_share=0.01, masked_share=75 / 196
    )
    assert warnings(lines) == ""
    assert "Low figures are normal" in lines[-1].sentence
    assert "5.0% (loss 6.30) with 8,192 tokens" in lines[-1].sentence


def test_tokenizer_lines_say_what_diagnose_found_and_no_opposite() -> None:
    well = UsageStatistics(64, 10_000, 62, 62 / 64, 2, 40.0, 3, 0.1)
    lines = tokenizer_lines(diagnose(well, 20.0), vocabulary=64, codes_used=62, perplexity=40.0, commonest_share=0.1, psnr=20.0)
    assert states(lines) == ["ok", "ok", "ok"]
    assert "62 of 64 codes are in use (97%)" in lines[0].sentence
    ill = UsageStatistics(64, 10_000, 2, 2 / 64, 62, 1.2, 3, 0.95)
    lines = tokenizer_lines(diagnose(ill, 9.0), vocabulary=64, codes_used=2, perplexity=1.2, commonest_share=0.95, psnr=9.0)
    assert states(lines) == ["warn", "warn", "warn"]
    assert [line.sentence.split(":")[0] for line in lines] == ["Codes dead", "One token dominates", "Reconstruction poor"]


def test_a_tokenizer_whose_codes_are_hardly_varied_is_warned_about() -> None:
    ill = UsageStatistics(64, 10_000, 62, 62 / 64, 2, 6.0, 3, 0.5)
    lines = tokenizer_lines(diagnose(ill, 20.0), vocabulary=64, codes_used=62, perplexity=6.0, commonest_share=0.5, psnr=20.0)
    assert warnings(lines).startswith("Tokens poor: the codes are only as varied as 6 ")


def test_a_class_that_is_never_named_right_is_warned_about() -> None:
    lines = finetuning_lines(classes=10, accuracy=0.8, commonest_share=0.1, images=1000, unseen=["cat", "dog"])
    assert "Never named right: cat, dog;" in warnings(lines)


@pytest.mark.parametrize(
    ("share", "other", "images", "state"),
    [
        (0.338, 0.412, 500, "warn"),  # two standard errors are 6.1 points
        (0.38, 0.412, 500, "note"),
        (0.412, 0.338, 500, "ok"),
        (0.338, 0.412, 50, "note"),  # 19 points
        (0.30, 0.33, None, "warn"),
        (0.33, 0.335, None, "note"),
    ],
)
def test_a_result_below_the_one_it_is_compared_with_gets_no_tick(
    share: float, other: float, images: int | None, state: str
) -> None:
    line = comparison_line("top-1", share, "runs/scratch", other, images)
    assert line.state == state
    assert f"top-1 {share:.1%} here, {other:.1%} in runs/scratch" in line.sentence


@pytest.mark.parametrize(
    ("accuracy", "train", "expected"),
    [
        (0.8, 0.85, ["ok", "ok"]),
        (0.7, 0.95, ["ok", "note"]),
        (0.4, 1.0, ["ok", "warn"]),
        (0.11, None, ["warn"]),
        (0.8, None, ["ok"]),
    ],
)
def test_fine_tuning(accuracy: float, train: float | None, expected: list[str]) -> None:
    lines = finetuning_lines(classes=10, accuracy=accuracy, commonest_share=0.1, images=1000, train_accuracy=train)
    assert states(lines) == expected


def test_chance_in_fine_tuning_allows_for_few_images_and_a_large_class() -> None:
    few = finetuning_lines(classes=2, accuracy=0.65, commonest_share=0.5, images=20)
    many = finetuning_lines(classes=2, accuracy=0.65, commonest_share=0.5, images=2000)
    lopsided = finetuning_lines(classes=2, accuracy=0.65, commonest_share=0.9, images=2000)
    assert [states(few), states(many), states(lopsided)] == [["warn"], ["ok"], ["warn"]]
    assert "At chance" in few[0].sentence
    assert "± 2.1%" in many[0].sentence  # 2 sqrt(0.65 * 0.35 / 2000)


def test_a_steady_training_is_all_right() -> None:
    lines = training_lines(losses=FALLEN, grad_norms=STEADY, data_wait=0.05, bad_steps=0)
    assert states(lines) == ["ok", "ok", "ok"]


@pytest.mark.parametrize(
    ("change", "state", "name"),
    [
        ({"losses": FALLEN[::-1]}, "warn", "Diverged"),
        ({"losses": [4 - 0.01 * step for step in range(100)]}, "note", "Still learning"),
        ({"losses": [4.0, math.nan]}, "note", "Only 1 finite loss logged"),
        ({"losses": [3.0] * 100}, "note", "did not move"),
        ({"bad_steps": 1}, "warn", "Not finite: 1 step left out"),
        ({"grad_norms": [*STEADY, 50.0, *STEADY]}, "note", "Gradient spikes: 1 logged step"),
        ({"data_wait": 0.31}, "warn", "Data-bound: 31%"),
    ],
)
def test_each_fault_of_a_training_has_its_name(change: dict[str, object], state: str, name: str) -> None:
    arguments = {"losses": FALLEN, "grad_norms": STEADY, "data_wait": 0.05, "bad_steps": 0, **change}
    found = [line for line in training_lines(**arguments) if name in line.sentence]  # pyright: ignore[reportArgumentType]
    assert states(found) == [state]


def test_large_gradients_of_the_first_steps_are_no_spikes() -> None:
    lines = training_lines(losses=FALLEN, grad_norms=[50.0, 20.0, *STEADY], data_wait=0.0, bad_steps=0)
    assert not any("spikes" in sentence for _, sentence in lines)


def test_what_a_gradient_scaler_leaves_out_is_usual_if_it_is_little() -> None:
    course = {"losses": FALLEN, "grad_norms": STEADY, "data_wait": 0.1, "bad_steps": 0}
    few, many = (training_lines(**course, scaled=Scaled(refused, 1000, 32768.0)) for refused in (4, 40))
    assert [line.state for line in few if "float16" in line.sentence] == ["ok"]
    assert "4 of 1,000 steps left out by the gradient scaler, whose scale ended at 32,768" in " ".join(map(str, few))
    assert [line.state for line in many if "float16" in line.sentence] == ["warn"]
    assert not any("float16" in line.sentence for line in training_lines(**course))
