"""The Python functions: what stands in the place of paths goes to the verbs that take objects, and is refused by the others."""

from inspect import Parameter
from typing import Any

import numpy as np
import pytest

import beitkit.verbs
from beitkit.errors import UserError
from beitkit.runs.training.own import OwnParts
from beitkit.verbs import VERBS, Verb

IMAGES = [(np.zeros((8, 8, 3), dtype=np.uint8), 0)] * 4
READ = ("images", "val", "inputs", "labels", "labelled", "tokenizer", "image_folder")
"""Fields that say what is read."""


def arguments(verb: Verb, **given: Any) -> dict[str, Any]:
    """What a verb needs, besides what is given."""
    parameters = verb.signature.parameters
    needed = {
        name: 3 if name == "step" or verb.name == "plan" else "x"
        for name, one in parameters.items()
        if one.default is Parameter.empty
    }
    return needed | {name: "m" for name in ("model", "tokenizer") if name in parameters} | given


@pytest.mark.parametrize("name", VERBS)
def test_objects_are_handed_to_the_verbs_that_take_them_and_refused_by_the_others(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beitkit.verbs.Entry, "function", lambda self: lambda config, **beside: (config, beside))
    verb, own = Verb(name), VERBS[name].own.split()
    assert {field for field in own if field not in READ} <= {"augmentation"}
    for field in READ:
        if field not in verb.signature.parameters or not (field == "images" or "Path" in str(verb.signature.parameters[field])):
            continue  # a number of labels, say
        given = str if field == "tokenizer" else IMAGES
        if field not in own:
            with pytest.raises(UserError, match=rf"^\w+: `{field}` must be (a path|paths|a number), got a (list|type)") as error:
                verb(**arguments(verb, **{field: given}))
            assert "\n" not in str(error.value)
            taken_by = [other for other in VERBS if field in VERBS[other].own.split()]
            assert str(error.value).endswith(f"; an object in its place is for {', '.join(taken_by)}") or not taken_by
            continue
        config, beside = verb(**arguments(verb, **{field: given}))
        assert isinstance(beside["own"], OwnParts)
        assert getattr(beside["own"], field) is given
        described = getattr(config, field)
        (described,) = described if isinstance(described, tuple) else (described,)
        assert str(described).startswith("<python: ")
