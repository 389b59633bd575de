"""Steps that were not finite, kept so that they can be looked at: which images they showed, and the state before them.

`bad_steps/steps.jsonl` has a line for each: its number, loss and gradient norm, and the names of its images. Beside it lies the
state before the last of several in a row, a checkpoint like any other, from which they can be computed again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from beitkit.contracts import Batch
from beitkit.errors import UserError
from beitkit.files import MOST_OWN, parse_json, read_regular, why
from beitkit.system import append
from beitkit.terminal import tell
from beitkit.train.checkpoints.checkpoint import Checkpoints
from beitkit.train.machine.processes import Processes

FOLDER, LIST = "bad_steps", "steps.jsonl"


class Remembered:
    """A stream of batches that remembers which images it has shown since it was last asked."""

    def __init__(self, stream: Iterator[Batch]) -> None:
        self._stream = stream
        self._indices: list[Tensor] = []

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        batch = next(self._stream)
        if "index" in batch:
            self._indices.append(batch["index"])
        return batch

    def taken(self) -> list[Tensor]:
        """Indices of the images, a tensor (b,) a batch; they may be on a device still."""
        taken, self._indices = self._indices, []
        return taken


class BadSteps:
    """The list of a run's bad steps, and the state before the last ones; all ranks call its methods."""

    def __init__(self, run: Path, name_of: Callable[[int], object], processes: Processes) -> None:
        """`name_of` tells the file of an image by its index."""
        self.folder = run / FOLDER
        self.checkpoints = Checkpoints(self.folder, processes, keep=1)
        self._name_of, self._processes = name_of, processes

    def note(self, number: int, first_batch: int, loss: float, grad_norm: float, shown: list[Tensor]) -> None:
        """Add a step, unless it is there: a run that was killed comes by again.

        Args:
            number: of the step, from 1.
            first_batch: the forward pass whose images came first; after a setback it is not the step's own.
            loss: mean over the step, finite or not.
            grad_norm: before clipping.
            shown: indices of the images that this rank has shown.
        """
        images = [str(self._name_of(index)) for indices in shown for index in indices.tolist()]
        together = [image for images in self._processes.all_gather(images) for image in images]
        if not self._processes.is_main:
            return
        path = self.folder / LIST
        if any((line.step, line.first_batch) == (number, first_batch) for line in listed(path)):
            return
        line = {
            "step": number,
            "first_batch": first_batch,
            "loss": _written(loss),
            "grad_norm": _written(grad_norm),
            "images": together,
        }
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            append(path, (json.dumps(line) + "\n").encode())
        except OSError as error:
            tell(f"{path} cannot be written ({why(error)})")


class BadStep(NamedTuple):
    """A line of the list."""

    step: int
    first_batch: int
    loss: float
    grad_norm: float
    images: list[str]


def listed(path: Path) -> list[BadStep]:
    """The lines of such a list that can be read.

    Raises:
        UserError: what is there is no file, or is too large.
    """
    found: list[BadStep] = []
    if not path.exists():
        return found
    try:
        lines = read_regular(path, MOST_OWN).splitlines()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({why(error)}); remove it") from None
    for line in lines:
        with suppress(ValueError, TypeError, KeyError, OverflowError):  # half a line of a run that was killed, or damage
            content = parse_json(line)
            step, first_batch, images = content["step"], content["first_batch"], content["images"]
            if isinstance(step, int) and isinstance(first_batch, int) and isinstance(images, list):
                loss, grad_norm = float(content["loss"]), float(content["grad_norm"])
                found.append(BadStep(step, first_batch, loss, grad_norm, [str(image) for image in images]))
    return found


def _written(number: float) -> float | str:
    """JSON has no words for what is not finite."""
    return number if math.isfinite(number) else str(number)
