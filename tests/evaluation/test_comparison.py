"""Networks side by side: pairs against counting, seeds against what a config may differ in."""

from pathlib import Path

import pytest
import torch
from scipy.stats import binomtest

from beitkit.errors import UserError
from beitkit.evaluation.classification import collect_answers
from beitkit.evaluation.comparison import Evaluation, ModelResult, compared, seed_groups
from beitkit.evaluation.scores import single_label_scores


def result(name: str, right: int) -> ModelResult:
    """A model that names `right` of ten images right."""
    labels = torch.zeros(10, dtype=torch.long)
    logits = torch.eye(2)[(torch.arange(10) >= right).long()]
    return ModelResult(name, Path(name), single_label_scores(logits, labels, ("a", "b")))


def test_pairs_count_what_only_one_has_right() -> None:
    a = torch.tensor([True] * 10 + [False] * 10)
    b = torch.tensor([True] * 9 + [False, True] + [False] * 9)
    c = torch.tensor([False] * 20)
    ab, ac, bc = compared(["a", "b", "c"], [a, b, c])
    assert (ab.only_first, ab.only_second, ab.p_value) == (1, 1, 1.0)
    assert "can be luck" in ab.sentence
    assert (ac.first, ac.second, ac.only_first, ac.only_second) == ("a", "c", 10, 0)
    assert ac.p_value == pytest.approx(binomtest(10, 10).pvalue)
    assert "a is significantly better" in ac.sentence
    assert bc.only_first == 10


def test_a_single_result_answers_directly_and_several_say_whom_to_ask() -> None:
    one = Evaluation("here", 10, 0, (result("a", 7),), (), ())
    assert one.top1 == pytest.approx(0.7)
    assert one.top5 is None
    assert one.classes["a"][:2] == (10, pytest.approx(0.7))
    two = one._replace(models=(result("a", 7), result("b", 6)))
    with pytest.raises(UserError, match=r"2 models were evaluated; ask models\[0\].scores"):
        _ = two.top1


def config(seed: int, lr: float = 1e-3, out: str = "x", threads: int = 0) -> dict[str, object]:
    return {"verb": "finetune", "out": out, "train": {"seed": seed, "lr": lr}, "machine": {"threads": threads, "device": "cpu"}}


def test_seeds_of_one_set_up_are_grouped() -> None:
    models = [result(name, right) for name, right in (("a", 7), ("b", 9), ("c", 8), ("d", 5), ("e", 6), ("f", 2))]
    configs = [
        config(0, out="a"),
        config(1, out="b", threads=3),  # neither the folder nor the number of threads is part of the set-up
        config(2, lr=2e-3),
        None,  # a file that is no run
        {"verb": "finetune"},
        config(3, lr=2e-3) | {"model": "another"},
    ]
    (group,) = seed_groups(models, configs)
    assert (group.models, group.seeds) == (("a", "b"), (0, 1))
    assert group.spread == pytest.approx((0.8, 0.1 * 2**0.5, 2))


def test_copies_of_a_run_are_no_spread() -> None:
    assert seed_groups([result("a", 7), result("b", 7)], [config(0), config(0)]) == ()


def test_answers_come_in_the_order_of_the_images_without_the_unreadable() -> None:
    batch = {
        "images": torch.arange(6.0).view(3, 2),
        "index": torch.tensor([4, 5, 6]),
        "broken": torch.tensor([-1, 5, -1]),
    }
    (same, twice), index = collect_answers([lambda x: x, lambda x: 2 * x], iter([batch, batch]), "index")
    assert index.tolist() == [4, 6, 4, 6]
    assert same.tolist() == [[0, 1], [4, 5], [0, 1], [4, 5]]
    assert torch.equal(twice, 2 * same)
