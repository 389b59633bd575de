"""`beitkit show`: what a network makes of images, on one page."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from beitkit.configs.codec import from_json
from beitkit.configs.data import Preprocessing
from beitkit.configs.model import Pair, by
from beitkit.configs.tokenizer import TokenizerConfig
from beitkit.data.sources.image_list import ImageList
from beitkit.errors import UserError, writing_to
from beitkit.inference.predictor import fitted
from beitkit.interop.inspect import read_any
from beitkit.interop.kinds import Network
from beitkit.interop.load import load, load_tokenizer
from beitkit.nn.models import Classifier, FeatureNetwork, MaskedImageModel
from beitkit.nn.segmentation.segmenter import Segmenter
from beitkit.runs.evaluate.model_paths import run_config
from beitkit.runs.predict.inputs import gather_images
from beitkit.runs.pretrain.config import PretrainRun
from beitkit.runs.show.attention import chosen_patches, show_attention
from beitkit.runs.show.config import ShownPart, ShowRun
from beitkit.runs.show.images import Gallery
from beitkit.runs.show.page import SheetPage
from beitkit.runs.show.reasons import show_classes, show_scenes
from beitkit.runs.show.similar import patch_features, show_colors, show_neighbors
from beitkit.runs.show.tokens import Masking, show_masks, show_tokens
from beitkit.runs.training.unfinished import is_unfinished, newest_network
from beitkit.system import quoted
from beitkit.tokenizers.frozen import TokenizerNetwork
from beitkit.train.machine.runtime import Runtime, start_runtime

KINDS_IN_WORDS: dict[type[Any], str] = {
    MaskedImageModel: "pre-training network",
    Classifier: "classifier",
    Segmenter: "segmenter",
    FeatureNetwork: "network without a head",
}
PLAIN_GRID = (14, 14)
"""Tokens of an image where only a tokenizer is there, and no run that says how many."""
MOST_TOKENS = 2**16
"""Tokens of an image that a run's file is believed to have; an image of 2048 pixels has as many at 8 pixels a token."""


class Sheets(NamedTuple):
    """What was written."""

    page: Path
    sheets: tuple[Path, ...]
    """PNG files."""


def run(config: ShowRun) -> Sheets:
    """Look at the images and write the page."""
    if config.out.suffix != ".html":
        raise UserError(f"`out` must end in .html, got {config.out}; the sheets go into the folder {config.out.with_suffix('')}")
    files = gather_images(config.inputs, config.columns.image)
    runtime = start_runtime(config.machine)
    page = SheetPage("What it makes of images", str(config.model), config.out)
    model = _opened(config.model, page)
    with writing_to(config.out):
        if isinstance(model, TokenizerNetwork):
            _show_tokenizer(config, page, files, model, runtime)
        else:
            _show_network(config, page, files, model, runtime)
        page.write(config.out)
    named = quoted(config.out.with_suffix(""))
    print(f"written: {config.out}, and {len(page.files)} sheets as PNG in {named}. Next: open it in a browser")
    return Sheets(config.out, tuple(page.files))


def _opened(path: Path, page: SheetPage) -> Network | TokenizerNetwork:
    """The network or tokenizer of a path; of a run that is not finished that of its newest checkpoint, which is said.

    Raises:
        UserError: if it is neither, or such a run has saved nothing yet.
    """
    if is_unfinished(path):
        found = newest_network(path)
        print(f"{path} is not finished: shown is its state after step {found.step:,}")
        page.facts([("State", f"of a run that is not finished, after step {found.step:,}")])
        return found.model
    return load_tokenizer(path) if isinstance(read_any(path).config, TokenizerConfig) else load(path)


def _show_tokenizer(config: ShowRun, page: SheetPage, files: ImageList, made: TokenizerNetwork, runtime: Runtime) -> None:
    """Tokens and codebook."""
    _parts(config, "tokenizer", ("tokens",))
    tokenizer = made.to(runtime.device)
    grid = _grid_of(config.model, tokenizer)
    preprocessing = Preprocessing(value_range=tokenizer.value_range, crop_share=1.0).shown(config.fit, None)
    stride = (tokenizer.stride, tokenizer.stride)
    gallery = _gallery(config, files, preprocessing, (grid[0] * stride[0], grid[1] * stride[1]), stride, tokenizer.channels)
    page.facts(
        [("Tokenizer", f"{tokenizer.vocabulary:,} codes, {tokenizer.stride} pixels a token"), ("Images", f"{len(files):,}")]
    )
    show_tokens(page, gallery, gallery.shown(config.count), tokenizer, grid, config.batch_size, runtime)


