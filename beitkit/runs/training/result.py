"""What a finished run wrote down in its folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from beitkit.errors import UserError

Result = TypeVar("Result")


def read_result(folder: Path, kind: str, val_digest: str, read: Callable[[dict[str, Any]], Result]) -> Result:
    """What `read` takes from the result.json of a run of this kind, measured on the same validation images.

    Raises:
        UserError: if there is no finished run, or it was measured on other images.
    """
    path = folder / "result.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        result, measured_on = read(content), content["val_digest"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{folder} holds no finished {kind} run (expected {path})") from None
    if measured_on != val_digest:
        raise UserError(f"{folder} was measured on other validation images, so the two runs cannot be compared")
    return result
