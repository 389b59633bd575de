"""Read checkpoints: run folders, Hugging Face and timm folders, and single files of any layout."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from beitkit.errors import UserError
from beitkit.files import read_json, why
from beitkit.interop.build import check_possible, listed
from beitkit.interop.formats.layouts import FOREIGN, NATIVE, SKIPPED, TIMM, TIMM_VIT, Layout
from beitkit.interop.formats.names import NameTable
from beitkit.interop.formats.native import DESCRIPTION, read_native
from beitkit.interop.hub import on_disk
from beitkit.interop.kinds import AnyNetworkConfig, kind_of_config
from beitkit.interop.reading.describe import Hints, describe, grid_of_index
from beitkit.interop.reading.hints import hints_of_hugging_face, hints_of_pickle, hints_of_timm
from beitkit.interop.reading.understood import Checkpoint, is_skipped, split_skipped, to_official, with_usual_positions
from beitkit.interop.reading.unpickle import read_pickled, tensors_of
from beitkit.interop.stored import State, read_safetensors

WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "model.pth",
)
"""Where a folder with a config.json keeps its weights, the preferred first."""
WRAPPERS = ("state_dict", "model", "module", "model_ema", "state_dict_ema", "weights", "teacher")
"""Keys under which training scripts file the weights, the preferred first."""
MAX_WRAPPERS = 3  # depth of nesting; a wrapper that contains itself must not loop forever


def read_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint at a path; no tensor is read yet.

    Raises:
        UserError: if there is no checkpoint of a known layout.
    """
    path = on_disk(path)
    if not path.exists():
        raise UserError(f"{path} does not exist; give a run folder or a checkpoint")
    if not path.is_dir():
        tensors, hints = read_file(path)
        return _understand(path, tensors, hints)
    if (path / DESCRIPTION).is_file():
        return _native(path)
    return _read_folder(path)


def _native(path: Path) -> Checkpoint:
    config, tensors = read_native(path)
    if not isinstance(config, AnyNetworkConfig):
        raise UserError(f"{path} holds a tokenizer, not a network; give it as `tokenizer`, or to load_tokenizer")
    used, skipped = split_skipped(tensors)
    try:
        official = to_official(used, NATIVE.tables[kind_of_config(config)])
    except UserError as problem:
        raise UserError(f"{path} ({NATIVE.name}): {problem}") from None
    return Checkpoint(path=path, layout=NATIVE.name, config=config, tensors=official, skipped=skipped)


def _read_folder(path: Path) -> Checkpoint:
    config = read_object(path / "config.json")
    if config is None:
        raise UserError(
            f"{path} holds neither {DESCRIPTION} nor config.json; give a run folder, a Hugging Face or timm folder, or a file"
        )
    if "verb" in config:
        raise UserError(f"{path} is a run that is not finished: it has no {DESCRIPTION} yet; repeat its command to continue it")
    tensors = _read_weights(path)
    if "architecture" in config or "pretrained_cfg" in config:
        return _understand(path, tensors, hints_of_timm(config), (TIMM, TIMM_VIT))
    return _understand(path, tensors, hints_of_hugging_face(config, read_object(path / "preprocessor_config.json")))


def _read_weights(folder: Path) -> State:
    """The tensors of the first weight file in a folder, or of all files that its index names."""
    found = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if found is None:
        raise UserError(f"{folder} has a config.json but none of {', '.join(WEIGHT_FILES)}")
    if found.suffix != ".json":
        return read_file(found)[0]
    index = read_object(found) or {}
    places = index.get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) and Path(name).name == name for name in places.values()):
        raise UserError(f"{found} is no index of weight files in the same folder")
    tensors: State = {}
    for name in sorted(set(places.values())):
        if not (folder / name).is_file():
            raise UserError(f"{folder} lacks {name}, which {found.name} names; copy the whole folder")
        tensors |= read_file(folder / name)[0]
    lost = [name for name in places if name not in tensors]
    if lost:
        raise UserError(f"{found} promises {len(lost)} tensors that its files do not have: {listed(lost)}")
    return tensors


def read_file(path: Path) -> tuple[State, Hints]:
    """The tensors of a single file by its own names, unwrapped, and its hints."""
    if path.suffix == ".safetensors":
        return read_safetensors(path), hints_of_pickle({}, path)
    unpickled = read_pickled(path)
    inner: Any = unpickled.root
    for _ in range(MAX_WRAPPERS):
        if isinstance(inner, dict):
            inner = next((inner[key] for key in WRAPPERS if isinstance(inner.get(key), dict)), inner)
    tensors = unpickled.state(tensors_of(inner))
    if not tensors:
        raise UserError(f"{path} holds no weights of a network; expected a state dict, or one under {', '.join(WRAPPERS)}")
    outside = unpickled.root if isinstance(unpickled.root, dict) and unpickled.root is not inner else {}
    return _without_prefix(tensors, "module."), hints_of_pickle(outside, path)


def _without_prefix(tensors: State, prefix: str) -> State:
    """Names without a common prefix of a wrapper (`module.` of DistributedDataParallel)."""
    if not all(name.startswith(prefix) for name in tensors):
        return tensors
    return {name.removeprefix(prefix): stored for name, stored in tensors.items()}


def _understand(path: Path, tensors: State, hints: Hints, known: tuple[Layout, ...] = FOREIGN) -> Checkpoint:
    layout, names = _layout_of(path, split_skipped(tensors)[0], known)
    used, skipped = split_skipped(tensors, SKIPPED | layout.skipped)
    try:
        official = with_usual_positions(to_official(used, names), hints.image_size)
        config, notes = describe(official, _with_grid(hints, tensors))
        if isinstance(config, AnyNetworkConfig):
            check_possible(config, official)
    except UserError as problem:
        raise UserError(f"{path} ({layout.name}): {problem}") from None
    return Checkpoint(path=path, layout=layout.name, config=config, tensors=official, skipped=skipped, notes=notes)


def _layout_of(path: Path, tensors: State, layouts: tuple[Layout, ...]) -> tuple[Layout, NameTable]:
    """The first layout of which one table knows every name."""
    candidates = [(layout, names) for layout in layouts for names in layout.tables.values()]
    unknown = [names.unknown(name for name in tensors if not is_skipped(name, layout.skipped)) for layout, names in candidates]
    nearest = min(range(len(candidates)), key=lambda index: len(unknown[index]))
    strange = unknown[nearest]
    if not strange:
        return candidates[nearest]
    if len(strange) == len(tensors):
        raise UserError(
            f"{path} holds no BEiT network: no layout knows any of its {len(tensors)} tensors, such as {listed(strange)}"
        )
    raise UserError(
        f"{path} is nearest to the layout {candidates[nearest][0].name}, which does not know "
        f"{len(strange)} tensors: {listed(strange)}"
    )


def _with_grid(hints: Hints, tensors: State) -> Hints:
    """Hints with the image size, if an index table shows the grid of patches (official files keep one per position table)."""
    index = next((stored for name, stored in tensors.items() if name.endswith("relative_position_index")), None)
    kernel = next((stored for name, stored in tensors.items() if "patch_embed" in name and len(stored.shape) == 4), None)
    if hints.image_size is not None or index is None or kernel is None:
        return hints
    grid = grid_of_index(index.read())
    return replace(hints, image_size=(grid[0] * kernel.shape[2], grid[1] * kernel.shape[3]))


def read_object(path: Path) -> dict[str, Any] | None:
    """A JSON object from a file; None if there is no such file."""
    if not path.is_file():
        return None
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not a JSON object ({why(error)}); download or copy it again") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a JSON object; download or copy it again")
    return content
