"""Build a network from a config and lazy tensors, strictly: no tensor may be missing or left over."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from beitkit.configs.codec import short, to_json
from beitkit.configs.model import MaskedImageModelConfig, SegmenterConfig
from beitkit.configs.tokenizer import TokenizerConfig
from beitkit.errors import UserError
from beitkit.interop.kinds import FRESH_IN_BACKBONE, KINDS, AnyNetworkConfig, kind_of_config
from beitkit.interop.stored import State, check_finite
from beitkit.terminal import one_line

LISTED = 8
"""Names listed in an error message before "and N more"."""


def build(config: AnyNetworkConfig | TokenizerConfig, tensors: State, fresh: Collection[str] = ()) -> nn.Module:
    """A network in eval mode on the CPU, floating-point tensors in float32.

    Args:
        config: what to build.
        tensors: the tensors by our own names, read here.
        fresh: names that are freshly initialized instead.

    Raises:
        UserError: listing the tensors that are missing, too many, of another shape, or not finite.
    """
    model = shell(config)
    wanted = model.state_dict()
    check_complete({name: tuple(tensor.shape) for name, tensor in wanted.items()}, tensors, fresh)
    state = _fresh_tensors(config, fresh) if fresh else {}
    for name, stored in tensors.items():
        state[name] = stored.read().to(wanted[name].dtype)
    check_finite(state)
    model.load_state_dict(state, strict=True, assign=True)
    assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    return model.eval()


@runtime_checkable
class Shaped(Protocol):
    """A tensor that is known by its shape, read or not."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of its axes."""
        ...


def check_possible(config: AnyNetworkConfig | TokenizerConfig, tensors: Mapping[str, Shaped]) -> None:
    """Raise a `UserError` for a config whose network cannot be that of a file's tensors, before anything of it is made.

    Who reads the tensors knows that the file holds them, so what is as large as one of them is no larger than the file.
    """
    largest = max((side for stored in tensors.values() for side in stored.shape), default=0)
    _check_sizes(to_json(config), largest, len(tensors))


WIDTHS = ("width", "hidden", "vocabulary", "features", "code_dim", "target_dim", "codebook_dim", "auxiliary_channels")
"""Fields of configs that are a side of some tensor, or smaller than one."""
LAYERS = ("depth", "decoder_depth", "head_layers")
"""Fields that are a number of layers, each with a tensor."""
LONGEST_SIDE = 2**15  # pixels


def _check_sizes(config: dict[str, Any], largest: int, count: int) -> None:
    for name, value in config.items():
        if isinstance(value, dict):
            _check_sizes(value, largest, count)
        sides = value if name in ("image_size", "patch") and isinstance(value, list) else [value]
        most = largest if name in WIDTHS else count if name in LAYERS else LONGEST_SIDE
        if name in (*WIDTHS, *LAYERS, "image_size", "patch", "stride") and any(isinstance(s, int) and s > most for s in sides):
            raise UserError(
                f"its config says {name} {short(value)}, but its {count} tensors, up to {largest:,} along a side, are those of "
                "a smaller network; copy it again"
            )
    if {"image_size", "patch", "absolute_positions", "relative_positions"} <= config.keys():
        grid = [side // patch for side, patch in zip(config["image_size"], config["patch"], strict=True)]
        has_table = config["relative_positions"] != "none"
        rows = (2 * grid[0] - 1) * (2 * grid[1] - 1) if has_table else grid[0] * grid[1] if config["absolute_positions"] else 0
        if rows > largest:
            raise UserError(
                f"its config says {grid[0]}x{grid[1]} patches, more than its tensors have positions for ({largest:,} along a "
                "side at most); copy it again"
            )


VALUES = {getattr(Tensor, f"{name}_") for name in ("normal", "uniform", "erfinv", "clamp", "mul", "div", "fill", "zero")}
"""Methods that change the values of a tensor and nothing else."""


class _Valueless(TorchFunctionMode):
    """Leaves out what only changes values: of tensors without memory PyTorch imports a second's worth of modules for it."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in VALUES:
            return args[0]
        return (torch.empty if func is torch.randn else func)(*args, **(kwargs or {}))


def shell(config: AnyNetworkConfig | TokenizerConfig) -> nn.Module:
    """The network without allocated weights: names and shapes only."""
    with torch.device("meta"), _Valueless():
        return KINDS[kind_of_config(config)][0](config)


def shapes_of(config: AnyNetworkConfig | TokenizerConfig) -> dict[str, tuple[int, ...]]:
    """The tensors that a network has, by our names."""
    return {name: tuple(tensor.shape) for name, tensor in shell(config).state_dict().items()}


def check_complete(wanted: dict[str, tuple[int, ...]], tensors: State, fresh: Collection[str] = ()) -> None:
    """Raise a `UserError` that names every tensor that is missing, too many or of another shape."""
    missing = [name for name in wanted if name not in tensors and name not in fresh]
    surplus = [name for name in tensors if name not in wanted]
    misshapen = [
        f"{name} {_shape(stored.shape)} instead of {_shape(wanted[name])}"
        for name, stored in tensors.items()
        if name in wanted and stored.shape != wanted[name]
    ]
    problems = [
        f"{len(names)} {what}: {listed(names)}"
        for what, names in (("missing", missing), ("not expected", surplus), ("of another shape", misshapen))
        if names
    ]
    if problems:
        raise UserError(f"the tensors do not fit the network; {'; '.join(problems)}")


def listed(names: list[str]) -> str:
    """The first names, and how many more there are."""
    more = len(names) - LISTED
    return one_line(", ".join(names[:LISTED])) + (f" and {more} more" if more > 0 else "")


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _fresh_tensors(config: AnyNetworkConfig | TokenizerConfig, names: Collection[str]) -> dict[str, Tensor]:
    """Freshly initialized tensors. They are never part of a block, so they come from a network with the fewest blocks."""
    assert isinstance(config, AnyNetworkConfig)
    assert not any(name.startswith("backbone.") and name not in FRESH_IN_BACKBONE for name in names)
    if isinstance(config, SegmenterConfig):
        small: AnyNetworkConfig = replace(config, backbone=replace(config.backbone, depth=4), taps=None)
    elif isinstance(config, MaskedImageModelConfig) and config.cls_branch is not None:
        branch = replace(config.cls_branch, early_layer=1)
        small = replace(config, backbone=replace(config.backbone, depth=1), cls_branch=branch)
    else:
        small = replace(config, backbone=replace(config.backbone, depth=1))
    drawn = KINDS[kind_of_config(small)][0](small).state_dict()
    return {name: drawn[name] for name in names}
