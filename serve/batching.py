"""Many queries in one call: what is asked while a call runs waits for the next one; and what an encoder makes of such a batch."""

import asyncio
import contextvars
import time
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Generic, TypeVar

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
        self._calls: set[asyncio.Task[None]] = set()

    async def __call__(self, asked: Q) -> A:
        """The answer to one of many."""
        key = self._key(asked)
        if key not in self._waiting and self._patience_s is not None:
            return await self._alone(key, asked)
        answer: asyncio.Future[A] = asyncio.get_running_loop().create_future()
        if key in self._waiting:
            self._waiting[key].append((asked, answer))
        else:
            self._waiting[key] = deque([(asked, answer)])
            self._next(key)
        return await answer

    async def _alone(self, key: Hashable, asked: Q) -> A:
        """What nobody asks beside: begun at once, before anything else that the loop has to do, and given up with its caller."""
        self._waiting[key] = deque()
        turn = _Turn(lambda: self._next(key), self._patience_s)
        try:
            (answer,) = await self._answers([asked])
        finally:
            turn.over()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _next(self, key: Hashable) -> None:
        """Make a call of those who wait, if any do."""
        waiting, batch = self._waiting[key], list[tuple[Q, asyncio.Future[A]]]()
        while waiting and len(batch) < self._max_batch:
            asked, answer = waiting.popleft()
            if not answer.done():  # else its caller has given up
                batch.append((asked, answer))
        if not batch:
            del self._waiting[key]
            return
        # In a context of its own: with that of the request that happened to begin it, Serve would cancel the calls that are made here,
        # for everybody, when that one caller gives up.
        call = asyncio.create_task(self._together(batch, _Turn(lambda: self._next(key), self._patience_s)), context=contextvars.Context())
        self._calls.add(call)  # the loop itself would let it go
        call.add_done_callback(self._calls.discard)

    async def _together(self, batch: list[tuple[Q, asyncio.Future[A]]], turn: "_Turn") -> None:
        try:
            for (_, waiting), answer in zip(batch, await self._answers([asked for asked, _ in batch]), strict=True):
                if waiting.done():
                    continue
                if isinstance(answer, Exception):
                    waiting.set_exception(answer)
                else:
                    waiting.set_result(answer)
        finally:
            turn.over()

    async def _answers(self, asked: list[Q]) -> Sequence[A | Exception]:
        """As many as were asked; an error of the call belongs to those who asked, not to the task that makes it."""
        try:
            answers = await self._work(asked)
            if len(answers) != len(asked):
                raise RuntimeError(f"{len(asked)} were asked at once and {len(answers)} answered")
            return answers
        except Exception as error:
            return [error] * len(asked)


class _Turn:
    """The time that a call holds the next one back: until it is over, or patience is."""

    def __init__(self, pass_on: Callable[[], None], patience_s: float | None) -> None:
        self._loop = asyncio.get_running_loop()
        self._pass_on: Callable[[], None] | None = pass_on
        self._late = None if patience_s is None else self._loop.call_later(patience_s, self._end)

    def over(self) -> None:
        """Let the next one begin, after those who were just answered: what they ask at once goes with it."""
        if self._late is not None:
            self._late.cancel()
        self._loop.call_soon(self._end)

    def _end(self) -> None:
        if self._pass_on is not None:
            pass_on, self._pass_on = self._pass_on, None
            pass_on()


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
