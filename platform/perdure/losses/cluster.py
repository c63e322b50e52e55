"""Keep the members of each cluster nearer to their mean than any stranger.

Chen, "Continual and cross-modal retrieval" (PhD thesis, Leiden 2021), ch. 7, Eq. (7.5). B rows, D embedding, K classes.
"""

import torch
from torch import Tensor

from perdure.losses.unit import full_precision

__all__ = ["cluster_margin"]


def cluster_margin(embeddings: Tensor, labels: Tensor, *, margin: float = 1.0) -> Tensor:
    """By how much the farthest member of each class is not nearer to the class's mean than the nearest row of another class (7.5).

        L = sum_k  max(0, Delta + max_p ||z_kp - M_k|| - min_{y_j != k} ||z_j - M_k||),        M_k = (1/P) sum_p z_kp

    The weight of (7.5), 0.1 in the thesis, is the caller's.

    Args:
        embeddings: (B, D) z.
        labels: (B,) int64 class ids; classes may differ in size, and one row is its own mean.
        margin: Delta, in units of a distance between embeddings, 0 or more.
    Returns:
        () the sum over the classes; 0, still differentiable, when there are fewer than two.
    Raises:
        ValueError: embeddings and labels differ in length, or a negative margin.
    """
    if embeddings.ndim != 2 or labels.shape != embeddings.shape[:1]:
        raise ValueError(
            f"cluster_margin: got embeddings {tuple(embeddings.shape)} and labels {tuple(labels.shape)}; it needs (B, D) and (B,)."
        )
    if margin < 0:
        raise ValueError(f"cluster_margin: margin={margin}; it must be 0 or more.")
    embeddings = full_precision(embeddings)
    own_KB = labels.unique()[:, None] == labels
    if len(own_KB) < 2:
        return embeddings.sum() * 0.0
    with torch.autocast(embeddings.device.type, enabled=False):
        means_KD = own_KB.to(embeddings.dtype) @ embeddings / own_KB.sum(dim=1, keepdim=True)
        # By differences; the gradient is 0 where the distance is 0, at a row that is its own mean.
        distance_KB = torch.cdist(means_KD, embeddings, compute_mode="donot_use_mm_for_euclid_dist")
    farthest_K = distance_KB.masked_fill(~own_KB, -torch.inf).amax(dim=1)
    nearest_K = distance_KB.masked_fill(own_KB, torch.inf).amin(dim=1)
    return (margin + farthest_K - nearest_K).clamp_min(0).sum()
