"""Against dead codes: codes are initialized from image features, and unused ones are split off codes with a large error.

With random initialization most codes are never chosen: on small data a large part of the vocabulary stays unused. Two things
are done about it, the same for every geometry, by writing the two rows that belong to a code (one of the layer that gives the
logits, one of the decoder's embeddings):

1. **Start** (`start_codes`): on the first batch, k-means finds centers c in the features f that the code layer sees, and
   its rows are set so that a code's logit is a multiple of -|f - c|^2 (up to |f|^2, which is the same for all codes).
2. **Revival** (`CodeRevival`): over a window of batches, count how often each code is chosen and how much squared
   reconstruction error falls on it. A code with hardly any use becomes a twin of the one with the most error, and the two are
   separated along a direction in which that code's features vary. Codes are split by error, not by use: the one code of an
   empty background is chosen all the time and gains nothing from a twin.

All randomness comes from torch's global generator and all counts are buffers, so a resumed run continues exactly. With several
ranks the counts are summed, and rank 0 starts and revives the codes for all from its own images.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from beitkit.nn.collectives import all_reduce_, broadcast_, is_distributed, is_rank_zero
from beitkit.tokenizers.codebook import KMEANS_STEPS, gather_by_code
from beitkit.tokenizers.dvae import DiscreteVAE
from beitkit.tokenizers.health import code_counts

START_MARGIN = 3.0
"""Mean logit margin of a feature's nearest center over the second nearest at the start; Gumbel noise has std 1.28."""
SPLIT_MARGIN = 2.0
"""Standard deviation, over a split code's features, of the difference of the twins' logits."""
MAX_POINTS = 32768
"""At most this many features are used by k-means."""


def kmeans(points: Float[Tensor, "m d"], num_centers: int) -> Float[Tensor, "v d"]:
    """Lloyd's algorithm from k-means++ seeds (Arthur and Vassilvitskii, 2007).

    With fewer distinct points than centers, the surplus centers repeat points.
    """
    nearest = torch.full((len(points),), float("inf"), device=points.device)
    chosen = torch.randint(len(points), (1,), device=points.device)
    seeds = []
    for _ in range(num_centers):
        seed = points[chosen]  # (1, d)
        seeds.append(seed)
        nearest = torch.minimum(nearest, (points - seed).square().sum(1))
        # The tiny constant leaves a choice where every point coincides with a seed.
        chosen = torch.multinomial(nearest + 1e-12, 1)
    centers = torch.cat(seeds)
    for _ in range(KMEANS_STEPS):
        owners = torch.cdist(points, centers).argmin(1)
        counts, sums = gather_by_code(points, owners, num_centers)
        centers = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], centers)
    return centers


@torch.no_grad()
def start_codes(tokenizer: DiscreteVAE, features: Float[Tensor, "b d gh gw"]) -> None:
    """Initialize code layer and embeddings by k-means of image features (of rank 0)."""
    if is_rank_zero():
        _place_codes(tokenizer, features)
    _share_codes(tokenizer)


def _place_codes(tokenizer: DiscreteVAE, features: Tensor) -> None:
    points = features.permute(0, 2, 3, 1).flatten(0, 2)  # (b * gh * gw, d)
    if len(points) > MAX_POINTS:
        points = points[torch.randperm(len(points), device=points.device)[:MAX_POINTS]]
    centers = kmeans(points, tokenizer.vocabulary)
    first_two = torch.cdist(points, centers).square().topk(min(2, tokenizer.vocabulary), largest=False).values
    lead = (first_two[:, 1] - first_two[:, 0]).mean().clamp(min=1e-12)
    scale = START_MARGIN / lead
    layer = tokenizer.code_layer
    assert layer.bias is not None
    # -scale * |f - c|^2 = 2 scale c.f - scale |c|^2 - scale |f|^2; measured from the mean to keep the numbers small.
    mean = points.mean(0)
    centered = centers - mean
    layer.weight.copy_(2 * scale * centered[:, :, None, None])
    layer.bias.copy_(-scale * (centered.square().sum(1) + 2 * centered @ mean))
    # Codes with near centers start with near embeddings: a random projection of the centers, as spread as before.
    embeddings = tokenizer.embeddings
    projected = centered @ torch.randn(centered.shape[1], embeddings.shape[1], device=centered.device)
    projected = (projected - projected.mean(0)) / projected.std(0).clamp(min=1e-12)
    embeddings.copy_(projected * embeddings.std())


