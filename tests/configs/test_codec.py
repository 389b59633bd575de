"""Configs as JSON and back: every config class, and every way a file can be wrong."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beitkit.configs.codec import from_json, later, to_json
from beitkit.configs.model import BackboneConfig, ClassifierConfig, MaskedImageModelConfig, SegmenterConfig
from beitkit.configs.tokenizer import DVAEConfig, VQKDConfig
from beitkit.errors import UserError
from beitkit.runs.finetune.config import FinetuneRun
from beitkit.runs.pretrain.config import PretrainRun


@dataclass(frozen=True)
class Inner:
    kind: Literal["a", "b"] = "a"
    scale: float | None = 0.5


@dataclass(frozen=True)
class Outer:
    inner: Inner
    count: int = 1
    is_big: bool = False
    names: tuple[str, ...] = ()
    size: int | tuple[int, int] = 3
    place: Path | None = None
    other: Inner | None = None


def test_a_caller_s_dict_may_hold_tuples_and_paths() -> None:
    given = to_json(Outer(Inner())) | {"names": ("a", "b"), "size": (2, 3), "place": Path("x")}
    assert from_json(Outer, given) == Outer(Inner(), names=("a", "b"), size=(2, 3), place=Path("x"))


def through_text(config: Any) -> Any:
    return from_json(type(config), json.loads(json.dumps(to_json(config), allow_nan=False)))


BASE = BackboneConfig.named("tiny/16", mask_token=True)
FINE = BackboneConfig.named("tiny/16", relative_positions="per_block", final_norm=False, layer_scale=None)


@pytest.mark.parametrize(
    "config",
    [
        BASE,
        MaskedImageModelConfig(backbone=BASE, vocabulary=512, tokenizer="ab"),
        ClassifierConfig(backbone=FINE, classes=("ü", "b")),
        SegmenterConfig(backbone=FINE, classes=("a", "b"), channels=8, palette=((0, 1, 2), (3, 4, 5))),
        DVAEConfig(),
        VQKDConfig(encoder=BackboneConfig.named("tiny/16", relative_positions="none", absolute_positions=True)),
        PretrainRun(Path("images"), tokenizer=Path("tok"), out=Path("out")),
        FinetuneRun(Path("images"), model=Path("pre"), out=Path("out"), labels=10),
        Outer(Inner("b", None), size=(1, 2), place=Path("x/y"), other=Inner()),
    ],
    ids=lambda config: type(config).__name__,
)
def test_there_and_back(config: Any) -> None:
    assert through_text(config) == config


@given(
    st.builds(
        Outer,
        st.builds(Inner, st.sampled_from(["a", "b"]), st.none() | st.floats(allow_nan=False, allow_infinity=False)),
        st.integers(),
        st.booleans(),
        st.lists(st.text()).map(tuple),
        st.integers() | st.tuples(st.integers(), st.integers()),
    )
)
def test_there_and_back_for_any_values(config: Outer) -> None:
    assert through_text(config) == config


def test_whole_numbers_are_floats_where_floats_are_meant() -> None:
    scale = from_json(Inner, {"kind": "a", "scale": 1}).scale
    assert scale == 1.0
    assert isinstance(scale, float)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": 1.5}, "count must be a whole number, got 1.5"),
        ({"count": True}, "count must be a whole number, got True"),
        ({"is_big": 1}, "is_big must be true or false, got 1"),
        ({"names": "abc"}, "names must be a list, got 'abc'"),
        ({"names": ["a", 2]}, "names.1 must be text, got 2"),
        ({"size": [1, 2, 3]}, "size must have 2 values, got 3"),
        ({"inner": {"kind": "c", "scale": 1.0}}, "inner.kind must be one of 'a', 'b', got 'c'"),
        ({"inner": {"kind": "a"}}, "missing inner.scale"),
        ({"inner": {"kind": "a", "scale": 1.0, "extra": 0}}, "unknown inner.extra"),
        ({"inner": [1]}, "inner must be an object"),
        ({"surprise": 1}, "unknown surprise"),
        ({"place": 3}, "place must be a path, got 3"),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        from_json(Outer, to_json(Outer(Inner())) | changes, where="model.json")
    assert str(caught.value).startswith(f"model.json: {message}")
    assert "\n" not in str(caught.value)


def test_infinite_numbers_are_refused() -> None:
    with pytest.raises(UserError, match="finite"):
        from_json(Inner, {"kind": "a", "scale": float("inf")})


def test_the_checks_of_the_class_run() -> None:
    with pytest.raises(UserError, match="not divisible"):
        from_json(BackboneConfig, to_json(BASE) | {"heads": 7})


@dataclass(frozen=True)
class Grown:
    old: int = 1
    new: str = later("usual")


def test_a_field_that_came_later() -> None:
    """Files from before are read, and what did not change is written as it was, so that its digest stays."""
    assert from_json(Grown, {"old": 2}) == Grown(2)
    assert to_json(Grown(2)) == {"old": 2}
    assert through_text(Grown(2, "special")) == Grown(2, "special")
    with pytest.raises(UserError, match="missing old"):
        from_json(Grown, {"new": "usual"})
