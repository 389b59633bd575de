"""`fit` on a toy objective: accumulation, resume, averaging, what is not finite, and signals."""

import io
import itertools
import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from beitkit.configs.tokenizer import DVAEConfig, ReconstructConfig
from beitkit.configs.train import LoopConfig, OptimConfig, TrainConfig
from beitkit.contracts import WHOLE, Batch, Loss, Share
from beitkit.data.patience import patient_for
from beitkit.data.workers import Key, read_batches
from beitkit.errors import Interrupted, NumericalError, UserError
from beitkit.objectives.reconstruct import Reconstruct
from beitkit.tokenizers.codebook import Codebook
from beitkit.tokenizers.dvae import DiscreteVAE
from beitkit.train.bad_steps import BadSteps, listed
from beitkit.train.checkpoints.checkpoint import Checkpoints
from beitkit.train.checkpoints.manifest import Piece
from beitkit.train.journal import Journal
from beitkit.train.loop import Best, Training, fit
from beitkit.train.machine.runtime import Runtime
from beitkit.train.optim import delayed, parameter_groups
from beitkit.train.schedule import make_schedule
from beitkit.train.step import WeightAverage

BATCH = 4


class Toy(nn.Module):
    """Least squares with noise from torch's generator, so that resuming must get that right too."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)
        self.progress: list[float] = []

    def forward(self, batch: Batch, progress: float) -> Loss:
        self.progress.append(progress)
        x = batch["x"]
        noise = torch.randn(len(x), 1) * (0.1 if self.training else 0)
        error = (self.layer(x) + noise - x.sum(1, keepdim=True)).square().mean()
        return Loss(error + batch["poison"].sum(), {"error": error.detach()})


def stream(start: int, poisoned: range = range(0)) -> Iterator[Batch]:
    index = start
    while True:
        generator = torch.Generator().manual_seed(index)
        poison = torch.full((1,), math.nan if index in poisoned else 0.0)
        yield {"x": torch.randn(BATCH, 3, generator=generator), "poison": poison}
        index += 1


PLAIN = LoopConfig()
OPTIM = OptimConfig(lr_scaling="none", warmup_steps=0)


def train(folder: Path, steps: int, loop: LoopConfig = PLAIN, *, batches=stream, evaluators=(), best=None) -> Toy:
    torch.manual_seed(0)
    toy = Toy()
    fit(
        toy,
        batches,
        parameter_groups(toy, 0.01),
        training(folder, TrainConfig(steps=steps, batch_size=BATCH, lr=0.05), loop),
        evaluators,
        best,
    )
    return toy


def training(folder: Path, length: TrainConfig, loop: LoopConfig) -> Training:
    return Training(
        schedule=make_schedule(length, loop, OPTIM, 40, default_epochs=1),
        loop=loop,
        optim=OPTIM,
        runtime=Runtime(torch.device("cpu"), None),
        journal=Journal(folder / "journal.jsonl", stream=io.StringIO()),
        checkpoints=Checkpoints(folder / "checkpoints"),
    )


def stored(folder: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints" / f"step-{step:08d}.0.safetensors")


def same(first: nn.Module, second: nn.Module) -> bool:
    return all(torch.equal(one, other) for one, other in zip(first.parameters(), second.parameters(), strict=True))


def events_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]


def untimed(events: list[dict]) -> list[dict]:
    return [{key: value for key, value in event.items() if key not in ("images_per_second", "data_wait")} for event in events]


def notes_of(folder: Path) -> list[dict]:
    return [event for event in events_of(folder) if event["kind"] == "note"]


def test_training_learns(tmp_path: Path) -> None:
    toy = train(tmp_path, 300)
    assert torch.allclose(toy.layer.weight, torch.ones(1, 3), atol=0.05)


def test_a_run_cut_anywhere_and_continued_is_bit_identical(tmp_path: Path) -> None:
    steps, loop = 12, LoopConfig(save_every=3, log_every=4, ema=0.9, accumulate=2)
    unbroken = train(tmp_path / "unbroken", steps, loop)
    for cut in (1, 5, 9, 11):
        folder = tmp_path / str(cut)

        def dying(start: int, cut: int = cut) -> Iterator[Batch]:
            for position, batch in enumerate(stream(start), start):
                if position == 2 * cut + 1:  # in the middle of an accumulated step
                    raise ConnectionError
                yield batch

        with pytest.raises(ConnectionError):
            train(folder, steps, loop, batches=dying)
        torch.manual_seed(99)
        resumed = train(folder, steps, loop)
        assert resumed.progress[0] == cut // 3 * 3 / steps, "the last checkpoint was not continued"
        assert same(unbroken, resumed), cut
        assert untimed(events_of(folder)) == untimed(events_of(tmp_path / "unbroken"))


def test_accumulation_equals_one_larger_batch(tmp_path: Path) -> None:
    def halves(start: int) -> Iterator[Batch]:
        for batch in stream(start // 2):
            for half in batch["x"].split(BATCH // 2):
                yield {"x": half, "poison": batch["poison"]}

    class Silent(Toy):
        def forward(self, batch: Batch, progress: float) -> Loss:
            x = batch["x"]
            return Loss((self.layer(x) - x.sum(1, keepdim=True)).square().mean(), {})

    results = []
    for name, size, accumulate, batches in (("one", BATCH, 1, stream), ("two", BATCH // 2, 2, halves)):
        torch.manual_seed(0)
        toy, loop = Silent(), LoopConfig(accumulate=accumulate)
        length = TrainConfig(steps=5, batch_size=size, lr=0.05)
        fit(toy, batches, parameter_groups(toy, 0.0), training(tmp_path / name, length, loop))
        results.append(toy.layer.weight)
    assert torch.allclose(*results, atol=1e-6)


def test_a_step_that_is_not_finite_is_not_applied_and_is_said(tmp_path: Path) -> None:
    steps, loop = 3, LoopConfig()
    train(tmp_path / "bad", steps, loop, batches=lambda start: stream(start, range(1, 2)))
    events = [json.loads(line) for line in (tmp_path / "bad" / "journal.jsonl").read_text().splitlines()]
    notes = [event for event in events if event["kind"] == "note"]
    assert [note["step"] for note in notes] == [2]
    assert "not applied" in notes[0]["text"]

    def frozen_after_first(start: int) -> Iterator[Batch]:
        return stream(start, range(1, 3))

    one = train(tmp_path / "one", 4, LoopConfig(save_every=1), batches=frozen_after_first)
    assert all(parameter.isfinite().all() for parameter in one.parameters())
    third = stored(tmp_path / "one", 3)
    assert [third[f"step.layer.{name}"].item() for name in ("weight", "bias")] == [1, 1]


class Normed(nn.Module):
    """Least squares behind batch norm; a poisoned batch has infinite images, or a NaN gradient behind a finite loss."""

    def __init__(self, *, in_gradient: bool) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.layer = nn.Linear(3, 1)
        self.in_gradient = in_gradient

    def forward(self, batch: Batch, progress: float) -> Loss:
        x, is_bad = batch["x"], bool(batch["poison"].isnan())
        if is_bad and not self.in_gradient:
            x = x * math.inf
        error = (self.layer(self.norm(x)) - x.sum(1, keepdim=True)).square().mean()
        if is_bad and self.in_gradient:
            error = error + 0 * (self.layer.bias - self.layer.bias.detach()).sqrt().sum()  # the root of 0 has a NaN gradient
        return Loss(error, {})


def fitted(folder: Path, objective: nn.Module, steps: int, batches=stream, loop: LoopConfig = PLAIN) -> nn.Module:
    length = TrainConfig(steps=steps, batch_size=BATCH, lr=0.05)
    fit(objective, batches, parameter_groups(objective, 0.01), training(folder, length, loop))
    return objective


@pytest.mark.parametrize("in_gradient", [False, True])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_that_was_not_applied_changes_no_tensor_at_all(tmp_path: Path, in_gradient: bool, accumulate: int) -> None:
    torch.manual_seed(0)
    loop = LoopConfig(save_every=1, ema=0.9, accumulate=accumulate)
    bad = range(2 * accumulate, 2 * accumulate + 1)  # the first pass of step 3, so that a second one may follow
    fitted(tmp_path, Normed(in_gradient=in_gradient), 3 + 1, lambda start: stream(start, bad), loop)
    events = map(json.loads, (tmp_path / "journal.jsonl").read_text().splitlines())
    notes = [event["text"] for event in events if event["kind"] == "note"]
    assert len(notes) == 1
    assert notes[0].startswith("step 3 was not applied")
    torch.manual_seed(0)
    with pytest.raises(NumericalError):
        fitted(tmp_path / "bad", Normed(in_gradient=in_gradient), 3, lambda start: stream(start, bad), loop)
    before, after = stored(tmp_path / "bad", 2), stored(tmp_path / "bad", 3)
    assert "buffer.norm.running_mean" in before
    assert "average.layer.weight" in before
    for name, tensor in before.items():
        assert tensor.isfinite().all(), name
        assert torch.equal(tensor, after[name]), name


@pytest.mark.parametrize("revives", [False, True])
def test_a_step_that_was_not_applied_neither_starts_nor_revives_codes(tmp_path: Path, revives: bool) -> None:
    """k-means and revival write parameters in the forward pass; the last step does so, and has a NaN gradient."""
    config = DVAEConfig(geometry="light", vocabulary=24, hidden=16, codebook_dim=8, stride=4, channels=1)

    class Poisoned(Reconstruct):
        def forward(self, batch: Batch, progress: float) -> Loss:
            kept = [tensor.clone() for tensor in self.rewritten()]
            loss = super().forward(batch, progress)
            rewrites.append(not all(map(torch.equal, kept, self.rewritten())))
            return Loss(loss.total + batch["poison"].sum(), loss.parts)

    def images(start: int) -> Iterator[Batch]:
        for number, batch in enumerate(stream(start, range(last, 99)), start):
            yield {"images": torch.rand(4, 1, 16, 16, generator=torch.Generator().manual_seed(number)), **batch}

    last, rewrites = 4 if revives else 0, []
    torch.manual_seed(1)
    objective = Poisoned(DiscreteVAE(config), ReconstructConfig(revive_every=4, dead_share=0.9, revive_share=1.0))
    untouched = {name: tensor.clone() for name, tensor in objective.state_dict().items()}
    with pytest.raises(NumericalError):
        fitted(tmp_path, objective, last + 1, images, LoopConfig(save_every=1))
    assert rewrites[last], "nothing was written in the step, so the test shows nothing"
    if revives:
        before, after = stored(tmp_path, last), stored(tmp_path, last + 1)
        assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    else:
        assert all(torch.equal(tensor, untouched[name]) for name, tensor in objective.state_dict().items())


def test_a_codebook_that_follows_its_vectors_stays_in_a_step_that_was_not_applied(tmp_path: Path) -> None:
    class Coded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 4)
            self.codebook = Codebook(6, 4, decay=0.9, start_from_data=True)

        def forward(self, batch: Batch, progress: float) -> Loss:
            vectors = self.layer(batch["x"] + batch["poison"]).T[None, :, None]  # (1, d, 1, b)
            quantized = self.codebook(vectors)
            return Loss(quantized.commitment + (quantized.vectors - 1).square().mean(), {})

    torch.manual_seed(0)
    with pytest.raises(NumericalError):
        fitted(tmp_path, Coded(), 3, lambda start: stream(start, range(2, 9)), LoopConfig(save_every=1))
    before, after = stored(tmp_path, 2), stored(tmp_path, 3)
    assert {"buffer.codebook.codes", "buffer.codebook.usage"} <= before.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_a_buffer_that_is_not_finite_at_the_end_is_named_and_the_run_is_not_done(tmp_path: Path) -> None:
    class Overflowing(Normed):
        def forward(self, batch: Batch, progress: float) -> Loss:
            self.norm.running_var.fill_(math.inf)
            return super().forward(batch, progress)

    with pytest.raises(NumericalError, match=r"not finite in norm\.running_var after step 2"):
        fitted(tmp_path, Overflowing(in_gradient=False), 2)


def test_outcomes_that_are_read_late_say_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU the host reads a step's outcome while the next one runs; here both ways on the CPU."""

    loop = LoopConfig(ema=0.9, log_every=5, max_bad_steps=3)
    at_once = train(tmp_path / "at once", 12, loop, batches=lambda start: stream(start, range(3, 5)))
    monkeypatch.setattr("beitkit.train.loop.READ_LATE", {"cpu": 1})
    late = train(tmp_path / "late", 12, loop, batches=lambda start: stream(start, range(3, 5)))
    assert same(at_once, late)
    assert untimed(events_of(tmp_path / "at once")) == untimed(events_of(tmp_path / "late"))
    with pytest.raises(NumericalError, match="the last was step 6"):
        train(tmp_path / "bad", 12, loop, batches=lambda start: stream(start, range(3, 9)))


