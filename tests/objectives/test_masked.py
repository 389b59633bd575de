"""The losses of masked image modeling against their definitions."""

import pytest
import torch
import torch.nn.functional as F

from beitkit.configs.model import BackboneConfig, ClassifierConfig, ClsBranchConfig, MaskedImageModelConfig
from beitkit.data.views.masking import with_positions
from beitkit.nn.models import Classifier, MaskedImageModel
from beitkit.objectives.classify import Classify
from beitkit.objectives.masked import MaskedPixels, MaskedTokens


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    mask = torch.tensor([[True, False, True, False], [False, False, False, True], [False] * 4])
    return {
        "images": torch.randn(3, 3, 8, 8, generator=generator),
        "mask": mask,
        "tokens": torch.randint(0, 10, (3, 4), generator=generator),
        "labels": torch.tensor([0, 1, 1]),
    }


def backbone(**options) -> BackboneConfig:
    return BackboneConfig.named("nano/4", image_size=8, **options)


def test_golden_loss_of_the_official_code(golden_fill, golden_input, golden_mask) -> None:
    config = BackboneConfig(width=24, depth=3, heads=4, hidden=96, image_size=(48, 48), patch=(16, 16), mask_token=True)
    model = golden_fill(MaskedImageModel(MaskedImageModelConfig(backbone=config, vocabulary=32)), {"backbone.": ""})
    tokens = torch.zeros(2, 9, dtype=torch.int64)
    tokens[golden_mask] = torch.tensor([3, 7, 31, 0, 12])
    loss = MaskedTokens(model)({"images": golden_input(2, 3, 48, 48), "mask": golden_mask, "tokens": tokens}, 0.0)
    assert loss.total.item() == pytest.approx(3.3501788247, rel=1e-6)


def test_only_masked_positions_count(batch) -> None:
    torch.manual_seed(0)
    objective = MaskedTokens(MaskedImageModel(MaskedImageModelConfig(backbone=backbone(mask_token=True), vocabulary=10)))
    before = objective(batch, 0.0)
    changed = torch.where(batch["mask"], batch["tokens"], (batch["tokens"] + 1) % 10)
    assert objective({**batch, "tokens": changed}, 0.0).total == before.total
    assert objective({**batch, "tokens": (batch["tokens"] + 1) % 10}, 0.0).total != before.total
    assert not before.parts["accuracy"].requires_grad


def masked_model(vocabulary: int | None, **options) -> MaskedImageModel:
    torch.manual_seed(0)
    return MaskedImageModel(MaskedImageModelConfig(backbone=backbone(mask_token=True), vocabulary=vocabulary, **options))


def test_recovering_all_is_the_mean_over_every_patch_one_by_one(batch) -> None:
    model = masked_model(10)
    patches = model.backbone(batch["images"], batch["mask"]).patches
    losses = [
        -F.log_softmax(model.lm_head(patches[image, place]), 0)[batch["tokens"][image, place]].item()
        for image in range(3)
        for place in range(4)
    ]
    assert MaskedTokens(model, recover_all=True)(batch, 0.0).total.item() == pytest.approx(sum(losses) / 12, rel=1e-5)
    assert MaskedTokens(model)(batch, 0.0).total.item() == pytest.approx((losses[0] + losses[2] + losses[7]) / 3, rel=1e-5)


@pytest.mark.parametrize("recover_all", [False, True])
@pytest.mark.parametrize("cls_branch", [None, ClsBranchConfig(early_layer=2)])
def test_positions_found_beforehand_give_the_same_loss(batch, recover_all: bool, cls_branch: ClsBranchConfig | None) -> None:
    if recover_all and cls_branch:
        return
    objective = MaskedTokens(masked_model(10, cls_branch=cls_branch).eval(), recover_all=recover_all)
    (located_batch,) = with_positions([batch], recover_all)
    assert located_batch["positions"].dtype == torch.int64
    one, other = objective(batch, 0.0), objective(located_batch, 0.0)
    assert torch.equal(one.total, other.total)
    assert one.parts.keys() == other.parts.keys()


def test_without_a_mask_every_patch_is_seen_and_predicted(batch) -> None:
    model = masked_model(10)
    loss = MaskedTokens(model, recover_all=True)({**batch, "mask": torch.zeros(3, 4, dtype=torch.bool)}, 0.0)
    logits = model.lm_head(model.backbone(batch["images"]).patches)
    assert loss.total.item() == pytest.approx(F.cross_entropy(logits.flatten(0, 1), batch["tokens"].flatten()).item(), rel=1e-5)


