"""Read tokenizers: beitkit's folders, DALL-E's two pickles, BEiT's own discrete VAE, and VQ-KD."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from beitkit.configs.tokenizer import DVAEConfig, TokenizerConfig, VQKDConfig
from beitkit.contracts import TensorRecord
from beitkit.errors import UserError
from beitkit.interop.build import listed
from beitkit.interop.formats.layouts import DALLE_DECODER, DALLE_ENCODER, DISCRETE_VAE, NATIVE, VQ_KD, VQ_KD_SKIPPED
from beitkit.interop.formats.native import DESCRIPTION, read_native
from beitkit.interop.hub import on_disk
from beitkit.interop.reading.checkpoints import read_file
from beitkit.interop.reading.describe import Hints, describe_backbone
from beitkit.interop.reading.understood import split_skipped, to_official
from beitkit.interop.stored import LazyTensor, State

IN_FOLDERS = ("encoder.pkl", "pytorch_model.bin")
"""Files looked for in a folder without `model.json`."""


@dataclass(frozen=True, kw_only=True)
class TokenizerCheckpoint:
    """An identified tokenizer checkpoint; no tensor is read yet."""

    path: Path
    layout: str
    config: TokenizerConfig
    tensors: State
    """By beitkit's names."""
    skipped: tuple[TensorRecord, ...] = ()
    notes: tuple[str, ...] = ()


def read_tokenizer(path: Path) -> TokenizerCheckpoint:
    """The tokenizer checkpoint at a path.

    Raises:
        UserError: if there is no tokenizer of a known layout.
    """
    path = on_disk(path)
    if not path.exists():
        raise UserError(f"{path} does not exist; give a tokenizer's run folder or file")
    if path.is_dir():
        if (path / DESCRIPTION).is_file():
            return _native(path)
        found = next((path / name for name in IN_FOLDERS if (path / name).is_file()), None)
        if found is None:
            raise UserError(f"{path} holds no tokenizer: none of {DESCRIPTION}, {', '.join(IN_FOLDERS)}")
        path = found
    tensors, _ = read_file(path)
    if "blocks.input.w" in tensors:
        return _dalle(path, tensors)
    if "codebook.weight" in tensors:
        return _discrete_vae(path, tensors)
    if "quantize.embedding.weight" in tensors:
        return vq_kd(path, tensors, Hints())
    raise UserError(f"{path} holds no tokenizer that beitkit knows; its tensors are {listed(list(tensors))}")


def _native(path: Path) -> TokenizerCheckpoint:
    config, tensors = read_native(path)
    if not isinstance(config, TokenizerConfig):
        raise UserError(f"{path} holds a network, not a tokenizer; give the run folder of a tokenizer")
    return TokenizerCheckpoint(path=path, layout=NATIVE.name, config=config, tensors=tensors)


def _dalle(path: Path, first: State) -> TokenizerCheckpoint:
    """DALL-E's encoder and decoder, which are two files; either one may be given."""
    here, there = ("encoder", "decoder") if _is_dalle_encoder(first) else ("decoder", "encoder")
    other_path = path.with_name(path.name.replace(here, there))
    if here not in path.name or not other_path.is_file():
        raise UserError(f"{path} is DALL-E's {here}; its {there} must lie beside it as {there}{path.suffix}")
    other, _ = read_file(other_path)
    if "blocks.input.w" not in other or _is_dalle_encoder(other) == _is_dalle_encoder(first):
        raise UserError(f"{other_path} is not DALL-E's {there}")
    encoder, decoder = (first, other) if _is_dalle_encoder(first) else (other, first)
    if "blocks.output.conv.w" not in encoder:
        raise UserError(f"{path} has no blocks.output.conv.w, which scores the codes; this is not the whole of DALL-E's encoder")
    config = DVAEConfig(
        geometry="dalle",
        vocabulary=encoder["blocks.output.conv.w"].shape[0],
        stride=8,
        hidden=encoder["blocks.input.w"].shape[0],
        codebook_dim=decoder["blocks.input.w"].shape[0],
        channels=encoder["blocks.input.w"].shape[1],
        reconstruction="logit_laplace",
    )
    tensors = to_official(encoder, DALLE_ENCODER) | to_official(decoder, DALLE_DECODER)
    return TokenizerCheckpoint(path=path, layout="DALL-E", config=config, tensors=tensors)


def _is_dalle_encoder(tensors: State) -> bool:
    """The encoder starts with 7x7 pixels, the decoder with single codes."""
    return tensors["blocks.input.w"].shape[-1] > 1


def _discrete_vae(path: Path, tensors: State) -> TokenizerCheckpoint:
    first = tensors.get("encoder.0.0.weight")
    if first is None:
        raise UserError(f"{path} has a codebook but no encoder.0.0.weight; expected BEiT's own discrete VAE")
    layers = sum(
        len(stored.shape) == 4 and name.startswith("encoder.") and name.endswith(".0.weight") and name.count(".") == 3
        for name, stored in tensors.items()
    )
    config = DVAEConfig(
        geometry="beit",
        vocabulary=tensors["codebook.weight"].shape[0],
        stride=2**layers,
        hidden=first.shape[0],
        codebook_dim=tensors["codebook.weight"].shape[1],
        channels=first.shape[1],
    )
    return TokenizerCheckpoint(path=path, layout="BEiT's discrete VAE", config=config, tensors=to_official(tensors, DISCRETE_VAE))


def vq_kd(path: Path, tensors: State, hints: Hints) -> TokenizerCheckpoint:
    """BEiT v2's tokenizer; `hints` may give the number of heads, which its tensors do not show."""
    used, skipped = split_skipped(tensors, VQ_KD_SKIPPED)
    ours = to_official(used, VQ_KD)
    started = ours.get("codebook.is_started")
    if started is not None:
        ours["codebook.is_started"] = _as_flag(started)
    encoder = {name.removeprefix("encoder."): stored for name, stored in ours.items() if name.startswith("encoder.")}
    codes, target = ours["codebook.codes"], ours.get("decode_task_layer.2.weight")
    if target is None:
        raise UserError(f"{path} is the encoder half of a VQ-KD tokenizer; beitkit reads the whole official file")
    backbone, notes = describe_backbone(encoder, hints)
    config = VQKDConfig(
        encoder=backbone,
        decoder_depth=1 + max((int(name.split(".")[2]) for name in ours if name.startswith("decoder.blocks.")), default=0),
        vocabulary=codes.shape[0],
        code_dim=codes.shape[1],
        target_dim=target.shape[0],
    )
    return TokenizerCheckpoint(path=path, layout="VQ-KD", config=config, tensors=ours, skipped=skipped, notes=notes)


def _as_flag(stored: LazyTensor) -> LazyTensor:
    """One number in a vector as a single value; the official file keeps a flag that way."""
    return replace(stored, shape=(), read=lambda: stored.read().reshape(()))
