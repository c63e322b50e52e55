"""What a score of one encoder's space is worth: the probability that a hit of that score is right, by isotonic regression.

Over held-out pairs (a query, one of its first hits) with score s_i and y_i = 1 where both are of one class,

    p = argmin over non-decreasing p of  sum_i ( y_i - p(s_i) )^2          (Zadrozny and Elkan, KDD 2002)

linear between the scores that were seen and constant beyond them. n knots.
"""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

__all__ = ["TIE", "ScoreCurve"]

TIE = 1e-9  # of a score, added to its p: below anything that is measured, it orders what the curve makes equal


@dataclass(frozen=True, eq=False)
class ScoreCurve:
    """p as a broken line through n points; neither coordinate falls."""

    scores: NDArray[np.float64]  # (n,)
    probabilities: NDArray[np.float64]  # (n,) in [0, 1]

    @classmethod
    def fit(cls, scores: NDArray[np.float32], right: NDArray[np.bool_]) -> Self:
        """The curve of (n,) pairs; without a pair, or with none right or none wrong, a cosine's own: 0 at -1 and 1 at 1."""
        if len(scores) == 0 or right.all() or not right.any():
            return cls(np.array([-1.0, 1.0]), np.array([0.0, 1.0]))
        from sklearn.isotonic import IsotonicRegression  # a second to import, which a server need not pay

        fitted: Any = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip")
        fitted.fit(scores.astype(np.float64), right.astype(np.float64))
        return cls(np.asarray(fitted.X_thresholds_, np.float64), np.asarray(fitted.y_thresholds_, np.float64))

    def __call__(self, scores: NDArray[np.float32] | NDArray[np.float64]) -> NDArray[np.float64]:
        """p of scores of any shape."""
        return np.interp(scores, self.scores, self.probabilities)

    def worth(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """p(s) + TIE s of scores of any shape: it rises wherever they do."""
        return self(scores) + TIE * scores

    def reaching(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """The lowest score that is worth as much, for values of any shape: beyond [-1, 1] where no cosine is, or every one."""
        reached = self.worth(self.scores)
        before, after = self.scores[0] + (values - reached[0]) / TIE, self.scores[-1] + (values - reached[-1]) / TIE
        inside = np.interp(values, reached, self.scores)
        return np.clip(np.where(values < reached[0], before, np.where(values > reached[-1], after, inside)), -2.0, 2.0)
