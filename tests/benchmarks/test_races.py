"""Candidates have the same network and do the work that they are said to do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from beitkit.configs.train import MachineConfig, SpeedConfig
from beitkit.train.machine.runtime import Runtime, start_runtime
from benchmarks.compare import races, workload
from benchmarks.compare.ours import CACHED, TOKENIZER_ALONE, UNCACHED, OurNetworks
from benchmarks.compare.races import parity
from benchmarks.compare.with_timm import TimmNetworks
from benchmarks.compare.with_transformers import OFFICIAL, TRANSFORMERS, TheirNetworks
from benchmarks.compare.workload import Workload

SMALL = Workload(size="nano", image_size=64, patch=16, batch_size=2)


@pytest.fixture
def runtime() -> Runtime:
    return start_runtime(MachineConfig(device="cpu", precision="float32", threads=1))


def test_transformers_has_our_network_and_another_one_is_noticed(runtime: Runtime) -> None:
    own, theirs = OurNetworks(SMALL, runtime), TheirNetworks(SMALL, runtime)
    assert parity(own.masked_outputs(), theirs.masked_outputs()) < 1e-5
    assert parity(own.class_outputs(), theirs.class_outputs()) < 1e-5
    with torch.no_grad():  # one entry of the position table, which fresh networks would not differ in
        theirs.masked.beit.shared_position_bias.relative_position_bias_table[5] += 1
    with pytest.raises(AssertionError, match="different networks"):
        parity(own.masked_outputs(), theirs.masked_outputs())


def test_timm_has_our_network(runtime: Runtime, timm_library: Any) -> None:
    assert parity(OurNetworks(SMALL, runtime).class_outputs(), TimmNetworks(SMALL, runtime).class_outputs()) < 1e-5


def test_both_sides_start_from_the_same_loss(runtime: Runtime) -> None:
    own, theirs = OurNetworks(SMALL, runtime), TheirNetworks(SMALL, runtime)
    given = theirs.inputs
    labels = given.tokens[given.mask]
    ours = F.cross_entropy(own.masked_outputs(), labels)
    loss = theirs.masked.eval()(given.images, bool_masked_pos=given.mask, labels=labels).loss
    torch.testing.assert_close(ours, loss, rtol=1e-5, atol=0)


def test_every_candidate_of_pretraining_updates_its_weights(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    for kind, name in ((OurNetworks, "masked"), (TheirNetworks, "masked")):
        build = getattr(kind, name).func
        monkeypatch.setattr(getattr(kind, name), "func", lambda self, build=build: made.append(build(self)) or made[-1])
    race = races.race_of("pretraining", SMALL, runtime, ["transformers"], SpeedConfig(compile="off"))
    assert [one.name for one in race.candidates] == [CACHED, UNCACHED, TOKENIZER_ALONE, TRANSFORMERS, OFFICIAL]
    for candidate in race.candidates:
        step = candidate.prepare()
        if candidate.name == TOKENIZER_ALONE:
            assert step().shape == (2, 16)
            continue
        network = made[-1] if candidate.name in (TRANSFORMERS, OFFICIAL) else made[0]
        before = [parameter.detach().clone() for parameter in network.parameters()]
        step()
        assert all(not torch.equal(old, new) for old, new in zip(before, network.parameters(), strict=True)), candidate.name
    assert len(made) == 2, "candidates of one side share a network"


def test_everybody_is_given_the_same_batch(runtime: Runtime) -> None:
    for first, second in zip(OurNetworks(SMALL, runtime).inputs, TheirNetworks(SMALL, runtime).inputs, strict=True):
        assert torch.equal(first, second)
    assert SMALL.inputs(torch.device("cpu")).mask.sum(1).tolist() == [round(75 / 196 * 16)] * 2
    assert workload.TOKENIZER.stride * 4 == SMALL.token_size[0]