def is_so_first(claim: bool, device: torch.device) -> bool:
    """The claim of rank 0, on all ranks."""
    if not is_distributed():
        return claim  # without a device sync
    told = torch.tensor(float(claim), device=device)
    broadcast_(told)
    return bool(told)


def _share_codes(tokenizer: DiscreteVAE) -> None:
    """Broadcast the rows of rank 0."""
    assert tokenizer.code_layer.bias is not None
    broadcast_(tokenizer.code_layer.weight, tokenizer.code_layer.bias, tokenizer.embeddings)


class CodeRevival(nn.Module):
    """Counts use and error of each code over a window of batches, and splits codes with a large error onto unused ones."""

    usage: Tensor
    error: Tensor
    batches: Tensor

    def __init__(self, vocabulary: int, dead_share: float) -> None:
        """A code is dead if it is chosen less than `dead_share` times as often as the average code."""
        super().__init__()
        self.dead_share = dead_share
        self.register_buffer("usage", torch.zeros(vocabulary, dtype=torch.int64))
        self.register_buffer("error", torch.zeros(vocabulary))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def observe(self, ids: Int[Tensor, "b gh gw"], error: Float[Tensor, "b gh gw"]) -> None:
        """Count one batch of every rank: the chosen codes, and the squared reconstruction error at each of them."""
        flat = ids.flatten()
        usage = code_counts(flat, len(self.usage))
        summed = torch.zeros_like(self.error).index_add_(0, flat, error.flatten().float())
        batches = torch.ones_like(self.batches)
        for total, seen in ((self.usage, usage), (self.error, summed), (self.batches, batches)):
            all_reduce_(seen)
            total += seen

    @torch.no_grad()
    def revive(self, tokenizer: DiscreteVAE, features: Float[Tensor, "b d gh gw"]) -> int:
        """Turn dead codes into twins of those with the most error and reset the counts; returns how many this rank revived.

        `features` are of the present batch; only codes chosen at two different positions in it can be split. Rank 0
        does it for all.
        """
        revived = self._split(tokenizer, features) if is_rank_zero() else 0
        _share_codes(tokenizer)
        self.usage.zero_()
        self.error.zero_()
        self.batches.zero_()
        return revived

    def _split(self, tokenizer: DiscreteVAE, features: Tensor) -> int:
        layer, embeddings = tokenizer.code_layer, tokenizer.embeddings
        assert layer.bias is not None
        ids = layer(features).argmax(1).flatten()
        points = features.permute(0, 2, 3, 1).flatten(0, 2)  # (b * gh * gw, d)
        dead = torch.nonzero(self.usage < self.dead_share * self.usage.float().mean()).flatten().tolist()
        is_dead = set(dead)
        donors = [code for code in self.error.argsort(descending=True).tolist() if code not in is_dead]
        revived = 0
        for donor in donors:
            if revived == len(dead):
                break
            members = points[ids == donor]
            if len(members) < 2:
                continue
            mean = members.mean(0)
            direction = members[torch.randint(len(members), (1,), device=members.device)][0] - mean
            spread = ((members - mean) @ direction).std()
            if spread <= 1e-6 * members.square().mean():  # the same features everywhere: nothing to separate twins by
                continue
            twin = dead[revived]
            tilt = SPLIT_MARGIN / spread * direction
            layer.weight[twin] = layer.weight[donor]
            layer.bias[twin] = layer.bias[donor]
            embeddings[twin] = embeddings[donor] + 0.01 * embeddings.std() * torch.randn_like(embeddings[donor])
            # Score difference of the twins at f: tilt . (f - mean), so about half of the members go to each.
            shift = tilt @ mean
            for code, half in ((twin, 0.5), (donor, -0.5)):
                layer.weight[code, :, 0, 0] += half * tilt
                layer.bias[code] -= half * shift
            revived += 1
        return revived
