"""The network of a run that is not finished: as its newest checkpoint holds it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from beitkit.configs.codec import from_json
from beitkit.configs.train import LightConfig
from beitkit.errors import UserError
from beitkit.files import read_json, why
from beitkit.interop.build import build, check_possible, shell
from beitkit.interop.formats.native import DESCRIPTION, read_description, write_description
from beitkit.interop.kinds import Network
from beitkit.interop.load import ready
from beitkit.interop.stored import of_tensors
from beitkit.nn.lora import merged_state
from beitkit.nn.models import Classifier, MaskedImageModel
from beitkit.nn.segmentation.segmenter import Segmenter
from beitkit.runs.training.start import adapt
from beitkit.tokenizers.frozen import TokenizerNetwork
from beitkit.train.checkpoints.checkpoint import Checkpoints
from beitkit.train.checkpoints.manifest import Manifest, Piece
from beitkit.train.folder import NETWORK, RunFolder

TRIES = 3
"""A run that goes on removes its older checkpoints, perhaps while they are read."""


class Unfinished(NamedTuple):
    """What a run has made so far."""

    model: Network | TokenizerNetwork
    """With the weights that it would end with here (the averaged ones with `loop.ema`); in eval mode, on the CPU."""
    step: int
    """Steps that it has made."""


def describe_network(folder: RunFolder, model: Network | TokenizerNetwork) -> None:
    """Write down, once, what is trained, so that its checkpoints can be looked at while it goes on; the main process alone."""
    if not (folder.path / NETWORK).exists():
        write_description(model.config, folder.path / NETWORK)


def is_unfinished(path: Path) -> bool:
    """Whether this is the folder of a run that has not written its model."""
    return (path / "checkpoints").is_dir() and (path / "config.json").is_file() and not (path / DESCRIPTION).is_file()


def newest_network(path: Path) -> Unfinished:
    """The network of the newest checkpoint of such a folder.

    Raises:
        UserError: there is none yet, or the run began with a version that did not write down what it trains.
    """
    checkpoints = Checkpoints(path / "checkpoints")
    for attempt in range(TRIES):
        manifest = checkpoints.newest()
        if manifest is None:
            break
        if not (path / NETWORK).is_file():
            raise UserError(
                f"{path} is a run that is not finished, begun by a version that wrote no {NETWORK}; repeat its command to "
                "continue it, which writes that"
            )
        try:
            return Unfinished(_read(path, checkpoints, manifest), manifest.step)
        except OSError as error:
            if attempt == TRIES - 1:
                raise UserError(f"the state after step {manifest.step} of {path} cannot be read ({why(error)})") from None
    raise UserError(
        f"{path} is a run that is not finished, and it has saved no state yet; wait for its first one (`loop.save_every` says "
        "when), or repeat its command to continue it"
    )


def _read(path: Path, checkpoints: Checkpoints, manifest: Manifest) -> Network | TokenizerNetwork:
    config = read_description(path / NETWORK)
    stored: dict[tuple[str, str], str] = {}
    for full in manifest.tensors:
        kind, _, of_objective = full.partition(".")
        part, _, name = of_objective.partition(".")
        if part in ("model", "tokenizer"):  # as objectives call what they train
            stored[kind, name] = full
    check_possible(config, {name: manifest.tensors[full] for (kind, name), full in stored.items() if kind == "parameter"})
    model = shell(config).to_empty(device="cpu")
    assert isinstance(model, Network | TokenizerNetwork)
    if any(name.endswith(".lora_A") for _, name in stored):
        assert isinstance(model, MaskedImageModel | Classifier | Segmenter)
        adapt(model, _light(path))
    wanted: dict[str, Piece] = {}  # the average is there if the run keeps one
    for name, tensor in model.state_dict().items():
        full = next((stored[kind, name] for kind in ("average", "parameter", "buffer") if (kind, name) in stored), None)
        if full is None:
            raise UserError(f"{checkpoints.folder} holds the state of another network than {path / NETWORK}: {name} is not there")
        wanted[full] = Piece(tensor, tuple(tensor.shape))
    checkpoints.read(manifest, wanted)
    plain = build(config, of_tensors(merged_state(model)))
    if isinstance(plain, Network):
        return ready(plain)
    assert isinstance(plain, TokenizerNetwork)
    return plain.requires_grad_(False)


def _light(path: Path) -> LightConfig:
    """Which blocks have adapters, as the run was asked."""
    try:
        return from_json(LightConfig, read_json(path / "config.json")["light"], where=str(path / "config.json"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path / 'config.json'} does not say which adapters the run has ({error!r}); copy the whole folder"
        ) from None
