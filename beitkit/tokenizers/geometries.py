"""The three architectures of the discrete VAE: encoder (pixels to code logits) and decoder (embedded codes to pixels).

Every encoder is a (nested) `nn.Sequential` whose last layer is the 1x1 convolution that gives the logits; every decoder is
one that starts from embedded codes. `DiscreteVAE` and `CodeRevival` need nothing else of a geometry. Module
paths are those of the original checkpoints: DALL-E's `encoder.blocks.group_1.block_1.res_path.conv_1` (its `w` and `b` are
our `weight` and `bias`), and BEiT's own `DiscreteVAE` with `encoder.0.0`, `encoder.1.net.0`, ...

- `dalle`: DALL-E's encoder and decoder (arXiv 2102.12092, appendix A; the published code), stride 8.
- `beit`: the `DiscreteVAE` class that comes with BEiT v1, any power-of-two stride (published loader: 8).
- `light`: ours, for images of 28 to 128 pixels and backbones of a few million parameters. Widths halve toward the
  pixels; encoding a 28x28 image at stride 4, width 64 and 256 codes takes under 10 MFLOP.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from beitkit.configs.tokenizer import DVAEConfig
from beitkit.nn.shapes import autocast_off


class Parts(NamedTuple):
    """The networks of one geometry, and its pixel scaling."""

    encoder: nn.Sequential
    decoder: nn.Sequential
    codebook: nn.Embedding | None
    """None where the decoder's first 1x1 convolution is the codebook (dalle)."""
    pixel_scale: float
    """A pixel x in [0, 1] enters the encoder as `pixel_scale * x + pixel_shift`."""
    pixel_shift: float


def build_parts(config: DVAEConfig) -> Parts:
    """Encoder, decoder and codebook of the geometry that the config names, with PyTorch's own initialization."""
    return {"dalle": _dalle, "beit": _beit, "light": _light}[config.geometry](config)


def layers_of(module: nn.Module) -> Iterator[nn.Module]:
    """The layers of a nested `nn.Sequential` in the order they are applied."""
    if type(module) is nn.Sequential:
        for child in module:
            yield from layers_of(child)
    else:
        yield module


def output_channels(config: DVAEConfig) -> int:
    """Output channels of the decoder: the pixels, for logit-Laplace followed by their log-scales."""
    return config.channels * (2 if config.reconstruction == "logit_laplace" else 1)


def without_autocast(layer: nn.Module, x: Tensor) -> Tensor:
    """The layer's output in the precision of its weights, with autocast off.

    In bfloat16 a network gives the tokens of float32 only if its residual stream, from the first layer to the logits, is not
    rounded (docs/performance.md).
    """
    with autocast_off(x.device):
        return layer(_wide(x))


def _as_autocast_wants(x: Tensor) -> Tensor:
    """In autocast's precision, where it is on."""
    kind = x.device.type
    is_on = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return x.to(torch.get_autocast_dtype(kind)) if is_on else x


