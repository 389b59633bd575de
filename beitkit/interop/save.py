"""`beitkit.save`, and conversion between checkpoint formats without building the network."""

from __future__ import annotations

from pathlib import Path

from beitkit.configs.parts import CheckpointFormat
from beitkit.contracts import LoadReport, TensorRecord
from beitkit.errors import UserError
from beitkit.interop.build import build, check_complete, shapes_of
from beitkit.interop.formats.native import save_native, write_native
from beitkit.interop.formats.write import WRITERS, prepare, write
from beitkit.interop.handover import Target, hand_over
from beitkit.interop.inspect import read_any
from beitkit.interop.kinds import Network
from beitkit.interop.reading.tokenizers import TokenizerCheckpoint
from beitkit.interop.stored import of_tensors
from beitkit.nn.lora import merged_state
from beitkit.tokenizers.frozen import TokenizerNetwork


def save(model: Network | TokenizerNetwork, path: str | Path, *, format: CheckpointFormat = "native") -> LoadReport:
    """Write a network so that `beitkit.load`, or other software, reads it back; the report names every tensor.

    Args:
        model: a network or, in the native format, a tokenizer.
        path: a folder that is made if need be (native, huggingface, timm), or a `.pth` file (microsoft).
        format: native keeps everything; microsoft is the official code's, huggingface that of transformers.

    Raises:
        UserError: if the format cannot hold the network.
    """
    target, file_format = Path(path), _known(format)
    if not isinstance(model, Network):
        _refuse_foreign_tokenizer(file_format)
        save_native(model, target)
        records = [TensorRecord(name, "kept", (name,), tuple(tensor.shape)) for name, tensor in model.state_dict().items()]
        return LoadReport(source=f"{target} (native)", records=tuple(records))
    output = prepare(model.config, of_tensors(merged_state(model)), file_format)
    write(output, target, file_format)
    return LoadReport(source=f"{target} ({file_format})", records=output.records, notes=output.notes)


def convert(path: str | Path, to: CheckpointFormat, out: str | Path, *, dry_run: bool = False) -> LoadReport:
    """Write a checkpoint in another format; `dry_run` only says what would become of every tensor.

    Raises:
        UserError: if the checkpoint is not understood completely, or the format cannot hold it.
    """
    checkpoint, file_format = read_any(Path(path)), _known(to)
    if isinstance(checkpoint, TokenizerCheckpoint):
        return _convert_tokenizer(checkpoint, file_format, Path(out), dry_run)
    handover = hand_over(checkpoint.config, checkpoint.tensors, Target())
    check_complete(shapes_of(handover.config), handover.tensors)
    output = prepare(handover.config, handover.tensors, file_format)
    if not dry_run:
        write(output, Path(out), file_format)
    return LoadReport(
        source=f"{path} ({checkpoint.layout}) to {out} ({file_format})",
        records=(*output.records, *checkpoint.skipped),
        notes=(*checkpoint.notes, *output.notes),
    )


def _convert_tokenizer(checkpoint: TokenizerCheckpoint, file_format: CheckpointFormat, out: Path, dry_run: bool) -> LoadReport:
    _refuse_foreign_tokenizer(file_format)
    check_complete(shapes_of(checkpoint.config), checkpoint.tensors)
    if not dry_run:
        tokenizer = build(checkpoint.config, checkpoint.tensors)
        write_native(checkpoint.config, tokenizer.state_dict(), out)
    records = [TensorRecord(name, item.fate, item.sources, item.shape, item.reason) for name, item in checkpoint.tensors.items()]
    return LoadReport(
        source=f"{checkpoint.path} ({checkpoint.layout}) to {out} ({file_format})",
        records=(*records, *checkpoint.skipped),
        notes=checkpoint.notes,
    )


def _refuse_foreign_tokenizer(file_format: CheckpointFormat) -> None:
    if file_format != "native":
        raise UserError(f"a tokenizer can be saved as native only, got format {file_format!r}")


def _known(name: str) -> CheckpointFormat:
    for known in WRITERS:
        if known == name:
            return known
    raise UserError(f"no format is called {name!r}; there are {', '.join(WRITERS)}")
