"""The image half of an encoder: normalise, trunk, project."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["ImageTower"]


class ImageTower(nn.Module):
    """Pictures to embeddings before normalisation.

    Args:
        trunk: (B, 3, H, W) -> (B, width), or (B, width, 1, 1): everything up to the pooled features.
        width: features that the trunk gives.
        embedding_dim: D.
        mean: of each colour channel, of images in [0, 1]; what the trunk was or will be trained with.
        std: likewise.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, trunk: nn.Module, *, width: int, embedding_dim: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.trunk = trunk
        self.projection = nn.Linear(width, embedding_dim)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) float in [0, 1] -> (B, D) float32; under autocast only the trunk runs in low precision.

        Raises:
            ValueError: not a batch of three-channel float images.
        """
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise ValueError(f"expected images (B, 3, H, W) of floats in [0, 1]; got {tuple(images.shape)} of {images.dtype}.")
        features = self.trunk((images - self.mean) / self.std)
        with torch.autocast(images.device.type, enabled=False):
            return self.projection(features.flatten(1).float())
