"""beitkit's own format: `model.safetensors` with the weights, and `model.json` to rebuild the network."""

from __future__ import annotations

import json
from pathlib import Path

from torch import Tensor

from beitkit.configs.codec import from_json, short, to_json
from beitkit.configs.tokenizer import TokenizerConfig
from beitkit.errors import UserError
from beitkit.files import read_json, why
from beitkit.interop.build import check_possible
from beitkit.interop.kinds import KINDS, AnyNetworkConfig, Network, kind_of_config
from beitkit.interop.stored import State, check_finite, read_safetensors
from beitkit.nn.lora import merged_state
from beitkit.system import write_atomically
from beitkit.tokenizers.frozen import TokenizerNetwork
from beitkit.train.checkpoints.tensor_files import write_tensors
from beitkit.version import __version__

WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"
FORMAT_VERSION = 1


def save_native(model: Network | TokenizerNetwork, folder: Path | str) -> None:
    """Write a network to `folder`, which is created, with adapters merged; each file is written atomically."""
    write_native(model.config, merged_state(model), Path(folder))


def write_native(config: AnyNetworkConfig | TokenizerConfig, tensors: dict[str, Tensor], folder: Path) -> None:
    """Write a network's config and tensors to `folder`.

    Raises:
        UserError: if a tensor has numbers that are not finite, or `folder` is a file.
    """
    if folder.is_file():
        raise UserError(f"{folder} is a file; a model is saved as a folder, give another path")
    check_finite(tensors)
    write_atomically(folder / WEIGHTS, lambda file: write_tensors(file, tensors, {"format": "pt"}))
    # The description is written last: if it is there, the weights are. After a crash between the two, a strict load refuses a
    # pair that does not fit.
    write_description(config, folder / DESCRIPTION)


def write_description(config: AnyNetworkConfig | TokenizerConfig, path: Path) -> None:
    """Write what rebuilds a network, without its tensors."""
    description = {
        "format_version": FORMAT_VERSION,
        "beitkit": __version__,
        "kind": kind_of_config(config),
        "config": to_json(config),
    }
    text = json.dumps(description, indent=2, ensure_ascii=False) + "\n"
    write_atomically(path, text.encode())


def read_native(folder: Path) -> tuple[AnyNetworkConfig | TokenizerConfig, State]:
    """The config and the unread tensors of a folder that `save_native` wrote.

    Raises:
        UserError: if a file is missing or damaged, or is from a newer version.
    """
    path = folder / DESCRIPTION
    parsed = read_description(path)
    if not (folder / WEIGHTS).is_file():
        raise UserError(f"{folder} has {DESCRIPTION} but no {WEIGHTS}; copy the whole folder")
    tensors = read_safetensors(folder / WEIGHTS)
    try:
        check_possible(parsed, tensors)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return parsed, tensors


def read_description(path: Path) -> AnyNetworkConfig | TokenizerConfig:
    """The config that `write_description` wrote; whether tensors fit it is for the caller to see.

    Raises:
        UserError: if the file is missing or damaged, or is from a newer version.
    """
    try:
        description = read_json(path)
        version, kind, config = description["format_version"], description["kind"], description["config"]
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not the description of a beitkit network ({why(error)}); save the model again") from None
    except (KeyError, TypeError):
        raise UserError(f"{path} is not the description of a beitkit network; save the model again") from None
    if version != FORMAT_VERSION:
        raise UserError(f"{path} has format version {short(version)}, this beitkit reads {FORMAT_VERSION}; update beitkit")
    if not isinstance(kind, str) or kind not in KINDS:
        raise UserError(f"{path} holds a network of kind {short(kind)}, this beitkit knows {', '.join(KINDS)}; update beitkit")
    return from_json(KINDS[kind][1], config, where=str(path))
