"""The masked-token loss against its definition."""

import pytest
import torch
import torch.nn.functional as F

from beitkit.configs.model import BackboneConfig, ClassifierConfig, MaskedImageModelConfig
from beitkit.nn.models import Classifier, MaskedImageModel
from beitkit.objectives.classify import Classify
from beitkit.objectives.masked import MaskedTokens


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
