"""Quadruplet loss: triplets, and pairs of one class against pairs of two other classes.

Chen, Chen, Zhang and Huang, "Beyond triplet loss: a deep quadruplet network for person re-identification", CVPR 2017.
B rows, D embedding, M pairs of one class, N pairs of two classes.
"""

import torch
from torch import Tensor

from perdure.losses.triplet import batch_triplet, mean_of_violations
from perdure.losses.unit import full_precision, inner_products

__all__ = ["batch_quadruplet"]


def batch_quadruplet(embeddings: Tensor, labels: Tensor, *, margin: float = 0.5, other_margin: float = 0.25) -> Tensor:
    """Keep a pair of one class nearer than the anchor's pairs with other classes, and nearer than pairs that it is no part of.

        L = mean over (a, p, n) of    max(0, margin + S_an - S_ap)
          + mean over (a, p, k, l) of max(0, other_margin + S_kl - S_ap),        S_ij = <z_i, z_j>

    a, p: rows of one class; n: a row of another; k, l: rows of two classes, neither of them that of a. The second mean makes distances
    of different anchors comparable, which the first does not.

    Args:
        embeddings: (B, D) z, rows of unit length.
        labels: (B,) int64 class ids.
        margin: in units of an inner product, 0 or more.
        other_margin: of the second mean; the paper wants it smaller than the first.
    Returns:
        () the sum of two means, each over the terms above 0; 0, still differentiable, when there is none.
    Raises:
        ValueError: embeddings and labels differ in length, a negative margin.
    Deviations: inner products of unit rows where the paper learns a similarity; margins are constants, not estimated per batch; means
        where it sums.
    """
    if other_margin < 0:
        raise ValueError(f"batch_quadruplet: other_margin={other_margin}; it must be 0 or more.")
    triplets = batch_triplet(embeddings, labels, margin=margin, mining="all")
    first, second = torch.triu_indices(len(labels), len(labels), offset=1, device=labels.device)
    similarity = inner_products(embeddings, embeddings)[first, second]
    alike = labels[first] == labels[second]
    owner_M, one_N, other_N = labels[first[alike]], labels[first[~alike]], labels[second[~alike]]
    if not len(owner_M) or not len(one_N):
        return triplets + full_precision(embeddings).sum() * 0.0
    apart_MN = (owner_M[:, None] != one_N) & (owner_M[:, None] != other_N)
    return triplets + mean_of_violations(other_margin + similarity[~alike] - similarity[alike][:, None], apart_MN)
