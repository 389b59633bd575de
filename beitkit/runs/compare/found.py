"""What the folder of a run says about it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from beitkit.configs.codec import flat
from beitkit.errors import UserError
from beitkit.files import MOST_OWN, read_json, why
from beitkit.report.charts.canvas import Number
from beitkit.report.journal import Event, Points, read_journal, series

RESULTS = ("result.json", "evaluation.json", "probe.json", "verdict.json", "ablate.json")
"""Files that the verbs write their results to."""
DEEPEST = 2
"""Levels of a result file whose numbers are compared; below are lists of blocks, classes and images."""
NOT_COMPARED = ("val_digest",)
LOWER_IS_BETTER = ("loss", "error", "ece", "nll", "mse")
"""Ends of the names of numbers of which the lowest is the best."""


@dataclass(frozen=True)
class RunFacts:
    """One run, as its folder tells it."""

    name: str
    path: Path
    config: dict[str, Any]
    """Option to value; the names of nested ones are dotted."""
    environment: dict[str, Any]
    """The same of where it was first started."""
    events: list[Event]
    results: dict[str, Number]
    """Numbers in its result file."""
    is_finished: bool

    @property
    def verb(self) -> str:
        """What made it."""
        return str(self.config.get("verb"))

    def points(self, key: str) -> Points:
        """A number over the steps; those of evaluations have the evaluator's name and a slash before them."""
        return series(self.events, key, "evaluate" if "/" in key else "train")

    @property
    def keys(self) -> list[str]:
        """The names of the numbers that are logged, in the order in which they first occur."""
        kinds = ("train", "evaluate")
        return list(dict.fromkeys(key for event in self.events if event.kind in kinds for key in event.numbers))


def read_run(path: Path, name: str) -> RunFacts:
    """Everything that is compared of a run.

    Raises:
        UserError: what is no run folder, or a damaged file in one.
    """
    config = _object(path / "config.json")
    if config is None or "verb" not in config:
        raise UserError(f"{path} is no run folder: it has no config.json that says what was run")
    environment = _object(path / "environment.json") or {}
    continued = environment.pop("continued", [])
    environment |= {"continued": f"{len(continued)} times"} if isinstance(continued, list) and continued else {}
    journal, found = path / "journal.jsonl", [_object(path / file) for file in RESULTS]
    return RunFacts(
        name=name,
        path=path,
        config=flat(config),
        environment=flat(environment),
        events=read_journal(journal) if journal.is_file() else [],
        results=_numbers(next((content for content in found if content is not None), {})),
        is_finished=(path / "model.json").is_file() or any(content is not None for content in found),
    )


def best_of(key: str, values: list[float]) -> float:
    """The lowest of losses and errors, of all else the highest."""
    return (min if key.endswith(LOWER_IS_BETTER) else max)(values)


def _numbers(content: dict[str, Any], prefix: str = "", depth: int = 1) -> dict[str, Number]:
    numbers: dict[str, Number] = {}
    for key, value in content.items():
        if key in NOT_COMPARED:
            continue
        if isinstance(value, dict) and depth < DEEPEST:
            numbers |= _numbers(value, f"{prefix}{key}.", depth + 1)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            numbers[f"{prefix}{key}"] = value
    return numbers


def _object(path: Path) -> dict[str, Any] | None:
    """A JSON object; None where there is no such file."""
    try:
        content = read_json(path, MOST_OWN)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({why(error)}); expected a file of a run") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object; expected a file of a run")
    return content
