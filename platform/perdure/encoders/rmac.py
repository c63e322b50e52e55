"""R-MAC: maxima over square regions of several sizes, each brought to one length, and summed.

Letters: B images, C channels, h x w the map, R regions.
"""

from functools import lru_cache
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from perdure.encoders.pooling import Pooling

__all__ = ["RMAC", "regions"]

_OVERLAP = 0.4  # of neighbouring regions of the largest size, along the longer side of the map


class RMAC(Pooling):
    """Regional maximum activations of convolutions.

    Tolias, Sicre, Jegou, "Particular object retrieval with integral max-pooling of CNN activations", ICLR 2016, section 3.2:

        f = sum_R  f_R / |f_R|          f_R,c = max over (x, y) in R of f_c(x, y)

    over the `regions` of the map. No PCA and no whitening of a region's vector, which the paper puts between two normalisations: the
    encoder has one whitening, of whole embeddings, fitted when a task is learned (`encoders.whitening`).

    Deviations: no l2 norm of the sum, since a projection follows and the encoder makes unit rows; |f_R| is ( sum_c f_R,c^2 + eps^2 )^(1/2),
    so that an empty region stays zero and has a finite slope.

    Args:
        levels: L, sizes of regions.
        eps: see above.
    """

    def __init__(self, *, levels: Annotated[int, Field(ge=1, le=8)] = 3, eps: Annotated[float, Field(gt=0)] = 1e-4) -> None:
        super().__init__()
        self.levels = levels
        self.eps = eps

    def pool(self, features: Tensor) -> Tensor:
        """See `Pooling.pool`."""
        squares = regions(features.shape[2], features.shape[3], self.levels)
        maxima = [features[:, :, top : top + side, left : left + side].amax(dim=(2, 3)) for top, left, side in squares]
        f_RBC = torch.stack(maxima)
        return (f_RBC / (f_RBC.square().sum(dim=2, keepdim=True) + self.eps**2).sqrt()).sum(dim=0)


@lru_cache(maxsize=64)
def regions(height: int, width: int, levels: int) -> tuple[tuple[int, int, int], ...]:
    """The squares (top, left, side) of a map, the largest first.

    At level l = 1 .. L a square has the side 2 min(h, w) / (l + 1), rounded down. There are l of them along the shorter side of the map
    and l + m - 1 along the longer one, evenly spread, with m so that those of level 1 overlap by as near to 40 % as can be; m = 1 on a
    square map.

    Deviations: on a map so small that several of the squares are one and the same, that one counts once.
    """
    short, long = min(height, width), max(height, width)
    rest = (long - short) / short
    extra = min(range(1, long + 1), key=lambda steps: abs(1 - rest / steps - _OVERLAP)) if rest else 0
    found: dict[tuple[int, int, int], None] = {}
    for level in range(1, levels + 1):
        side = max(1, 2 * short // (level + 1))
        down = _starts(height, side, level + (extra if height > width else 0))
        across = _starts(width, side, level + (extra if width > height else 0))
        found |= {(top, left, side): None for top in down for left in across}
    return tuple(found)


def _starts(length: int, side: int, count: int) -> list[int]:
    """Where `count` pieces begin that are evenly spread from one end to the other."""
    return [(length - side) * i // (count - 1) for i in range(count)] if count > 1 else [(length - side) // 2]
