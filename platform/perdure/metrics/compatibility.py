"""Whether a newer encoder may query what an older one made: functions of the compatibility matrix.

C[i, j], i >= j, is a metric with queries by encoder i and a gallery by encoder j, over the test items of the tasks that j has learned;
None, or NaN, for i < j and where nothing was measured. After Biondi, Pernici, Bruni, Mugnai and Del Bimbo, "CL2R: Compatible lifelong
learning representations" (2022), from the formulas as their readers give them; ours: the items, and that a tie is compatible, as in
their program. T encoders.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["COMPATIBILITY_DEFINITIONS", "average_compatibility", "backward_compatibility", "compatible"]

Matrix = Sequence[Sequence[float | None]]

COMPATIBILITY_DEFINITIONS = {
    "compatibility": "C[i][j], j <= i: Recall@1 (leave-one-out, by class label) with queries by the encoder after task i and a gallery by "
    "the encoder after task j, over the test items of tasks 0..j; null for j > i. The diagonal is an encoder with its own gallery.",
    "compatibility.AC": "Average compatibility, 2/(T(T-1)) times the number of pairs j < i with C[i][j] >= C[j][j]: the share of upgrades "
    "after which the old gallery, left as it is, answers at least as well as before (CL2R); a tie counts.",
    "compatibility.BC": "Backward compatibility, the mean over j < T-1 of C[T-1][j] - C[j][j].",
    "compatibility.keep": "For each pair j < i whether policy keep may let encoder i query what encoder j made: C[i][j] >= C[j][j].",
}
"""What each number means, to be stored beside it."""


def compatible(matrix: Matrix) -> list[list[bool | None]]:
    """Of each pair j < i whether C[i, j] >= C[j, j]; None elsewhere and where one of them was not measured."""
    c = _array(matrix)
    known = np.isfinite(c) & np.isfinite(np.diag(c)) & np.tri(len(c), k=-1, dtype=np.bool_)
    return [[bool(c[i, j] >= c[j, j]) if known[i, j] else None for j in range(len(c))] for i in range(len(c))]


def average_compatibility(matrix: Matrix) -> float | None:
    """AC = 2/(T(T-1)) sum_{i>j} 1[ C_ij >= C_jj ]; None for one encoder, and where a pair was not measured."""
    pairs = [each for i, row in enumerate(compatible(matrix)) for each in row[:i]]
    return None if not pairs or None in pairs else float(np.mean([bool(each) for each in pairs]))


def backward_compatibility(matrix: Matrix) -> float | None:
    """BC = 1/(T-1) sum_{j<T-1} ( C_{T-1,j} - C_jj ); None for one encoder, and where one of them was not measured."""
    c = _array(matrix)
    terms = (c[-1] - np.diag(c))[:-1]
    return float(terms.mean()) if len(terms) and np.isfinite(terms).all() else None


def _array(matrix: Matrix) -> NDArray[np.float64]:
    """NaN for None.

    Raises:
        ValueError: not as many rows as columns, or none.
    """
    array = np.array([[np.nan if value is None else value for value in row] for row in matrix], dtype=np.float64)
    if array.ndim != 2 or array.shape[0] != array.shape[1] or not len(array):
        raise ValueError(f"compatibility: a matrix of shape {array.shape}; expected (T, T)")
    return array
