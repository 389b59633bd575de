from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import entropy

from beitkit.tokenizers.health import CodeUsage, UsageStatistics, diagnose


def test_statistics_against_scipy() -> None:
    torch.manual_seed(0)
    ids = torch.randint(0, 40, (50, 7, 7)) ** 2 // 40
    usage = CodeUsage(64)
    for part in ids.split(13):
        usage.update(part)
    statistics = usage.statistics()
    counts = torch.bincount(ids.flatten(), minlength=64)
    assert statistics.tokens == 2450
    assert statistics.codes_used == len(ids.unique())
    assert statistics.dead_codes == 64 - len(ids.unique())
    assert statistics.used_share == pytest.approx(len(ids.unique()) / 64)
    assert statistics.perplexity == pytest.approx(math.exp(float(entropy(counts.numpy()))))
    assert statistics.commonest_code == int(ids.flatten().mode().values)
    assert statistics.commonest_share == pytest.approx(int(counts.max()) / 2450)


def test_perplexity_at_the_corners() -> None:
    usage = CodeUsage(8)
    usage.update(torch.arange(8).repeat(3))
    assert usage.statistics().perplexity == pytest.approx(8)
    usage = CodeUsage(8)
    usage.update(torch.full((5, 2, 2), 6))
    assert usage.statistics().perplexity == pytest.approx(1)
    assert usage.statistics().commonest_share == 1


def make(vocabulary: int = 100, tokens: int = 100_000, used: int = 98, commonest: float = 0.3) -> UsageStatistics:
    return UsageStatistics(vocabulary, tokens, used, used / vocabulary, vocabulary - used, 40.0, 7, commonest)


@pytest.mark.parametrize(
    ("statistics", "psnr", "names"),
    [
        (make(), 22.0, []),
        (make(used=50), 22.0, ["codes dead"]),
        (make(commonest=0.9), 22.0, ["one token dominates"]),
        (make(), 11.0, ["reconstruction poor"]),
        (make(tokens=1000), 22.0, ["vocabulary too large for so few patches"]),
        (make(used=3, commonest=0.95), 9.0, ["codes dead", "one token dominates", "reconstruction poor"]),
    ],
)
def test_diagnoses_by_name(statistics: UsageStatistics, psnr: float, names: list[str]) -> None:
    found = diagnose(statistics, psnr)
    assert [diagnosis.name for diagnosis in found] == names
    assert all(text.endswith(".") for diagnosis in found for text in diagnosis[1:])


def test_reconstructions_of_kmeans_are_not_judged() -> None:
    found = diagnose(make(used=3, commonest=0.95), 9.0, "kmeans")
    assert [diagnosis.name for diagnosis in found] == ["codes dead", "one token dominates"]
    assert not any("KL" in diagnosis.advice or "Train" in diagnosis.advice for diagnosis in found)


def test_a_diagnosis_names_the_numbers() -> None:
    (found,) = diagnose(make(tokens=1000), 22.0)
    assert "1,000 patches" in found.finding
    assert "at most 20," in found.advice
