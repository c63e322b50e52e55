"""How far two encoder versions put the same items apart: mean displacement, linear CKA, and which neighbours they agree on.

Wang, Herranz and van de Weijer, "Continual learning in cross-modal retrieval", CVPR workshops 2021, name the drift of embeddings, and
drift that is not the same in both modalities, as what makes a cross-modal space forget. How they measure it could not be verified; the
figures here are ours. Letters: n items, D embedding of one version, E of the other.
"""

import numpy as np
from numpy.typing import NDArray

__all__ = ["AGREEMENT_DEFINITION", "DRIFT_DEFINITIONS", "linear_cka", "mean_displacement", "neighbour_agreement"]

_BLOCK = 1024  # items whose neighbours are looked for at a time

DRIFT_DEFINITIONS = {
    "cross_modal.displacement": "Mean over a task's test items of the Euclidean distance, 0 to 2, between the unit embeddings that two "
    "versions of the encoder give the same item: the one that learned the task and the one after task t. Of pictures and of captions "
    "apart. It is what a gallery that is not embedded again is off by; a rotation of the whole space counts in full.",
    "cross_modal.cka": "Linear centred kernel alignment (Kornblith et al. 2019) of the same two sets of unit embeddings, with the "
    "unbiased estimator of HSIC (Song et al. 2012), so that few items in many dimensions do not look alike by chance: 1 where they are "
    "equal up to rotation and scale, near 0 (also below) where unrelated. What displacement counts and cka does not is a move of the "
    "whole space. Null for fewer than four items, and where a version gives all items the same embedding.",
}
"""What each number means, word for word, to be stored beside it."""

AGREEMENT_DEFINITION = (
    "agreement[t] = the mean over task t's own test items, of pictures and captions apart and then of both, of the share of an item's k "
    "nearest others among them (by cosine) that the encoder before task t and the one after it have in common; k = 10, or a quarter of "
    "the others where they are fewer than 40. 1 = the neighbourhoods are the same; a turn of the whole space changes nothing. Null for the "
    "first task."
)


def neighbour_agreement(before: NDArray[np.float32], after: NDArray[np.float32]) -> float:
    """The share of neighbours that two versions agree on.

        1/n sum_i |N_k(x_i) intersected with N_k(y_i)| / k        N_k: the k other items with the greatest cosine;  k = min(10, (n-1) // 4)

    Args:
        before: (n, D) x, unit rows by one version.
        after: (n, E) y, by the other; row i of the same item.
    Returns:
        0 to 1, about k / (n-1) for unrelated versions; NaN for n < 5.
    Raises:
        ValueError: different numbers of rows.
    """
    if before.ndim != 2 or after.ndim != 2 or len(before) != len(after):
        raise ValueError(f"neighbour_agreement: got {before.shape} and {after.shape}; it needs (n, D) and (n, E) of the same n items.")
    k = min(10, (len(before) - 1) // 4)
    if k < 1:
        return float("nan")
    common = 0
    for start in range(0, len(before), _BLOCK):
        theirs, ours = (_neighbours(rows, start, k) for rows in (before, after))
        common += int((theirs[:, :, None] == ours[:, None, :]).sum())
    return common / (k * len(before))


def mean_displacement(before: NDArray[np.float32], after: NDArray[np.float32]) -> float:
    """The mean distance that items moved.

        1/n sum_i || x_i - y_i ||

    Args:
        before: (n, D) x, unit rows by one version, n >= 1.
        after: (n, D) y, by the other.
    Raises:
        ValueError: shapes differ, or there is no item.
    """
    if before.shape != after.shape or not len(before):
        raise ValueError(f"mean_displacement: got {before.shape} before and {after.shape} after; it needs (n, D) of the same n >= 1 items.")
    return float(np.linalg.norm(after.astype(np.float64) - before, axis=1).mean())


def linear_cka(before: NDArray[np.float32], after: NDArray[np.float32]) -> float:
    """Centred kernel alignment with linear kernels and the unbiased estimator of HSIC.

    Kornblith et al., "Similarity of neural network representations revisited", ICML 2019, Eq. (2):

        CKA = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)),        K = X X^T,  L = Y Y^T

    Song et al., "Feature selection via dependence maximization", JMLR 2012, Eq. (5), with the diagonals of K and L set to 0:

        HSIC = [ tr(K L) + 1^T K 1  1^T L 1 / ((n-1)(n-2)) - 2/(n-2) 1^T K L 1 ] / (n (n-3))

    Every part of it is computed from X and Y, so no n x n matrix is made.

    Args:
        before: (n, D) X.
        after: (n, E) Y, row i of the same item.
    Returns:
        at most about 1; NaN for n < 4, and where HSIC of one side with itself is not above 0, as when all its rows are equal.
    Raises:
        ValueError: different numbers of rows.
    Deviations: the paper's own estimator is the biased one, tr(K H L H) / (n-1)^2, which goes to 1 as D outgrows n.
    """
    if before.ndim != 2 or after.ndim != 2 or len(before) != len(after):
        raise ValueError(f"linear_cka: got {before.shape} and {after.shape}; it needs (n, D) and (n, E) of the same n items.")
    if len(before) < 4:
        return float("nan")
    x, y = (rows.astype(np.float64) - rows.mean(axis=0, dtype=np.float64) for rows in (before, after))  # changes nothing but rounding
    itself = _hsic(x, x) * _hsic(y, y)
    spread = float(np.square(x).sum() * np.square(y).sum())
    return float(_hsic(x, y) / np.sqrt(itself)) if _hsic(x, x) > 0 and _hsic(y, y) > 0 and spread > _NO_SPREAD else float("nan")


def _neighbours(rows: NDArray[np.float32], start: int, k: int) -> NDArray[np.int64]:
    """(b, k) the nearest others of a block of rows."""
    similarity = rows[start : start + _BLOCK] @ rows.T
    own = np.arange(len(similarity))
    similarity[own, start + own] = -np.inf
    return np.argpartition(similarity, -k, axis=1)[:, -k:]


_NO_SPREAD = 1e-16  # of two sums of squared distances from the mean: below it there is rounding and nothing else


def _hsic(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """The numerator's bracket; the factor 1 / (n (n-3)) cancels."""
    n = len(x)
    own_x, own_y = np.square(x).sum(axis=1), np.square(y).sum(axis=1)  # the diagonals
    rows_x, rows_y = x @ x.sum(axis=0) - own_x, y @ y.sum(axis=0) - own_y  # K 1 and L 1
    trace = np.square(x.T @ y).sum() - own_x @ own_y
    return float(trace + rows_x.sum() * rows_y.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (rows_x @ rows_y))
