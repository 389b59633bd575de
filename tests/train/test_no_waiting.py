"""No part of a training step makes the host wait for a GPU; seen without one (`tests/no_waiting.py`)."""

import itertools
import math
import random
from collections.abc import Callable, Iterator
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from beitkit.configs.data import INCEPTION, AugmentConfig
from beitkit.configs.model import BackboneConfig, ClassifierConfig, ClsBranchConfig, MaskedImageModelConfig, SegmenterConfig
from beitkit.configs.segmentation import InferenceConfig, SegmentationLossConfig
from beitkit.configs.tokenizer import DVAEConfig, KMeansConfig, ReconstructConfig, VQKDConfig
from beitkit.configs.train import OptimConfig
from beitkit.contracts import Batch
from beitkit.data.stream import normalized, tokenized
from beitkit.data.views.augment import draw_erasing, erased
from beitkit.data.views.masking import with_positions
from beitkit.data.views.mixing import mixed
from beitkit.data.views.scene import with_zeroed_padding
from beitkit.evaluation.probe import featured, token_and_mean
from beitkit.nn.models import Classifier, MaskedImageModel
from beitkit.nn.segmentation.label_map import _score_bands, _views
from beitkit.nn.segmentation.segmenter import Segmenter
from beitkit.objectives.classify import Classify
from beitkit.objectives.masked import MaskedPixels, MaskedTokens
from beitkit.objectives.probe import LinearProbes
from beitkit.objectives.reconstruct import Reconstruct
from beitkit.objectives.segment import Segment
from beitkit.planning.workload import tokenizer_network
from beitkit.tokenizers.dvae import DiscreteVAE
from beitkit.tokenizers.frozen import Encoder
from beitkit.train.journal import WaitMeter
from beitkit.train.loop import _Window
from beitkit.train.machine.processes import ALONE
from beitkit.train.machine.runtime import Runtime, StopRequest
from beitkit.train.optim import parameter_groups
from beitkit.train.schedule import Schedule
from beitkit.train.step import Trainer
from tests.no_waiting import WaitError, no_waiting

SIZE, IMAGES = 16, 4
BACKBONE = {"image_size": SIZE, "drop_path": 0.1}
CPU = torch.device("cpu")
DVAE = DVAEConfig(geometry="light", vocabulary=16, hidden=16, codebook_dim=8, stride=4, channels=3)


def step(
    objective: nn.Module, stream: Iterator[Batch], host: tuple[Tensor, ...] = (), precision: torch.dtype = torch.bfloat16
) -> None:
    """Two steps, whose first use of everything may wait, then two that may not; one of them is skipped by a signal."""
    trainer = Trainer(
        objective.train(),
        parameter_groups(objective, 0.05),
        schedule=Schedule(100, 0, IMAGES, 100, 1e-3, 1e-3, seed=0),
        optim=OptimConfig(clip=3.0),
        runtime=Runtime(CPU, precision),
        accumulation_steps=2,
        ema=0.99,
    )
    window, stop = _Window(WaitMeter(), ALONE), StopRequest()
    window.begin(0)

    def one(done: int) -> None:
        losses = trainer.forward_backward(stream, done)
        window.add(trainer.update(losses, trainer.clip(), done, stop))

    one(0)
    one(1)
    with no_waiting(*host):
        one(2)
        stop.signal_number = 15
        one(3)
    assert math.isfinite(window.close(4)[0]["loss"])


