"""Training a discrete VAE: reconstruct the image through a relaxed choice of codes (arXiv 2102.12092, section 2.1).

The codes at each position are weighted by a Gumbel-softmax whose temperature is annealed toward a hard choice; a KL term to the
uniform distribution can keep the encoder from committing too early. Reconstruction loss is squared error or DALL-E's
logit-Laplace likelihood. Codes are started from data and revived
(`tokenizers.revival`) on the first forward pass of a step: the gradients of a step belong to the same codes, however many passes
and processes share it. Batches hold `images` in [0, 1], without normalization.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from beitkit.configs.tokenizer import ReconstructConfig
from beitkit.contracts import Batch, Loss
from beitkit.nn.collectives import world_size
from beitkit.tokenizers.dvae import LAPLACE_EPSILON, DiscreteVAE
from beitkit.tokenizers.health import code_counts, perplexity
from beitkit.tokenizers.revival import CodeRevival, is_so_first, start_codes

LOG_SCALE_FLOOR = -4.0
"""Smallest log-scale of logit-Laplace: about half a gray level. Images are quantized; without a floor, a constant
background would have unbounded likelihood."""


class Reconstruct(nn.Module):
    """The discrete VAE with its training loss; only `tokenizer` is kept afterward."""

    is_started: Tensor

    def __init__(self, tokenizer: DiscreteVAE, config: ReconstructConfig) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.config = config
        self.revival = CodeRevival(tokenizer.vocabulary, config.dead_share)
        self.register_buffer("is_started", torch.tensor(not config.start_from_data))
        self._tended_at: float | None = None
        self._quiet: float = 0
        """Forward passes before which no code can be due to be started or revived; at most 0: the device has to be asked."""

    def forward(self, batch: Batch, progress: float) -> Loss:
        """Loss per pixel and channel; `progress` in [0, 1] sets temperature and KL weight."""
        images, tokenizer = batch["images"], self.tokenizer
        temperature = anneal(self.config.temperature, progress, self.config.temperature_share)
        kl_weight = anneal(self.config.kl_weight, progress, self.config.kl_share)
        features = tokenizer.features(images)
        if self.training and progress != self._tended_at:
            self._tended_at = progress
            if self._quiet <= 0:
                self._tend_codes(features.detach(), progress)
        logits = tokenizer.code_layer(features).float()  # (b, v, gh, gw)
        output = tokenizer.decode_relaxed(gumbel_softmax(logits, temperature)).float()

        if tokenizer.config.reconstruction == "logit_laplace":
            reconstruction = logit_laplace_loss(output, images)
        else:
            reconstruction = F.mse_loss(output, tokenizer.normalize(images))
        with torch.set_grad_enabled(torch.is_grad_enabled() and kl_weight > 0):
            kl = kl_to_uniform(logits)
        total = reconstruction + kl_weight * kl / (tokenizer.stride**2 * tokenizer.channels)

        with torch.no_grad():
            ids = logits.argmax(1)
            if self.training:
                error = (tokenizer.pixels(output) - images).square().mean(1, keepdim=True)
                self.revival.observe(ids, F.avg_pool2d(error, tokenizer.stride)[:, 0])
                self._quiet -= 1
            counts = code_counts(ids, tokenizer.vocabulary)
        parts = {
            "reconstruction": reconstruction.detach(),
            "kl": kl.detach(),
            "temperature": torch.full_like(reconstruction, temperature, requires_grad=False),
            "perplexity": perplexity(counts / counts.sum()),
            "codes_used": (counts > 0).float().mean(),
        }
        return Loss(total, parts)

    def rewritten(self) -> list[Tensor]:
        """The rows of the codes: a start from data and revivals write them (see `RewritesParameters`)."""
        layer = self.tokenizer.code_layer
        assert layer.bias is not None
        return [layer.weight, layer.bias, self.tokenizer.embeddings]

    def _tend_codes(self, features: Float[Tensor, "b d gh gw"], progress: float) -> None:
        """Start the codes on the first batch; revive unused ones when a window is full.

        The host waits for the device to learn whether either is due, so it works out for how many passes neither can be. After
        either it looks again: if that step is skipped, the loop puts codes and counts back.
        """
        window = self.config.revive_every if progress < self.config.revive_share else 0
        is_started = bool(self.is_started)
        if is_started:
            # Skipped steps only make it longer until the window is full.
            left = math.ceil((window - int(self.revival.batches)) / world_size()) if window else math.inf
            if left > 0:
                self._quiet = left
                return
        # k-means cannot draw from what is not finite; the loop skips such a step, and undoes codes and counts.
        if not is_so_first(bool(features.isfinite().all()), features.device):
            return
        # Without autocast, which would cache a half-precision copy of the rows from before the change.
        with torch.autocast(features.device.type, enabled=False):
            if is_started:
                self.revival.revive(self.tokenizer, features.float())
            else:
                start_codes(self.tokenizer, features.float())
                self.is_started.fill_(True)


def anneal(ends: tuple[float, float], progress: float, share: float) -> float:
    """Half-cosine from the first value to the second over a share of the run, then constant (DALL-E, appendix A.2)."""
    position = min(1.0, progress / share) if share else 1.0
    first, last = ends
    return last + (first - last) * 0.5 * (1 + math.cos(math.pi * position))


def gumbel_softmax(logits: Float[Tensor, "b v gh gw"], temperature: float) -> Float[Tensor, "b v gh gw"]:
    """Gumbel-softmax over the codes: softmax((logits + Gumbel noise) / temperature).

    The noise is drawn from uniform numbers; `F.gumbel_softmax` draws exponential ones, which took a quarter of a training step
    on a CPU.
    """
    uniform = torch.rand_like(logits).clamp_(min=1e-9)
    return F.softmax((logits - torch.log(-torch.log(uniform))) / temperature, dim=1)


def kl_to_uniform(logits: Float[Tensor, "b v gh gw"]) -> Float[Tensor, ""]:
    """KL divergence in nats of softmax(logits) to the uniform distribution, mean over places: log v - entropy."""
    log_q = F.log_softmax(logits, dim=1)
    return (log_q.exp() * log_q).sum(1).mean() + math.log(logits.shape[1])


def logit_laplace_loss(output: Float[Tensor, "b o h w"], images: Float[Tensor, "b c h w"]) -> Float[Tensor, ""]:
    """Negative log-likelihood in nats per pixel and channel of pixels mapped to 0.8 x + 0.1 (DALL-E, appendix A.3).

    f(x | mu, s) = exp(-|logit x - mu| / s) / (2 s x (1 - x)); `output` holds mu, then log s.
    """
    location, raw = output.chunk(2, dim=1)
    # A softplus, equal to the identity for raw >= 0 and within 1e-4 of it from -2 on, that levels out at the floor.
    log_scale = LOG_SCALE_FLOOR + F.softplus(raw - LOG_SCALE_FLOOR, beta=5)
    x = (1 - 2 * LAPLACE_EPSILON) * images + LAPLACE_EPSILON
    distance = (torch.logit(x) - location).abs()
    return (distance * torch.exp(-log_scale) + log_scale + torch.log(2 * x * (1 - x))).mean()
