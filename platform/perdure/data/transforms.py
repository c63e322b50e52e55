"""Augmentation on tensors: a random crop after padding, and a flip, for a whole batch at once.

B batch, H and W height and width. Mean and standard deviation are the encoder's business.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Augmentation", "augment", "draw", "to_float"]


@dataclass(frozen=True, eq=False)
class Augmentation:
    """What happens to each picture of a batch: where the crop of the padded picture begins, and whether it is mirrored."""

    dx: Tensor  # (B,) int64 in 0..2 crop
    dy: Tensor  # (B,) int64 in 0..2 crop
    flip: Tensor  # (B,) bool
    crop: int  # pixels of padding on each side

    def rows(self, part: slice | Tensor) -> "Augmentation":
        """The share of one worker, or of some pictures (a mask)."""
        return Augmentation(self.dx[part], self.dy[part], self.flip[part], self.crop)


def draw(batch_size: int, generator: torch.Generator, *, crop: int, flip: bool) -> Augmentation:
    """Draw for the GLOBAL batch of B pictures, so that what happens to each does not depend on the number of workers.

    Args:
        batch_size: B.
        generator: a CPU generator; it advances equally whatever the options are.
        crop: pixels of padding on each side, 0 = the picture stays where it is.
        flip: mirror half of the pictures.
    """
    dx = torch.randint(0, 2 * crop + 1, (batch_size,), generator=generator)
    dy = torch.randint(0, 2 * crop + 1, (batch_size,), generator=generator)
    mirrored = torch.rand(batch_size, generator=generator) < 0.5
    return Augmentation(dx, dy, mirrored & flip, crop)


def augment(images_u8: Tensor, augmentation: Augmentation) -> Tensor:
    """Pictures (B, H, W, 3) uint8, padded by reflection, cropped back to H x W, mirrored where drawn; a new tensor.

    Raises:
        ValueError: as many pictures as draws are needed, and reflection needs crop < min(H, W).
    """
    B, H, W, _ = images_u8.shape
    if len(augmentation.dx) != B or augmentation.crop >= min(H, W):
        raise ValueError(f"augment: {B} pictures of {H} x {W}, {len(augmentation.dx)} draws with crop={augmentation.crop}")
    device = images_u8.device
    dx, dy, mirrored = augmentation.dx.to(device), augmentation.dy.to(device), augmentation.flip.to(device)
    across = torch.arange(W, device=device)
    across_BW = torch.where(mirrored[:, None], W - 1 - across, across) + dx[:, None] - augmentation.crop
    down_BH = torch.arange(H, device=device) + dy[:, None] - augmentation.crop
    start_B = torch.arange(B, device=device) * (H * W)
    source_BHW = start_B[:, None, None] + _reflect(down_BH, H)[:, :, None] * W + _reflect(across_BW, W)[:, None, :]
    return images_u8.reshape(B * H * W, 3).index_select(0, source_BHW.flatten()).view(B, H, W, 3)


def to_float(images_u8: Tensor) -> Tensor:
    """Pictures (B, H, W, 3) uint8 as (B, 3, H, W) float32 in [0, 1], laid out channels last: one copy, the conversion itself."""
    return images_u8.permute(0, 3, 1, 2).to(torch.float32).div_(255)


def _reflect(place: Tensor, length: int) -> Tensor:
    """Indices beyond either edge, mirrored back inside."""
    return (length - 1) - ((length - 1) - place.abs()).abs()
