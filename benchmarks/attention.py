"""Attention with a position bias on this device: PyTorch's fused function against plain products, as a Markdown table.

    python -m benchmarks.attention [--width 768] [--rounds 7] [--threads 0]

Both are given queries, keys and values as a block's first projection leaves them, with no gradient (inference), and with one for
everything, the bias included (training). A ratio above 1 says that plain products are faster. Both take turns in one process.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

from beitkit.configs.train import MachineConfig
from beitkit.train.machine.runtime import start_runtime
from benchmarks.compare.turns import Candidate, Step, interleaved, synchronizer

HEAD_WIDTH = 64
SHAPES = ((64, 65), (8, 197), (64, 197), (4, 577), (2, 1025), (1, 1601))
"""Images, and tokens of each: nano's and the small images', 224, 384, 512 and 640 pixels in patches of 16."""

Attention = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def fused(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias)


def plain(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    scores += bias
    return scores.softmax(dim=-1) @ value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    runtime = start_runtime(MachineConfig(threads=options.threads))
    heads = options.width // HEAD_WIDTH
    where = f"{runtime.describe()}, PyTorch {torch.__version__}"
    print(f"{heads} heads of {HEAD_WIDTH}, {where}; medians of {options.rounds} rounds\n")
    print("| precision | images x tokens | inference: fused, ms | plain | ratio | training: fused, ms | plain | ratio |")
    print("|---|---|---|---|---|---|---|---|")
    for precision in (torch.bfloat16, torch.float32):
        for images, tokens in SHAPES:
            cells = []
            for is_trained in (False, True):
                prepare = partial(prepared, (images, tokens, heads), precision, runtime.device, is_trained)
                racing = [Candidate(one.__name__, "", partial(prepare, one), is_ours=True) for one in (fused, plain)]
                taken = interleaved(racing, options.rounds, turn=0.2, wait=synchronizer(runtime.device))
                theirs, ours = (median(taken[name]) for name in ("fused", "plain"))
                cells += [f"{1000 * theirs:.1f}", f"{1000 * ours:.1f}", f"{theirs / ours:.2f}"]
            print(f"| {str(precision).removeprefix('torch.')} | {images} x {tokens} | {' | '.join(cells)} |", flush=True)


def prepared(
    shape: tuple[int, int, int], precision: torch.dtype, device: torch.device, is_trained: bool, attend: Attention
) -> Step:
    """One forward pass, or a forward and a backward pass, for (images, tokens, heads)."""
    images, tokens, heads = shape
    generator = torch.Generator(device).manual_seed(0)

    def noise(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator, device=device).to(precision)

    projected = noise(images, tokens, 3 * heads * HEAD_WIDTH).requires_grad_(is_trained)
    bias = noise(1, heads, tokens, tokens).requires_grad_(is_trained)
    given = noise(images, tokens, heads * HEAD_WIDTH)

    def step() -> None:
        query, key, value = projected.unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        result = attend(query, key, value, bias).transpose(1, 2).flatten(2)
        if is_trained:
            result.backward(given)
            projected.grad = bias.grad = None

    return step


if __name__ == "__main__":
    main()