def _show_network(config: ShowRun, page: SheetPage, files: ImageList, made: Network, runtime: Runtime) -> None:
    """All parts that are wanted, what the network is for first."""
    model = fitted(made, config.fit).to(runtime.device).eval()
    backbone = model.backbone
    if config.block is not None and config.block > backbone.depth:
        raise UserError(f"`block` {config.block} is not there: this network has blocks 1 to {backbone.depth}")
    asked = _pretraining_of(config.model)
    tokenizer = _tokenizer_of(config, model, asked)
    own: dict[type[Any], tuple[ShownPart, ...]] = {Classifier: ("classes",), Segmenter: ("scenes",), MaskedImageModel: ("masks",)}
    has = [part for kind, parts in own.items() if isinstance(model, kind) for part in parts]
    has += ["tokens"] if tokenizer is not None else []
    several = len(files) > 1
    wanted = _parts(
        config, KINDS_IN_WORDS[type(model)], (*has, "attention", "heads", "colors", *(("neighbors",) if several else ()))
    )
    queries, shape = chosen_patches(config.queries, backbone.config.grid), backbone.config
    gallery = _gallery(config, files, model.config.preprocessing, shape.image_size, shape.patch, shape.channels)
    shown = gallery.shown(config.count)
    page.facts(
        [
            ("Network", f"{KINDS_IN_WORDS[type(model)]}: {backbone.depth} blocks, width {backbone.width}, {shape.heads} heads"),
            ("Images", f"{len(files):,}, shown at {by(shape.image_size)} pixels, {by(shape.grid)} patches"),
            ("Device", runtime.describe()),
        ]
    )
    if "classes" in wanted:
        assert isinstance(model, Classifier)
        show_classes(page, gallery, shown, model, config.target, config.block, runtime)
    if "scenes" in wanted:
        assert isinstance(model, Segmenter)
        show_scenes(page, gallery, shown, model, config.inference, runtime)
    if "masks" in wanted:
        assert isinstance(model, MaskedImageModel)
        masking = Masking() if asked is None else Masking(asked.mask, asked.recover == "all")
        show_masks(page, gallery, shown, model, tokenizer, masking, config.seed, runtime)
    if "tokens" in wanted:
        assert tokenizer is not None
        show_tokens(page, gallery, shown, tokenizer, shape.grid, config.batch_size, runtime)
    if wanted & {"attention", "heads"}:
        block = config.block or backbone.depth
        show_attention(page, gallery, shown, backbone, queries, block, parts=wanted, runtime=runtime)
    if wanted & {"colors", "neighbors"}:
        features = patch_features(model, gallery, shown.pixels, config.block, runtime)
        source = "the network's output" if config.block is None else f"after block {config.block}"
        if "colors" in wanted:
            show_colors(page, shown, features, shape.grid, source)
        if "neighbors" in wanted:
            show_neighbors(
                page, gallery, shown, features, model, queries, config.neighbors,
                block=config.block, source=source, batch_size=config.batch_size, runtime=runtime,
            )  # fmt: skip


def _gallery(
    config: ShowRun, files: ImageList, preprocessing: Preprocessing, image_size: Pair, patch: Pair, channels: int
) -> Gallery:
    return Gallery(files.evenly_spread(max(config.gallery, config.count)), preprocessing, image_size, patch, channels)


def _parts(config: ShowRun, kind: str, there: tuple[str, ...]) -> set[str]:
    """The parts that are wanted.

    Raises:
        UserError: one that is not there.
    """
    for part in config.only or ():
        if part not in there:
            why = {"neighbors": "needs two images or more", "tokens": "needs a tokenizer: give `tokenizer`"}
            reason = why.get(part, f"is not there in a {kind}, which has {', '.join(there)}")
            raise UserError(f"`only` names {part}, which {reason}")
    return set(config.only or there)


def _pretraining_of(model: Path) -> PretrainRun | None:
    """What a pre-training run was asked for; None for what is no such run."""
    asked = run_config(model)
    if asked is None or asked.get("verb") != "pretrain":
        return None
    return from_json(
        PretrainRun, {name: value for name, value in asked.items() if name != "verb"}, where=str(model / "config.json")
    )


def _tokenizer_of(config: ShowRun, model: Network, asked: PretrainRun | None) -> TokenizerNetwork | None:
    """The tokenizer whose tokens the network predicts, on its device; None where it predicts none, or it is not at hand.

    Raises:
        UserError: one that was given for a network that predicts none, or another than the network's own.
    """
    given = config.tokenizer
    if not isinstance(model, MaskedImageModel) or model.config.vocabulary is None:
        if given is not None:
            raise UserError(f"`tokenizer` is for networks that predict tokens, and {config.model} holds none; leave it out")
        return None
    path = given or (None if asked is None else asked.tokenizer)
    if path is None or (given is None and not path.exists()):
        return None
    tokenizer = load_tokenizer(path)
    expected = model.config.tokenizer
    if tokenizer.vocabulary != model.config.vocabulary or (expected and expected != tokenizer.fingerprint):
        raise UserError(f"{path} is not the tokenizer that {config.model} learned from; give that as `tokenizer`")
    return tokenizer.to(model.lm_head.weight.device)


def _grid_of(model: Path, tokenizer: TokenizerNetwork) -> Pair:
    """Tokens of an image, down and across: as the tokenizer's run had them."""
    size = (run_config(model) or {}).get("image_size")
    height, width = size if isinstance(size, list) and len(size) == 2 else (size, size)
    if not isinstance(height, int) or not isinstance(width, int):
        return PLAIN_GRID
    down, across = max(1, height // tokenizer.stride), max(1, width // tokenizer.stride)
    return (down, across) if down * across <= MOST_TOKENS else PLAIN_GRID
