"""How a run uses its frozen tokenizer: on its device, in the fast precision if that finds the same tokens on its pictures."""

from __future__ import annotations

import torch

from beitkit.data.sources.find import PictureList
from beitkit.data.stream import PictureDataset, evaluation_stream
from beitkit.data.tokens.key import CacheKey
from beitkit.data.views.image import PretrainView
from beitkit.interop.kinds import TokenizerNetwork
from beitkit.tokenizers.frozen import Encoder, encoder_of
from beitkit.train.machine.runtime import Runtime

TRIED_PICTURES = 16
"""The fast precision is tried on this many pictures, evenly spread over the list: 3,136 tokens of 14x14 each."""


def token_encoder(
    tokenizer: TokenizerNetwork, files: PictureList, key: CacheKey, runtime: Runtime, begun: CacheKey | None = None
) -> Encoder:
    """The tokenizer, moved to the device; every process and every start of a run decides alike, on the same views.

    Args:
        tokenizer: the one of the key.
        files: the pictures of the run.
        key: what its tokens depend on; the number of views and the precision do not matter.
        runtime: device and precision.
        begun: key of the token cache that is read or completed, if it is there: its precision is kept.
    """
    tokenizer.to(runtime.device)
    if begun is not None:
        return Encoder.laid_out(tokenizer, torch.bfloat16 if begun.precision == "bfloat16" else None)
    count = min(TRIED_PICTURES, len(files))
    chosen = files.subset([index * len(files) // count for index in range(count)])
    dataset = PictureDataset(
        chosen,
        PretrainView(key.view, key.image_size, key.token_size, only_tokens=True),
        channels=key.channels,
        seed=key.seed,
        kind="evaluate",
        smallest=key.patch,
    )
    images = torch.cat([batch["token_images"] for batch in evaluation_stream(dataset, count)])
    return encoder_of(tokenizer, images.to(runtime.device), runtime.autocast)
