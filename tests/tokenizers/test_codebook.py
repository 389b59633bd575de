"""The codebook against the official EMA step, brute force, and its own promise to be still in eval mode."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from beitkit.tokenizers import codebook as module
from beitkit.tokenizers.codebook import Codebook, directional_kmeans, nearest_codes


def golden_codebook() -> Codebook:
    codebook = Codebook(16, 4, decay=0.99, start_from_data=False).double()
    rows = torch.sin(0.7 * torch.arange(64, dtype=torch.float64) + 0.3).view(16, 4)
    codebook.codes.copy_(F.normalize(rows, dim=1))
    return codebook


def test_golden_f2_one_training_step() -> None:
    codebook = golden_codebook().train()
    quantized = codebook(torch.cos(0.31 * torch.arange(72, dtype=torch.float64)).view(2, 4, 3, 3))
    assert quantized.ids.flatten().tolist() == [14, 14, 14, 3, 3, 3, 12, 8, 15, 2, 0, 5, 14, 14, 14, 14, 3, 3]
    assert float(quantized.commitment) == pytest.approx(0.3604959183, rel=1e-8)
    assert float(codebook.codes.sum()) == pytest.approx(0.22276861, abs=1e-8)
    assert float(codebook.codes.abs().sum()) == pytest.approx(28.60495929, abs=1e-8)
    first = [0.20342082, 0.56030917, 0.65922375, 0.45836411, 0.02861069, -0.42100528]
    assert codebook.codes.flatten()[:6].tolist() == pytest.approx(first, abs=1e-8)
    used = {0: 0.01, 2: 0.01, 3: 0.05, 5: 0.01, 8: 0.01, 12: 0.01, 14: 0.07, 15: 0.01}
    assert codebook.usage.tolist() == pytest.approx([used.get(code, 0) for code in range(16)])
    assert float(quantized.vectors.sum()) == pytest.approx(0.86523059, abs=1e-8)
    assert float(quantized.vectors.abs().sum()) == pytest.approx(31.53088177, abs=1e-8)
    assert quantized.vectors.flatten()[:6].tolist() == pytest.approx([0.72922037] * 3 + [0.49509915] * 3, abs=1e-8)


def test_evaluation_changes_nothing() -> None:
    codebook = Codebook(8, 4, decay=0.5, start_from_data=True).eval()
    before = {name: value.clone() for name, value in codebook.state_dict().items()}
    codebook(torch.randn(2, 4, 3, 3))
    codebook.train().lookup(torch.randn(2, 4, 3, 3))
    for name, value in codebook.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_nearest_code_by_brute_force_and_in_any_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    points, codes = F.normalize(torch.randn(100, 8), dim=1), F.normalize(torch.randn(37, 8), dim=1)
    expected = [min(range(37), key=lambda code: float((point - codes[code]).square().sum())) for point in points]
    assert nearest_codes(points, codes).tolist() == expected
    for scores in (1, 37 * 7, 37 * 99):
        monkeypatch.setattr(module, "MAX_SCORES", scores)
        assert nearest_codes(points, codes).tolist() == expected


def test_first_of_equal_codes_is_chosen_whatever_the_length_of_the_vector() -> None:
    codebook = golden_codebook()
    codebook.codes[5] = codebook.codes[3]
    vector = (1e-3 * codebook.codes[5]).view(1, 4, 1, 1)
    assert codebook.lookup(vector).item() == 3


def test_ids_are_in_raster_order() -> None:
    codebook = golden_codebook()
    ids = torch.arange(12).view(2, 2, 3)
    vectors = codebook.codes[ids].permute(0, 3, 1, 2)
    assert torch.equal(codebook.lookup(vectors), ids)


def test_gradient_passes_straight_to_the_normalized_input() -> None:
    codebook = golden_codebook().eval()
    x = torch.randn(1, 4, 2, 2, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(1, 4, 2, 2, dtype=torch.float64)
    (codebook(x).vectors * weights).sum().backward()
    reference = x.detach().clone().requires_grad_()
    (F.normalize(reference, dim=1) * weights).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, reference.grad)


def test_commitment_pulls_the_input_to_its_code() -> None:
    codebook = golden_codebook().eval()
    x = torch.randn(1, 4, 2, 2, dtype=torch.float64, requires_grad=True)
    before = codebook(x).commitment
    before.backward()
    assert x.grad is not None
    assert codebook(x.detach() - 0.1 * x.grad).commitment < before


def test_first_training_batch_sets_the_codes_once() -> None:
    torch.manual_seed(0)
    codebook = Codebook(4, 8, decay=0.99, start_from_data=True).train()
    directions = F.normalize(torch.randn(4, 8), dim=1)
    vectors = directions[torch.arange(64) % 4] + 0.01 * torch.randn(64, 8)
    batch = vectors.view(1, 8, 8, 8).permute(0, 3, 1, 2)
    codebook(batch)
    assert bool(codebook.is_started)
    started = codebook.codes.clone()
    codebook(batch)
    assert not torch.equal(codebook.codes, started)
    assert (codebook.codes - started).norm(dim=1).max() < 0.05
    torch.testing.assert_close(codebook.codes.norm(dim=1), torch.ones(4))


def test_kmeans_reduces_the_distance_to_the_centers() -> None:
    torch.manual_seed(0)
    points = F.normalize(torch.randn(500, 6), dim=1)

    def similarity(centers: Tensor) -> float:
        return float((points @ centers.T).max(1).values.mean())

    torch.manual_seed(1)
    drawn = points[torch.randperm(500)[:20]]
    torch.manual_seed(1)
    centers = directional_kmeans(points, 20)
    torch.testing.assert_close(centers.norm(dim=1), torch.ones(20))
    assert similarity(centers) > similarity(drawn) + 0.02
    # A fixed point of Lloyd's step is near: one more step changes little.
    ids = nearest_codes(points, centers)
    means = torch.stack([F.normalize(points[ids == code].sum(0), dim=0) for code in range(20)])
    assert (means * centers).sum(1).min() > 0.98


def test_kmeans_with_fewer_points_than_codes_repeats_points() -> None:
    points = F.normalize(torch.randn(5, 3), dim=1)
    centers = directional_kmeans(points, 12)
    assert centers.shape == (12, 3)
    assert ((centers[:, None] - points[None]).norm(dim=2).min(1).values < 1e-5).all()


def test_two_processes_learn_the_same_codebook_as_one_with_both_batches(tmp_path: Path) -> None:
    script = tmp_path / "process.py"
    script.write_text(
        textwrap.dedent(
            """
            import sys, torch
            from torch import distributed
            from beitkit.tokenizers.codebook import Codebook
            rank, folder = int(sys.argv[1]), sys.argv[2]
            distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
            torch.manual_seed(rank)
            codebook = Codebook(6, 4, decay=0.9, start_from_data=True).train()
            codebook(torch.randn(2, 4, 3, 3))
            start, started_usage = codebook.codes.clone(), codebook.usage.clone()
            batch = torch.randn(2, 2, 4, 3, 3, generator=torch.Generator().manual_seed(7))
            codebook(batch[rank])
            found = {"start": start, "started_usage": started_usage, "codes": codebook.codes, "usage": codebook.usage}
            torch.save(found, f"{folder}/{rank}.pt")
            distributed.destroy_process_group()
            """
        )
    )
    environment = os.environ | {"PYTHONPATH": str(Path(module.__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    processes = [subprocess.Popen([sys.executable, script, str(rank), tmp_path], env=environment) for rank in (0, 1)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    alone = Codebook(6, 4, decay=0.9, start_from_data=False).train()
    alone.codes.copy_(first["start"])
    alone.usage.copy_(first["started_usage"])
    alone(torch.randn(2, 2, 4, 3, 3, generator=torch.Generator().manual_seed(7)).flatten(0, 1))
    for name, expected in (("codes", alone.codes), ("usage", alone.usage)):
        torch.testing.assert_close(first[name], expected)
        torch.testing.assert_close(second[name], expected)
