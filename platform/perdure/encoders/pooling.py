"""From a map of local features to one vector of an image: what every pooling is, and those that look at each channel alone.

CroW and R-MAC, which look at all channels, have files of their own; the catalog is in `parts`. Letters: B images, C channels,
h x w the map, f_c(x, y) its value.
"""

import math
from abc import ABC, abstractmethod
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

__all__ = ["MAC", "AveragePooling", "GeM", "Pooling", "SPoC"]


class Pooling(nn.Module, ABC):
    """A map of any size and float type -> a vector in float32, also under autocast; what it does is in `pool`."""

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, 1, 1) float32.

        Raises:
            ValueError: not a batch of maps.
        """
        if features.ndim != 4 or 0 in features.shape[2:]:
            raise ValueError(f"pooling: expected maps (B, C, h, w) with h, w >= 1; got {tuple(features.shape)}.")
        with torch.autocast(features.device.type, enabled=False):
            return self.pool(features.float())[:, :, None, None]

    @abstractmethod
    def pool(self, features: Tensor) -> Tensor:
        """(B, C, h, w) float32 -> (B, C)."""


class AveragePooling(Pooling):
    """Mean over the map: f_c = 1/(h w) sum_xy f_c(x, y)."""

    def pool(self, features: Tensor) -> Tensor:
        """See `Pooling.pool`."""
        return features.mean(dim=(2, 3))


class MAC(Pooling):
    """Maximum over the map: f_c = max_xy f_c(x, y), the "maximum activations of convolutions".

    Tolias, Sicre, Jegou, "Particular object retrieval with integral max-pooling of CNN activations", ICLR 2016, section 3.
    """

    def pool(self, features: Tensor) -> Tensor:
        """See `Pooling.pool`."""
        return features.amax(dim=(2, 3))


class SPoC(Pooling):
    """Sum over the map, in which the middle counts most.

    Babenko, Lempitsky, "Aggregating Deep Convolutional Features for Image Retrieval", ICCV 2015, section 4 (sum pooling, centering prior):

        f_c = sum_xy a(x, y) f_c(x, y)          a(x, y) = exp( -( (x - x0)^2 + (y - y0)^2 ) / (2 sigma^2) )

    with (x0, y0) the middle of the map and sigma a third of the way from it to the nearest edge: sigma = min(h, w) / 6.

    Deviations: the middle of positions 0 .. w-1 is (w - 1) / 2, where the paper has w / 2, so that a mirrored picture has the same vector.
    The paper's l2 norm, PCA and whitening are the encoder's business: `encoders.whitening`.

    Args:
        prior: without it a(x, y) = 1, a plain sum.
    """

    def __init__(self, *, prior: bool = True) -> None:
        super().__init__()
        self.prior = prior

    def pool(self, features: Tensor) -> Tensor:
        """See `Pooling.pool`."""
        if not self.prior:
            return features.sum(dim=(2, 3))
        height, width = features.shape[2:]
        sigma = min(height, width) / 6
        y_h = torch.arange(height, device=features.device) - (height - 1) / 2
        x_w = torch.arange(width, device=features.device) - (width - 1) / 2
        a_hw = torch.exp(-(y_h[:, None].square() + x_w.square()) / (2 * sigma**2))
        return (a_hw * features).sum(dim=(2, 3))


class GeM(Pooling):
    """Generalised mean over the map with a learned exponent.

    Radenovic, Tolias, Chum, "Fine-tuning CNN Image Retrieval with No Human Annotation", TPAMI 2018, Eq. (3), one p for all channels:

        f_c = ( 1/(h w) sum_xy  max(f_c(x, y), eps)^p )^(1/p)          p = 1: average; p -> infinity: maximum

    Deviations: computed as exp of a log-mean-exp of p log f, in float32 also under autocast: f^p of a weak activation underflows and
    its root then has an infinite slope, which this form has not, for any p.

    Args:
        p: exponent to start from.
        eps: activations below it count as it.
    """

    def __init__(self, *, p: Annotated[float, Field(ge=1)] = 3.0, eps: Annotated[float, Field(gt=0)] = 1e-6) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor([p]))
        self.eps = eps

    def pool(self, features: Tensor) -> Tensor:
        """See `Pooling.pool`."""
        p = self.p.float().clamp(min=1.0)
        log_x = features.clamp(min=self.eps).log()
        log_mean = (p * log_x).logsumexp(dim=(2, 3)) - math.log(features.shape[2] * features.shape[3])
        return (log_mean / p).exp()