def _wide(x: Tensor) -> Tensor:
    """In float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class DalleBlock(nn.Module):
    """`identity(x) + residual(x) / n_layers^2`, four convolutions of a quarter of the width (DALL-E, appendix A)."""

    POST_GAIN = 1 / 8**2
    """DALL-E's networks count 8 blocks."""

    def __init__(self, width_in: int, width_out: int, kernels: tuple[int, int, int, int]) -> None:
        super().__init__()
        hidden = width_out // 4
        widths = (width_in, hidden, hidden, hidden, width_out)
        self.id_path = nn.Conv2d(width_in, width_out, 1) if width_in != width_out else nn.Identity()
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for i, kernel in enumerate(kernels):
            layers[f"relu_{i + 1}"] = nn.ReLU()
            layers[f"conv_{i + 1}"] = nn.Conv2d(widths[i], widths[i + 1], kernel, padding=kernel // 2)
        self.res_path = nn.Sequential(layers)

    def forward(self, x: Tensor) -> Tensor:
        """Same height and width, `width_out` channels."""
        # Rounded before the first ReLU and not after it, which halves what is read and written.
        return torch.add(without_autocast(self.id_path, x), self.res_path(_as_autocast_wants(x)), alpha=self.POST_GAIN)


class ResidualBlock(nn.Module):
    """3x3, 3x3 and 1x1 convolutions with ReLU between them, plus the input (BEiT's `ResBlock`)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Same shape as the input."""
        return _wide(x) + self.net(x)


class LightBlock(nn.Module):
    """A square convolution and a 1x1 convolution over twice the width, plus the input."""

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.widen = nn.Conv2d(width, 2 * width, kernel, padding=kernel // 2)
        self.narrow = nn.Conv2d(2 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape as the input."""
        return _wide(x) + self.narrow(F.relu(self.widen(x)))


def _dalle(config: DVAEConfig) -> Parts:
    """DALL-E's networks: `hidden` is its n_hid (256), `codebook_dim` the decoder's first width n_init (128)."""
    width = config.hidden
    groups: OrderedDict[str, nn.Module] = OrderedDict(input=nn.Conv2d(config.channels, width, 7, padding=3))
    widths = (width, width, 2 * width, 4 * width, 8 * width)
    for i in range(4):
        group = _dalle_group(widths[i], widths[i + 1], (3, 3, 3, 1))
        if i < 3:
            group["pool"] = nn.MaxPool2d(2)
        groups[f"group_{i + 1}"] = nn.Sequential(group)
    groups["output"] = nn.Sequential(OrderedDict(relu=nn.ReLU(), conv=nn.Conv2d(widths[-1], config.vocabulary, 1)))
    encoder = nn.Sequential(OrderedDict(blocks=nn.Sequential(groups)))

    groups = OrderedDict(input=nn.Conv2d(config.vocabulary, config.codebook_dim, 1))
    widths = (config.codebook_dim, 8 * width, 4 * width, 2 * width, width)
    for i in range(4):
        group = _dalle_group(widths[i], widths[i + 1], (1, 3, 3, 3))
        if i < 3:
            group["upsample"] = nn.Upsample(scale_factor=2, mode="nearest")
        groups[f"group_{i + 1}"] = nn.Sequential(group)
    groups["output"] = nn.Sequential(OrderedDict(relu=nn.ReLU(), conv=nn.Conv2d(width, output_channels(config), 1)))
    decoder = nn.Sequential(OrderedDict(blocks=nn.Sequential(groups)))
    return Parts(encoder, decoder, codebook=None, pixel_scale=0.8, pixel_shift=0.1)  # appendix A.3: epsilon = 0.1


def _dalle_group(width_in: int, width_out: int, kernels: tuple[int, int, int, int]) -> OrderedDict[str, nn.Module]:
    return OrderedDict(block_1=DalleBlock(width_in, width_out, kernels), block_2=DalleBlock(width_out, width_out, kernels))


def _beit(config: DVAEConfig) -> Parts:
    """BEiT's own `DiscreteVAE`: one halving of the resolution and one residual block per layer, constant width."""
    width, num_layers = config.hidden, config.stride.bit_length() - 1
    encoder: list[nn.Module] = []
    decoder: list[nn.Module] = []
    for i in range(num_layers):
        down = nn.Conv2d(width if i else config.channels, width, 4, stride=2, padding=1)
        up = nn.ConvTranspose2d(width if i else config.codebook_dim, width, 4, stride=2, padding=1)
        encoder += [nn.Sequential(down, nn.ReLU()), ResidualBlock(width)]
        decoder += [nn.Sequential(up, nn.ReLU()), ResidualBlock(width)]
    encoder.append(nn.Conv2d(width, config.vocabulary, 1))
    decoder.append(nn.Conv2d(width, output_channels(config), 1))
    return Parts(nn.Sequential(*encoder), nn.Sequential(*decoder), _codebook(config), pixel_scale=2.0, pixel_shift=-1.0)


def _light(config: DVAEConfig) -> Parts:
    """Widths double from the pixels (at least 16) up to `hidden` on the token grid.

    The encoder's receptive field is little more than a token's own cell (10 pixels across at stride 4): a code then describes
    what is *there*, empty background is one code everywhere, and encoding is cheap. The decoder sees the neighboring tokens.
    """
    num_layers = config.stride.bit_length() - 1
    widths = [max(16, config.hidden >> (num_layers - 1 - i)) for i in range(num_layers)]
    encoder: list[nn.Module] = []
    for width_in, width_out in zip([config.channels, *widths], widths, strict=False):
        # Padding with zeros would show a gray frame around the image, and give its border codes of their own.
        encoder += [nn.Conv2d(width_in, width_out, 4, stride=2, padding=1, padding_mode="replicate"), nn.ReLU()]
    encoder += [LightBlock(widths[-1], 1), nn.Conv2d(widths[-1], config.vocabulary, 1)]
    decoder: list[nn.Module] = [nn.Conv2d(config.codebook_dim, widths[-1], 1), LightBlock(widths[-1], 3), nn.ReLU()]
    for width_in, width_out in zip(widths[:0:-1], widths[-2::-1], strict=True):
        decoder += [nn.ConvTranspose2d(width_in, width_out, 4, stride=2, padding=1), nn.ReLU()]
    decoder.append(nn.ConvTranspose2d(widths[0], output_channels(config), 4, stride=2, padding=1))
    return Parts(nn.Sequential(*encoder), nn.Sequential(*decoder), _codebook(config), pixel_scale=2.0, pixel_shift=-1.0)


def _codebook(config: DVAEConfig) -> nn.Embedding:
    return nn.Embedding(config.vocabulary, config.codebook_dim)


@torch.no_grad()
def initialize(parts: Parts, config: DVAEConfig) -> None:
    """Initialize all weights.

    | geometry | parameter | distribution | why |
    |---|---|---|---|
    | dalle | convolution weights | normal, std 1 / sqrt(inputs * kernel area) | DALL-E's published code |
    | dalle | biases | 0 | the same |
    | beit | convolutions | PyTorch's uniform(-1/sqrt(fan in), +1/sqrt(fan in)) | the original leaves the defaults |
    | beit | codebook | normal, std 1 | the same |
    | light | convolution weights | normal, std sqrt(2 / fan in) | keeps the variance through ReLU |
    | light | last weights of a residual block; of the decoder | 0; a tenth of the above | starts plain; starts near gray |
    | light | biases | 0 | |
    | light | codebook | normal, std 1 | |

    The layer that gives the logits is initialized again from the first images of a training run (`revival.start_codes`).
    """
    if config.geometry == "beit":
        return
    gain = 1.0 if config.geometry == "dalle" else 2.0
    for network in (parts.encoder, parts.decoder):
        for module in network.modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                height, width = module.kernel_size
                # A transposed convolution of stride 2 adds a quarter of its kernel's taps into each output pixel.
                taps = height * width // (module.stride[0] * module.stride[1] if isinstance(module, nn.ConvTranspose2d) else 1)
                nn.init.normal_(module.weight, std=(gain / (module.in_channels * taps)) ** 0.5)
                assert module.bias is not None
                nn.init.zeros_(module.bias)
    if config.geometry == "light":
        for network in (parts.encoder, parts.decoder):
            for block in network.modules():
                if isinstance(block, LightBlock):
                    nn.init.zeros_(block.narrow.weight)
        last = parts.decoder[-1]
        assert isinstance(last, nn.ConvTranspose2d)
        last.weight.mul_(0.1)
