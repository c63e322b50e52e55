"""What both topologies have in common: following the channel, pinning a release, items, releases; and the fused backend.

Blocking work (the registry, torch, faiss, tables) runs on a small pool of threads, never on the event loop.
"""

import asyncio
import logging
import os
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from perdure.encoders import Encoder
from perdure.errors import BadQuery, NotFound, NotLoaded, PerdureError, RegistryError
from perdure.index import Segment, limit_threads
from perdure.records import EncoderRef, Release, SegmentRef, Traffic, base_of
from perdure.registry import open_registry
from perdure.retrieval.follow import Holder, Poller
from perdure.retrieval.retriever import Retriever, encode
from serve.answering import answers_of, gone, image_of, item_of, sample_of
from serve.batching import Batcher, encode_batch
from serve.channels import CANDIDATE, Place
from serve.measured import measured
from serve.metrics import Metrics, Sink, version_of
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

__all__ = ["FollowingBackend", "FusedBackend", "limit_process", "loads_measured", "warm_up"]

log = logging.getLogger(__name__)

T = TypeVar("T")

_WHILE_WAITING_S = 0.1  # between two looks at replicas that are loading
_PATIENCE_S = 0.25  # searches that take longer hold nobody back any more
_FIRST_WAIT_S = 30.0  # a new replica takes traffic when it has a release, or after this long with the reason why not


