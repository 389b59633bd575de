"""What `beitkit run` decided, what is finished, and how much of the budget is spent, in `progress.json`.

A stage's settings follow from the speed of the machine and the time that is left, so they are kept when they are decided: a run
that is continued takes the same, and ends with the same weights.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from beitkit.errors import UserError
from beitkit.files import MOST_OWN, read_json
from beitkit.report.table import plain
from beitkit.system import write_atomically

SIGNS_OF_LIFE = ("journal.jsonl", "measured/*.json")
"""Files below a stage's folder that are written as it goes."""


class Ledger:
    """The stages of one `beitkit run`, by name."""

    def __init__(self, out: Path, began: float | None = None) -> None:
        """`began`: when this start began, by the monotonic clock; None: now."""
        self.path = out / "progress.json"
        self.stages: dict[str, dict[str, Any]] = {}
        self._before = 0.0
        self._since = time.monotonic() if began is None else began
        if self.path.exists():
            self._read()
        self._save(time.time())

    @property
    def spent(self) -> float:
        """Seconds that this and earlier starts took."""
        return self._before + time.monotonic() - self._since

    def decided(self, stage: str, decide: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The settings of a stage: those that were kept, or what `decide` makes of the time that is left."""
        found = self.stages.setdefault(stage, {})
        if "settings" not in found:
            found["settings"] = plain(decide())
            self._save(time.time())
        return found["settings"]

    def is_done(self, stage: str) -> bool:
        """Whether a stage is finished."""
        return self.stages.get(stage, {}).get("done", False)

    @contextmanager
    def stage(self, name: str) -> Iterator[dict[str, Any]]:
        """Count the seconds of a stage, which is finished at the end of the block; what the block puts into the dict is kept."""
        began = time.monotonic()
        found = self.stages.setdefault(name, {})
        try:
            yield found
            found["done"] = True
        finally:
            found["seconds"] = found.get("seconds", 0.0) + time.monotonic() - began
            self._save(time.time())

    def close(self) -> None:
        """This start ends here."""
        self._save(None)

    def _read(self) -> None:
        try:
            content = read_json(self.path, MOST_OWN)
            self.stages = {name: dict(found) for name, found in content["stages"].items()}
            self._before = float(content["spent"])
            began = content["began"]
            if began is not None:  # a start that was killed: it lived until it wrote for the last time
                self._before += max(0.0, self._last_sign() - float(began))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"{self.path} is damaged; remove it, and what is not finished is planned again") from None

    def _last_sign(self) -> float:
        files = [path for pattern in SIGNS_OF_LIFE for path in self.path.parent.rglob(pattern)]
        return max((path.stat().st_mtime for path in [*files, self.path]), default=0.0)

    def _save(self, began: float | None) -> None:
        """Write it; `began` is the time from which on what is spent is not in `spent`."""
        content = {"stages": self.stages, "spent": self.spent, "began": began}
        write_atomically(self.path, (json.dumps(content, indent=2) + "\n").encode())
