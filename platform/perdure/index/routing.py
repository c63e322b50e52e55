"""Which task a query belongs to, asked of the query as every live encoder sees it.

A view is one encoder's opinion on pictures, or on texts: the two lie apart even where they mean the same, so each has views of its own. It
is a multinomial logistic regression over the classes c whose items it has seen, summed over the classes of a task. Every task weighs the
same in its fit, however many items it has: what is asked for need not come in the proportions of what is stored. Between two tasks s and t
it says

    r_st = P(s) / (P(s) + P(t)),        P(s) = sum over classes c of s of  softmax(W q + b)_c

An encoder has never seen the items of tasks before its own (their pictures are not at hand), so no view knows all tasks. But for every
pair there is one that knows both: that of the encoder which made the older one's vectors, because the newer one's pictures were at hand
when they came. The pairs are coupled to one distribution over the T tasks by

    1 / p_s  =  sum over t != s of 1 / r_st  -  (T - 2)          (Price, Knerr, Personnaz and Dreyfus, NIPS 1995)

which gives p back exactly where all r_st = p_s / (p_s + p_t), and is r itself for two tasks; then brought to sum 1.

Ours: all of the rest, so the pair's view when there are several (the one that saw most items of the rarer task), and 1/2 for a pair that
no view knows. Q queries, D embedding, C classes, T tasks.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from perdure.records import EncoderRef, QueryModality

__all__ = ["TaskRouter", "View", "coupled"]

_MOST_CLASSES = 256  # of a view; with more, its tasks are told apart as wholes
_FEWEST_ITEMS = 8  # a class, on average; with fewer, likewise
_MOST_ITERATIONS = 100
_PENALTIES = (1.0, 10.0, 100.0)  # 1 / C of scikit-learn's, on rows of the length sqrt(D)
_SMALLEST = 1e-6  # of a probability between two tasks, so that no view alone can rule a task out


@dataclass(frozen=True, eq=False)
class View:
    """One encoder's linear opinion on the classes of some tasks, for queries of one modality."""

    encoder: EncoderRef
    weight: NDArray[np.float32]  # (C, D)
    bias: NDArray[np.float32]  # (C,)
    task: NDArray[np.int64]  # (C,) that each class belongs to
    count: NDArray[np.int64]  # (C,) items of each class that it was fitted on
    modality: QueryModality = "image"

    @classmethod
    def fit(
        cls,
        encoder: EncoderRef,
        vectors: NDArray[np.float32],
        labels: Sequence[str],
        tasks: NDArray[np.int64],
        modality: QueryModality = "image",
    ) -> Self | None:
        """The view of an encoder from (n, D) unit rows that it made; None where they are all of one task.

        Its penalty on |W|^2 is the one, of a few, under which every fourth item's task is told best by a fit to the others. An item of
        task t weighs n / (T n_t) there and here, so that a task of few items is told from one of many by what they look like.

        Args:
            encoder: that made the vectors.
            vectors: n items.
            labels: n.
            tasks: (n,) that brought each.
            modality: of the items.
        """
        if len(np.unique(tasks)) < 2:
            return None
        names = np.array([f"{task}/{label}" for task, label in zip(tasks.tolist(), labels, strict=True)])
        if len(np.unique(names)) > min(_MOST_CLASSES, len(vectors) / _FEWEST_ITEMS):
            names = tasks.astype(str)
        classes, first, index, count = np.unique(names, return_index=True, return_inverse=True, return_counts=True)
        of_class, tried = tasks[first].astype(np.int64), np.arange(len(vectors)) % 4 == 3
        _, of_task, num_items = np.unique(tasks, return_inverse=True, return_counts=True)
        weights = (len(tasks) / (len(num_items) * num_items))[of_task]
        penalty, surest = _PENALTIES[0], -np.inf
        for each in _PENALTIES if len(np.unique(index[~tried])) == len(classes) else ():
            view = cls(encoder, *_logistic(vectors[~tried], index[~tried], weights[~tried], each), of_class, count)
            shares = _task_shares(view, vectors[tried])
            likely = float(np.dot(weights[tried], [np.log(shares[task][row]) for row, task in enumerate(tasks[tried].tolist())]))
            penalty, surest = (each, likely) if likely > surest else (penalty, surest)
        return cls(encoder, *_logistic(vectors, index, weights, penalty), of_class, count.astype(np.int64), modality)

    def log_odds(self, queries: NDArray[np.float32], s: int, t: int) -> NDArray[np.float64]:
        """(Q,) log of P(s) / P(t)."""
        logits = queries.astype(np.float64) @ self.weight.T + self.bias
        return _log_sum(logits[:, self.task == s]) - _log_sum(logits[:, self.task == t])

    def seen(self, s: int, t: int) -> int:
        """How many items it was fitted on of the rarer of two tasks."""
        return min(int(self.count[self.task == task].sum()) for task in (s, t))