def images(batch: Batch | None = None) -> Batch:
    generator = torch.Generator().manual_seed(0)
    return {"images": torch.randint(256, (IMAGES, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8)} | (batch or {})


def of_stream(batch: Batch) -> Iterator[Batch]:
    return normalized(itertools.repeat(batch), INCEPTION.mean, INCEPTION.std)


def masked_batch(recover_all: bool) -> Batch:
    mask = torch.arange(16).remainder(2).bool().expand(IMAGES, -1).contiguous()
    return next(with_positions([images({"mask": mask})], recover_all))


def tokenizers() -> list[Callable[[], object]]:
    grid_backbone = BackboneConfig.named("nano/4", image_size=SIZE)
    return [
        lambda: DVAE,
        lambda: KMeansConfig(vocabulary=16, stride=4, channels=3),
        lambda: VQKDConfig(encoder=grid_backbone, decoder_depth=1, vocabulary=16, code_dim=8, target_dim=8),
    ]


@pytest.mark.parametrize("tokenizer", tokenizers(), ids=["dvae", "kmeans", "vqkd"])
def test_pretraining_with_a_tokenizer(tokenizer: Callable[[], object]) -> None:
    network = tokenizer_network(tokenizer())  # type: ignore[arg-type]
    model = MaskedImageModel(
        MaskedImageModelConfig(backbone=BackboneConfig.named("nano/4", mask_token=True, **BACKBONE), vocabulary=16)
    )
    batch = masked_batch(False)
    batch["token_images"] = batch["images"]
    encoder = Encoder.laid_out(network, torch.bfloat16)
    step(MaskedTokens(model), tokenized(of_stream(batch), encoder, (4, 4)))


@pytest.mark.parametrize("target", ["tokens", "all patches", "pixels", "branch"])
def test_pretraining(target: str) -> None:
    backbone = BackboneConfig.named("nano/4", mask_token=True, **BACKBONE)
    branch = ClsBranchConfig(early_layer=2) if target == "branch" else None
    config = MaskedImageModelConfig(backbone=backbone, vocabulary=None if target == "pixels" else 16, cls_branch=branch)
    recover_all = target == "all patches"
    kind = MaskedPixels if target == "pixels" else MaskedTokens
    batch = masked_batch(recover_all) | {"tokens": torch.zeros(IMAGES, 16, dtype=torch.int64)}
    step(kind(MaskedImageModel(config), recover_all=recover_all), of_stream(batch))


def test_a_scaled_loss() -> None:
    backbone = BackboneConfig.named("nano/4", mask_token=True, **BACKBONE)
    model = MaskedImageModel(MaskedImageModelConfig(backbone=backbone, vocabulary=None))
    step(MaskedPixels(model, recover_all=False), of_stream(masked_batch(False)), precision=torch.float16)


@pytest.mark.parametrize("multilabel", [False, True])
@pytest.mark.parametrize("is_plain", [False, True])
def test_finetuning(multilabel: bool, is_plain: bool) -> None:
    backbone = BackboneConfig.named("nano/4", relative_positions="per_block", final_norm=False, **BACKBONE)
    model = Classifier(ClassifierConfig(backbone=backbone, classes=("a", "b", "c"), multilabel=multilabel))
    rng = random.Random(0)
    erasing = torch.stack([draw_erasing((SIZE, SIZE), 1.0, rng) for _ in range(IMAGES)])
    batch = images({"targets": torch.rand(IMAGES, 3)} if multilabel else {"labels": torch.tensor([0, 1, 2, 0])})
    stream = of_stream(batch if is_plain else batch | {"erased": erasing})
    if not is_plain:
        augment = AugmentConfig(mixup=0.8, cutmix=1.0)
        stream = mixed(erased(stream), augment, classes=3, seed=0, first=0)
    step(Classify(model, 0.1), stream, (erasing,))


@pytest.mark.parametrize("head", ["uper", "linear", "setr_pup"])
def test_segmentation(head: str) -> None:
    backbone = BackboneConfig.named("nano/4", final_norm=False, **BACKBONE)
    auxiliary = None if head == "linear" else 8
    config = SegmenterConfig(backbone=backbone, classes=("a", "b"), head=head, auxiliary_channels=auxiliary)  # type: ignore[arg-type]
    label_map = torch.arange(IMAGES * SIZE * SIZE).remainder(3).sub(1).to(torch.uint8).view(IMAGES, SIZE, SIZE)
    batch = images({"label_map": label_map, "extent": torch.full((IMAGES, 2), SIZE)})
    loss = SegmentationLossConfig(dice_weight=0.5, class_weights="balanced")
    step(Segment(Segmenter(config), loss, (5, 9)), with_zeroed_padding(of_stream(batch)))


@pytest.mark.parametrize("reconstruction", ["mse", "logit_laplace"])
def test_training_a_discrete_vae(reconstruction: str) -> None:
    """Codes are started in the first step and would be revived in the twentieth pass: in between nobody asks."""
    tokenizer = DiscreteVAE(DVAEConfig(**{**vars(DVAE), "reconstruction": reconstruction}))
    stream = ({"images": batch["images"].float() / 255} for batch in itertools.repeat(images()))
    step(Reconstruct(tokenizer, ReconstructConfig(revive_every=20)), stream)


def test_probes() -> None:
    backbone = MaskedImageModel(
        MaskedImageModelConfig(backbone=BackboneConfig.named("nano/4", mask_token=True, **BACKBONE), vocabulary=16)
    ).backbone.eval()
    batch = images({"labels": torch.tensor([0, 1, 2, 0]), "index": torch.arange(IMAGES)})
    held_out = torch.tensor([True, False, False, False])
    stream = featured(of_stream(batch), backbone, [0, 1], Runtime(CPU, torch.bfloat16).precision, held_out, token_and_mean)
    step(LinearProbes(2, 2 * backbone.width, 3), stream)


@pytest.mark.parametrize("want_probabilities", [False, True])
def test_no_band_of_a_label_map_waits_for_the_one_before(want_probabilities: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("beitkit.nn.segmentation.label_map.BAND_BYTES", 1)  # a row each
    torch.manual_seed(0)
    backbone = BackboneConfig.named("nano/4", image_size=SIZE, final_norm=False)
    model = Segmenter(SegmenterConfig(backbone=backbone, classes=("a", "b"), head="linear", auxiliary_channels=None)).eval()
    image = torch.cat(list(images()["images"]), dim=1)
    config = InferenceConfig(scales=(1.0, 1.5), flip=True)
    with torch.no_grad():
        bands = _score_bands(model, image, _views(model, image, config, nullcontext), want_probabilities=want_probabilities)
        next(bands)
        with no_waiting():
            rows = [next(bands)[0] for _ in range(5)]
    assert rows == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    "call",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.any()),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x.new_tensor([1.0, 2.0]),
        lambda x: torch.tensor(1.0, device=x.device),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x.to("cpu"),
        lambda x: x.to(device=x.device),
        lambda x: x[[0, 1]],
        lambda x: torch.bincount(x.long()),
        lambda x: nn.functional.one_hot(x.long(), 3),
    ],
)
def test_what_waits_is_seen(call: Callable[[Tensor], object]) -> None:
    with no_waiting(), pytest.raises(WaitError):
        call(torch.ones(2))


def test_what_does_not_wait_is_let_through() -> None:
    host = torch.ones(2)
    with no_waiting(host):
        x = torch.ones(2)
        assert host.tolist() == [1, 1]
        x.to(torch.bfloat16), x.to("cpu", non_blocking=True), x.new_full((), 2.0), torch.where(x > 0, x, 0), x[0], x[1:]
