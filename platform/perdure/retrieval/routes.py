"""Pictures that ask captions, and captions that ask pictures, when nobody says of which task: by what the releases of a run estimate.

Merge `routed` of `retrieval.merging`, for galleries that are no index. After task t a hit of score x in the list of task s counts

    P_t(s | query)^(1/3) (p_s(x) + 1e-9 x)

P_t is what the release after task t says, asked of the query's own modality; p_s how likely one of the first ten hits in the list of task
s is right if its score is x, where a picture and its own caption are right. Whatever is fitted has not seen the query: it is fitted once
for each fold, on the items of the others. T tasks, F folds, Q queries, N items, D embedding.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perdure.index.curve import ScoreCurve
from perdure.index.routing import TaskRouter
from perdure.metrics.lists import first_hits
from perdure.records import EncoderRef, QueryModality
from perdure.retrieval.merging import softened

__all__ = ["Routes"]

_DEPTH = 10  # first hits of a query that are its pairs


@dataclass(frozen=True, eq=False)
class Routes:
    """What releases in which every encoder is asked for what it made have learned of their queries."""

    encoders: Sequence[EncoderRef]  # T, by task
    routers: Sequence[Sequence[TaskRouter]]  # T x F, of the release after each task
    fold: Mapping[int, int]  # of a row of the dataset

    def curves(
        self, queries: NDArray[np.float32], rows: NDArray[np.int64], items: NDArray[np.float32], item_rows: NDArray[np.int64]
    ) -> list[ScoreCurve]:
        """F curves of a task's (N, D) list, from its own (Q, D) queries; rows of the dataset are equal where both belong together."""
        scores, places = first_hits(queries, items, _DEPTH)
        right, folds = item_rows[places] == rows[:, None], self._folds(rows)
        return [ScoreCurve.fit(scores[folds != fold].ravel(), right[folds != fold].ravel()) for fold in range(len(self.routers[0]))]

    def thresholds(
        self,
        queries: Sequence[NDArray[np.float32]],
        rows: NDArray[np.int64],
        modality: QueryModality,
        own: NDArray[np.int64],
        scores: NDArray[np.float64],
        curves: Sequence[Sequence[ScoreCurve]],
    ) -> NDArray[np.float64]:
        """(Q, t + 1) the lowest score in the list of each task, after task t, that counts as much as a given one in the query's own.

        Args:
            queries: t + 1 times (Q, D), as every version so far sees them.
            rows: (Q,) of the items that they are made of.
            modality: of the queries.
            own: (Q,) the task of each.
            scores: (Q,) in its list.
            curves: t + 1 times F.
        """
        out = np.empty((len(rows), len(queries)))
        folds = self._folds(rows)
        for fold, router in enumerate(self.routers[len(queries) - 1]):
            part = np.flatnonzero(folds == fold)
            seen = {self.encoders[version]: asked[part] for version, asked in enumerate(queries)}
            shares = softened(router.shares(seen, range(len(queries)), modality))
            counts = np.zeros(len(part))
            for task, of_task in enumerate(curves):
                here = own[part] == task
                counts[here] = shares[here, task] * of_task[fold].worth(scores[part][here])
            for task, of_task in enumerate(curves):
                out[part, task] = of_task[fold].reaching(counts / shares[:, task])
        return out

    def _folds(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.array([self.fold[row] for row in rows.tolist()], dtype=np.int64)
