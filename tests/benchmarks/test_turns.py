"""Candidates take turns in order, after all have warmed up, for as long as a turn is to take."""

from __future__ import annotations

from benchmarks.compare.turns import WARM_UP_STEPS, Candidate, interleaved


class Clock:
    """Time that passes only when somebody works."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def candidates(clock: Clock, seconds: dict[str, float], log: list[str]) -> list[Candidate]:
    def made(name: str) -> Candidate:
        def step() -> None:
            log.append(name)
            clock.now += seconds[name]

        return Candidate(name, "", lambda: (log.append(f"prepare {name}"), step)[1])

    return [made(name) for name in seconds]


def test_rounds_go_around_after_everybody_has_warmed_up() -> None:
    clock, log = Clock(), []
    taken = interleaved(candidates(clock, {"a": 2.0, "b": 5.0, "c": 1.0}, log), 3, clock=clock)
    warm = [entry for name in "abc" for entry in (f"prepare {name}", *[name] * WARM_UP_STEPS)]
    assert log == warm + ["a", "a", "b", "b", "c", "c"] * 3, "an untimed step begins each turn"
    assert taken == {"a": [2.0] * 3, "b": [5.0] * 3, "c": [1.0] * 3}


def test_a_turn_has_as_many_steps_as_it_needs_and_says_what_one_took() -> None:
    clock, log = Clock(), []
    taken = interleaved(candidates(clock, {"fast": 0.25, "slow": 3.0}, log), 2, turn=1.0, clock=clock)
    assert log[2 + 2 * WARM_UP_STEPS :] == (["fast"] * 5 + ["slow"] * 2) * 2
    assert taken == {"fast": [0.25, 0.25], "slow": [3.0, 3.0]}


def test_the_clock_is_read_when_the_device_is_done() -> None:
    clock, pending = Clock(), [0.0]

    def wait() -> None:
        clock.now += pending[0]
        pending[0] = 0.0

    def step() -> None:
        pending[0] += 2.0  # begun, not done

    taken = interleaved([Candidate("later", "", lambda: step)], 2, turn=4.0, wait=wait, clock=clock)
    assert taken == {"later": [2.0, 2.0]}
