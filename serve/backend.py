"""What both topologies have in common: following the channel, pinning a release, items, releases; and the fused backend.

Blocking work (the registry, torch, faiss, tables) runs on a small pool of threads, never on the event loop.
"""

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch

from perdure.encoders import Encoder
from perdure.errors import BadQuery, NotFound, NotLoaded, RegistryError
from perdure.index import Entry, Segment, limit_threads
from perdure.records import EncoderRef, Release, SegmentRef
from perdure.registry import open_registry
from perdure.retrieval.follow import Holder, Poller
from perdure.retrieval.retriever import Hit, Query, Retriever, encode
from serve.schemas import HitOut, ItemOut, PromoteRequest, ReleaseOut, ReleasesOut, SearchQuery, SearchResponse, ServeArgs, State

__all__ = ["FollowingBackend", "FusedBackend", "hits_out", "known_item", "limit_process", "warm_up"]

log = logging.getLogger(__name__)

T = TypeVar("T")

_FIRST_WAIT_S = 30.0  # a new replica takes traffic when it has a release, or after this long with the reason why not


class FollowingBackend:
    """A backend that answers from the release of a channel; how a search is carried out is up to the subclass.

    `_current` is one reference, assigned once a flip; a request reads it once and uses what it read to its end.
    """

    def __init__(self, args: ServeArgs) -> None:
        args = args.resolved()
        assert args.registry is not None
        limit_process(args)
        self._args = args
        self._pool = ThreadPoolExecutor(min(8, 2 + (os.cpu_count() or 1)), thread_name_prefix="perdure")
        self._registry = open_registry(args.registry)
        self._current: Retriever | None = None
        self._waiting: str | None = None  # why a release that is held here is not answered from yet
        self._encoders: dict[EncoderRef, Encoder] = {}
        self._segments: dict[SegmentRef, Segment] = {}
        self._holder = Holder(self._registry, self._load, channel=args.channel, retire_after_s=args.retire_after_s, forget=self._forget)
        self._poller = Poller(self._step, args.poll_s, "follow")

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
        self._pool.shutdown(wait=False, cancel_futures=True)

    # -- following --------------------------------------------------------------------------------------------------------

    def _load(self, release: Release) -> Retriever:
        """Everything that this process needs of a release; an exception means that it is not fit to go live."""
        raise NotImplementedError

    def _not_ready(self, release_id: str) -> str | None:
        """Why a release that is held here may not be answered from yet; None = it may."""
        return None

    def _step(self) -> None:
        """One look at the channel and, if it can be, one flip."""
        if self._current is not None:
            self._holder.want([self._current.release.id])
        self._holder.follow()
        held = self._holder.held()
        target = self._holder.live if self._holder.live in held else None
        if target is None and self._current is None and held:
            target = held[-1]  # the live release is bad, and this process has just started: the one before it
        if target is None:
            return
        self._waiting = self._not_ready(target)
        if self._waiting is None and (self._current is None or self._current.release.id != target):
            before = self._current.release.id if self._current else "nothing"
            self._current = self._holder.get(target)
            log.info("answering from %s now (before: %s)", target, before)

    def _forget(self, kept: Sequence[Retriever]) -> None:
        encoders = {ref for retriever in kept for ref in retriever.release.encoders()}
        segments = {use.segment for retriever in kept for use in retriever.release.segments}
        for ref in self._encoders.keys() - encoders:
            del self._encoders[ref]
        for ref in self._segments.keys() - segments:
            del self._segments[ref]

    def _pinned(self) -> Retriever:
        """The release of a request, taken once.

        Raises:
            NotLoaded: there is none yet.
        """
        if self._current is None:
            raise NotLoaded(self._problem() or "no release is loaded yet; try again in a moment")
        return self._current

    def _problem(self) -> str | None:
        return self._holder.problem or self._waiting

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
        )

    async def search(self, query: SearchQuery) -> SearchResponse:
        """See `Backend`."""
        raise NotImplementedError

    async def item(self, item_id: str) -> ItemOut:
        """See `Backend`."""
        return await self._run(_item, self._pinned(), item_id)

    async def sample(self, count: int) -> list[ItemOut]:
        """See `Backend`."""
        return await self._run(_sample, self._pinned(), count)

    async def image(self, item_id: str) -> bytes:
        """See `Backend`."""
        return await self._run(_image, self._pinned(), item_id)

    async def releases(self) -> ReleasesOut:
        """See `Backend`."""
        return await self._run(self._releases)

    async def promote(self, release_id: str, request: PromoteRequest, by: str) -> ReleaseOut:
        """See `Backend`."""

        def move() -> Release:
            return self._registry.promote(release_id, self._args.channel, by=by, force=request.force, reason=request.reason)

        return self._moved(await self._run(move))

    async def rollback(self, by: str) -> ReleaseOut:
        """See `Backend`."""
        return self._moved(await self._run(lambda: self._registry.rollback(self._args.channel, by=by)))

    async def _run(self, work: Callable[..., T], *given: object) -> T:
        """Blocking work on the pool."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, *given)

    def _moved(self, release: Release) -> ReleaseOut:
        self._poller.wake()  # this replica follows at once, the others within a poll
        return ReleaseOut.of(release, release.id, self.state().serving)

    def _releases(self) -> ReleasesOut:
        state = self.state()
        problem = state.problem
        try:
            live = self._registry.channel(self._args.channel)
            releases = self._registry.releases()
        except RegistryError as error:
            live, releases, problem = None, [], problem or str(error)
        live_id = live.id if live else None
        newest_first = sorted(releases, key=lambda release: (release.created, release.id), reverse=True)
        return ReleasesOut(
            channel=self._args.channel,
            live=live_id,
            serving=state.serving,
            problem=problem,
            releases=[ReleaseOut.of(release, live_id, state.serving) for release in newest_first],
        )


class FusedBackend(FollowingBackend):
    """Encoders and partitions in this very process."""

    def _load(self, release: Release) -> Retriever:
        retriever = Retriever.load(self._registry, release, encoders_cache=self._encoders, segments_cache=self._segments)
        warm_up(retriever.encoders.values())
        for segment in retriever.segments:
            segment.search(np.zeros((1, segment.dim), np.float32), 1, encoder=segment.made_by)
        return retriever

    async def search(self, query: SearchQuery) -> SearchResponse:
        """See `Backend`."""
        return await self._run(_search, self._pinned(), query)


def limit_process(args: ServeArgs) -> None:
    """Replicas share a node: each takes the threads that it was given."""
    torch.set_num_threads(args.threads)
    limit_threads(args.threads)


def warm_up(encoders: Iterable[Encoder]) -> None:
    """One query of each kind, so that the first caller does not wait for lazy initialisation, and a broken encoder shows now.

    Raises:
        BadQuery: an encoder yields what is not a unit vector.
    """
    for encoder in encoders:
        blank = np.full((encoder.image_size, encoder.image_size, 3), 128, np.uint8)
        vectors = encode(encoder, [blank, *(["warm up"] if encoder.text is not None else [])])
        if not np.allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-3):
            raise BadQuery("the encoder gives vectors that are not of unit length (or NaN) for a plain grey picture or a short text")


def hits_out(hits: Sequence[Hit]) -> list[HitOut]:
    """Hits as the API shows them."""
    return [
        HitOut(id=hit.id, score=hit.score, label=hit.label, text=hit.text[0] if hit.text else "", task=hit.task, encoder=hit.encoder)
        for hit in hits
    ]


def known_item(retriever: Retriever, item_id: str) -> tuple[int, int]:
    """(segment number, row) of an item.

    Raises:
        NotFound: the release does not hold it.
    """
    try:
        return retriever.locate(item_id)
    except BadQuery as error:
        raise NotFound(str(error)) from None


def _search(retriever: Retriever, query: SearchQuery) -> SearchResponse:
    if query.id is not None:
        known_item(retriever, query.id)
    found = retriever.search(Query(text=query.text, image=query.image, id=query.id), query.k, query.filter)
    return SearchResponse(release=found.release, hits=hits_out(found.hits), partial=found.partial, timings_ms=dict(found.timings_ms))


def _item(retriever: Retriever, item_id: str) -> ItemOut:
    number, row = known_item(retriever, item_id)
    return _item_out(retriever, number, row, retriever.segments[number].table.entries([row])[0])


def _item_out(retriever: Retriever, number: int, row: int, entry: Entry) -> ItemOut:
    segment = retriever.segments[number]
    return ItemOut(
        id=entry.id,
        label=entry.label,
        group=entry.group,
        captions=list(entry.text),
        tags=list(entry.tags),
        task=entry.task,
        segment=str(segment.ref),
        encoder=str(segment.made_by),
        release=retriever.release.id,
        has_image=segment.pictures is not None,
    )


def _sample(retriever: Retriever, count: int) -> list[ItemOut]:
    """Items at equal distances over all segments, so that every task has a chance to be among them."""
    sizes = [len(segment) for segment in retriever.segments]
    ends = np.cumsum(sizes)
    if not sizes or ends[-1] == 0:
        return []
    places = np.unique(np.linspace(0, ends[-1] - 1, num=min(count, int(ends[-1]))).astype(np.int64))
    found: list[ItemOut] = []
    for place in places:
        number = int(np.searchsorted(ends, place, side="right"))
        row = int(place - (ends[number] - sizes[number]))
        found.append(_item_out(retriever, number, row, retriever.segments[number].table.entries([row])[0]))
    return found


def _image(retriever: Retriever, item_id: str) -> bytes:
    number, row = known_item(retriever, item_id)
    picture = retriever.segments[number].picture(row)
    if picture is None:
        raise NotFound(f"item '{item_id}' is stored without its picture ({retriever.segments[number].ref} was built without pictures)")
    return picture
