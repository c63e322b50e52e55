"""The Gateway deployment: the HTTP API, in front of one process (fused) or of an Encoder and S shards (sharded).

A request takes its release once and names it in every call. A callee that lacks it says so, and the whole request starts again
on a release that all have; one answer never mixes releases. Calls that meet a replica that dies or hangs are made
again, see `calls`.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Sequence
from typing import Any

import numpy as np
from fastapi import FastAPI
from numpy.typing import NDArray
from ray import serve
from ray.serve.handle import DeploymentHandle

from perdure.encoders import load_encoder
from perdure.errors import BadQuery, NotLoaded, PerdureError
from perdure.index import load_segment, merge_partitions, partition_of
from perdure.records import EncoderRef, Hits, Release
from perdure.retrieval.answers import Clock, Hit, finish, results
from perdure.retrieval.asking import Parts, Pass, Query, Search, expanded, passes
from perdure.retrieval.calibration import load_calibration
from perdure.retrieval.compensation import asked, load_drifts
from perdure.retrieval.edits import buried
from perdure.retrieval.retriever import Retriever, plan
from serve.answering import gone, known_item, respond
from serve.api import make_app
from serve.backend import FollowingBackend, FusedBackend, warm_up
from serve.batching import Vectors, encode_batch
from serve.calls import Calls
from serve.channels import CANDIDATE
from serve.metrics import Sink
from serve.problems import Problem
from serve.ray_metrics import ray_sinks
from serve.reading import SearchQuery
from serve.schemas import SearchResponse, ServeArgs

__all__ = ["Gateway", "ShardedBackend"]

log = logging.getLogger(__name__)

_HOLD_TIMEOUT_S = 10.0
_FEW = 400  # hits to merge, under 2 ms: a thread adds 0.2 to 0.4, on an idle machine

_Place = tuple[int, int, str]  # the number of a segment in its release, a row of it, and the id of the item there


@serve.ingress()  # pyright: ignore[reportUntypedClassDecorator]
class Gateway:
    """One replica of the API."""

    async def __init__(
        self, args: dict[str, Any], encoder: DeploymentHandle | None = None, shards: Sequence[DeploymentHandle] = ()
    ) -> None:
        logging.getLogger("serve").setLevel(logging.INFO)
        self._args = ServeArgs.model_validate(args)
        sinks = ray_sinks()
        if encoder is None:
            self._backend = FusedBackend(self._args, *sinks)
        else:
            encoder, *shards = (handle.options(_by_reference=False) for handle in (encoder, *shards))  # by gRPC, see decision 22
            self._backend = ShardedBackend(self._args, encoder, shards, *sinks)
        await asyncio.to_thread(self._backend.start)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return make_app(self._backend, self._args)


class ShardedBackend(FollowingBackend):
    """Tables, statistics and pictures here; vectors on the shards; models on the encoder, and here for texts."""

    def __init__(self, args: ServeArgs, encoder: DeploymentHandle, shards: Sequence[DeploymentHandle], *sinks: Sink) -> None:
        super().__init__(args, *sinks)
        self._encoder = encoder
        self.shards = list(shards)
        self._agreed: dict[str, float] = {}  # release: until then the callees keep it without being asked again
        self.ask = Calls(args)

    # -- following --------------------------------------------------------------------------------------------------------

    def _load(self, release: Release) -> Retriever:
        """The part of a release that needs no vectors: a retriever whose segments hold no partition, and models for texts alone."""
        for ref in release.encoders() if self._args.texts_in_gateway else ():
            if ref not in self._encoders:
                model = load_encoder(self._registry.folder(ref))
                warm_up([model], pictures=False)
                self._encoders[ref] = model
        for use in release.segments:
            if use.segment not in self._segments:
                files = self._registry.files(use.segment)
                self._segments[use.segment] = load_segment(files, ref=use.segment, made_by=self._registry.made_by(use.segment), only=())
        segments = buried(release, [self._segments[use.segment] for use in release.segments])
        models = {ref: self._encoders[ref] for ref in release.encoders() if ref in self._encoders}
        return Retriever(release, models, segments, load_drifts(self._registry, release), load_calibration(self._registry, release))

    def _not_ready(self, release_id: str) -> str | None:
        """Ask every replica of the encoder and of the shards to hold a release, and say who does not."""
        answered = self.following.answered_from()
        if release_id in answered and time.monotonic() < self._agreed.get(release_id, 0.0):
            return None
        self._agreed.pop(release_id, None)
        wanted = list(dict.fromkeys([*answered, release_id]))
        for name, held, why in self._hold(wanted):
            if release_id not in held:
                return f"{name}: {why.get(release_id, f'release {release_id} is being loaded')}"
        until = time.monotonic() + min(self._args.retire_after_s / 4, 10.0)
        self._agreed = {known: at for known, at in self._agreed.items() if known in answered} | {release_id: until}
        return None

    def _hold(self, wanted: list[str]) -> list[tuple[str, list[str], dict[str, str]]]:
        """(who, what it holds, why not the rest) of every replica of every callee."""
        asked = [(handle.deployment_name, handle.broadcast("hold", wanted)) for handle in (self._encoder, *self.shards)]
        found: list[tuple[str, list[str], dict[str, str]]] = []
        for name, answers in asked:
            try:
                found += [(name, held, why) for held, why in answers.results(timeout_s=_HOLD_TIMEOUT_S)]
            except Exception as error:  # no replica yet, one that died just now, a timeout: all of them mean "not yet"
                found.append((name, [], {release_id: f"no answer ({type(error).__name__})" for release_id in wanted}))
        return found

    # -- answering --------------------------------------------------------------------------------------------------------

    async def search(self, queries: Sequence[SearchQuery]) -> list[SearchResponse]:
        """See `Backend`."""
        named, route = queries[0].release, queries[0].route
        pinned = self.following.pinned_for(queries[0])
        try:
            return await self._answered(pinned, queries)
        except NotLoaded as error:
            if named is not None:
                raise gone(named) from error
            if route.channel == CANDIDATE and route.asked:
                raise
            log.info("a callee lacks %s (%s); starting over", pinned.release.id, str(error).splitlines()[0])
            return await self._answered(await self.run(self._held_by_all), queries)

    def _held_by_all(self) -> Retriever:
        """A release that this gateway and every callee hold: the live one, or else the newest."""
        everyone = [set(held) for _, held, _ in self._hold([])]
        common = [release_id for release_id in self.following.held() if all(release_id in held for held in everyone)]
        if not common:
            raise NotLoaded("no release is held by the encoder and all shards at this moment; try again shortly")
        current = self.following.current.release.id if self.following.current else None
        proven = [release_id for release_id in common if release_id != self.following.holder.candidate]  # a candidate stands in for nothing
        best = next((one for one in (self.following.holder.live, current) if one in common), (proven or common)[-1])
        return self.following.holder.get(best)

    async def _answer(self, pinned: Retriever, queries: Sequence[SearchQuery]) -> list[SearchResponse]:
        searches = [query.search for query in queries]
        clock = Clock()
        parts = Parts.of([search.query for search in searches])
        embedded, encode_ms = await self._encode(pinned, parts.queries)
        put = [parts.together(rows) for rows in asked(pinned.release, embedded, parts.modalities, pinned.drifts)]
        clock.took("encode", encode_ms)
        moved_by: dict[int, list[Hit]] = {}
        for place, search in enumerate(searches):
            if search.expand:
                alone = _Fan(self, pinned, [search.first()], queries[place].partial_ok)
                hits = (await alone.lists([rows[[place]] for rows in put], Clock()))[0][: search.expand]
                put = [rows.copy() for rows in put]
                vectors = await self._vectors(pinned, [(hit.segment, hit.row, hit.id) for hit in hits])
                near = [(hit.segment, vector) for hit, vector in zip(hits, vectors, strict=True)]
                expanded(pinned.release, put, place, search.alpha, near)
                moved_by[place] = hits
        if moved_by:
            clock.took("expand")
        fan = _Fan(self, pinned, searches, all(query.partial_ok for query in queries))
        lists = await fan.lists(put, clock)
        found = results(pinned.release, searches, lists, put, moved_by, clock.timings_ms, fan.partial)
        return [respond(pinned, query, one, "sharded", fan.shards_ms) for query, one in zip(queries, found, strict=True)]

    async def _encode(self, pinned: Retriever, queries: Sequence[Query]) -> tuple[Vectors, float]:
        """(Q, D) of the queries by each encoder that the release needs, and the milliseconds of the models."""
        wanted = tuple(plan(pinned.release))
        rows = await self._stored(pinned, queries, wanted)
        lacking: dict[tuple[EncoderRef, ...], list[int]] = {}
        for place, vectors in enumerate(rows):
            missing = tuple(encoder for encoder in wanted if encoder not in vectors)
            if missing:
                lacking.setdefault(missing, []).append(place)
        calls = [self._embedded(pinned, [queries[place] for place in places], missing) for missing, places in lacking.items()]
        fresh = await asyncio.gather(*calls)
        for places, (vectors, _) in zip(lacking.values(), fresh, strict=True):
            for at, place in enumerate(places):
                rows[place] |= {encoder: own[at : at + 1] for encoder, own in vectors.items()}
        return {encoder: np.concatenate([own[encoder] for own in rows]) for encoder in wanted}, max((ms for _, ms in fresh), default=0.0)

    async def _stored(self, pinned: Retriever, queries: Sequence[Query], wanted: Sequence[EncoderRef]) -> list[Vectors]:
        """Of each query that is an item, (1, D) its stored vector by each of the encoders that made one."""
        rows: list[Vectors] = [{} for _ in queries]
        if all(query.id is None for query in queries):
            return rows
        found = await self.run(_stored_places, pinned, queries, wanted)
        vectors = await self._vectors(pinned, [place for _, _, place in found])
        for (number, encoder, _), vector in zip(found, vectors, strict=True):
            rows[number][encoder] = vector[None]
        return rows

    async def _embedded(self, pinned: Retriever, queries: Sequence[Query], encoders: Sequence[EncoderRef]) -> tuple[Vectors, float]:
        """(Q, D) of the queries by some encoders, and the milliseconds of the models; an item is embedded by its stored picture.

        Texts here, where this gateway holds the models; the others by the encoder.
        """
        texts = [at for at, query in enumerate(queries) if query.text is not None and all(ref in pinned.encoders for ref in encoders)]
        others = sorted(set(range(len(queries))) - set(texts))
        if not texts:
            return await self._by_encoder(pinned, queries, encoders)
        calls = [self._texts(pinned, [str(queries[at].text) for at in texts], encoders)]
        if others:
            calls.append(self._by_encoder(pinned, [queries[at] for at in others], encoders))
        found = await asyncio.gather(*calls)
        order = np.argsort([*texts, *others])
        rows = {ref: np.concatenate([vectors[ref] for vectors, _ in found])[order] for ref in encoders}
        return rows, max(ms for _, ms in found)

    async def _texts(self, pinned: Retriever, texts: Sequence[str], encoders: Sequence[EncoderRef]) -> tuple[Vectors, float]:
        """(Q, D) of texts by models that are held here, and the milliseconds of them.

        Raises:
            BadQuery: a model without a text tower.
        """
        models = {ref: pinned.encoders[ref] for ref in encoders}
        self.metrics.observe("perdure_encode_batch", len(texts))
        answers = await self.run(encode_batch, [(models, text) for text in texts])
        rows: list[Vectors] = []
        took_ms = 0.0
        for answer in answers:
            if isinstance(answer, PerdureError):
                raise answer
            rows.append(answer[0])
            took_ms = max(took_ms, answer[1])
        self.metrics.observe("perdure_encode_seconds", took_ms / 1e3, release=pinned.release.base)
        return {ref: np.concatenate([vectors[ref] for vectors in rows]) for ref in encoders}, took_ms

    async def _by_encoder(self, pinned: Retriever, queries: Sequence[Query], encoders: Sequence[EncoderRef]) -> tuple[Vectors, float]:
        """The same by a replica of the encoder."""

        def source(query: Query) -> str | bytes:
            if query.id is None:
                found = query.text if query.text is not None else query.image
                assert isinstance(found, str | bytes)
                return found
            number, row = known_item(pinned, query.id)
            picture = pinned.segments[number].picture(row)
            if picture is None:
                raise BadQuery(
                    f"item '{query.id}' is stored without its picture, so {encoders[0]} cannot embed it. Search by the picture itself."
                )
            return picture

        sources = await self.run(lambda: [source(query) for query in queries])
        return await self.ask(lambda: self._encoder.encode.remote(pinned.release.id, encoders, sources))

    async def _vectors(self, pinned: Retriever, places: Sequence[_Place]) -> list[NDArray[np.float32]]:
        """The stored vector (D,) of each place."""
        by_shard: dict[int, list[int]] = {}
        for at, (number, _, item_id) in enumerate(places):
            by_shard.setdefault(self._shard_of(pinned, number, item_id), []).append(at)

        def ask(shard: int, own: Sequence[int]) -> Awaitable[list[NDArray[np.float32]]]:
            wanted = [places[at][:2] for at in own]
            return self.ask(lambda: self.shards[shard].vectors.remote(pinned.release.id, wanted))

        answers = await asyncio.gather(*(ask(shard, own) for shard, own in by_shard.items()))
        found: dict[int, NDArray[np.float32]] = {}
        for own, vectors in zip(by_shard.values(), answers, strict=True):
            found |= dict(zip(own, vectors, strict=True))
        return [found[at] for at in range(len(places))]

    def _shard_of(self, pinned: Retriever, number: int, item_id: str) -> int:
        """The shard that holds an item of a segment."""
        return partition_of(item_id, pinned.segments[number].num_partitions) % len(self.shards)

    async def embed_new(self, pinned: Retriever, sources: Sequence[str | bytes]) -> list[NDArray[np.float32] | PerdureError]:
        """See `FollowingBackend`."""
        encoder, some = pinned.release.encoder, asyncio.Semaphore(self._args.max_batch)

        async def one(source: str | bytes) -> NDArray[np.float32] | PerdureError:
            async with some:
                try:
                    rows, _ = await self.ask(lambda: self._encoder.encode.remote(pinned.release.id, [encoder], [source]))
                except BadQuery as error:
                    return error
                return rows[encoder][0]

        return list(await asyncio.gather(*map(one, sources)))


def _stored_places(pinned: Retriever, queries: Sequence[Query], wanted: Sequence[EncoderRef]) -> list[tuple[int, EncoderRef, _Place]]:
    """(number of the query, encoder, where it is stored) of the vectors of items by the encoders that made one.

    Raises:
        NotFound: the release does not hold an item.
    """
    found: dict[tuple[int, EncoderRef], _Place] = {}
    for place, query in enumerate(queries):
        if query.id is not None:
            known_item(pinned, query.id)
            for number, segment in enumerate(pinned.segments):
                row = segment.row(query.id) if segment.made_by in wanted else None
                if row is not None:
                    found.setdefault((place, segment.made_by), (number, row, query.id))
    return [(place, encoder, at) for (place, encoder), at in found.items()]


class _Fan:
    """The passes of some searches through all shards of a release."""

    def __init__(self, backend: ShardedBackend, pinned: Retriever, searches: Sequence[Search], partial_ok: bool) -> None:
        self._backend = backend
        self._pinned = pinned
        self._searches = searches
        self._partial_ok = partial_ok
        self._answered = dict.fromkeys(range(len(backend.shards)), 0.0)  # milliseconds of the shards that answered every pass

    @property
    def partial(self) -> bool:
        """Whether a shard stayed away."""
        return len(self._answered) < len(self._backend.shards)

    @property
    def shards_ms(self) -> list[float]:
        """What each shard that answered took."""
        return list(self._answered.values())

    async def lists(self, put: Sequence[NDArray[np.float32]], clock: Clock) -> list[list[Hit]]:
        """The `wanted` hits of each search, by the queries (Q, D) as they are put to each segment."""
        lists: list[list[Hit]] = [[] for _ in self._searches]
        for step in passes(self._searches):
            queries = [rows[step.places] for rows in put]
            answers = await self._fan_out(queries, step)
            clock.took("search", max((ms for _, ms in answers), default=0.0))
            asking = [self._searches[place].query for place in step.places]
            given = self._pinned, [parts for parts, _ in answers], queries, step.depth, asking
            few = step.depth * len(answers) * len(asking) <= _FEW
            found = _merge(*given) if few else await self._backend.run(_merge, *given)
            for place, hits in zip(step.places, found, strict=True):
                lists[place] = hits[: self._searches[place].wanted]
            clock.took("merge")
        return lists

    async def _fan_out(self, queries: Sequence[NDArray[np.float32]], step: Pass) -> list[tuple[list[Hits], float]]:
        """Every shard's lists; without those that stay away where the caller allows it."""
        ask, release_id = self._backend.ask, self._pinned.release.id
        calls = [ask(lambda shard=shard: shard.search.remote(release_id, queries, step)) for shard in self._backend.shards]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        failed = [answer for answer in answers if isinstance(answer, BaseException)]
        for error in failed:
            if not (self._partial_ok and isinstance(error, Problem) and len(failed) < len(answers)):
                raise error
        for number, answer in enumerate(answers):
            if isinstance(answer, BaseException):
                self._answered.pop(number, None)
            elif number in self._answered:
                self._answered[number] += answer[1]
        return [answer for answer in answers if not isinstance(answer, BaseException)]


def _merge(
    pinned: Retriever,
    answers: Sequence[Sequence[Hits]],
    queries: Sequence[NDArray[np.float32]],
    depth: int,
    asking: Sequence[Query],
) -> list[list[Hit]]:
    """Lists by shard and segment become one for each query."""
    by_segment = [merge_partitions([parts[number] for parts in answers], depth) for number in range(len(pinned.segments))]
    return finish(
        pinned.release,
        by_segment,
        dict(enumerate(pinned.segments)),
        queries,
        depth,
        leave_out=[query.id for query in asking],
        calibration=pinned.calibration,
        modalities=[query.modality() for query in asking],
    )
