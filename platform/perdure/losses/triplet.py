"""Triplet loss between the classes of a batch.

Chen, "Continual and cross-modal retrieval" (PhD thesis, Leiden 2021), ch. 5, Eq. (5.2). B rows, D embedding, M pairs (anchor, positive).
"""

from typing import Literal

import torch
from torch import Tensor

from perdure.losses.unit import full_precision, inner_products

__all__ = ["Mining", "batch_triplet", "mean_of_violations"]

Mining = Literal["hard", "semi_hard", "all"]


def batch_triplet(embeddings: Tensor, labels: Tensor, *, margin: float = 0.5, mining: Mining = "hard") -> Tensor:
    """Keep each row nearer to its own class than to any other class, by a margin (5.2).

        L = mean over triplets (a, p, n) of  max(0, margin + S_an - S_ap),        S_ij = <z_i, z_j>

    a, p: different rows of one class; n: a row of another class. Which triplets are averaged is the choice of `mining`:

    - "hard": one per anchor, its least similar positive and its most similar negative. The strongest teacher, but from random
      weights and with nothing beside it the shortest way down is to pull everything into one point, where it stays at the margin.
    - "semi_hard": one per pair (a, p), the most similar n with S_an < S_ap; where there is none, the least similar n.
    - "all": every triplet whose term is above 0. The mean is over these only, so the pull does not fade as fewer are left; starts
      reliably from random weights.

    Args:
        embeddings: (B, D) z, rows of unit length.
        labels: (B,) int64 class ids.
        margin: in units of an inner product, 0 or more.
        mining: see above.
    Returns:
        () mean; anchors without a positive or without a negative are left out; 0, still differentiable, when none is left.
    Raises:
        ValueError: embeddings and labels differ in length, a negative margin, an unknown mining.
    Deviations: the thesis mines hard only, and it does not say what becomes of an anchor without a positive.
    """
    if embeddings.ndim != 2 or labels.shape != embeddings.shape[:1]:
        raise ValueError(
            f"batch_triplet: got embeddings {tuple(embeddings.shape)} and labels {tuple(labels.shape)}; it needs (B, D) and (B,)."
        )
    if margin < 0:
        raise ValueError(f"batch_triplet: margin={margin}; it must be 0 or more.")
    similarity_BB = inner_products(embeddings, embeddings)
    same_BB = labels[:, None] == labels
    positive_BB = same_BB & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    usable_B = positive_BB.any(dim=1) & ~same_BB.all(dim=1)
    if not bool(usable_B.any()):
        return full_precision(embeddings).sum() * 0.0
    if mining == "hard":
        nearest_negative_B = similarity_BB.masked_fill(same_BB, -torch.inf).amax(dim=1)[usable_B]
        farthest_positive_B = similarity_BB.masked_fill(~positive_BB, torch.inf).amin(dim=1)[usable_B]
        return (margin + nearest_negative_B - farthest_positive_B).clamp_min(0).mean()
    anchor_M, positive_M = torch.nonzero(positive_BB & usable_B[:, None], as_tuple=True)
    to_positive_M = similarity_BB[anchor_M, positive_M]
    to_all_MB = similarity_BB[anchor_M]
    negative_MB = ~same_BB[anchor_M]
    if mining == "semi_hard":
        below_MB = negative_MB & (to_all_MB < to_positive_M[:, None])
        nearest_below_M = to_all_MB.masked_fill(~below_MB, -torch.inf).amax(dim=1)
        farthest_M = to_all_MB.masked_fill(~negative_MB, torch.inf).amin(dim=1)
        to_negative_M = torch.where(below_MB.any(dim=1), nearest_below_M, farthest_M)
        return (margin + to_negative_M - to_positive_M).clamp_min(0).mean()
    if mining == "all":
        return mean_of_violations(margin + to_all_MB - to_positive_M[:, None], negative_MB)
    raise ValueError(f"batch_triplet: mining='{mining}'; known: hard, semi_hard, all.")


def mean_of_violations(terms: Tensor, valid: Tensor) -> Tensor:
    """The mean of the terms that are valid and above 0; 0, still differentiable, when there is none.

    Args:
        terms: any shape.
        valid: bool, of the same shape.
    Returns:
        ().
    """
    violated = terms.masked_fill(~valid, 0.0).clamp_min(0)
    return violated.sum() / (violated > 0).sum().clamp(min=1)
