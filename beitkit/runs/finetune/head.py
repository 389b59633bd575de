"""The first head of a classifier: nearly zero, or logistic regression on the frozen features.

A fresh head sends large, random gradients through a network that is already good. LP-FT (Kumar et al., arXiv 2202.10054) fits the
head first, with all else frozen; fine-tuning then goes on from there, at a lower rate.
"""

from __future__ import annotations

import torch

from beitkit.data.sources.image_list import ImageList
from beitkit.data.stream import Reading, evaluation_batches, evaluation_dataset
from beitkit.errors import UserError
from beitkit.evaluation.floors import chosen_logistic
from beitkit.nn.models import Classifier
from beitkit.train.machine.runtime import Runtime


@torch.no_grad()
def fit_head(model: Classifier, train: ImageList, reading: Reading, runtime: Runtime) -> str:
    """Make the head logistic regression on the features of the training images, as evaluation sees them; returns words on it.

    Its penalty is chosen on a fifth of them.

    Raises:
        UserError: no class has two readable images.
    """
    dataset = evaluation_dataset(train, model.config.backbone, model.config.preprocessing)
    model.to(runtime.device).eval()
    features, labels = [], []
    for batch in evaluation_batches(dataset, model.config.preprocessing, reading):
        readable = (batch["broken"] < 0).cpu()
        with runtime.precision():
            found = model.features(batch["images"])
        features.append(found.float().cpu()[readable])
        labels.append(batch["labels"].cpu()[readable])
    known, names = torch.cat(features), torch.cat(labels)
    with torch.enable_grad():
        fitted = chosen_logistic(known, names, len(model.config.classes))
    weight, bias = fitted.layer()
    model.head.weight.copy_(weight)
    model.head.bias.copy_(bias)
    right = float((fitted.answers(known) == names).float().mean())
    return f"head: logistic regression on the frozen features, which names {right:.1%} of its images right"


def check_head(model: Classifier, train: ImageList, *, is_fresh: bool) -> None:
    """Raise a `UserError` where a head cannot be fitted first."""
    if train.labels is None:
        raise UserError("`head_init='probe'` needs one label an image, and these have several; give `head_init='zero'`")
    if not is_fresh:
        raise UserError("`head_init='probe'` makes a head, and the checkpoint has one for these classes; leave it out")
