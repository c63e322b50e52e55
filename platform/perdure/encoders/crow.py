"""CroW: a sum over the map in which places that excite many channels, and channels that are seldom excited, count more."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from perdure.encoders.pooling import Pooling

__all__ = ["CroW"]


class CroW(Pooling):
    """Cross-dimensional weighting and sum pooling.

    Kalantidis, Mellina, Osindero, "Cross-dimensional Weighting for Aggregated Deep Convolutional Features", ECCV Workshops 2016,
    section 4, with its powers of 2:

        f_c    = b_c sum_xy a(x, y) f_c(x, y)
        a(x,y) = ( s(x, y) / ( sum_xy s(x, y)^2 )^(1/2) )^(1/2)                     s(x, y) = sum_c f_c(x, y), what a place excites
        b_c    = log( ( C eps + sum_j q_j ) / ( eps + q_c ) )                       q_c = share of places where f_c(x, y) > 0

    b is a count, so no gradient goes through it; one goes through a.

    Deviations: s and q are taken of max(f, 0), since a trunk need not end in a ReLU, and eps is added below the outer root and, squared,
    below the inner one, so that both have a finite slope at zero.

    Args:
        eps: of the three places above.
    """

    def __init__(self, *, eps: Annotated[float, Field(gt=0)] = 1e-6) -> None:
        super().__init__()
        self.eps = eps

    def pool(self, features: Tensor) -> Tensor:
        """See `Pooling.pool`."""
        excited = features.clamp(min=0)
        s_Bhw = excited.sum(dim=1)
        a_Bhw = (s_Bhw / (s_Bhw.square().sum(dim=(1, 2), keepdim=True) + self.eps**2).sqrt() + self.eps).sqrt()
        q_BC = (excited > 0).float().mean(dim=(2, 3))
        b_BC = torch.log((q_BC.shape[1] * self.eps + q_BC.sum(dim=1, keepdim=True)) / (self.eps + q_BC))
        return b_BC * (a_Bhw[:, None] * features).sum(dim=(2, 3))