@dataclass(frozen=True, eq=False)
class TaskRouter:
    """Views, coupled."""

    views: tuple[View, ...]

    def shares(
        self, queries: Mapping[EncoderRef, NDArray[np.float32]], tasks: Sequence[int], modality: QueryModality = "image"
    ) -> NDArray[np.float64]:
        """(Q, T) the probability that each query belongs to each of some tasks.

        Args:
            queries: (Q, D) of each live encoder, one at least; views of other encoders are left aside.
            tasks: T, without repeats.
            modality: of the queries; views of the other one are left aside.
        """
        mine = [view for view in self.views if view.modality == modality]
        num_queries = len(next(iter(queries.values())))
        between = np.full((num_queries, len(tasks), len(tasks)), 0.5)
        for i, s in enumerate(tasks):
            for j, t in enumerate(tasks[:i]):
                known = [view for view in mine if view.encoder in queries and view.seen(s, t) > 0]
                if known:
                    view = max(known, key=lambda each: each.seen(s, t))
                    odds = np.clip(view.log_odds(queries[view.encoder], s, t), -500, 500)
                    between[:, i, j] = np.clip(1.0 / (1.0 + np.exp(-odds)), _SMALLEST, 1.0 - _SMALLEST)
                    between[:, j, i] = 1.0 - between[:, i, j]
        return coupled(between)

    def carrying(self, older: "TaskRouter", alive: Sequence[EncoderRef]) -> "TaskRouter":
        """These views, and of an older router those of live encoders that saw more of some pair of tasks than any of these did."""
        kept = [
            view
            for view in older.views
            if view.encoder in alive
            and any(view.seen(s, t) > max((own.seen(s, t) for own in self._alike(view)), default=0) for s, t in _pairs(view))
        ]
        return TaskRouter((*self.views, *kept))

    def _alike(self, view: View) -> list[View]:
        return [own for own in self.views if own.modality == view.modality]


def coupled(between: NDArray[np.float64]) -> NDArray[np.float64]:
    """(Q, T, T) r with r_st + r_ts = 1 -> (Q, T) p; the diagonal is not looked at."""
    count = between.shape[1]
    inverse = 1.0 / np.where(np.eye(count, dtype=np.bool_), 1.0, between)
    p = 1.0 / np.maximum(inverse.sum(axis=2) - 1.0 - (count - 2), 1.0)
    return p / p.sum(axis=1, keepdims=True)


def _logistic(
    vectors: NDArray[np.float32], index: NDArray[np.int64], weights: NDArray[np.float64], penalty: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(C, D) W and (C,) b of a multinomial logistic regression of weighted items; it need not have come to rest."""
    from sklearn.exceptions import ConvergenceWarning  # a second to import, which a server need not pay
    from sklearn.linear_model import LogisticRegression

    scale = float(np.sqrt(vectors.shape[1]))
    fitted: Any = LogisticRegression(C=1.0 / penalty, max_iter=_MOST_ITERATIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted.fit(scale * vectors.astype(np.float64), index, sample_weight=weights)
    weight, bias = scale * fitted.coef_, fitted.intercept_
    if len(weight) == 1:  # two classes: one row, of the second against the first
        weight, bias = np.vstack([np.zeros_like(weight), weight]), np.array([0.0, bias[0]])
    return weight.astype(np.float32), bias.astype(np.float32)


def _task_shares(view: View, queries: NDArray[np.float32]) -> dict[int, NDArray[np.float64]]:
    """(Q,) the probability of each task of a view, by its number."""
    logits = queries.astype(np.float64) @ view.weight.T + view.bias
    every = _log_sum(logits)
    return {task: np.maximum(np.exp(_log_sum(logits[:, view.task == task]) - every), 1e-12) for task in np.unique(view.task).tolist()}


def _pairs(view: View) -> set[tuple[int, int]]:
    tasks = np.unique(view.task).tolist()
    return {(s, t) for s in tasks for t in tasks if s < t}


def _log_sum(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """(Q, c) -> (Q,) log of the sum of exponentials."""
    highest = logits.max(axis=1)
    return highest + np.log(np.exp(logits - highest[:, None]).sum(axis=1))