def test_a_run_that_ends_on_a_bad_step_is_not_called_done(tmp_path: Path) -> None:
    with pytest.raises(NumericalError, match="ended with numbers that are not finite after step 3"):
        train(tmp_path, 3, batches=lambda start: stream(start, range(2, 9)))


def test_several_bad_steps_in_a_row_stop_the_run_and_name_the_step(tmp_path: Path) -> None:
    with pytest.raises(NumericalError, match="3 steps in a row .* the last was step 7"):
        train(tmp_path, 20, batches=lambda start: stream(start, range(4, 20)))


def test_the_first_step_is_said_at_once_and_then_a_line_every_half_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, said = 0.0, io.StringIO()

    def slow(start: int) -> Iterator[Batch]:
        nonlocal now
        for batch in stream(start):
            now += 12
            yield batch

    monkeypatch.setattr("time.monotonic", lambda: now)
    settings = training(tmp_path, TrainConfig(steps=8, batch_size=BATCH, lr=0.05), LoopConfig(log_every=6))
    toy = Toy()
    fit(toy, slow, parameter_groups(toy, 0.01), replace(settings, journal=Journal(tmp_path / "journal.jsonl", stream=said)))
    assert [line.split()[1] for line in said.getvalue().splitlines()] == ["1/8", "4/8", "6/8", "8/8"]
    assert [json.loads(line)["step"] for line in (tmp_path / "journal.jsonl").read_text().splitlines()] == [6, 8]


