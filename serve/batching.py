"""Many queries in one call: what is asked while a call runs waits for the next one; and what an encoder makes of such a batch."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from perdure.encoders import Encoder
from perdure.errors import PerdureError
from perdure.records import EncoderRef
from perdure.retrieval.retriever import encode

__all__ = ["Asked", "Batcher", "Vectors", "encode_batch"]

Q = TypeVar("Q")
A = TypeVar("A")
Vectors = dict[EncoderRef, NDArray[np.float32]]
Asked = tuple[dict[EncoderRef, Encoder], str | bytes]  # by which encoders, and what


class Batcher(Generic[Q, A]):
    """Makes one call of many: what is asked while a call runs waits for the next one. Nobody waits for a batch to fill.

    (Ray Serve's own batching holds a lone query back for its timeout.)
    """

    def __init__(self, work: Callable[[list[Q]], Sequence[A | PerdureError]], max_batch: int) -> None:
        self._work = work
        self._max_batch = max_batch
        self._waiting: deque[tuple[Q, asyncio.Future[A]]] = deque()
        self._running: asyncio.Task[None] | None = None

    async def __call__(self, asked: Q) -> A:
        """The answer to one of many."""
        answer: asyncio.Future[A] = asyncio.get_running_loop().create_future()
        self._waiting.append((asked, answer))
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._work_off())
        return await answer

    async def _work_off(self) -> None:
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(self._max_batch, len(self._waiting)))]
            try:
                answers: Sequence[A | Exception] = await asyncio.to_thread(self._work, [asked for asked, _ in batch])
            except Exception as error:  # it belongs to those who asked, not to this loop
                answers = [error] * len(batch)
            for (_, waiting), answer in zip(batch, answers, strict=True):
                if waiting.done():  # its caller has given up
                    continue
                if isinstance(answer, Exception):
                    waiting.set_exception(answer)
                else:
                    waiting.set_result(answer)


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
