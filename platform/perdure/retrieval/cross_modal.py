"""Continual cross-modal retrieval, with training, indexing and querying kept apart: what each way of indexing would find after each task.

Wang, Herranz and van de Weijer, "Continual learning in cross-modal retrieval", CVPR workshops 2021. From its abstract: that the three
stages are apart, and that not indexing again can be a large gain. Not verified there, so ours: the two scopes as defined here, the policies
beside `reindex` and `keep`, the merge of lists by standardised score, and Recall@K of every pair (task t, task j <= t) as what is reported.

Nothing is trained or indexed here: all of it follows from the embeddings that every encoder version gives the test rows.

policy            items of task s stay as made by    queries to them come from
reindex           version t (made again)             version t
keep              version s                          version t
keep_compensated  version s                          version t, less the drift of queries since s (`retrieval.compensation`)
versioned         version s                          version s

Versions are numbered by the task that made them, t is the newest. T tasks, D embedding, Q queries, N items.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from perdure.index.curve import ScoreCurve
from perdure.index.statistics import SegmentStatistics
from perdure.metrics.drift import linear_cka, mean_displacement
from perdure.metrics.lists import best_of_own, num_before
from perdure.records import QueryModality, Task
from perdure.retrieval.compensation import QueryDrift
from perdure.retrieval.evaluation import SplitEmbeddings
from perdure.retrieval.routes import Routes

__all__ = ["CROSS_MODAL_DEFINITIONS", "DIRECTIONS", "KS", "POLICIES", "SCOPES", "cross_modal_drift", "cross_modal_recalls"]

Policy = Literal["reindex", "keep", "keep_compensated", "versioned"]
Direction = Literal["i2t", "t2i"]
POLICIES: tuple[Policy, ...] = ("reindex", "keep", "keep_compensated", "versioned")
SCOPES = ("known", "unknown", "unknown_raw", "unknown_routed")
DIRECTIONS: tuple[Direction, ...] = ("i2t", "t2i")
KS = (1, 5, 10)
Matrix = list[list[float | None]]

CROSS_MODAL_DEFINITIONS = {
    "cross_modal": "Recall@K of queries of task j after task t, matrix[t][j] for j <= t: the share of queries with a right item among "
    "the first K. i2t: a test picture asks the captions, right is any of its own. t2i: a test caption asks the pictures, right is the "
    "one it was written for. Galleries hold the test items of the tasks. An item that is not right and scores within 1e-6 of the best "
    "right one ranks before it; queries without a right item are left out.",
    "cross_modal.known": "Searched among the items of the query's own task: the task is told.",
    "cross_modal.unknown": "Searched among the items of all tasks so far; items of several encoder versions are merged by standardised "
    "score, as index.merge=standardised does, with the mean and deviation over the items of a task. reindex has one version and nothing "
    "to standardise.",
    "cross_modal.unknown_raw": "As unknown, merged by the score as it is: cosines of different encoder versions beside each other.",
    "cross_modal.unknown_routed": "As unknown, merged as index.merge=routed does: by how likely a hit of this score is right (its own "
    "partner, from the first ten hits of the task's other queries), times how likely the query is of its task, as the release of that time "
    "estimates it. Both are fitted five times, each time without a fifth of the items by a hash of the id, and each query is ranked by the "
    "fit that did not see it. Of policy versioned, where the run was released under it, with a learned merge.",
    "cross_modal.reindex": "Index policy: the newest encoder embeds every item again, and every query.",
    "cross_modal.keep": "Index policy: items stay as the encoder of their task made them, the newest one embeds the queries.",
    "cross_modal.keep_compensated": "As keep, with the mean drift of queries since an item's encoder taken off the query, for pictures "
    "and for captions apart (index.compensate).",
    "cross_modal.versioned": "Index policy: items stay as the encoder of their task made them, and that encoder embeds the queries to "
    "them: known cannot change any more.",
}
"""What each word means, to be stored beside the numbers."""


def cross_modal_recalls(
    versions: Sequence[SplitEmbeddings], tasks: Sequence[Task], hops: Sequence[QueryDrift] | None, routes: Routes | None = None
) -> dict[str, dict[str, dict[str, dict[str, dict[str, Matrix]]]]]:
    """Every policy, scope, direction and K as a matrix: `[policy][scope][direction]["recall@1"]["matrix"][t][j]`; see the definitions.

    Args:
        versions: T, what the encoder after each task makes of every test row, captions included.
        tasks: T, in the order in which they were learned.
        hops: T - 1, the query drift from version h to h + 1; None leaves keep_compensated out.
        routes: what the releases estimate of a query's task; None leaves unknown_routed out.
    Returns:
        None in a matrix for j > t, and where no query has a right item. reindex has no unknown_raw, versioned alone unknown_routed.
    """
    lists = _Lists(versions, tasks, hops, routes)
    out: dict[str, Any] = {}
    for policy in POLICIES:
        if policy == "keep_compensated" and hops is None:
            continue
        for direction in DIRECTIONS:
            for t in range(len(tasks)):
                for scope, ranks in _ranks(lists, policy, direction, t).items():
                    for k in KS:
                        row = [_share(ranks[j], k) if j <= t else None for j in range(len(tasks))]
                        of_k = out.setdefault(policy, {}).setdefault(scope, {}).setdefault(direction, {}).setdefault(f"recall@{k}", {})
                        of_k.setdefault("matrix", []).append(row)
    return out


def cross_modal_drift(versions: Sequence[SplitEmbeddings], tasks: Sequence[Task]) -> dict[str, dict[str, dict[str, Matrix]]]:
    """What became of each task's test items since it was learned: `[modality]["displacement" | "cka"]["matrix"][t][j]`.

    Args:
        versions, tasks: as for `cross_modal_recalls`.
    Returns:
        between version j and version t for j < t, None elsewhere and where there is no number; see `metrics.drift.DRIFT_DEFINITIONS`.
    """
    lists = _Lists(versions, tasks, None, None)
    modalities: tuple[tuple[QueryModality, Direction], ...] = (("image", "i2t"), ("text", "t2i"))
    out: dict[str, dict[str, dict[str, Matrix]]] = {}
    for modality, asks in modalities:
        nothing: Matrix = [[None] * len(tasks) for _ in tasks]
        displacement, cka = nothing, [list(row) for row in nothing]
        for t in range(len(tasks)):
            for j in range(t):
                before, after = (lists.of(version, j, asks).queries for version in (j, t))
                if len(before):
                    displacement[t][j] = mean_displacement(before, after)
                    value = linear_cka(before, after)
                    cka[t][j] = value if np.isfinite(value) else None
        out[modality] = {"displacement": {"matrix": displacement}, "cka": {"matrix": cka}}
    return out


@dataclass(frozen=True, eq=False)
class _Side:
    """One task in one direction, as one version sees it; names are rows of the dataset, equal where query and item belong together."""

    queries: NDArray[np.float32]  # (Q, D)
    query_names: NDArray[np.int64]
    items: NDArray[np.float32]  # (N, D)
    item_names: NDArray[np.int64]


class _Lists:
    """What every version makes of every task, each computed once."""

    def __init__(
        self, versions: Sequence[SplitEmbeddings], tasks: Sequence[Task], hops: Sequence[QueryDrift] | None, routes: Routes | None
    ) -> None:
        self._versions = versions
        self._tasks = tasks
        self._hops = hops
        self.routes = routes
        self._cut: Callable[[int, int], tuple[SplitEmbeddings, SplitEmbeddings]] = cache(self._cut_out)
        self.of: Callable[[int, int, Direction], _Side] = cache(self._of)
        self.statistics: Callable[[int, int, Direction], SegmentStatistics] = cache(self._statistics)
        self.curves: Callable[[Routes, int, Direction], list[ScoreCurve]] = cache(self._curves)

    def asked(self, policy: Policy, t: int, tasks: Sequence[int], segment: int, direction: Direction) -> NDArray[np.float32]:
        """(Q, D) the queries of some tasks as they are put to the items of one, after task t."""
        version = segment if policy == "versioned" else t
        queries = np.concatenate([self.of(version, task, direction).queries for task in tasks])
        if policy != "keep_compensated" or segment == t:
            return queries
        assert self._hops is not None
        return QueryDrift.over(self._hops[segment:t]).taken_from(queries, "image" if direction == "i2t" else "text")

    def _cut_out(self, version: int, task: int) -> tuple[SplitEmbeddings, SplitEmbeddings]:
        """Query and gallery of a task."""
        of = self._tasks[task]
        query = self._versions[version].of(of.query)
        return query, query if of.gallery is of.query else self._versions[version].of(of.gallery)

    def _of(self, version: int, task: int, direction: Direction) -> _Side:
        query, gallery = self._cut(version, task)
        if query.text is None or gallery.text is None:
            raise ValueError("cross-modal retrieval is measured where there are captions; these embeddings have none")
        if direction == "i2t":
            return _Side(query.image, query.rows, gallery.text, gallery.rows[gallery.text_of])
        return _Side(query.text, query.rows[query.text_of], gallery.image, gallery.rows)

    def _statistics(self, version: int, task: int, direction: Direction) -> SegmentStatistics:
        return SegmentStatistics.of(self.of(version, task, direction).items)

    def _curves(self, routes: Routes, task: int, direction: Direction) -> list[ScoreCurve]:
        side = self.of(task, task, direction)
        return routes.curves(side.queries, side.query_names, side.items, side.item_names)


def _ranks(lists: _Lists, policy: Policy, direction: Direction, t: int) -> dict[str, list[NDArray[np.float64]]]:
    """For each scope and each task j <= t, the rank of the best right item of each of its queries; inf where nothing is right.

    The items of a task are one list. What the best right score is in another one, theta of `metrics.lists`: the score itself (raw), what
    is as many deviations above the mean there (standardised), or what counts as much there (routed).
    """
    tasks = range(t + 1)
    maker = [t if policy == "reindex" else s for s in tasks]
    items = [lists.of(maker[s], s, direction) for s in tasks]
    known: list[NDArray[np.float64]] = []
    best: list[NDArray[np.float32]] = []
    z: list[NDArray[np.float64]] = []
    for j in tasks:
        queries = lists.asked(policy, t, [j], j, direction)
        own_best, before = best_of_own(queries, items[j].items, lists.of(t, j, direction).query_names, items[j].item_names)
        known.append(np.where(np.isfinite(own_best), 1.0 + before, np.inf))
        best.append(own_best)
        if len(items[j].items):
            mean, std = lists.statistics(maker[j], j, direction).mean_std(queries)
            z.append((own_best - mean) / std)
        else:
            z.append(own_best.astype(np.float64))
    scopes = {scope: [ranks.copy() for ranks in known] for scope in SCOPES[1:]}
    counts = _counting_as_much(lists, lists.routes, direction, t, best) if lists.routes is not None and policy == "versioned" else None
    for s in tasks:
        rest = [j for j in tasks if j != s]
        if not rest or not len(items[s].items):
            continue
        queries = lists.asked(policy, t, rest, s, direction)
        ends = np.cumsum([len(known[j]) for j in rest])[:-1]
        mean, std = lists.statistics(maker[s], s, direction).mean_std(queries)
        at_best, at_z = (np.concatenate([each[j] for j in rest]) for each in (best, z))
        thetas = {"unknown_raw": at_best, "unknown": mean + std * at_z}
        if counts is not None:
            thetas["unknown_routed"] = np.concatenate([counts[j][:, s] for j in rest])
        for scope, theta in thetas.items():
            for j, before in zip(rest, np.split(num_before(queries, items[s].items, theta), ends), strict=True):
                scopes[scope][j] += before
    if policy == "reindex":
        return {"known": known, "unknown": scopes["unknown_raw"]}
    return {"known": known, **{scope: ranks for scope, ranks in scopes.items() if scope != "unknown_routed" or counts is not None}}


def _counting_as_much(
    lists: _Lists, routes: Routes, direction: Direction, t: int, best: Sequence[NDArray[np.float32]]
) -> list[NDArray[np.float64]]:
    """For each task j <= t (Q, t + 1) theta of its queries in the list of each task; of no use where nothing is right."""
    tasks = range(t + 1)
    found = routes.thresholds(
        [lists.asked("versioned", t, tasks, s, direction) for s in tasks],
        np.concatenate([lists.of(t, j, direction).query_names for j in tasks]),
        "image" if direction == "i2t" else "text",
        np.repeat(np.arange(t + 1), [len(each) for each in best]),
        np.maximum(np.concatenate(best).astype(np.float64), -1.0),
        [lists.curves(routes, s, direction) for s in tasks],
    )
    return np.split(found, np.cumsum([len(each) for each in best])[:-1])


def _share(ranks: NDArray[np.float64], k: int) -> float | None:
    counted = ranks[np.isfinite(ranks)]
    return float((counted <= k).mean()) if len(counted) else None
