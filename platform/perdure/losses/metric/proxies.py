"""Losses with parameters of their own for each class: proxies, centres, or a boundary. C classes, B rows, D embedding.

Each constructor takes the number of classes C and D, and makes a module (embeddings (B, D) of unit length, labels (B,) in 0..C-1,
indices) -> (). A miner does not choose pairs here: a row weighs as much as it is often chosen.

Proxies are drawn with unit length on average. Only their direction counts, and a step of the optimiser turns a short vector further
than a long one: at unit length the optimiser's rate suits encoder and proxies, where the papers raise it for the proxies.
"""

from typing import Any

from torch import nn

from perdure.losses.metric.library import library
from perdure.losses.ranges import Count, NonNegative, Positive

__all__ = ["margin", "proxy_anchor", "proxy_nca", "soft_triple"]


def proxy_nca(num_classes: int, embedding_dim: int, /, *, scale: Positive = 9.0) -> nn.Module:
    """Proxy-NCA: mean -log softmax_c(-scale |z - w_c|^2) of the row's class, w_c the unit proxies.

    Movshovitz-Attias et al., ICCV 2017; a scale of 9 is lengths of 3 for rows and proxies.

    Deviations: the row's own proxy is in the denominator too, as in Teh, DeVries and Taylor, "ProxyNCA++", ECCV 2020.
    """
    return library().losses.ProxyNCALoss(num_classes, embedding_dim, softmax_scale=scale, weight_init_func=_unit(embedding_dim))


def proxy_anchor(num_classes: int, embedding_dim: int, /, *, margin: NonNegative = 0.1, alpha: Positive = 32.0) -> nn.Module:
    """Proxy-Anchor: each proxy is an anchor that pulls its own rows and pushes all others, the hardest most.

        L = 1/|C+| sum_{c in C+} log(1 + sum_{i of c} exp(-alpha (S_ic - margin)))
          + 1/|C|  sum_c         log(1 + sum_{i not of c} exp(alpha (S_ic + margin)))

    Kim, Kim, Cho and Kwak, CVPR 2020, Eq. (4). S: cosine of row i and proxy c; C+: classes that the batch has.
    """
    return library().losses.ProxyAnchorLoss(num_classes, embedding_dim, margin=margin, alpha=alpha, weight_init_func=_unit(embedding_dim))


def soft_triple(
    num_classes: int,
    embedding_dim: int,
    /,
    *,
    centers: Count = 4,
    scale: Positive = 20.0,
    temperature: Positive = 0.1,
    margin: NonNegative = 0.01,
) -> nn.Module:
    """SoftTriple: a softmax over classes that have several centres each, with a margin for the row's own class.

        S_ic = sum_k softmax_k(z_i . w_ck / temperature) z_i . w_ck,        L = mean_i -log softmax_c(scale (S_ic - margin [c = y_i]))

    Qian et al., ICCV 2019.

    Deviations: the number of centres is not learned (no penalty on the distances between them); 4 where the paper starts from 10.
    """
    return library().losses.SoftTripleLoss(
        num_classes,
        embedding_dim,
        centers_per_class=centers,
        la=scale,
        gamma=temperature,
        margin=margin,
        weight_init_func=_unit(embedding_dim),
    )


def margin(
    num_classes: int,
    embedding_dim: int,
    /,
    *,
    margin: NonNegative = 0.2,
    boundary: Positive = 1.2,
    boundary_weight: NonNegative = 0.0,
    per_class: bool = True,
) -> nn.Module:
    """Margin: the mean over triplets of the hinges max(0, margin + d_ap - beta_a) and max(0, margin + beta_a - d_an), beta learned.

    Wu, Manmatha, Smola and Krähenbühl, ICCV 2017; the paper mines with `distance_weighted`.

    Args:
        num_classes: C.
        embedding_dim: of no effect.
        margin: alpha.
        boundary: beta at the start, in units of a Euclidean distance.
        boundary_weight: nu, the weight of beta in the loss; above 0 keeps it from growing.
        per_class: whether each class has its own beta.
    """
    return library().losses.MarginLoss(
        margin=margin, nu=boundary_weight, beta=boundary, learn_beta=True, num_classes=num_classes if per_class else None
    )


def _unit(dim: int) -> Any:
    """Vectors of length 1 on average: components from N(0, 1 / D)."""

    def fill(tensor: Any) -> None:
        nn.init.normal_(tensor, std=dim**-0.5)

    return fill