def test_progress_rises_from_zero_toward_one(tmp_path: Path) -> None:
    assert train(tmp_path, 4).progress == [0, 0.25, 0.5, 0.75]


def test_the_average_of_the_weights_is_the_result_and_does_not_change_training(tmp_path: Path) -> None:
    class Watch:
        name = "watch"

        def run(self, share: Share = WHOLE) -> Iterator[tuple[str, float]]:
            yield "value", 1.0

    plain = train(tmp_path / "plain", 6)
    steps, loop = 6, LoopConfig(ema=0.5, evaluate_every=2)
    averaged = train(tmp_path / "ema", steps, loop, evaluators=[Watch()])
    state = stored(tmp_path / "ema", 6)
    assert torch.equal(state["parameter.layer.weight"], plain.layer.weight)
    assert torch.equal(state["average.layer.weight"], averaged.layer.weight)
    assert not torch.equal(averaged.layer.weight, plain.layer.weight)


def test_the_average_follows_its_recursion() -> None:
    layer = nn.Linear(1, 1, bias=False)
    layer.weight.data.fill_(1.0)
    average = WeightAverage(dict(layer.named_parameters()), 0.9)
    for value in (2.0, 3.0):
        layer.weight.data.fill_(value)
        average.update()
    expected = 0.9 * (0.9 * 1.0 + 0.1 * 2.0) + 0.1 * 3.0
    assert average.averages["weight"].item() == pytest.approx(expected)
    assert layer.weight.item() == 3.0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_after_the_step_and_the_run_continues_exactly(tmp_path: Path, number: int, code: int) -> None:
    steps, loop = 10, LoopConfig(save_every=0)
    unbroken = train(tmp_path / "unbroken", steps, loop)

    def interrupting(start: int) -> Iterator[Batch]:
        for position, batch in enumerate(stream(start), start):
            if position == 4:
                os.kill(os.getpid(), number)
            yield batch

    with pytest.raises(Interrupted, match="after step 5 of 10") as caught:
        train(tmp_path / "cut", steps, loop, batches=interrupting)
    assert caught.value.exit_code == code
    resumed = train(tmp_path / "cut", steps, loop)
    assert len(resumed.progress) == 5, "the run did not continue after the step it was stopped at"
    assert same(unbroken, resumed)


