"""ONNX and torch.export (`.pt2`) programs of networks, which run without beitkit.

The batch size is dynamic; image size and weights are fixed. A program's outputs are compared with those of the network, in the
engine that will run it, before the file gets its name. Pixel statistics and classes are stored inside.
"""

from __future__ import annotations

import importlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from beitkit.configs.codec import to_json
from beitkit.configs.model import BackboneConfig
from beitkit.configs.parts import ProgramFormat
from beitkit.errors import UserError
from beitkit.interop.kinds import AnyNetworkConfig, Network
from beitkit.nn.backbone import Backbone
from beitkit.nn.models import Classifier
from beitkit.nn.segmentation.segmenter import Segmenter
from beitkit.system import write_atomically

SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}
CHECKED_BATCHES = (1, 3)
TOLERANCE = 1e-4
"""Tolerance: largest difference to the network relative to its largest output, for other summation orders."""
OPSET = 20

Run = Callable[[Tensor], list[Tensor]]


class _CalibratedLogits(nn.Module):
    """A classifier whose logits are divided by its temperature."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Float[Tensor, "b c h w"]) -> Tensor:
        """Logits whose softmax (or sigmoid) are the network's probabilities."""
        return self.model(images) / self.model.config.temperature


class _BackboneOutputs(nn.Module):
    """A backbone whose outputs are tensors only."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Float[Tensor, "b c h w"]) -> tuple[Tensor, Tensor]:
        """Class token (b, d) and patches (b, n, d)."""
        features = self.backbone(images)
        return features.cls, features.patches


def export(model: Network | Backbone, path: str | Path, *, format: ProgramFormat = "onnx") -> float:
    """Write a network as a program; returns its largest difference to the network.

    The input is `images` (batch, channels, height, width), normalized, float32. A classifier and a segmenter have the output
    `logits`, a classifier's divided by its temperature. Of a backbone, with a masked-image head or bare, it is the features,
    `cls` and `patches`.

    Args:
        model: the network.
        path: where to write it.
        format: onnx, or torch for a program that `torch.export.load` reads.

    Raises:
        UserError: if what the format needs is not installed, or the path does not end as the format should.
        RuntimeError: if the program does not compute what the network does.
    """
    target = Path(path)
    suffix = suffix_of(format)
    if target.suffix != suffix:
        raise UserError(f"an exported program in the format {format} ends in {suffix}, got {target}")
    program, outputs = _as_program(model)
    make = _make_onnx if format == "onnx" else _make_torch
    config = (model if isinstance(model, Backbone) else model.backbone).config
    example = torch.randn(2, config.channels, *config.image_size, generator=torch.Generator().manual_seed(0))
    # With the fused attention kernel the exporter cannot keep the batch size free (PyTorch 2.13).
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), _quiet():
        content, run = make(program, example, outputs, json.dumps(to_json(_described(model))))
        difference = _largest_difference(program, run, example)
    if not difference <= TOLERANCE:
        raise RuntimeError(
            f"the exported program differs from the network by {difference:.1e}, more than {TOLERANCE:.0e}; not written"
        )
    write_atomically(target, content)
    return difference


def suffix_of(format: str) -> str:
    """File extension of an exported program.

    Raises:
        UserError: if there is no such format.
    """
    if format not in SUFFIXES:
        raise UserError(f"no export format is called {format!r}; there are {', '.join(SUFFIXES)}")
    return SUFFIXES[format]


def _as_program(model: Network | Backbone) -> tuple[nn.Module, list[str]]:
    """The module to export, in eval mode, and the names of its outputs."""
    if isinstance(model, Classifier) and model.config.temperature != 1:
        return _CalibratedLogits(model).eval(), ["logits"]
    if isinstance(model, Classifier | Segmenter):
        return model.eval(), ["logits"]
    return _BackboneOutputs(model if isinstance(model, Backbone) else model.backbone).eval(), ["cls", "patches"]


def _described(model: Network | Backbone) -> AnyNetworkConfig | BackboneConfig:
    """The config that belongs to the program's outputs."""
    return replace(model.config, temperature=1.0) if isinstance(model, Classifier) else model.config


def _make_onnx(program: nn.Module, example: Tensor, outputs: list[str], description: str) -> tuple[bytes, Run]:
    onnx, runtime = _installed("onnx"), _installed("onnxruntime")
    _installed("onnxscript")
    shapes = ({0: torch.export.Dim("batch")},)
    exported = torch.onnx.export(
        program,
        (example,),
        input_names=["images"],
        output_names=outputs,
        dynamic_shapes=shapes,
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    assert exported is not None
    proto = exported.model_proto
    onnx.helper.set_model_props(proto, {"beitkit": description})
    content = proto.SerializeToString()
    session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return content, lambda images: [torch.from_numpy(value) for value in session.run(outputs, {"images": images.numpy()})]


def _make_torch(program: nn.Module, example: Tensor, outputs: list[str], description: str) -> tuple[bytes, Run]:
    exported = torch.export.export(program, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    file = io.BytesIO()
    torch.export.save(exported, file, extra_files={"beitkit.json": description})
    loaded = torch.export.load(io.BytesIO(file.getvalue())).module()

    def run(images: Tensor) -> list[Tensor]:
        result = loaded(images)
        return list(result) if len(outputs) > 1 else [result]

    return file.getvalue(), run


def _largest_difference(program: nn.Module, run: Run, example: Tensor) -> float:
    """Over several batch sizes, relative to the largest output."""
    largest = 0.0
    for batch in CHECKED_BATCHES:
        images = example[:1].expand(batch, -1, -1, -1).clone() + torch.arange(batch)[:, None, None, None] / 8
        expected = program(images)
        for ours, theirs in zip(expected if isinstance(expected, tuple) else (expected,), run(images), strict=True):
            scale = max(float(ours.abs().max()), torch.finfo(torch.float32).tiny)
            largest = max(largest, float((ours - theirs).abs().max()) / scale)
    return largest


def _installed(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(f"exporting to ONNX needs the package {name}; install it with pip install 'beitkit[onnx]'") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's progress and its warnings about itself are not for users."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
