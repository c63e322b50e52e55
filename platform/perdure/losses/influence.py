"""The influence loss: a new encoder's embeddings have to make sense to the old encoder's classifier.

Shen, Xiong, Xia and Soatto, "Towards backward-compatible representation learning", CVPR 2020, L_BCT = L(w_new, f) + lambda L(w_old, f);
this is the second term. B rows, D embedding, C classes.
"""

import torch
from torch import Tensor
from torch.nn import functional

from perdure.losses.unit import full_precision, unit_rows

__all__ = ["influence_loss"]


def influence_loss(embeddings: Tensor, labels: Tensor, rows: Tensor, *, scale: float) -> Tensor:
    """Cross-entropy of the new encoder's embeddings through rows of the old one's space, which stay as they are.

        L = -(1/B) sum_i  log softmax_c( scale  z_i . w_c )[y_i]          z_i, w_c of unit length

    Args:
        embeddings: (B, D) z of the new encoder.
        labels: (B,) int64 y.
        rows: (C, D) w of the old encoder's space, of any length but 0; a row of zeros is a class that takes no part. No gradient.
        scale: of the cosine logits.
    Returns:
        () mean over the rows; 0, still differentiable, for B = 0.
    Raises:
        ValueError: a label has no row, or a row of zeros.
    """
    rows = full_precision(rows.detach())
    takes_part = rows.norm(dim=1) > 0
    if len(labels) == 0:
        return embeddings.sum() * 0.0
    if int(labels.max()) >= len(rows) or not bool(takes_part[labels].all()):
        raise ValueError(
            f"influence_loss: a label up to {int(labels.max())}, but {int(takes_part.sum())} of {len(rows)} classes have a row."
        )
    logits = scale * unit_rows(full_precision(embeddings)) @ functional.normalize(rows, dim=1).T
    return functional.cross_entropy(logits.masked_fill(~takes_part, -torch.inf), labels)
