"""Many items through an encoder, batch by batch. Where the batches are computed is an `Embed` that is handed in.

`embed_here` computes them in this process, `cluster.embed.RayEmbedder` on the workers of a Ray cluster. The batches are the same, so the
vectors are.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from perdure.data.transforms import to_float
from perdure.encoders.encoder import Encoder
from perdure.retrieval.retriever import encode

__all__ = ["Batch", "Embed", "embed_batch", "embed_here"]

Batch = NDArray[np.uint8] | Sequence[str | bytes | NDArray[np.uint8]]
"""Pixels (b, H, W, 3) of the encoder's size; or texts and encoded pictures, mixed."""

Embed = Callable[[Encoder, Iterable[Any]], Iterator[NDArray[np.float32]]]
"""(encoder, batches) -> the (b, D) unit rows of each batch, in their order. Batches are drawn when there is something to do for them."""


def embed_batch(encoder: Encoder, batch: Batch) -> NDArray[np.float32]:
    """(b, D) unit rows, in float32 whatever training used: these are stored and compared for years.

    Raises:
        BadQuery: a text for an encoder without a text tower; bytes that are not a picture.
    """
    if isinstance(batch, np.ndarray):
        return encoder.embed_images(to_float(torch.from_numpy(batch))).float().cpu().numpy()
    return encode(encoder, batch)


def embed_here(encoder: Encoder, batches: Iterable[Any]) -> Iterator[NDArray[np.float32]]:
    """An `Embed` in this process."""
    return (embed_batch(encoder, batch) for batch in batches)
