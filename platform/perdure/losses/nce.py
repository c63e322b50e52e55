"""InfoNCE with one positive and a few hard negatives.

Parshotam and Kilickaya, "Continual learning of object instances", CVPR workshops 2020, section 3 (normalised cross-entropy); as a
baseline NCE_EWC in Chen, "Continual and cross-modal retrieval" (PhD thesis, Leiden 2021), section 6.4. B rows, D embedding, n negatives.
"""

import torch
from torch import Tensor

from perdure.losses.unit import full_precision, inner_products

__all__ = ["info_nce"]


def info_nce(embeddings: Tensor, labels: Tensor, *, negatives: int = 9, temperature: float = 1.0) -> Tensor:
    """Tell an anchor's positive from its hard negatives, by a softmax over their inner products.

        L = mean over anchors a of  -log( exp(S_ap / tau) / (exp(S_ap / tau) + sum_{j=1}^n exp(S_aj / tau)) ),        S_ij = <z_i, z_j>

    p: the least similar other row of the anchor's class; j: the n most similar rows of other classes.

    Args:
        embeddings: (B, D) z, usually rows of unit length.
        labels: (B,) int64 class ids.
        negatives: n, at least 1; where the batch has fewer rows of other classes, those.
        temperature: tau > 0, in units of an inner product.
    Returns:
        () mean; anchors without a positive or without a negative are left out; 0, still differentiable, when none is left.
    Raises:
        ValueError: embeddings and labels differ in length, n below 1, or tau not above 0.
    Deviations: the paper draws its pairs at random; the hardest positive and the hardest negatives are the thesis's choice (n = 9).
        Gradients flow through anchor, positive and negatives alike.
    """
    if embeddings.ndim != 2 or labels.shape != embeddings.shape[:1]:
        raise ValueError(f"info_nce: got embeddings {tuple(embeddings.shape)} and labels {tuple(labels.shape)}; it needs (B, D) and (B,).")
    if negatives < 1 or temperature <= 0:
        raise ValueError(f"info_nce: negatives={negatives}, temperature={temperature}; it needs at least 1, and above 0.")
    similarity_BB = inner_products(embeddings, embeddings)
    same_BB = labels[:, None] == labels
    positive_BB = same_BB & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    usable_B = positive_BB.any(dim=1) & ~same_BB.all(dim=1)
    if not bool(usable_B.any()):
        return full_precision(embeddings).sum() * 0.0
    positive_B = similarity_BB.masked_fill(~positive_BB, torch.inf).amin(dim=1)[usable_B]
    negative_Bn = similarity_BB.masked_fill(same_BB, -torch.inf)[usable_B].topk(min(negatives, len(labels)), dim=1).values
    candidates_B1n = torch.cat([positive_B[:, None], negative_Bn], dim=1) / temperature
    return (candidates_B1n.logsumexp(dim=1) - candidates_B1n[:, 0]).mean()
