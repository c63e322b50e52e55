"""What both topologies have in common: answers, items, releases, moves of a channel; and the fused backend.

Blocking work (the registry, torch, faiss, tables) runs on a small pool of threads, never on the event loop.
"""

import asyncio
import logging
import os
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from perdure.encoders import Encoder
from perdure.errors import BadQuery, NotFound, PerdureError, RegistryError
from perdure.index import Segment, limit_threads
from perdure.records import EncoderRef, Release, SegmentRef, Traffic, base_of
from perdure.registry import open_registry
from perdure.retrieval.retriever import Retriever, encode
from serve.answering import answers_of, image_of, item_of, sample_of
from serve.batching import Batcher, encode_batch
from serve.channels import CANDIDATE, Place
from serve.following import Following
from serve.measured import measured
from serve.metrics import Metrics, Sink
from serve.reading import SearchQuery
from serve.schemas import (
    MAX_DEPTH,
    CandidateOut,
    ItemOut,
    MeasuredOut,
    PromoteRequest,
    ReleaseOut,
    ReleasesOut,
    RollbackRequest,
    SearchResponse,
    ServeArgs,
    State,
)
from serve.shadow import Shadows
from serve.writes import Desk, WriteAsked, WriteOut

__all__ = ["FollowingBackend", "FusedBackend", "limit_process", "warm_up"]

log = logging.getLogger(__name__)

T = TypeVar("T")

_PATIENCE_S = 0.25  # searches that take longer hold nobody back any more


