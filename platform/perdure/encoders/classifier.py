"""A classifier over embeddings to which every task appends its classes."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from perdure.encoders.growing import grown

__all__ = ["GrowingClassifier"]


class GrowingClassifier(nn.Module):
    """Logits of all classes seen so far.

        cosine:  logit_c = scale * (z / |z|) . (w_c / |w_c|)          linear:  logit_c = z . w_c + b_c

    Cosine logits look at the same unit vectors that retrieval compares, and give no class an advantage by the length of its row, which
    is how classes of the newest task otherwise win over the old ones.

    Args:
        embedding_dim: D.
        kind: "cosine" or "linear".
        scale: of the cosine logits, fixed; unused by "linear".
        seed: of the rows of new classes.
    """

    def __init__(self, embedding_dim: int, *, kind: Literal["cosine", "linear"] = "cosine", scale: float = 16.0, seed: int = 0) -> None:
        super().__init__()
        self.kind = kind
        self.scale = scale
        self.seed = seed
        self.weight = nn.Parameter(torch.empty(0, embedding_dim))
        self.bias = nn.Parameter(torch.empty(0)) if kind == "linear" else None

    @property
    def num_classes(self) -> int:
        """How many classes there are rows for."""
        return self.weight.shape[0]

    def grow(self, num_classes: int) -> None:
        """Append rows until there are `num_classes`; rows of old classes stay as they are.

        Raises:
            ValueError: fewer classes than there are.
        """
        self.weight = grown(self.weight, num_classes, std=self.weight.shape[1] ** -0.5, seed=self.seed)
        if self.bias is not None:
            self.bias = grown(self.bias, num_classes, std=0.0, seed=self.seed)

    def forward(self, embeddings: Tensor) -> Tensor:
        """(B, D) embeddings, before or after normalisation -> (B, C) float32 logits, also under autocast."""
        with torch.autocast(embeddings.device.type, enabled=False):
            embeddings = embeddings.float()
            if self.bias is not None:
                return functional.linear(embeddings, self.weight, self.bias)
            return self.scale * functional.normalize(embeddings, dim=1) @ functional.normalize(self.weight, dim=1).T
