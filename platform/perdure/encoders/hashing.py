"""Heads that turn embeddings into codes of bits: one for each modality, trained by a strategy that hashes.

Chen, "Continual and cross-modal retrieval" (PhD thesis, Leiden 2021), ch. 3, section 3.3. B rows, D embedding, K bits.
"""

from typing import Literal

import torch
from torch import Tensor, nn

__all__ = ["HashHeads"]


class HashHeads(nn.Module):
    """H = tanh(W z + b), with weights of its own for pictures and for captions; the bits are the signs of H.

    Args:
        embedding_dim: D.
        bits: K.
    """

    def __init__(self, embedding_dim: int, bits: int) -> None:
        super().__init__()
        self.bits = bits
        self.image = nn.Linear(embedding_dim, bits)
        self.text = nn.Linear(embedding_dim, bits)

    def forward(self, embeddings: Tensor, modality: Literal["image", "text"]) -> Tensor:
        """(B, D) embeddings before normalisation -> (B, K) float32 in -1..1, also under autocast."""
        head = self.image if modality == "image" else self.text
        with torch.autocast(embeddings.device.type, enabled=False):
            return head(embeddings.float()).tanh()

    def turn(self, bits: Tensor) -> None:
        """Give these bits of captions the other sign.

        Args:
            bits: (K,) bool.
        """
        with torch.no_grad():
            for parameter in self.text.parameters():
                parameter[bits] *= -1
