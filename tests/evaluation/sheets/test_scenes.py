"""The sheets of a segmenter: a class has one color in truth and prediction."""

from __future__ import annotations

import torch

from beitkit.data.scenes.reading import NumberedScene
from beitkit.evaluation.sheets.scenes import evaluate_scenes

PALETTE = ((255, 0, 0), (0, 128, 0))


def test_truth_and_prediction_that_agree_look_the_same() -> None:
    torch.manual_seed(0)
    image = torch.randint(0, 256, (3, 20, 24), dtype=torch.uint8)
    label_map = torch.randint(0, 2, (20, 24), dtype=torch.uint8)
    scores = evaluate_scenes(lambda _: label_map, [NumberedScene(0, image, label_map)], ("a", "b"), PALETTE)
    columns = scores.worst[0].columns
    assert torch.equal(columns["truth"], columns["prediction"])
    assert columns["truth"].std() > 0.05
