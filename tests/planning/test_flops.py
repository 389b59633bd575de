"""Closed forms against PyTorch's counter on real modules without content.

The counter knows plain matrix products; fused attention is switched to its plain form: the counter does not know the CPU's.
"""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from beitkit.configs.model import BackboneConfig, ClassifierConfig, ClsBranchConfig, MaskedImageModelConfig, SegmenterConfig
from beitkit.configs.tokenizer import PUBLISHED_DVAES, DVAEConfig, VQKDConfig
from beitkit.planning.flops import network_flops, tokenizer_flops
from beitkit.planning.workload import Workload

CPU = torch.device("cpu")
SHAPE = {"image_size": (48, 64), "patch": (16, 16), "width": 32, "depth": 4, "heads": 2, "hidden": 80}
MASKED = BackboneConfig(**SHAPE, mask_token=True)
PLAIN = BackboneConfig(**SHAPE, final_norm=False)
WIDE = BackboneConfig(**SHAPE | {"image_size": (64, 96), "channels": 3}, final_norm=False)
SEVEN = tuple("abcdefg")


def counted(workload: Workload) -> tuple[int, int]:
    """Operations of a forward and of a backward pass over two pictures, as the counter has them."""
    objective, batch = workload.objective().train(), workload.batch(2, CPU)
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as forward:
            loss = objective(batch, 0.0).total
        with FlopCounterMode(display=False) as backward:
            loss.backward()
    return forward.get_total_flops(), backward.get_total_flops()


@pytest.mark.parametrize(
    "workload",
    [
        Workload(network=MaskedImageModelConfig(backbone=MASKED, vocabulary=50), predicted=5),
        Workload(
            network=MaskedImageModelConfig(backbone=MASKED, vocabulary=50, cls_branch=ClsBranchConfig(early_layer=2)), predicted=5
        ),
        Workload(network=ClassifierConfig(backbone=PLAIN, classes=SEVEN)),
        Workload(network=SegmenterConfig(backbone=WIDE, classes=SEVEN, channels=24)),
        Workload(network=SegmenterConfig(backbone=WIDE, classes=SEVEN, head="setr_pup", channels=24)),
        Workload(network=SegmenterConfig(backbone=WIDE, classes=SEVEN, head="linear", auxiliary_channels=None)),
    ],
    ids=["masked", "branch", "classify", "uper", "setr", "linear"],
)
def test_a_step_takes_what_the_counter_counts(workload: Workload) -> None:
    forward, backward = counted(workload)
    assert 2 * workload.flops.forward == forward
    assert 2 * workload.flops.backward == backward


@pytest.mark.parametrize(
    "config",
    [
        *PUBLISHED_DVAES.values(),
        DVAEConfig(vocabulary=30, hidden=40, stride=4, channels=1),
        DVAEConfig(vocabulary=30, hidden=128, stride=8),
        VQKDConfig(encoder=BackboneConfig(**SHAPE), vocabulary=30, code_dim=6),
    ],
    ids=["dalle", "beit", "light/4", "light/8", "vqkd"],
)
def test_a_tokenizer_takes_what_the_counter_counts(config: DVAEConfig | VQKDConfig) -> None:
    channels = config.channels if isinstance(config, DVAEConfig) else 3
    network = MaskedImageModelConfig(backbone=BackboneConfig(**SHAPE, channels=channels, mask_token=True), vocabulary=30)
    workload = Workload(network=network, tokenizer=config)
    tokenizer = workload.tokenizer_network()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        tokenizer.encode(workload.token_images(1, CPU).float())
    assert tokenizer_flops(config, (3, 4)) == counter.get_total_flops()


def test_beit_base_takes_what_is_known_of_it() -> None:
    backbone = BackboneConfig.named("base/16", mask_token=True)
    flops = network_flops(MaskedImageModelConfig(backbone=backbone, vocabulary=8192), predicted=75)
    assert flops.forward == pytest.approx(36e9, rel=0.01)
    assert flops.step(recompute=False) == pytest.approx(108e9, rel=0.01)
    assert flops.step(recompute=True) - flops.step(recompute=False) == flops.blocks
    assert tokenizer_flops(PUBLISHED_DVAES["dalle"], (14, 14)) == pytest.approx(52e9, rel=0.01)
