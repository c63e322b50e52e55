"""Many queries in one call: what is asked while a call runs waits for the next one; and what an encoder makes of such a batch."""

import asyncio
import contextvars
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from perdure.encoders import Encoder
from perdure.errors import PerdureError
from perdure.records import EncoderRef
from perdure.retrieval.retriever import encode

__all__ = ["Asked", "Batcher", "Vectors", "encode_batch", "in_thread"]

Q = TypeVar("Q")
A = TypeVar("A")
Vectors = dict[EncoderRef, NDArray[np.float32]]
Asked = tuple[dict[EncoderRef, Encoder], str | bytes]  # by which encoders, and what


class Batcher(Generic[Q, A]):
    """Makes one call of many: what is asked while a call runs waits for the next one. Nobody waits for a batch to fill.

    (Ray Serve's own batching holds a lone query back for its timeout.)

    Args:
        work: answers many, in their order; an error in an answer's place is for the one who asked. Blocking work: see `in_thread`.
        max_batch: how many at once.
        key: what differs in it is never put together, and does not wait for each other either.
        patience_s: a call that takes longer holds the next one back no further; None = calls of a key never overlap.
    """

    def __init__(
        self,
        work: Callable[[list[Q]], Awaitable[Sequence[A | Exception]]],
        max_batch: int,
        *,
        key: Callable[[Q], Hashable] = lambda asked: None,
        patience_s: float | None = None,
    ) -> None:
        self._work = work
        self._max_batch = max_batch
        self._key = key
        self._patience_s = patience_s
        self._waiting: dict[Hashable, deque[tuple[Q, asyncio.Future[A]]]] = {}  # of the keys that somebody works for
        self._tasks: set[asyncio.Task[None]] = set()

    async def __call__(self, asked: Q) -> A:
        """The answer to one of many."""
        answer: asyncio.Future[A] = asyncio.get_running_loop().create_future()
        key = self._key(asked)
        if key in self._waiting:
            self._waiting[key].append((asked, answer))
        else:
            self._waiting[key] = deque([(asked, answer)])
            self._begin(self._work_off(key))
        return await answer

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        # In a context of its own: with that of the request that happened to begin it, Serve would cancel the calls that are made here,
        # for everybody, when that one caller gives up.
        task = asyncio.create_task(work, context=contextvars.Context())
        self._tasks.add(task)  # the loop itself would let it go
        task.add_done_callback(self._tasks.discard)
        return task

    async def _work_off(self, key: Hashable) -> None:
        waiting = self._waiting[key]
        try:
            while waiting:
                batch = [waiting.popleft() for _ in range(min(self._max_batch, len(waiting)))]
                batch = [(asked, answer) for asked, answer in batch if not answer.done()]  # the others' callers have given up
                if batch:
                    await asyncio.wait([self._begin(self._answer(batch))], timeout=self._patience_s)
        finally:
            del self._waiting[key]

    async def _answer(self, batch: list[tuple[Q, asyncio.Future[A]]]) -> None:
        try:
            answers: Sequence[A | Exception] = await self._work([asked for asked, _ in batch])
        except Exception as error:  # it belongs to those who asked, not to this task
            answers = [error] * len(batch)
        for (_, waiting), answer in zip(batch, answers, strict=True):
            if waiting.done():
                continue
            if isinstance(answer, Exception):
                waiting.set_exception(answer)
            else:
                waiting.set_result(answer)


def in_thread(work: Callable[[list[Q]], Sequence[A | Exception]]) -> Callable[[list[Q]], Awaitable[Sequence[A | Exception]]]:
    """Blocking work as a `Batcher` takes it."""
    return lambda asked: asyncio.to_thread(work, asked)


def encode_batch(asked: Sequence[Asked]) -> list[tuple[Vectors, float] | PerdureError]:
    """Embed a batch that may mix encoder versions: one pass for each version; a query that fails, fails alone."""
    started = time.perf_counter()
    models = {ref: model for wanted, _ in asked for ref, model in wanted.items()}
    vectors: list[Vectors] = [{} for _ in asked]
    errors: dict[int, PerdureError] = {}
    for ref, model in models.items():
        places = [place for place, (wanted, _) in enumerate(asked) if ref in wanted and place not in errors]
        for place, row in _rows(model, [(place, asked[place][1]) for place in places], errors):
            vectors[place][ref] = row
    took_ms = (time.perf_counter() - started) * 1e3
    return [errors.get(place) or (vectors[place], took_ms) for place in range(len(asked))]


def _rows(
    model: Encoder, queries: Sequence[tuple[int, str | bytes]], errors: dict[int, PerdureError]
) -> list[tuple[int, NDArray[np.float32]]]:
    """(place, (1, D)) of the queries that can be embedded; the others go into `errors`."""
    if not queries:
        return []
    try:
        rows = encode(model, [query for _, query in queries])
        return [(place, rows[number : number + 1]) for number, (place, _) in enumerate(queries)]
    except PerdureError as error:
        if len(queries) == 1:
            errors[queries[0][0]] = error
            return []
    return [found for query in queries for found in _rows(model, [query], errors)]