class FollowingBackend:
    """A backend that answers from the release of a channel; how a search is carried out is up to the subclass.

    `_current` is one reference, assigned once a flip; a request reads it once and uses what it read to its end.
    """

    def __init__(self, args: ServeArgs, *sinks: Sink) -> None:
        args = args.resolved()
        assert args.registry is not None
        limit_process(args)
        self._args = args
        self._pool = ThreadPoolExecutor(min(8, 2 + (os.cpu_count() or 1)), thread_name_prefix="perdure")
        self._registry_pool = ThreadPoolExecutor(4, thread_name_prefix="registry")  # of its own: a registry that hangs holds no search up
        self._registry = open_registry(args.registry)
        self._current: Retriever | None = None
        self._waiting: str | None = None  # why a release that is held here is not answered from yet
        self._candidate: Retriever | None = None  # beside it, for the requests that go there
        self._candidate_waiting: str | None = None
        self._encoder_of: dict[str, str] = {}  # of every release that was ever held: an answer may outlive its release here
        self.metrics = Metrics(*sinks)
        self.shadows = Shadows(self.search, self.metrics, args.max_shadows)
        self._encoders: dict[EncoderRef, Encoder] = {}
        self._segments: dict[SegmentRef, Segment] = {}
        self._holder = Holder(
            self._registry,
            self._load_noted,
            channel=args.channel,
            beside=args.candidate,
            retire_after_s=args.retire_after_s,
            forget=self._forget,
            loaded=loads_measured(self.metrics, "gateway"),
        )
        self._poller = Poller(self._step, args.poll_s, "follow")
        self._desk = Desk(self._registry, self)
        self._together: Batcher[tuple[Retriever, SearchQuery], SearchResponse] = Batcher(
            self._answer_many, args.max_batch, key=_together_with, patience_s=_PATIENCE_S
        )

    def start(self) -> None:
        """Begin to follow the channel; returns when a release is answered from, or it is clear why none is."""
        deadline = time.monotonic() + _FIRST_WAIT_S
        self._step()
        while self._current is None and self._holder.problem is None and time.monotonic() < deadline:
            time.sleep(0.05)
            self._step()
        self._poller.start()

    def stop(self) -> None:
        """End the threads."""
        self._poller.stop(wait_s=5.0)
        for pool in (self._pool, self._registry_pool):
            pool.shutdown(wait=False, cancel_futures=True)

    # -- following --------------------------------------------------------------------------------------------------------

    def _load(self, release: Release) -> Retriever:
        """Everything that this process needs of a release; an exception means that it is not fit to go live."""
        raise NotImplementedError

    def _load_noted(self, release: Release) -> Retriever:
        self._encoder_of[release.id] = str(release.encoder)
        return self._load(release)

    def _not_ready(self, release_id: str) -> str | None:
        """Why a release that is held here may not be answered from yet; None = it may."""
        return None

    def _step(self) -> None:
        """One look at the channels and, if it can be, one flip of each."""
        if self._current is not None:
            self._holder.want([self._current.release.id])
        self._holder.follow()
        self._step_live()
        self._step_candidate()
        self._show_state()

    def _step_live(self) -> None:
        held = self._holder.held()
        target = self._holder.live if self._holder.live in held else None
        if target is None and self._current is None and self._holder.in_place in held:
            target = self._holder.in_place  # the live release is bad, and this process has just started: the one before it
        if target is None:
            if self._current is not None:
                self._not_ready(self._current.release.id)  # what is answered from stays with all who take part in an answer
            return
        self._waiting = self._not_ready(target)
        if self._waiting is None and (self._current is None or self._current.release.id != target):
            before = self._current.release.id if self._current else "nothing"
            self._current = self._holder.get(target)
            log.info("answering from %s now (before: %s)", target, before)
        if self._waiting is not None:
            self._poller.soon(_WHILE_WAITING_S)

    def _step_candidate(self) -> None:
        target = self._holder.candidate
        if target is None or target not in self._holder.held():
            self._candidate = None
            return
        self._candidate_waiting = self._not_ready(target)
        if self._candidate_waiting is None and (self._candidate is None or self._candidate.release.id != target):
            self._candidate = self._holder.get(target)
            log.info("candidate %s is ready", target)
        elif self._candidate is not None and self._candidate.release.id != target:
            self._candidate = None

    def _show_state(self) -> None:
        """Bring the gauges up to date."""
        current, live, place = self._current, self._holder.live, self.candidate()
        serving = current.release.id if current else None
        self.metrics.show("perdure_ready", {(): float(current is not None)})
        self.metrics.show("perdure_serving", {(current.release.base, version_of(str(current.release.encoder))): 1.0} if current else {})
        missing = {(base_of(live), (self._problem() or "")[:200]): 1.0} if live is not None and live != serving else {}
        self.metrics.show("perdure_live_not_serving", missing)
        self.metrics.show("perdure_release_held", {(base_of(held), "gateway"): 1.0 for held in self._holder.held()})
        uses = {(place.release, "share"): place.share, (place.release, "shadow"): place.shadow} if place else {}
        self.metrics.show("perdure_candidate_percent", uses)

    def _forget(self, kept: Sequence[Retriever]) -> None:
        encoders = {ref for retriever in kept for ref in retriever.release.encoders()}
        segments = {use.segment for retriever in kept for use in retriever.release.segments}
        for ref in self._encoders.keys() - encoders:
            del self._encoders[ref]
        for ref in self._segments.keys() - segments:
            del self._segments[ref]

    def _pinned_for(self, query: SearchQuery) -> Retriever:
        """The release of a search, taken once: the one that it names, or the one of its channel.

        Raises:
            NotLoaded: there is none yet; or the candidate was asked for, and there is none that is ready.
            Problem: 410, the one that is named is not held any more.
        """
        if query.release is None and query.route.channel == CANDIDATE:
            candidate = self._candidate
            if candidate is not None:
                return candidate
            if query.route.asked:
                none = f"the channel '{self._args.candidate}' points to no release (perdure promote RELEASE --channel candidate)"
                raise NotLoaded(self._candidate_problem() or none)
        return self._pinned(query.release)

    def _pinned(self, release_id: str | None = None) -> Retriever:
        """The release of a request, taken once: the one that is answered from, or the one that a cursor or the caller names.

        Raises:
            NotLoaded: there is none yet.
            Problem: 410, the one that is named is not held any more.
        """
        if release_id is not None:
            newest = {base_of(held): held for held in self._holder.held()}  # of each release, with what was written last
            try:
                return self._holder.get(newest.get(release_id, release_id))
            except NotLoaded:
                raise gone(release_id) from None
        if self._current is None:
            raise NotLoaded(self._problem() or "no release is loaded yet; try again in a moment")
        return self._current

    def _problem(self) -> str | None:
        return self._holder.problem or self._waiting

    def _candidate_problem(self) -> str | None:
        return self._holder.candidate_problem or (self._candidate_waiting if self._holder.candidate else None)

    # -- answering --------------------------------------------------------------------------------------------------------

    def state(self) -> State:
        """See `Backend`."""
        current = self._current
        return State(
            ready=current is not None,
            topology=self._args.topology,
            channel=self._args.channel,
            live=self._holder.live,
            serving=current.release.id if current else None,
            problem=self._problem(),
            candidate=self._holder.candidate,
            candidate_problem=self._candidate_problem(),
        )

    def candidate(self) -> Place | None:
        """See `Backend`."""
        release_id, traffic, held = self._holder.candidate, self._holder.traffic, self._candidate
        if release_id is None:
            return None
        base = base_of(release_id)
        ready = held is not None and held.release.base == base and (self._current is None or self._current.release.base != base)
        return Place(base, traffic.share, traffic.shadow, ready)

    def encoder_of(self, release_id: str) -> str:
        """See `Backend`."""
        return self._encoder_of.get(release_id, "")

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
        return await self.run(item_of, self._pinned(release), item_id)

    async def sample(self, count: int) -> list[ItemOut]:
        """See `Backend`."""
        return await self.run(sample_of, self._pinned(), count)

    async def image(self, item_id: str, release: str | None = None) -> bytes:
        """See `Backend`."""
        return await self.run(image_of, self._pinned(release), item_id)

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
        written = await self._desk.write(self._pinned(), asked)
        self._poller.wake()  # this replica shows it at once, the others within a poll
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
        self._poller.wake()  # this replica follows at once, the others within a poll
        state = self.state()
        live, candidate = (state.live, release.id) if channel == CANDIDATE else (release.id, state.candidate)
        return ReleaseOut.of(release, live, state.serving, candidate, self._holder.held())

    def _releases(self) -> ReleasesOut:
        state = self.state()
        problem = state.problem
        try:
            live = self._registry.channel(self._args.channel)
            releases = self._registry.releases()
        except RegistryError as error:
            live, releases, problem = None, [], problem or str(error)
        live_id = live.id if live else None
        serving = self._current.release if self._current else None
        newest_first = sorted(releases, key=lambda release: (release.created, release.id), reverse=True)
        return ReleasesOut(
            channel=self._args.channel,
            live=live_id,
            serving=serving.base if serving else None,
            edit=serving.edit if serving else 0,
            problem=problem,
            candidate=self._candidate_out(),
            releases=[ReleaseOut.of(release, live_id, state.serving, state.candidate, self._holder.held()) for release in newest_first],
        )

    def _candidate_out(self) -> CandidateOut | None:
        release_id, traffic, state = self._holder.candidate, self._holder.traffic, self.state()
        if release_id is None or self._args.candidate is None:
            return None
        release_id = base_of(release_id)
        return CandidateOut(
            channel=self._args.candidate,
            release=release_id,
            share=traffic.share,
            shadow=traffic.shadow,
            ready=self._candidate is not None and self._candidate.release.base == release_id,
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
        return await self._answered(self._pinned_for(queries[0]), queries)

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


def loads_measured(metrics: Metrics, part: str) -> Callable[[str, float, Exception | None], None]:
    """For a `Holder`: what came of each load, as metrics of a part of the graph."""

    def loaded(release_id: str, seconds: float, error: Exception | None) -> None:
        if error is None:
            metrics.observe("perdure_load_seconds", seconds, part=part)
        else:
            metrics.add("perdure_load_failures_total", release=base_of(release_id), part=part, error=type(error).__name__)

    return loaded


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