def test_the_class_token_branch_adds_its_own_cross_entropy(batch) -> None:
    model = masked_model(10, cls_branch=ClsBranchConfig(early_layer=2)).eval()
    loss = MaskedTokens(model)(batch, 0.0)
    at = batch["mask"]
    main, branch = (F.cross_entropy(logits, batch["tokens"][at]) for logits in model.both_logits(*inputs(batch), at))
    assert main.item() != pytest.approx(branch.item(), rel=1e-3)
    assert loss.total.item() == pytest.approx((main + branch).item(), rel=1e-6)
    assert loss.parts["main_loss"].item() == pytest.approx(main.item(), rel=1e-6)
    assert loss.parts["branch_loss"].item() == pytest.approx(branch.item(), rel=1e-6)


def inputs(batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    return batch["images"], batch["mask"]


@pytest.mark.parametrize("recover_all", [False, True])
def test_the_pixel_loss_in_closed_form(batch, recover_all: bool) -> None:
    # A head that always answers 0.5 costs the mean of (x - 0.5) ** 2 over the pixels of the judged patches.
    model = masked_model(None)
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.bias.fill_(0.5)
    pixels = [
        batch["images"][image, :, 4 * (place // 2) :, 4 * (place % 2) :][:, :4, :4]
        for image in range(3)
        for place in range(4)
        if recover_all or batch["mask"][image, place]
    ]
    judged = torch.stack(pixels)
    loss = MaskedPixels(model, recover_all=recover_all)(batch, 0.0)
    assert loss.total.item() == pytest.approx((judged - 0.5).square().mean().item(), rel=1e-5)
    constant = (judged - judged.mean(0)).square().mean()
    assert loss.parts["explained"].item() == pytest.approx((1 - loss.total / constant).item(), rel=1e-4)


def test_predicted_pixels_lie_where_the_patch_has_them(batch) -> None:
    # A head whose bias is one patch of an image predicts this patch without error, and no permutation of its pixels.
    model = masked_model(None)
    patch = batch["images"][1, :, 4:, 4:]
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.bias.copy_(patch.flatten())
    only = torch.tensor([[False] * 4, [False, False, False, True], [False] * 4])
    assert MaskedPixels(model)({**batch, "mask": only}, 0.0).total.item() == pytest.approx(0.0, abs=1e-12)


def test_pixels_are_learned(batch) -> None:
    objective = MaskedPixels(masked_model(None))
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-3)
    for _ in range(600):
        loss = objective(batch, 0.0)
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
    assert loss.parts["explained"] > 0.9


def test_accuracy_is_the_share_of_exact_tokens(batch) -> None:
    torch.manual_seed(0)
    model = MaskedImageModel(MaskedImageModelConfig(backbone=backbone(mask_token=True), vocabulary=10))
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.bias[4] = 1.0
    tokens = torch.zeros(3, 4, dtype=torch.int64)
    tokens[1, 3] = 4
    assert MaskedTokens(model)({**batch, "tokens": tokens}, 0.0).parts["accuracy"].item() == pytest.approx(1 / 3)


def test_it_overfits_one_batch(batch) -> None:
    torch.manual_seed(0)
    objective = MaskedTokens(MaskedImageModel(MaskedImageModelConfig(backbone=backbone(mask_token=True), vocabulary=10)))
    optimizer = torch.optim.AdamW(objective.parameters(), lr=3e-3)
    for _ in range(250):
        loss = objective(batch, 0.0)
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
    assert loss.parts["accuracy"] == 1.0


def test_label_smoothing_by_hand(batch) -> None:
    torch.manual_seed(0)
    model = Classifier(ClassifierConfig(backbone=backbone(final_norm=False), classes=("a", "b", "c")), head_scale=1.0)
    logits = model(batch["images"])
    log_probabilities = F.log_softmax(logits, 1)
    target = F.one_hot(batch["labels"], 3) * 0.9 + 0.1 / 3
    expected = -(target * log_probabilities).sum(1).mean()
    assert Classify(model, 0.1)(batch, 0.0).total.item() == pytest.approx(expected.item(), rel=1e-6)
