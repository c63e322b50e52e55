"""The Encoder deployment of the sharded topology: query texts and pictures to vectors, for every encoder version that is in use."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from perdure.encoders import Encoder, load_encoder
from perdure.errors import PerdureError
from perdure.records import EncoderRef, Release
from perdure.registry import open_registry
from perdure.retrieval.follow import Holder, Poller
from perdure.retrieval.retriever import encode
from serve.backend import limit_process, warm_up
from serve.schemas import ServeArgs

__all__ = ["Batcher", "EncoderReplica", "encode_batch"]

Q = TypeVar("Q")
A = TypeVar("A")
Vectors = dict[EncoderRef, NDArray[np.float32]]


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


class EncoderReplica:
    """Holds {encoder version: model} of the releases that are live or still answered from."""

    def __init__(self, args: dict[str, Any]) -> None:
        self._args = ServeArgs.model_validate(args)
        limit_process(self._args)
        self._registry = open_registry(str(self._args.registry))
        self._models: dict[EncoderRef, Encoder] = {}
        self._holder: Holder[dict[EncoderRef, Encoder]] = Holder(
            self._registry, self._load, channel=self._args.channel, retire_after_s=self._args.retire_after_s, forget=self._forget
        )
        self._batch = Batcher(encode_batch, self._args.max_batch)
        self._holder.follow()  # before Serve routes to this replica
        self._poller = Poller(self._holder.follow, self._args.poll_s, "follow")
        self._poller.start()

    def hold(self, wanted: list[str]) -> tuple[list[str], dict[str, str]]:
        """Keep (and load) the releases that a gateway answers from or wants to; what is held, and why others are not."""
        self._holder.want(wanted)
        missing = {release_id: self._holder.why_not(release_id) for release_id in wanted if release_id not in self._holder.held()}
        if missing:
            self._poller.wake()
        return self._holder.held(), {release_id: why for release_id, why in missing.items() if why is not None}

    async def encode(self, release_id: str, encoders: Sequence[EncoderRef], query: str | bytes) -> tuple[Vectors, float]:
        """A (1, D) unit row by each of the encoders, and the milliseconds that the pass took.

        Raises:
            NotLoaded: this replica does not hold the release.
            BadQuery: not a picture, or an encoder without a text tower.
        """
        models = self._holder.get(release_id)
        return await self._batch(({ref: models[ref] for ref in encoders}, query))

    def _load(self, release: Release) -> dict[EncoderRef, Encoder]:
        for ref in release.encoders():
            if ref not in self._models:
                model = load_encoder(self._registry.folder(ref))
                warm_up([model])
                self._models[ref] = model
        return {ref: self._models[ref] for ref in release.encoders()}

    def _forget(self, kept: list[dict[EncoderRef, Encoder]]) -> None:
        for ref in self._models.keys() - {ref for models in kept for ref in models}:
            del self._models[ref]


def encode_batch(asked: Sequence[tuple[dict[EncoderRef, Encoder], str | bytes]]) -> list[tuple[Vectors, float] | PerdureError]:
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