def test_events_after_the_restored_step_are_rewritten_once(tmp_path: Path) -> None:
    steps, loop = 9, LoopConfig(save_every=4, log_every=1)

    def dying(start: int) -> Iterator[Batch]:
        for position, batch in enumerate(stream(start), start):
            if position == 6:
                raise ConnectionError
            yield batch

    with pytest.raises(ConnectionError):
        train(tmp_path, steps, loop, batches=dying)
    with (tmp_path / "journal.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')  # torn by the kill
    train(tmp_path, steps, loop)
    steps = [json.loads(line)["step"] for line in (tmp_path / "journal.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 10))


class Scripted:
    """An evaluator that says what it is told to."""

    name = "val"

    def __init__(self, values: list[float]) -> None:
        self.values = values

    def run(self, share: Share = WHOLE) -> Iterator[tuple[str, float]]:
        yield "score", self.values.pop(0)


def test_the_weights_of_the_best_evaluation_are_kept(tmp_path: Path) -> None:
    written: list[int] = []
    loop = LoopConfig(evaluate_every=2)
    best = Best("val/score", lambda: written.append(1))
    train(tmp_path, 8, loop, evaluators=[Scripted([1.0, 3.0, 2.0, 3.0])], best=best)
    assert len(written) == 2  # 1, then 3; an equal one does not replace it
    assert best.value == 3.0


def test_a_metric_that_is_nan_is_never_the_best(tmp_path: Path) -> None:
    written: list[float] = []
    best = Best("val/score", lambda: written.append(best.value))
    train(tmp_path, 8, LoopConfig(evaluate_every=2), evaluators=[Scripted([math.nan, 1.0, math.nan, 2.0])], best=best)
    assert written == [1.0, 2.0]


def test_the_best_by_a_loss_is_the_smallest(tmp_path: Path) -> None:
    written: list[float] = []
    best = Best("val/score", lambda: written.append(best.value), is_loss=True)
    train(tmp_path, 8, LoopConfig(evaluate_every=2), evaluators=[Scripted([3.0, math.nan, 4.0, 2.0])], best=best)
    assert written == [-3.0, -2.0]


def test_a_run_is_evaluated_before_its_first_step_where_that_is_asked_for(tmp_path: Path) -> None:
    evaluator = Scripted([5.0, 1.0, 2.0])
    plain = train(tmp_path / "plain", 6)
    torch.manual_seed(0)
    toy = Toy()
    length, loop = TrainConfig(steps=6, batch_size=BATCH, lr=0.05), LoopConfig(save_every=0)
    best = Best("val/score", lambda: None)
    asked = training(tmp_path / "asked", length, loop)
    fit(toy, stream, parameter_groups(toy, 0.01), asked, [evaluator], best, (0, 4))
    assert same(toy, plain)
    assert best.value == 5.0
    events = [json.loads(line) for line in (tmp_path / "asked" / "journal.jsonl").read_text().splitlines()]
    assert [(event["step"], event["val/score"]) for event in events if event["kind"] == "evaluate"] == [
        (0, 5.0),
        (4, 1.0),
        (6, 2.0),
    ]


def test_what_learns_later_stays_bit_for_bit_until_then_and_has_a_warm_up_of_its_own(tmp_path: Path) -> None:
    torch.manual_seed(0)
    toy = Toy()
    before = toy.layer.weight.detach().clone()
    groups = delayed(parameter_groups(toy, 0.5), toy, ["layer.bias"], 3)
    assert [group.get("from_step", 0) for group in groups] == [3, 0]
    seen = []

    class Watching:
        name = "val"

        def run(self, share: Share = WHOLE) -> Iterator[tuple[str, float]]:
            seen.append((toy.layer.weight.detach().clone(), toy.layer.bias.detach().clone()))
            yield "score", 0.0

    length, loop = TrainConfig(steps=5, batch_size=BATCH, lr=0.05), LoopConfig(evaluate_every=1)
    fit(toy, stream, groups, training(tmp_path, length, loop), [Watching()])
    assert all(torch.equal(weight, before) for weight, _ in seen[:3])
    assert not torch.equal(seen[3][0], before)
    assert all(not torch.equal(one[1], other[1]) for one, other in itertools.pairwise(seen))
    assert stored(tmp_path, 5)["exp_avg.layer.weight"].any()


def test_the_best_value_survives_a_cut(tmp_path: Path) -> None:
    loop = LoopConfig(evaluate_every=2, save_every=2)

    def dying(start: int) -> Iterator[Batch]:
        for position, batch in enumerate(stream(start), start):
            if position == 5:
                raise ConnectionError
            yield batch

    with pytest.raises(ConnectionError):
        train(tmp_path, 8, loop, batches=dying, evaluators=[Scripted([5.0, 1.0])], best=Best("val/score", lambda: None))
    written: list[int] = []
    train(tmp_path, 8, loop, evaluators=[Scripted([4.0, 3.0])], best=Best("val/score", lambda: written.append(1)))
    assert not written


def test_an_evaluation_that_fails_does_not_cost_the_steps_before_it(tmp_path: Path) -> None:
    class Failing:
        name = "val"

        def run(self, share: Share = WHOLE) -> Iterator[tuple[str, float]]:
            raise UserError("an image cannot be read")
            yield "never", 0.0

    with pytest.raises(UserError, match="cannot be read"):
        train(tmp_path, 6, LoopConfig(save_every=0), evaluators=[Failing()])
    assert [path.name for path in (tmp_path / "checkpoints").glob("*.json")] == ["step-00000006.json"]
    with pytest.raises(UserError, match="cannot be read"):
        train(tmp_path / "ema", 6, LoopConfig(ema=0.5), evaluators=[Failing()])
    saved = stored(tmp_path / "ema", 6)
    assert torch.equal(saved["parameter.layer.weight"], train(tmp_path / "plain", 6).layer.weight)


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    train(tmp_path, 2)
    state = {name: Piece(tensor, tuple(tensor.shape)) for name, tensor in stored(tmp_path, 2).items()}
    state["parameter.layer.weight"] = Piece(torch.zeros(1, 7), (1, 7))
    Checkpoints(tmp_path / "checkpoints").save(3, state, {})
    with pytest.raises(UserError, match="the state of another network"):
        train(tmp_path, 6)


@pytest.mark.parametrize("name", ["step-00000006.json", "step-00000006.0.safetensors"])
def test_going_back_to_an_older_checkpoint_is_said_and_ends_the_same(tmp_path: Path, name: str) -> None:
    loop = LoopConfig(save_every=3)
    unbroken = train(tmp_path / "unbroken", 8, loop)

    def dying(start: int) -> Iterator[Batch]:
        for position, batch in enumerate(stream(start), start):
            if position == 7:
                raise ConnectionError
            yield batch

    with pytest.raises(ConnectionError):
        train(tmp_path / "cut", 8, loop, batches=dying)
    path = tmp_path / "cut" / "checkpoints" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    assert same(unbroken, train(tmp_path / "cut", 8, loop))
    events = [json.loads(line) for line in (tmp_path / "cut" / "journal.jsonl").read_text().splitlines()]
    notes = [(event["step"], event["text"]) for event in events if event["kind"] == "note"]
    assert notes == [(3, "the checkpoint after step 6 is damaged; going back to the one after step 3")]


def test_logged_means_lose_no_step_to_an_evaluation(tmp_path: Path) -> None:
    seen: list[float] = []

    class Counting(Toy):
        def forward(self, batch: Batch, progress: float) -> Loss:
            loss = super().forward(batch, progress)
            seen.append(loss.total.item())
            return loss

    torch.manual_seed(0)
    toy, loop = Counting(), LoopConfig(log_every=4, evaluate_every=2)
    length = TrainConfig(steps=4, batch_size=BATCH, lr=0.05)
    fit(toy, stream, parameter_groups(toy, 0.0), training(tmp_path, length, loop), [Scripted([1.0, 1.0])])
    events = [json.loads(line) for line in (tmp_path / "journal.jsonl").read_text().splitlines()]
    assert [event["loss"] for event in events if event["kind"] == "train"] == [pytest.approx(sum(seen) / 4)]


class Course:
    """An evaluator whose values are given."""

    name = "val"

    def __init__(self, values: list[float]) -> None:
        self.values = values
        self.asked = 0

    def run(self, share: Share = WHOLE) -> Iterator[tuple[str, float]]:
        self.asked += 1
        yield "score", self.values[self.asked - 1]


def test_patience_counts_evaluations_since_the_best_and_goes_on_where_it_was_cut(tmp_path: Path) -> None:
    values = [0.1, 0.5, 0.4, 0.5, math.nan, 0.9]  # neither an equal value nor NaN is better
    loop = LoopConfig(evaluate_every=2)
    written: list[int] = []
    course = Course(values)
    best = Best("val/score", lambda: written.append(course.asked), patience=3)
    train(tmp_path / "whole", 100, loop, evaluators=[course], best=best)
    assert (course.asked, written, best.value) == (5, [1, 2], 0.5)
    assert (tmp_path / "whole" / "checkpoints" / "step-00000010.0.safetensors").exists()
    notes = [json.loads(line) for line in (tmp_path / "whole" / "journal.jsonl").read_text().splitlines()]
    assert [note["step"] for note in notes if note["kind"] == "note"] == [10]

    class Cut(Course):
        def run(self, share: Share = WHOLE) -> Iterator[tuple[str, float]]:
            if self.asked == 4:
                raise ConnectionError
            yield from super().run(share)

    with pytest.raises(ConnectionError):
        train(tmp_path / "cut", 100, loop, evaluators=[Cut(values)], best=Best("val/score", lambda: None, patience=3))
    rest = Course(values[4:])  # the fifth is the third in a row, of which two came before the cut
    train(tmp_path / "cut", 100, loop, evaluators=[rest], best=Best("val/score", lambda: None, patience=3))
    assert rest.asked == 1
    again = Course([])
    train(tmp_path / "cut", 100, loop, evaluators=[again], best=Best("val/score", lambda: None, patience=3))
    assert again.asked == 0, "a run that had stopped went on"


def read_by(workers: int, fail_at: int, fail: str, folder: Path) -> Callable[[int], Iterator[Batch]]:
    """The stream, read by worker processes that are killed at a batch or hang there; they do so once, or `for ever`."""

    def read(keys: list[Key]) -> Batch:
        ((_, index, _),) = keys
        mark = folder / "failed"
        if index == fail_at and (fail.endswith("for ever") or not mark.exists()):
            mark.touch()
            if fail.startswith("killed"):
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(1000)
        return next(stream(index))

    folder.mkdir()
    return lambda start: read_batches(read, ([(0, index, 0)] for index in itertools.count(start)), workers)


@pytest.mark.parametrize("fail", ["killed", "hanging"])
def test_readers_that_die_or_hang_change_nothing_and_it_is_said(tmp_path: Path, fail: str) -> None:
    steps, loop = 12, LoopConfig(save_every=0)
    unbroken = train(tmp_path / "unbroken", steps, loop)
    with patient_for(2.0):
        broken = train(tmp_path / "cut", steps, loop, batches=read_by(1, 7, fail, tmp_path / "mark"))
    assert same(unbroken, broken)
    (note,) = notes_of(tmp_path / "cut")
    assert "started anew with the same batch" in note["text"]


def test_what_readers_that_give_up_leave_is_saved_and_continues_exactly(tmp_path: Path) -> None:
    steps, loop = 9, LoopConfig(save_every=0, accumulate=2, ema=0.9)
    unbroken = train(tmp_path / "unbroken", steps, loop)
    with pytest.raises(UserError, match="failed 3 times .* fewer `workers`"):  # in the middle of step 4
        train(tmp_path / "cut", steps, loop, batches=read_by(1, 7, "killed for ever", tmp_path / "mark"))
    assert len(notes_of(tmp_path / "cut")) == 2
    resumed = train(tmp_path / "cut", steps, loop)
    assert resumed.progress[0] == 3 / steps
    assert same(unbroken, resumed)


def test_readers_that_give_up_at_once_leave_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="failed 3 times"):
        train(tmp_path / "cut", 9, batches=read_by(1, 0, "killed for ever", tmp_path / "mark"))
    assert not (tmp_path / "cut" / "checkpoints").exists()


@pytest.mark.parametrize(("number", "is_twice"), [(signal.SIGTERM, False), (signal.SIGINT, False), (signal.SIGINT, True)])
@pytest.mark.parametrize("workers", [0, 1])
def test_signals_are_heard_while_no_image_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, is_twice: bool, workers: int
) -> None:
    """The disk hangs for ever: the second signal stops the run at once, one alone after a while."""
    monkeypatch.setattr("beitkit.train.machine.runtime.GRACE", 60.0 if is_twice else 0.5)
    steps, loop = 9, LoopConfig(save_every=0, accumulate=2)
    unbroken = train(tmp_path / "unbroken", steps, loop)
    hanging = read_by(workers, 7, "hanging for ever", tmp_path / "mark")

    def interrupting() -> None:
        while not (tmp_path / "mark" / "failed").exists():
            time.sleep(0.02)
        for _ in range(1 + is_twice):
            time.sleep(0.2)
            os.kill(os.getpid(), number)

    thread = threading.Thread(target=interrupting)
    thread.start()
    with pytest.raises(Interrupted, match="after step 3 of 9; the images did not come; everything is saved") as caught:
        train(tmp_path / "cut", steps, loop, batches=hanging)
    thread.join()
    assert caught.value.exit_code == 128 + number
    assert same(unbroken, train(tmp_path / "cut", steps, loop))


def named(start: int, poisoned: range) -> Iterator[Batch]:
    """The stream, with the numbers of its images."""
    for index, batch in enumerate(stream(start, poisoned), start):
        yield batch | {"index": torch.arange(index * BATCH, (index + 1) * BATCH)}


def fit_named(folder: Path, steps: int, loop: LoopConfig, batches: Callable[[int], Iterator[Batch]]) -> Toy:
    torch.manual_seed(0)
    toy = Toy()
    settings = training(folder, TrainConfig(steps=steps, batch_size=BATCH, lr=0.05), loop)
    bad_steps = BadSteps(folder, lambda index: f"{index}.png", settings.runtime.processes)
    fit(toy, batches, parameter_groups(toy, 0.01), replace(settings, bad_steps=bad_steps))
    return toy


def test_after_three_bad_steps_a_run_goes_back_and_on_with_the_images_after_theirs(tmp_path: Path) -> None:
    loop, bad = LoopConfig(save_every=4, ema=0.9, log_every=1), range(10, 13)
    went_back = fit_named(tmp_path / "back", 20, loop, lambda start: named(start, bad))
    # Step 9 is made of batch 13, and so on; random numbers are the steps' own.
    moved = train(tmp_path / "moved", 20, loop, batches=lambda start: itertools.chain(itertools.islice(stream(0), 8), stream(13)))
    assert same(moved, went_back)
    (note,) = notes_of(tmp_path / "back")
    assert note["step"] == 8
    assert "the last was step 13: going back to the checkpoint after step 8" in note["text"]
    assert "those of 5 steps are left out (1 of at most 2 times)" in note["text"]
    steps = [event["step"] for event in events_of(tmp_path / "back") if event["kind"] == "train"]
    assert steps == list(range(1, 21))
    kept = listed(tmp_path / "back" / "bad_steps" / "steps.jsonl")
    assert [(line.step, line.first_batch) for line in kept] == [(11, 10), (12, 11), (13, 12)]
    assert all(math.isnan(line.loss) for line in kept)
    assert kept[1].images == ["44.png", "45.png", "46.png", "47.png"]
    state = load_file(tmp_path / "back" / "bad_steps" / "step-00000010.0.safetensors")
    assert state["step.layer.weight"].item() == 10


@pytest.mark.parametrize("cut", [11, 14, 17])  # among the bad steps, after it went back, and after the next checkpoint
def test_a_run_that_went_back_and_was_killed_continues_exactly(tmp_path: Path, cut: int) -> None:
    loop, bad = LoopConfig(save_every=4), range(10, 13)
    unbroken = fit_named(tmp_path / "unbroken", 20, loop, lambda start: named(start, bad))

    def dying(start: int) -> Iterator[Batch]:
        for position, batch in enumerate(named(start, bad), start):
            if position == cut:
                raise ConnectionError
            yield batch

    with pytest.raises(ConnectionError):
        fit_named(tmp_path / "cut", 20, loop, dying)
    assert same(unbroken, fit_named(tmp_path / "cut", 20, loop, lambda start: named(start, bad)))
    assert len(listed(tmp_path / "cut" / "bad_steps" / "steps.jsonl")) == 3


@pytest.mark.parametrize(("first_bad", "to"), [(13, [8]), (14, [12, 12])])  # there the step in between was saved while it was bad
def test_a_run_goes_back_only_so_often_and_further_where_it_can(tmp_path: Path, first_bad: int, to: list[int]) -> None:
    with pytest.raises(
        NumericalError, match=r"3 steps in a row were not finite after going back 2 times, .*names of their images"
    ):
        fit_named(tmp_path, 40, LoopConfig(save_every=4), lambda start: named(start, range(first_bad, 99)))
    assert [note["step"] for note in notes_of(tmp_path) if "going back" in note["text"]] == to
