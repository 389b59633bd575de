"""transformers and our networks agree on the same file, in both directions, for all three heads; and what travels beside."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers import (
    BeitConfig,
    BeitForImageClassification,
    BeitForMaskedImageModeling,
    BeitForSemanticSegmentation,
    BeitModel,
    pipeline,
)
from transformers.models.beit.image_processing_pil_beit import BeitImageProcessorPil

from beitkit.configs.data import IMAGENET, Preprocessing
from beitkit.data.reader import ImageReader
from beitkit.data.views.framing import outer_size
from beitkit.data.views.image import EvaluationView
from beitkit.errors import UserError
from beitkit.interop.load import load
from beitkit.interop.reading.hints import _share
from beitkit.interop.save import save
from beitkit.nn.models import FeatureNetwork
from beitkit.nn.segmentation.segmenter import Segmenter

pytestmark = pytest.mark.usefixtures("without_gradients")
EXACT = {"rtol": 0, "atol": 1e-5}
SIZES = {
    "hidden_size": 24,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 64,
    "layer_norm_eps": 1e-6,
    "vocab_size": 32,
}
MASKED = ["masked", "masked v2", "masked, absolute"]
CLASSIFIERS = ["classify", "classify, class token", "classify, absolute", "classify, shared table", "classify, one channel"]


@pytest.fixture(autouse=True)
def _quiet() -> None:
    transformers.logging.set_verbosity_error()


def read_strictly(kind: Any, folder: Path) -> Any:
    """The network as transformers loads it, with nothing left over on either side."""
    model, info = kind.from_pretrained(folder, output_loading_info=True)
    assert not any(info[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


def randomize(model: Any) -> Any:
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=generator).mul_(0.2).abs_().add_(0.05))
    return model.eval()


def random_mask() -> torch.Tensor:
    return torch.rand(2, 16, generator=torch.Generator().manual_seed(3)) < 0.4


def two_blocks_below(segmenter: Segmenter) -> Segmenter:
    """The same weights, tapped where transformers taps: at block i - 2 for the official block i."""
    lower = Segmenter(replace(segmenter.config, taps=tuple(block - 2 for block in segmenter.config.tapped_blocks)))
    lower.load_state_dict(segmenter.state_dict())
    return lower.eval()


@pytest.mark.parametrize("name", MASKED)
def test_masked_models_to_transformers(name: str, network: Any, random_images: Any, tmp_path: Path) -> None:
    ours, images, mask = network(name), random_images(2, 3, 64, 64), random_mask()
    save(ours, tmp_path, format="huggingface")
    theirs = read_strictly(BeitForMaskedImageModeling, tmp_path)
    torch.testing.assert_close(theirs(images, bool_masked_pos=mask).logits[mask], ours(images, mask), **EXACT)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers_to_transformers(name: str, network: Any, random_images: Any, tmp_path: Path) -> None:
    ours = network(name)
    images = random_images(2, ours.config.backbone.channels, 64, 64)
    save(ours, tmp_path, format="huggingface")
    theirs = read_strictly(BeitForImageClassification, tmp_path)
    torch.testing.assert_close(theirs(images).logits, ours(images), **EXACT)
    assert theirs.config.id2label == {0: "cat", 1: "dog", 2: "fungi ü"}


def test_segmenters_to_transformers(network: Any, random_images: Any, tmp_path: Path) -> None:
    ours, images = network("segment"), random_images(1, 3, 64, 64)
    report = save(ours, tmp_path, format="huggingface")
    assert any("two below" in note for note in report.notes)
    theirs = read_strictly(BeitForSemanticSegmentation, tmp_path)
    # Convolutions may choose other kernels for weights that lie elsewhere in memory.
    torch.testing.assert_close(theirs(images).logits, two_blocks_below(ours).training_logits(images).main, rtol=1e-5, atol=2e-4)


@pytest.mark.parametrize("changes", [{"use_shared_relative_position_bias": True}, {"use_absolute_position_embeddings": True}])
def test_masked_models_from_transformers(changes: dict[str, bool], random_images: Any, tmp_path: Path) -> None:
    theirs = randomize(BeitForMaskedImageModeling(BeitConfig(**SIZES, use_mask_token=True, **changes)))
    theirs.save_pretrained(tmp_path)
    images, mask = random_images(2, 3, 64, 64), random_mask()
    torch.testing.assert_close(load(tmp_path)(images, mask), theirs(images, bool_masked_pos=mask).logits[mask], **EXACT)


@pytest.mark.parametrize(
    "changes",
    [
        {"use_relative_position_bias": True},
        {"use_shared_relative_position_bias": True},
        {"use_relative_position_bias": True, "use_mean_pooling": False},
        {"use_absolute_position_embeddings": True, "layer_scale_init_value": 0.0},
    ],
)
def test_classifiers_from_transformers(changes: dict[str, Any], random_images: Any, tmp_path: Path) -> None:
    theirs = randomize(BeitForImageClassification(BeitConfig(**SIZES, num_labels=5, **changes)))
    theirs.save_pretrained(tmp_path)
    ours, images = load(tmp_path), random_images(2, 3, 64, 64)
    torch.testing.assert_close(ours(images), theirs(images).logits, **EXACT)
    assert ours.config.classes == ("0", "1", "2", "3", "4")


@pytest.mark.parametrize("auxiliary", [True, False])
def test_segmenters_from_transformers(auxiliary: bool, random_images: Any, tmp_path: Path) -> None:
    config = BeitConfig(**SIZES, use_relative_position_bias=True, out_indices=[2, 4, 5, 7], use_auxiliary_head=auxiliary)
    theirs = randomize(BeitForSemanticSegmentation(config))
    theirs.save_pretrained(tmp_path)
    ours, images = load(tmp_path), random_images(1, 3, 64, 64)
    assert ours.config.tapped_blocks == (2, 4, 5, 7)
    torch.testing.assert_close(two_blocks_below(ours).training_logits(images).main, theirs(images).logits, **EXACT)


def test_their_default_eps_is_replaced_by_the_official_one(random_images: Any, tmp_path: Path) -> None:
    theirs = randomize(
        BeitForImageClassification(BeitConfig(**(SIZES | {"layer_norm_eps": 1e-12}), use_relative_position_bias=True))
    )
    theirs.save_pretrained(tmp_path)
    ours, images = load(tmp_path), random_images(2, 3, 64, 64)
    torch.testing.assert_close(ours(images), theirs(images).logits, rtol=0, atol=1e-3)
    assert any("1e-12" in note for note in ours.load_report.notes)


def test_names_of_transformers_5_in_a_bare_state_dict(random_images: Any, tmp_path: Path) -> None:
    images, mask = random_images(2, 3, 64, 64), random_mask()
    masked = randomize(
        BeitForMaskedImageModeling(BeitConfig(**SIZES, use_mask_token=True, use_shared_relative_position_bias=True))
    )
    torch.save(masked.state_dict(), tmp_path / "masked.bin")
    torch.testing.assert_close(load(tmp_path / "masked.bin")(images, mask), masked(images, mask).logits[mask], **EXACT)
    classifier = randomize(BeitForImageClassification(BeitConfig(**SIZES, use_relative_position_bias=True)))
    torch.save(classifier.state_dict(), tmp_path / "classifier.bin")
    torch.testing.assert_close(load(tmp_path / "classifier.bin")(images), classifier(images).logits, **EXACT)
    config = BeitConfig(**SIZES, use_relative_position_bias=True, out_indices=[1, 3, 5, 7])
    segmenter = randomize(BeitForSemanticSegmentation(config))
    torch.save(segmenter.state_dict(), tmp_path / "segmenter.bin")
    ours = load(tmp_path / "segmenter.bin")
    lower = Segmenter(replace(ours.config, taps=(0, 1, 3, 5)))
    lower.load_state_dict(ours.state_dict())
    config.out_indices = [2, 3, 5, 7]
    torch.testing.assert_close(lower.eval().training_logits(images).main, segmenter(images).logits, **EXACT)


def test_a_headless_file_becomes_a_classifier(random_images: Any, tmp_path: Path) -> None:
    theirs = randomize(BeitModel(BeitConfig(**SIZES, use_relative_position_bias=True)))
    theirs.save_pretrained(tmp_path)
    processor = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "do_center_crop": False, "size": 64}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    ours, images = load(tmp_path, task="classify", num_classes=3), random_images(2, 3, 64, 64)
    expected = theirs(images).last_hidden_state[:, 1:]
    torch.testing.assert_close(ours.backbone(images).patches, expected, **EXACT)
    torch.testing.assert_close(load(tmp_path)(images).patches, expected, **EXACT)
    assert ours.config.preprocessing == Preprocessing(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), crop_share=1.0, fit="squeeze")


@pytest.mark.parametrize("weights", ["shards", "bin", "old buffers"])
def test_other_ways_to_keep_the_weights(
    weights: str, network: Any, tmp_path: Path, assert_same_tensors: Callable[..., None]
) -> None:
    ours = network("classify")
    save(ours, tmp_path, format="huggingface")
    theirs = read_strictly(BeitForImageClassification, tmp_path)
    if weights == "shards":
        (tmp_path / "model.safetensors").unlink()
        theirs.save_pretrained(tmp_path, max_shard_size="50KB")
        assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    else:
        from safetensors.torch import load_file

        state = load_file(tmp_path / "model.safetensors")
        (tmp_path / "model.safetensors").unlink()
        if weights == "old buffers":
            state["beit.encoder.layer.0.attention.attention.relative_position_bias.relative_position_index"] = torch.zeros(
                17, 17
            ).long()
        torch.save(state, tmp_path / "pytorch_model.bin")
    assert_same_tensors(load(tmp_path), ours)


def test_a_missing_shard_is_named(network: Any, tmp_path: Path) -> None:
    save(network("classify"), tmp_path, format="huggingface")
    theirs = read_strictly(BeitForImageClassification, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    theirs.save_pretrained(tmp_path, max_shard_size="50KB")
    shard = sorted(tmp_path.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(UserError, match=f"lacks {shard.name}"):
        load(tmp_path)


@pytest.mark.parametrize(("side", "share"), [(64, 0.875), (64, 0.8), (64, 1.0), (32, 0.875)])
def test_their_processor_makes_our_pixels(side: int, share: float, network: Any, tmp_path: Path) -> None:
    ours = network("classify")
    config = replace(
        ours.config,
        backbone=replace(ours.config.backbone, image_size=(side, side)),
        preprocessing=Preprocessing(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), crop_share=share),
    )
    save(type(ours)(config), tmp_path, format="huggingface")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8))
    theirs = BeitImageProcessorPil.from_pretrained(tmp_path)(image, return_tensors="pt")["pixel_values"][0]
    mean, std = (torch.tensor(values)[:, None, None] for values in (config.preprocessing.mean, config.preprocessing.std))
    view = EvaluationView(image_size=(side, side), preprocessing=config.preprocessing)
    pixels = (view(image, random.Random(0))["images"].float() / 255 - mean) / std
    torch.testing.assert_close(theirs, pixels, **EXACT)
    assert load(tmp_path).config.preprocessing == config.preprocessing


def test_folder_is_complete(network: Any, tmp_path: Path) -> None:
    save(network("classify"), tmp_path / "my-model", format="huggingface")
    files = {path.name for path in (tmp_path / "my-model").iterdir()}
    assert files == {"config.json", "model.safetensors", "preprocessor_config.json", "README.md"}
    card = (tmp_path / "my-model" / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlibrary_name: transformers\npipeline_tag: image-classification\n")
    assert "# my-model" in card
    assert "fungi ü" in card
    config = json.loads((tmp_path / "my-model" / "config.json").read_text(encoding="utf-8"))
    assert config["layer_norm_eps"] == 1e-6
    assert config["id2label"]["2"] == "fungi ü"


def test_what_transformers_has_not_is_refused(network: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="decoder is as wide as the backbone"):
        save(network("segment, no auxiliary head"), tmp_path, format="huggingface")
    report = save(network("classify, rectangle"), tmp_path, format="huggingface")
    assert any("not square" in note for note in report.notes)
    report = save(network("masked v2"), tmp_path / "v2", format="huggingface")
    assert report.counts()["dropped"] == sum(record.sources[0].startswith("cls_branch.") for record in report.records)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "swin"}, "type 'swin'"),
        ({"hidden_act": "relu"}, "activation 'relu'"),
        ({"id2label": {"0": "a"}}, "names 1 classes, its head has 3"),
    ],
)
def test_a_config_that_does_not_fit(changes: dict[str, Any], message: str, network: Any, tmp_path: Path) -> None:
    save(network("classify"), tmp_path, format="huggingface")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(UserError, match=message):
        load(tmp_path)


# What a folder's processor does to images is done to them here, whatever their shape.


PROCESSORS = {
    "squeezed": {"size": {"height": 64, "width": 64}},
    "squeezed, an older form": {"size": 64, "do_center_crop": False},
    "squeezed, then cut": {"size": 72, "do_center_crop": True, "crop_size": 64},
    "short side, then cut": {"size": {"shortest_edge": 72}, "do_center_crop": True, "crop_size": {"height": 64, "width": 64}},
    "bilinear": {"size": {"height": 64, "width": 64}, "resample": 2},
    "lanczos": {"size": {"shortest_edge": 64}, "do_center_crop": True, "crop_size": 64, "resample": 1},
    "other statistics": {"size": 64, "rescale_factor": 1 / 127.5, "image_mean": [1.0, 1.0, 1.0], "image_std": [1.0, 1.0, 1.0]},
    "not rescaled": {"size": 64, "do_rescale": False, "image_mean": [10.0, 20.0, 30.0], "image_std": [90.0, 80.0, 70.0]},
    "not normalized": {"size": 64, "do_normalize": False},
}


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("shape", [(90, 120), (200, 61), (64, 64)], ids=str)
def test_our_pixels_are_those_of_their_processor(name: str, shape: tuple[int, int], network: Any, tmp_path: Path) -> None:
    save(network("classify"), tmp_path, format="huggingface")
    about = {"image_processor_type": "BeitImageProcessor", "do_resize": True, "do_center_crop": False, "resample": 3}
    statistics = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(about | statistics | PROCESSORS[name]))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8))
    theirs = BeitImageProcessorPil.from_pretrained(tmp_path)(image, return_tensors="pt")["pixel_values"]
    ours = load(tmp_path)
    assert not any("preprocessor_config" in note for note in ours.load_report.notes)
    margin = {"atol": 1e-4, "rtol": 0} if "rescaled" in name else EXACT  # float32, in another order
    torch.testing.assert_close(ours.reader([image]), theirs.float(), **margin)
    save(ours, tmp_path / "again", format="huggingface")
    assert load(tmp_path / "again").config.preprocessing == pytest.approx(ours.config.preprocessing)
    again = BeitImageProcessorPil.from_pretrained(tmp_path / "again")(image, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(again.float(), theirs.float(), **margin)


def test_a_segmenter_slides(network: Any, tmp_path: Path) -> None:
    save(network("segment"), tmp_path, format="huggingface")
    about = {"size": {"height": 64, "width": 64}, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(about))
    ours = load(tmp_path)
    assert ours.config.preprocessing.fit == "crop"
    assert any("labeled in sliding windows as by the official code" in note for note in ours.load_report.notes)


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"size": {"shortest_edge": 64}}, "keeps their aspect and cuts nothing off; beitkit cuts the center"),
        ({"size": 64, "do_resize": False}, "does not resize them, beitkit does"),
        ({"size": 96}, "makes 96x96 pixels, the network takes those of config.json"),
        (
            {"size": {"height": 80, "width": 96}, "do_center_crop": True, "crop_size": 64},
            "cuts off other shares of height and width, beitkit that of the height",
        ),
    ],
)
def test_what_we_do_not_do_as_their_processor_is_named(changes: Any, note: str, network: Any, tmp_path: Path) -> None:
    save(network("classify"), tmp_path, format="huggingface")
    about = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], **changes}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(about))
    assert [line for line in load(tmp_path).load_report.notes if line.endswith(note)]


def test_every_crop_of_every_size_is_found_again() -> None:
    for outer in range(32, 700):
        for inner in {outer, outer - 1, outer // 2, 224, 7 * outer // 8}:
            if inner <= outer:
                assert outer_size((inner, inner), _share(inner, outer)) == (outer, outer)


def test_a_gray_networks_processor(network: Any, tmp_path: Path) -> None:
    first = network("classify, one channel")
    gray = type(first)(replace(first.config, preprocessing=IMAGENET)).eval()
    report = save(gray, tmp_path, format="huggingface")
    assert any("does not make images gray" in note for note in report.notes)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120), dtype=np.uint8))
    theirs = BeitImageProcessorPil.from_pretrained(tmp_path)(image, return_tensors="pt")["pixel_values"]
    ours = load(tmp_path)
    assert theirs.shape == (1, 1, 64, 64)
    torch.testing.assert_close(theirs, ours.reader([image]), **EXACT)
    torch.testing.assert_close(ours.reader([image]), ImageReader.of(gray.config.backbone, IMAGENET)([image]), **EXACT)


def test_several_labels_stay_several(network: Any, tmp_path: Path) -> None:
    """transformers' own pipeline gives our probabilities."""
    first = network("classify")
    ours = type(first)(replace(first.config, multilabel=True, preprocessing=IMAGENET)).eval()
    ours.load_state_dict(first.state_dict())
    ours.reader = ImageReader.of(ours.config.backbone, ours.config.preprocessing)
    save(ours, tmp_path, format="huggingface")
    again = load(tmp_path)
    assert again.config.multilabel
    theirs = read_strictly(BeitForImageClassification, tmp_path)
    assert theirs.config.problem_type == "multi_label_classification"
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (73, 73, 3), dtype=np.uint8))
    processor = BeitImageProcessorPil.from_pretrained(tmp_path)
    pipe = pipeline("image-classification", model=theirs, image_processor=processor)
    said = {guess["label"]: guess["score"] for guess in pipe(image)}
    assert said == pytest.approx(ours.predict(image).probabilities, abs=1e-5)
    assert said == pytest.approx(again.predict(image).probabilities, abs=1e-5)
    assert sum(said.values()) != pytest.approx(1)
    assert "3 classes, several at once (sigmoid)" in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_a_head_that_regresses_is_no_classifier(network: Any, tmp_path: Path) -> None:
    save(network("classify"), tmp_path, format="huggingface")
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps(config | {"problem_type": "regression"}))
    assert isinstance(load(tmp_path), FeatureNetwork)
    fresh = load(tmp_path, task="classify", num_classes=2)
    assert any("its outputs are no classes" in note for note in fresh.load_report.notes)
