"""Shadow queries: what the live release has answered is put to the candidate as well, and the two lists are compared.

One at a time, behind the answers, in a bounded line: a request never waits for its shadow, and shadows that would pile up are left out
and counted. Comparisons are of one replica; the metrics have them of all.

    overlap@k = | live's hits and the candidate's | / max(length of the two lists),   1 where both are empty
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

from perdure.records import base_of
from serve.channels import CANDIDATE, Route
from serve.metrics import Metrics
from serve.reading import SearchQuery
from serve.schemas import SearchResponse, ShadowOut

__all__ = ["Shadows", "overlap"]

log = logging.getLogger(__name__)

_TO_CANDIDATE = Route(CANDIDATE, asked=True)


def overlap(live: SearchResponse, candidate: SearchResponse) -> float:
    """Share of the hits that two lists have in common, whatever their order."""
    one, other = ({hit.id for hit in answer.hits} for answer in (live, candidate))
    return len(one & other) / max(len(one), len(other)) if one or other else 1.0


@dataclass(frozen=True)
class _Tally:
    """What comparisons of one pair of releases came to."""

    compared: int = 0
    failed: int = 0
    left_out: int = 0
    overlap: float = 0.0  # summed
    same_first: int = 0
    live_ms: float = 0.0  # summed, of requests
    candidate_ms: float = 0.0
    requests: int = 0


class Shadows:
    """The shadow queries of one gateway.

    Args:
        search: answers queries, each from the channel that it names.
        metrics: take what is found.
        max_waiting: requests in line; beyond, they are left out.
    """

    def __init__(
        self, search: Callable[[Sequence[SearchQuery]], Awaitable[list[SearchResponse]]], metrics: Metrics, max_waiting: int = 32
    ) -> None:
        self._search = search
        self._metrics = metrics
        self._max_waiting = max_waiting
        self._waiting = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._turn = asyncio.Lock()
        self._tallies: dict[tuple[str, str], _Tally] = {}

    def compare(self, queries: Sequence[SearchQuery], answers: Sequence[SearchResponse], took_ms: float, candidate: str) -> None:
        """Have the candidate answer what was answered by the live release; returns at once."""
        pair = (base_of(answers[0].release), candidate)
        if self._waiting >= self._max_waiting:
            self._count(pair, left_out=1)
            return
        self._waiting += 1
        task = asyncio.get_running_loop().create_task(self._run(queries, answers, took_ms, pair))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def told(self, live: str | None, candidate: str | None) -> ShadowOut | None:
        """What is known of a pair of releases; None where nothing was compared."""
        tally = self._tallies.get((live or "", candidate or ""))
        if tally is None:
            return None
        compared, requests = max(tally.compared, 1), max(tally.requests, 1)
        return ShadowOut(
            live=live or "",
            compared=tally.compared,
            failed=tally.failed,
            left_out=tally.left_out,
            overlap=round(tally.overlap / compared, 4) if tally.compared else None,
            same_first=round(tally.same_first / compared, 4) if tally.compared else None,
            live_ms=round(tally.live_ms / requests, 2) if tally.requests else None,
            candidate_ms=round(tally.candidate_ms / requests, 2) if tally.requests else None,
        )

    async def _run(self, queries: Sequence[SearchQuery], answers: Sequence[SearchResponse], took_ms: float, pair: tuple[str, str]) -> None:
        try:
            async with self._turn:
                started = time.perf_counter()
                found = await self._search([replace(query, route=_TO_CANDIDATE, explain=False) for query in queries])
                shadow_ms = (time.perf_counter() - started) * 1e3
        except Exception as error:  # a candidate that fails is what shadows are there to find
            log.warning("shadow query on %s failed: %s", pair[1], error)
            self._count(pair, failed=1)
            return
        finally:
            self._waiting -= 1
        if base_of(found[0].release) != pair[1]:  # the candidate moved on meanwhile
            return
        for one, other in zip(answers, found, strict=True):
            share = overlap(one, other)
            self._metrics.observe("perdure_shadow_overlap", share, live=pair[0], candidate=pair[1])
            same_first = [hit.id for hit in one.hits[:1]] == [hit.id for hit in other.hits[:1]]
            self._count(pair, compared=1, overlap=share, same_first=int(same_first))
        self._count(pair, requests=1, live_ms=took_ms, candidate_ms=shadow_ms)

    def _count(self, pair: tuple[str, str], **more: float) -> None:
        tally = self._tallies.get(pair, _Tally())
        self._tallies[pair] = replace(tally, **{name: getattr(tally, name) + value for name, value in more.items()})
        for outcome in ("compared", "failed", "left_out"):
            if outcome in more:
                self._metrics.add("perdure_shadows_total", more[outcome], live=pair[0], candidate=pair[1], outcome=outcome)
