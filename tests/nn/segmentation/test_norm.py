"""Batch norm over processes: two with a part of the batch each compute what one does with all of it."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn

import beitkit.nn.segmentation.norm as module
from beitkit.errors import UserError
from beitkit.nn.segmentation.norm import BatchNorm2d

SIZES = (3, 1)  # images on the first and on the second process
PARTS = (slice(0, 3), slice(3, 4))


def test_on_one_process_it_is_pytorchs() -> None:
    torch.manual_seed(0)
    ours, theirs = BatchNorm2d(4), nn.BatchNorm2d(4)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for training in (True, True, False):
        images = torch.randn(2, 4, 3, 5)
        assert torch.equal(ours.train(training)(images), theirs.train(training)(images))
    assert torch.equal(ours.running_var, theirs.running_var)


def test_a_single_value_has_no_variance() -> None:
    with pytest.raises(UserError, match="`batch_size` of 2"):
        BatchNorm2d(4).train()(torch.randn(1, 4, 1, 1))
    assert BatchNorm2d(4).eval()(torch.zeros(1, 4, 1, 1)).shape == (1, 4, 1, 1)


def test_two_processes_normalize_as_one_with_both_batches(tmp_path: Path) -> None:
    script = tmp_path / "process.py"
    script.write_text(
        textwrap.dedent(
            """
            import sys, torch
            from torch import distributed
            from beitkit.nn.segmentation.norm import BatchNorm2d
            rank, folder = int(sys.argv[1]), sys.argv[2]
            distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
            given = torch.load(f"{folder}/given.pt", weights_only=True)
            norm = BatchNorm2d(4).double().train()
            norm.load_state_dict(given["norm"])
            found = []
            for images, wanted in zip(given["images"][rank], given["wanted"][rank]):
                images.requires_grad_()
                output = norm(images)
                (output * wanted).sum().backward()
                found.append((output.detach(), images.grad))
            gradients = (norm.weight.grad.clone(), norm.bias.grad.clone())
            unsynchronized = norm.eval()(images).detach()
            kept = {name: value.clone() for name, value in norm.state_dict().items()}
            half = norm.float().train()(images.detach().bfloat16())
            torch.save((found, kept, gradients, unsynchronized, half.detach()), f"{folder}/{rank}.pt")
            distributed.destroy_process_group()
            """
        )
    )
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, sum(SIZES), 4, 3, 5, generator=generator, dtype=torch.float64) * 3 + 2
    wanted = torch.randn(images.shape, generator=generator, dtype=torch.float64)
    norm = BatchNorm2d(4).double().train()
    for parameter in norm.parameters():
        nn.init.normal_(parameter, generator=generator)
    given = {
        "norm": norm.state_dict(),
        "images": [[part.clone() for part in step] for step in images.split(SIZES, dim=1)],
        "wanted": [[part.clone() for part in step] for step in wanted.split(SIZES, dim=1)],
    }
    torch.save(given, tmp_path / "given.pt")
    environment = os.environ | {"PYTHONPATH": str(Path(module.__file__).parents[3]), "OMP_NUM_THREADS": "1"}
    processes = [subprocess.Popen([sys.executable, script, str(rank), tmp_path], env=environment) for rank in (0, 1)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]

    alone = BatchNorm2d(4).double().train()
    alone.load_state_dict(norm.state_dict())
    for step in (0, 1):
        whole = images[step].clone().requires_grad_()
        output = alone(whole)
        (output * wanted[step]).sum().backward()
        assert whole.grad is not None
        for rank, part in enumerate(PARTS):
            theirs, gradient = found[rank][0][step]
            torch.testing.assert_close(theirs, output[part].detach())
            torch.testing.assert_close(gradient, whole.grad[part])
    for rank in (0, 1):
        for name in ("running_mean", "running_var"):
            torch.testing.assert_close(found[rank][1][name], getattr(alone, name))
        assert found[rank][1]["num_batches_tracked"] == 2
        torch.testing.assert_close(found[rank][3], alone.eval()(whole)[PARTS[rank]].detach())
        assert found[rank][4].dtype == torch.bfloat16
    for index, parameter in enumerate((alone.weight, alone.bias)):
        assert parameter.grad is not None
        torch.testing.assert_close(found[0][2][index] + found[1][2][index], parameter.grad)
