"""From a map of local features to one vector of an image.

Letters: B images, C channels, h x w the map.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn

__all__ = ["AveragePooling", "GeM", "make_pooling"]


class AveragePooling(nn.Module):
    """Mean over the map, in float32: (B, C, h, w) -> (B, C, 1, 1)."""

    def forward(self, features: Tensor) -> Tensor:
        """Pool a map."""
        return features.float().mean(dim=(2, 3), keepdim=True)


class GeM(nn.Module):
    """Generalised mean over the map with a learned exponent.

    Radenovic, Tolias, Chum, "Fine-tuning CNN Image Retrieval with No Human Annotation", TPAMI 2018, Eq. (3), one p for all channels:

        f_c = ( 1/(h w) sum_x  max(x, eps)^p )^(1/p)          p = 1: average; p -> infinity: maximum

    Deviations: computed as exp of a log-mean-exp of p log x, in float32 also under autocast: x^p of a weak activation underflows and
    its root then has an infinite slope, which this form has not, for any p.

    Args:
        p: exponent to start from.
        eps: activations below it count as it.
    """

    def __init__(self, p: float = 3.0, eps: float = 1e-6) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor([p]))
        self.eps = eps

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, 1, 1) float32."""
        with torch.autocast(features.device.type, enabled=False):
            p = self.p.float().clamp(min=1.0)
            log_x = features.float().clamp(min=self.eps).log()
            log_mean = (p * log_x).logsumexp(dim=(2, 3), keepdim=True) - math.log(features.shape[2] * features.shape[3])
            return (log_mean / p).exp()


def make_pooling(name: Literal["avg", "gem"]) -> nn.Module:
    """The pooling module that the options call by this name."""
    return GeM() if name == "gem" else AveragePooling()