class FollowingBackend:
    """A backend that answers from the release of a channel; how a search is carried out is up to the subclass."""

    def __init__(self, args: ServeArgs, *sinks: Sink) -> None:
        args = args.resolved()
        assert args.registry is not None
        limit_process(args)
        self._args = args
        self._pool = ThreadPoolExecutor(min(8, 2 + (os.cpu_count() or 1)), thread_name_prefix="perdure")
        self._registry_pool = ThreadPoolExecutor(4, thread_name_prefix="registry")  # of its own: a registry that hangs holds no search up
        self._registry = open_registry(args.registry)
        self.metrics = Metrics(*sinks)
        self.shadows = Shadows(self.search, self.metrics, args.max_shadows)
        self._encoders: dict[EncoderRef, Encoder] = {}
        self._segments: dict[SegmentRef, Segment] = {}
        self.following = Following(self._registry, args, self.metrics, load=self._load, not_ready=self._not_ready, forget=self._forget)
        self._desk = Desk(self._registry, self)
        self._together: Batcher[tuple[Retriever, SearchQuery], SearchResponse] = Batcher(
            self._answer_many, args.max_batch, key=_together_with, patience_s=_PATIENCE_S
        )

    def start(self) -> None:
        """Begin to follow the channel; returns when a release is answered from, or it is clear why none is."""
        self.following.start()

    def stop(self) -> None:
        """End the threads."""
        self.following.stop()
        for pool in (self._pool, self._registry_pool):
            pool.shutdown(wait=False, cancel_futures=True)

    # -- following --------------------------------------------------------------------------------------------------------

    def _load(self, release: Release) -> Retriever:
        """Everything that this process needs of a release; an exception means that it is not fit to go live."""
        raise NotImplementedError

    def _not_ready(self, release_id: str) -> str | None:
        """Why a release that is held here may not be answered from yet; None = it may."""
        return None

    def _forget(self, kept: Sequence[Retriever]) -> None:
        encoders = {ref for retriever in kept for ref in retriever.release.encoders()}
        segments = {use.segment for retriever in kept for use in retriever.release.segments}
        for ref in self._encoders.keys() - encoders:
            del self._encoders[ref]
        for ref in self._segments.keys() - segments:
            del self._segments[ref]

    # -- answering --------------------------------------------------------------------------------------------------------

    def state(self) -> State:
        """See `Backend`."""
        return self.following.state()

    def candidate(self) -> Place | None:
        """See `Backend`."""
        return self.following.place()

    def encoder_of(self, release_id: str) -> str:
        """See `Backend`."""
        return self.following.encoder_of(release_id)

    async def search(self, queries: Sequence[SearchQuery]) -> list[SearchResponse]:
        """See `Backend`."""
        raise NotImplementedError

    async def _answer(self, pinned: Retriever, queries: Sequence[SearchQuery]) -> list[SearchResponse]:
        """The answers of a release that was pinned, however many are asked for at once."""
        raise NotImplementedError

    async def _answered(self, pinned: Retriever, queries: Sequence[SearchQuery]) -> list[SearchResponse]:
        """As `_answer`, together with what others ask just then: one multiplication of the gallery for all of them.

        A batch is answered by itself, and so is what needs long lists, or a search before the search.
        """
        first = queries[0].search
        alone = len(queries) > 1 or first.expand or first.depth > MAX_DEPTH // self._args.max_batch or self._args.max_batch == 1
        return await self._answer(pinned, queries) if alone else [await self._together((pinned, queries[0]))]

    async def _answer_many(self, asked: Sequence[tuple[Retriever, SearchQuery]]) -> Sequence[SearchResponse | Exception]:
        """The answers to searches of many callers, all of one release; who asks what makes no sense spoils nobody else's."""
        pinned, queries = asked[0][0], [query for _, query in asked]
        self.metrics.observe("perdure_search_batch", len(queries))
        try:
            return await self._answer(pinned, queries)
        except (BadQuery, NotFound) as error:
            if len(queries) == 1:
                return [error]
        answers = await asyncio.gather(*(self._answer(pinned, [query]) for query in queries), return_exceptions=True)
        return [answer if isinstance(answer, Exception) else _only(answer) for answer in answers]

    async def item(self, item_id: str, release: str | None = None) -> ItemOut:
        """See `Backend`."""
        return await self.run(item_of, self.following.pinned(release), item_id)

    async def sample(self, count: int) -> list[ItemOut]:
        """See `Backend`."""
        return await self.run(sample_of, self.following.pinned(), count)

    async def image(self, item_id: str, release: str | None = None) -> bytes:
        """See `Backend`."""
        return await self.run(image_of, self.following.pinned(release), item_id)

    async def releases(self) -> ReleasesOut:
        """See `Backend`."""
        return await self._of_registry(self._releases)

    async def measured(self, release_id: str) -> MeasuredOut:
        """See `Backend`."""
        return await self._of_registry(measured, self._registry, release_id, Path(self._args.runs or "runs"))

    async def promote(self, release_id: str, request: PromoteRequest, by: str) -> ReleaseOut:
        """See `Backend`."""

        traffic = Traffic(request.share, request.shadow)
        if request.channel != CANDIDATE and traffic != Traffic():
            raise BadQuery("share and shadow are for the channel candidate; the live release gets what is left")
        channel = self._channel(request.channel)

        def move() -> Release:
            return self._registry.promote(release_id, channel, by=by, force=request.force, reason=request.reason, traffic=traffic)

        return self._moved(await self._of_registry(move), request.channel)

    async def rollback(self, request: RollbackRequest, by: str) -> ReleaseOut:
        """See `Backend`."""
        channel = self._channel(request.channel)
        moved = await self._of_registry(lambda: self._registry.rollback(channel, by=by, reason=request.reason))
        return self._moved(moved, request.channel)

    def _channel(self, name: str) -> str:
        """The registry's channel of that name."""
        if name != CANDIDATE:
            return self._args.channel
        if self._args.candidate is None:
            raise BadQuery("this server follows no candidate (candidate: null in its arguments)")
        return self._args.candidate

    async def write(self, asked: WriteAsked) -> WriteOut:
        """See `Backend`."""
        written = await self._desk.write(self.following.pinned(), asked)
        self.following.wake()  # this replica shows it at once, the others within a poll
        return written

    async def embed_new(self, pinned: Retriever, sources: Sequence[str | bytes]) -> list[NDArray[np.float32] | PerdureError]:
        """(D,) of each text or picture by the encoder of a release that takes new items; or why it cannot be embedded."""
        raise NotImplementedError

    async def run(self, work: Callable[..., T], *given: object) -> T:
        """Blocking work on the pool."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, *given)

    async def _of_registry(self, work: Callable[..., T], *given: object) -> T:
        """Blocking work that waits for the registry."""
        return await asyncio.get_running_loop().run_in_executor(self._registry_pool, work, *given)

    def _moved(self, release: Release, channel: str) -> ReleaseOut:
        self.following.wake()  # this replica follows at once, the others within a poll
        state = self.state()
        live, candidate = (state.live, release.id) if channel == CANDIDATE else (release.id, state.candidate)
        return ReleaseOut.of(release, live, state.serving, candidate, self.following.held())

    def _releases(self) -> ReleasesOut:
        state = self.state()
        problem = state.problem
        try:
            live = self._registry.channel(self._args.channel)
            releases = self._registry.releases()
        except RegistryError as error:
            live, releases, problem = None, [], problem or str(error)
        live_id = live.id if live else None
        serving = self.following.current.release if self.following.current else None
        newest_first = sorted(releases, key=lambda release: (release.created, release.id), reverse=True)
        return ReleasesOut(
            channel=self._args.channel,
            live=live_id,
            serving=serving.base if serving else None,
            edit=serving.edit if serving else 0,
            problem=problem,
            candidate=self._candidate_out(),
            releases=[ReleaseOut.of(release, live_id, state.serving, state.candidate, self.following.held()) for release in newest_first],
        )

    def _candidate_out(self) -> CandidateOut | None:
        release_id, traffic, state = self.following.holder.candidate, self.following.holder.traffic, self.state()
        if release_id is None or self._args.candidate is None:
            return None
        release_id = base_of(release_id)
        return CandidateOut(
            channel=self._args.candidate,
            release=release_id,
            share=traffic.share,
            shadow=traffic.shadow,
            ready=self.following.candidate is not None and self.following.candidate.release.base == release_id,
            problem=state.candidate_problem,
            shadows=self.shadows.told(base_of(state.serving or ""), release_id),
        )


class FusedBackend(FollowingBackend):
    """Encoders and partitions in this very process."""

    def _load(self, release: Release) -> Retriever:
        warm = {*self._encoders, *self._segments}
        retriever = Retriever.load(self._registry, release, encoders_cache=self._encoders, segments_cache=self._segments)
        warm_up(encoder for ref, encoder in retriever.encoders.items() if ref not in warm)
        for segment in retriever.segments:
            if segment.ref not in warm:
                segment.search(np.zeros((1, segment.dim), np.float32), 1, encoder=segment.made_by)
        return retriever

    async def embed_new(self, pinned: Retriever, sources: Sequence[str | bytes]) -> list[NDArray[np.float32] | PerdureError]:
        """See `FollowingBackend`."""
        encoder = pinned.release.encoder
        asked = [({encoder: pinned.encoders[encoder]}, source) for source in sources]
        answers = await self.run(encode_batch, asked)
        return [answer if isinstance(answer, PerdureError) else answer[0][encoder][0] for answer in answers]

    async def search(self, queries: Sequence[SearchQuery]) -> list[SearchResponse]:
        """See `Backend`."""
        return await self._answered(self.following.pinned_for(queries[0]), queries)

    async def _answer(self, pinned: Retriever, queries: Sequence[SearchQuery]) -> list[SearchResponse]:
        return await self.run(answers_of, pinned, queries)


def _together_with(asked: tuple[Retriever, SearchQuery]) -> Hashable:
    """What searches have in common that can be answered together."""
    pinned, query = asked
    return pinned, query.search.way, query.partial_ok


def _only(answers: list[SearchResponse] | BaseException) -> SearchResponse:
    """The answer to a lone search."""
    if isinstance(answers, BaseException):
        raise answers  # cancelled
    (answer,) = answers
    return answer


def limit_process(args: ServeArgs) -> None:
    """Replicas share a node: each takes the threads that it was given."""
    torch.set_num_threads(args.threads)
    limit_threads(args.threads)


def warm_up(encoders: Iterable[Encoder], *, pictures: bool = True) -> None:
    """One query of each kind, so that the first caller does not wait for lazy initialisation, and a broken encoder shows now.

    Raises:
        BadQuery: an encoder yields what is not a unit vector.
    """
    for encoder in encoders:
        blank = np.full((encoder.image_size, encoder.image_size, 3), 128, np.uint8)
        queries = [*([blank] if pictures else []), *(["warm up"] if encoder.text is not None else [])]
        vectors = encode(encoder, queries)
        if not np.allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-3):
            raise BadQuery("the encoder gives vectors that are not of unit length (or NaN) for a plain grey picture or a short text")
