"""Top-1 accuracy of a classifier of which only some classes take part, as a classifier that grows has them.

n items, C classes of the classifier, k classes that take part.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["top1"]


def top1(scores: NDArray[np.floating], labels: NDArray[np.integer], classes: Sequence[int] | NDArray[np.integer]) -> float | None:
    """The share of items whose own class scores higher than every other class that takes part.

        top1 = mean_i [ y_i in classes  and  s_i[y_i] > max_{c in classes, c != y_i} s_i[c] ]

    A class that scores the same as the right one is preferred to it (pessimistic ties), so scores that are all equal are worth nothing.
    An item of a class that does not take part can not be right.

    Args:
        scores: (n, C) s, larger is better: logits, or inner products with a prototype of each class.
        labels: (n,) y, class ids; those outside 0..C-1 take no part.
        classes: (k,) class ids that take part, each in 0..C-1.
    Returns:
        between 0 and 1; None when there are no items, or none of them is of a class that takes part: there is nothing to be right about.
    Raises:
        ValueError: shapes that do not fit, a class outside 0..C-1, a score that is not finite.
    """
    chosen_k = np.unique(np.asarray(classes, dtype=np.int64))
    if scores.ndim != 2 or labels.shape != scores.shape[:1]:
        raise ValueError(f"top1: got scores {scores.shape} and labels {labels.shape}; expected (n, C) and (n,)")
    if len(chosen_k) and not 0 <= chosen_k[0] <= chosen_k[-1] < scores.shape[1]:
        raise ValueError(f"top1: classes {chosen_k[0]}..{chosen_k[-1]} of a classifier with {scores.shape[1]} classes")
    own_nk = labels[:, None] == chosen_k
    takes_part_n = own_nk.any(axis=1)
    if not takes_part_n.any():
        return None
    scores_nk = scores[:, chosen_k]
    if not np.isfinite(scores_nk).all():
        raise ValueError(f"top1: {int((~np.isfinite(scores_nk)).any(axis=1).sum())} of {len(scores)} items have a score that is not finite")
    own_n = np.where(own_nk, scores_nk, -np.inf).max(axis=1)
    other_n = np.where(own_nk, -np.inf, scores_nk).max(axis=1, initial=-np.inf)
    return float((takes_part_n & (own_n > other_n)).mean())
