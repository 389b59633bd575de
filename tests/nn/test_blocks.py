"""Attention against the plain formula, the MLP and the block against theirs, stochastic depth in expectation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from beitkit.nn.blocks import Attention, Block, Mlp, kept_branches
from beitkit.nn.position import relative_position_index


def randomized(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.3)
    return module.double()


def naive_attention(attention: Attention, x: Tensor, shared: Tensor | None) -> Tensor:
    """softmax(q k / sqrt(d) + bias) v, one image and one head at a time."""
    width, heads = x.shape[2], attention.heads
    query_rows, key_rows, value_rows = attention.qkv.weight.split(width)
    part = width // heads
    images = []
    for tokens in x:
        query = tokens @ query_rows.T + attention.q_bias
        key = tokens @ key_rows.T
        value = tokens @ value_rows.T + attention.v_bias
        outputs = []
        for head in range(heads):
            columns = slice(head * part, (head + 1) * part)
            scores = query[:, columns] @ key[:, columns].T / math.sqrt(part)
            if attention.relative_position_bias_table is not None:
                scores = scores + attention.relative_position_bias_table[relative_position_index((2, 3)), head]
            if shared is not None:
                scores = scores + shared[0, head]
            weights = scores.exp() / scores.exp().sum(1, keepdim=True)
            outputs.append(weights @ value[:, columns])
        images.append(torch.cat(outputs, dim=1))
    return torch.stack(images) @ attention.proj.weight.T + attention.proj.bias


@pytest.mark.parametrize("has_own", [False, True])
@pytest.mark.parametrize("has_shared", [False, True])
def test_attention_equals_the_naive_softmax_formula(has_own: bool, has_shared: bool) -> None:
    torch.manual_seed(0)
    attention = randomized(Attention(12, 3, (2, 3) if has_own else None))
    assert isinstance(attention, Attention)
    shared = torch.randn(1, 3, 7, 7, dtype=torch.float64) if has_shared else None
    x = torch.randn(2, 7, 12, dtype=torch.float64)
    torch.testing.assert_close(attention(x, shared), naive_attention(attention, x, shared))


def test_attention_is_the_same_with_and_without_a_gradient_for_the_bias() -> None:
    """They take different ways on a CPU."""
    torch.manual_seed(0)
    attention = randomized(Attention(12, 3, None))
    results = []
    for is_learned in (False, True):
        x = torch.randn(2, 7, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
        shared = torch.randn(1, 3, 7, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
        mixed = attention(x, shared.requires_grad_(is_learned))
        results.append((mixed, *torch.autograd.grad(mixed.square().sum(), [x, *attention.parameters()])))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("has_own", [False, True])
@pytest.mark.parametrize("has_shared", [False, True])
@pytest.mark.parametrize("is_learned", [False, True])
def test_attention_in_bfloat16_is_near_the_formula(has_own: bool, has_shared: bool, is_learned: bool) -> None:
    """It takes another way than in float32 on a CPU, with and without gradients."""
    torch.manual_seed(0)
    attention = randomized(Attention(12, 3, (2, 3) if has_own else None))
    assert isinstance(attention, Attention)
    shared = torch.randn(1, 3, 7, 7, dtype=torch.float64) if has_shared else None
    x = torch.randn(2, 7, 12, dtype=torch.float64)
    with torch.no_grad():
        expected = naive_attention(attention, x, shared)
    rounded = attention.to(torch.bfloat16)
    given = None if shared is None else shared.to(torch.bfloat16)
    with torch.set_grad_enabled(is_learned):
        seen = rounded(x.to(torch.bfloat16), given)
    assert seen.requires_grad == is_learned
    assert (seen.double() - expected).abs().max() < 0.03 * expected.abs().max()  # a handful of roundings to 8 bits
    if shared is not None:
        assert given is not None
        assert torch.equal(given, shared.to(torch.bfloat16))


def test_attention_has_no_key_bias() -> None:
    assert {name for name, _ in Attention(12, 3, None).named_parameters() if "bias" in name} == {"q_bias", "v_bias", "proj.bias"}


@pytest.mark.parametrize("has_gradient", [False, True])
def test_a_key_bias_and_an_inner_norm(has_gradient: bool) -> None:
    """Against the formula: the bias of all three parts in one vector, and LayerNorm before `proj`."""
    torch.manual_seed(0)
    attention = randomized(Attention(12, 3, None, key_bias=True, sub_norm_eps=1e-3))
    assert {name for name, _ in attention.named_parameters() if "bias" in name} == {"qkv.bias", "norm.bias", "proj.bias"}
    x = torch.randn(2, 7, 12, dtype=torch.float64)
    query, key, value = ((x @ attention.qkv.weight.T + attention.qkv.bias).view(2, 7, 3, 3, 4).permute(2, 0, 3, 1, 4)).unbind()
    mixed = (torch.einsum("bkqd,bktd->bkqt", query, key) / 2).softmax(-1)
    mixed = torch.einsum("bkqt,bktd->bqkd", mixed, value).flatten(2)
    spread = (mixed.var(-1, unbiased=False, keepdim=True) + 1e-3).sqrt()
    normed = (mixed - mixed.mean(-1, keepdim=True)) / spread * attention.norm.weight + attention.norm.bias
    with torch.set_grad_enabled(has_gradient):
        torch.testing.assert_close(attention(x, None), normed @ attention.proj.weight.T + attention.proj.bias)


def test_mlp_with_an_inner_norm() -> None:
    torch.manual_seed(0)
    mlp = randomized(Mlp(4, 8, sub_norm_eps=1e-3))
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    hidden = nn.functional.gelu(x @ mlp.fc1.weight.T + mlp.fc1.bias)
    hidden = nn.functional.layer_norm(hidden, (8,), mlp.norm.weight, mlp.norm.bias, 1e-3)
    torch.testing.assert_close(mlp(x), hidden @ mlp.fc2.weight.T + mlp.fc2.bias)


def test_mlp_uses_the_exact_gelu() -> None:
    torch.manual_seed(0)
    mlp = randomized(Mlp(4, 8))
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    hidden = x @ mlp.fc1.weight.T + mlp.fc1.bias
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    torch.testing.assert_close(mlp(x), hidden @ mlp.fc2.weight.T + mlp.fc2.bias)


@pytest.mark.parametrize("layer_scale", [None, 0.1])
def test_block_adds_two_scaled_branches(layer_scale: float | None) -> None:
    torch.manual_seed(0)
    block = randomized(Block(width=12, heads=3, hidden=24, layer_scale=layer_scale, drop_path=0.0, grid=None))
    x = torch.randn(2, 7, 12, dtype=torch.float64)

    def norm(layer: nn.LayerNorm, values: Tensor) -> Tensor:
        centered = values - values.mean(2, keepdim=True)
        return centered / (centered.square().mean(2, keepdim=True) + 1e-6).sqrt() * layer.weight + layer.bias

    first, second = (1.0, 1.0) if block.gamma_1 is None else (block.gamma_1, block.gamma_2)
    middle = x + first * naive_attention(block.attn, norm(block.norm1, x), None)
    expected = middle + second * block.mlp(norm(block.norm2, middle))
    torch.testing.assert_close(block(x, None), expected)


def test_stochastic_depth_keeps_or_drops_and_keeps_the_expectation() -> None:
    torch.manual_seed(0)
    kept = kept_branches(0.3, 20_000, torch.device("cpu"))
    assert kept.shape == (20_000, 1, 1)
    torch.testing.assert_close(kept.unique(), torch.tensor([0.0, 1 / 0.7]))
    # Four standard errors of the mean of 20,000 draws.
    assert abs(float(kept.mean()) - 1) < 4 * math.sqrt(0.3 / 0.7 / 20_000)


def test_stochastic_depth_is_off_in_evaluation_and_at_rate_zero() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 3, 4)
    blocks = [Block(width=4, heads=1, hidden=8, layer_scale=None, drop_path=rate, grid=None) for rate in (0.0, 0.9)]
    blocks[1].load_state_dict(blocks[0].state_dict())
    never, sometimes = blocks[0].train()(x, None), blocks[1].train()(x, None)
    assert not torch.equal(never, sometimes)
    assert torch.equal(never, blocks[1].eval()(x, None))


@pytest.mark.parametrize("drop_path", [0.0, 0.5])
def test_recomputing_changes_no_number(drop_path: float) -> None:
    block = Block(width=12, heads=3, hidden=24, layer_scale=0.1, drop_path=drop_path, grid=(2, 3))
    randomized(block).train()
    x = torch.randn(8, 7, 12, dtype=torch.float64, requires_grad=True)
    results = []
    for block.recompute in (False, True):
        torch.manual_seed(1)
        kept: list[int] = []

        def keep(tensor: Tensor, kept: list[int] = kept) -> Tensor:
            kept.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            after = block(x, None)
        results.append((sum(kept), after, *torch.autograd.grad(after.square().sum(), [x, *block.parameters()])))
    (kept_plainly, *plain), (kept_again, *again) = results
    assert kept_again < kept_plainly / 2
    for one, other in zip(plain, again, strict=True):
        assert torch.equal(one, other)


def test_both_branches_of_a_block_are_dropped_independently() -> None:
    torch.manual_seed(0)
    block = Block(width=4, heads=1, hidden=8, layer_scale=None, drop_path=0.5, grid=None).train()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.zero_()
        block.attn.proj.bias.fill_(1)
        block.mlp.fc2.bias.fill_(10)
    sums = block(torch.zeros(200, 2, 4), None)[:, 0, 0]
    assert sums.unique().tolist() == [0, 2, 20, 22]


@pytest.mark.parametrize("layer_scale", [None, 0.1])
@pytest.mark.parametrize("drop_path", [0.0, 0.5])
def test_gradients_of_a_block_are_those_of_its_formula(layer_scale: float | None, drop_path: float) -> None:
    """Against PyTorch's own of x + kept * gamma * branch."""
    torch.manual_seed(0)
    block = Block(width=12, heads=3, hidden=24, layer_scale=layer_scale, drop_path=drop_path, grid=None)
    randomized(block).train()
    kept = [kept_branches(0.5, 8, torch.device("cpu")).double() if drop_path else None for _ in range(2)]
    one, other = (1.0 if factor is None else factor for factor in kept)
    first, second = (1.0, 1.0) if block.gamma_1 is None else (block.gamma_1, block.gamma_2)
    x = torch.randn(8, 7, 12, dtype=torch.float64, requires_grad=True)
    middle = x + one * first * block.attn(block.norm1(x), None)
    expected = middle + other * second * block.mlp(block.norm2(middle))
    seen = block.branches(x, None, *kept)
    torch.testing.assert_close(seen, expected)
    wanted = [x, *block.parameters()]
    pairs = [torch.autograd.grad(after.square().sum(), wanted) for after in (seen, expected)]
    for ours, plain in zip(*pairs, strict=True):
        torch.testing.assert_close(ours, plain)


@pytest.mark.parametrize("drop_path", [0.0, 0.5])
def test_in_bfloat16_layer_scale_learns_from_what_it_learns_from_in_float32(drop_path: float) -> None:
    """Its gradient is summed over many products that were rounded to 8 bits."""
    torch.manual_seed(0)
    block = Block(width=12, heads=3, hidden=24, layer_scale=0.1, drop_path=drop_path, grid=None).train()
    x = torch.randn(8, 65, 12)
    gradients = []
    for is_rounded in (False, True):
        torch.manual_seed(2)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_rounded):
            after = block(x, None)
        assert block.gamma_1 is not None
        assert block.gamma_2 is not None
        gradients.append(torch.autograd.grad(after.square().sum(), [block.gamma_1, block.gamma_2]))
    for exact, rounded in zip(*gradients, strict=True):
        assert not torch.equal(exact, rounded)
        assert (exact - rounded).norm() < 0.02 * exact.norm()
