"""The Gateway deployment: the HTTP API, in front of one process (fused) or of an Encoder and S shards (sharded).

A request takes its release once and names it in every call. A callee that lacks it says so, and the whole request starts again
on a release that all have; one answer never mixes releases. Calls change nothing, so one that meets a dying replica is made
once more.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from fastapi import FastAPI
from numpy.typing import NDArray
from ray import serve
from ray.exceptions import ActorDiedError, ActorUnavailableError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from perdure.errors import BadQuery, NotLoaded
from perdure.index import load_segment, merge_partitions, partition_of
from perdure.records import EncoderRef, Hits, Release
from perdure.retrieval.compensation import asked, load_drifts
from perdure.retrieval.retriever import Query, Retriever, finish, plan
from serve.api import make_app
from serve.backend import FollowingBackend, FusedBackend, hits_out, known_item
from serve.problems import Problem
from serve.schemas import SearchQuery, SearchResponse, ServeArgs

__all__ = ["Gateway", "ShardedBackend"]

log = logging.getLogger(__name__)

T = TypeVar("T")

_HOLD_TIMEOUT_S = 10.0


@serve.ingress()
class Gateway:
    """One replica of the API."""

    async def __init__(
        self, args: dict[str, Any], encoder: DeploymentHandle | None = None, shards: Sequence[DeploymentHandle] = ()
    ) -> None:
        logging.getLogger("serve").setLevel(logging.INFO)
        self._args = ServeArgs.model_validate(args)
        self._backend = FusedBackend(self._args) if encoder is None else ShardedBackend(self._args, encoder, shards)
        await asyncio.to_thread(self._backend.start)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return make_app(self._backend, self._args)


class ShardedBackend(FollowingBackend):
    """Tables, statistics and pictures here; vectors on the shards; models on the encoder."""

    def __init__(self, args: ServeArgs, encoder: DeploymentHandle, shards: Sequence[DeploymentHandle]) -> None:
        super().__init__(args)
        self._encoder = encoder
        self._shards = list(shards)
        self._held_until = 0.0  # until then the callees keep what this gateway answers from, without being asked again
        self._agreed: str | None = None

    # -- following --------------------------------------------------------------------------------------------------------

    def _load(self, release: Release) -> Retriever:
        """The part of a release that needs no vectors: a retriever whose segments hold no partition."""
        for use in release.segments:
            if use.segment not in self._segments:
                files = self._registry.files(use.segment)
                self._segments[use.segment] = load_segment(files, ref=use.segment, made_by=self._registry.made_by(use.segment), only=())
        return Retriever(release, {}, [self._segments[use.segment] for use in release.segments], load_drifts(self._registry, release))

    def _not_ready(self, release_id: str) -> str | None:
        """Ask every replica of the encoder and of the shards to hold a release, and say who does not."""
        current = self._current.release.id if self._current else None
        if release_id == current == self._agreed and time.monotonic() < self._held_until:
            return None
        wanted = [known for known in dict.fromkeys([current, release_id]) if known is not None]
        for name, held, why in self._hold(wanted):
            if release_id not in held:
                return f"{name}: {why.get(release_id, f'release {release_id} is being loaded')}"
        self._agreed = release_id
        self._held_until = time.monotonic() + min(self._args.retire_after_s / 4, 10.0)
        return None

    def _hold(self, wanted: list[str]) -> list[tuple[str, list[str], dict[str, str]]]:
        """(who, what it holds, why not the rest) of every replica of every callee."""
        asked = [(handle.deployment_name, handle.broadcast("hold", wanted)) for handle in (self._encoder, *self._shards)]
        found: list[tuple[str, list[str], dict[str, str]]] = []
        for name, answers in asked:
            try:
                found += [(name, held, why) for held, why in answers.results(timeout_s=_HOLD_TIMEOUT_S)]
            except Exception as error:  # no replica yet, one that died just now, a timeout: all of them mean "not yet"
                found.append((name, [], {release_id: f"no answer ({type(error).__name__})" for release_id in wanted}))
        return found

    # -- answering --------------------------------------------------------------------------------------------------------

    async def search(self, query: SearchQuery) -> SearchResponse:
        """See `Backend`."""
        pinned = self._pinned()
        try:
            return await self._search(pinned, query)
        except NotLoaded as error:
            log.info("a callee lacks %s (%s); starting over", pinned.release.id, str(error).splitlines()[0])
            return await self._search(await self._run(self._held_by_all), query)

    def _held_by_all(self) -> Retriever:
        """A release that this gateway and every callee hold: the live one, or else the newest."""
        everyone = [set(held) for _, held, _ in self._hold([])]
        common = [release_id for release_id in self._holder.held() if all(release_id in held for held in everyone)]
        if not common:
            raise NotLoaded("no release is held by the encoder and all shards at this moment; try again shortly")
        return self._holder.get(self._holder.live if self._holder.live in common else common[-1])

    async def _search(self, pinned: Retriever, query: SearchQuery) -> SearchResponse:
        started = time.perf_counter()
        vectors, encode_ms = await self._encode(pinned, query)
        modality = Query(text=query.text, image=query.image, id=query.id).modality()
        queries = asked(pinned.release, vectors, [modality], pinned.drifts)
        encoded = time.perf_counter()
        depth = query.k + (query.id is not None)
        answers = await self._fan_out(pinned.release.id, queries, depth, query)
        searched = time.perf_counter()
        hits = await self._run(_merge, pinned, [parts for parts, _ in answers], queries, query)
        merged = time.perf_counter()
        search_ms = max((ms for _, ms in answers), default=0.0)
        timings = {
            "encode": encode_ms,
            "encode_hop": (encoded - started) * 1e3 - encode_ms,
            "search": search_ms,
            "search_hop": (searched - encoded) * 1e3 - search_ms,
            "merge": (merged - searched) * 1e3,
        }
        return SearchResponse(
            release=pinned.release.id,
            hits=hits_out(hits),
            partial=len(answers) < len(self._shards),
            timings_ms={name: round(ms, 3) for name, ms in timings.items()},
        )

    async def _encode(self, pinned: Retriever, query: SearchQuery) -> tuple[dict[EncoderRef, NDArray[np.float32]], float]:
        """(1, D) of the query by each encoder that the release needs, and the milliseconds of the models."""
        wanted = list(plan(pinned.release))
        if query.id is not None:
            return await self._encode_item(pinned, query.id, wanted)
        source = query.text if query.text is not None else query.image
        return await self._ask(lambda: self._encoder.encode.remote(pinned.release.id, wanted, source))

    async def _encode_item(
        self, pinned: Retriever, item_id: str, wanted: Sequence[EncoderRef]
    ) -> tuple[dict[EncoderRef, NDArray[np.float32]], float]:
        """The stored vector where a wanted encoder made one, else the stored picture, encoded."""
        newest, newest_row = await self._run(known_item, pinned, item_id)
        vectors: dict[EncoderRef, NDArray[np.float32]] = {}
        for number, segment in enumerate(pinned.segments):
            row = segment.table.row(item_id) if segment.made_by in wanted and segment.made_by not in vectors else None
            if row is not None:
                shard = self._shards[partition_of(item_id, segment.num_partitions) % len(self._shards)]
                vectors[segment.made_by] = await self._ask(lambda n=number, r=row, s=shard: s.vector.remote(pinned.release.id, n, r))
        missing = [encoder for encoder in wanted if encoder not in vectors]
        if not missing:
            return vectors, 0.0
        picture = await self._run(pinned.segments[newest].picture, newest_row)
        if picture is None:
            raise BadQuery(
                f"item '{item_id}' is stored without its picture, so {missing[0]} cannot embed it. Search by the picture itself."
            )
        fresh, took_ms = await self._ask(lambda: self._encoder.encode.remote(pinned.release.id, missing, picture))
        return {**vectors, **fresh}, took_ms

    async def _fan_out(
        self, release_id: str, queries: Sequence[NDArray[np.float32]], depth: int, query: SearchQuery
    ) -> list[tuple[list[Hits], float]]:
        """Every shard's lists; without those that stay away where the caller allows it."""
        calls = [self._ask(lambda shard=shard: shard.search.remote(release_id, queries, depth, query.filter)) for shard in self._shards]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        failed = [answer for answer in answers if isinstance(answer, BaseException)]
        for error in failed:
            if not (query.partial_ok and isinstance(error, Problem) and len(failed) < len(answers)):
                raise error
        return [answer for answer in answers if not isinstance(answer, BaseException)]

    async def _ask(self, call: Callable[[], Awaitable[T]]) -> T:
        """A call to a callee, made once more when its replica dies.

        Raises:
            Problem: 503 when it cannot be reached, 504 when it takes too long.
        """
        for last in (False, True):
            try:
                return await asyncio.wait_for(_awaited(call), self._args.request_timeout_s)
            except (ActorDiedError, ActorUnavailableError) as error:
                if last:
                    raise Problem(503, "a part of the service is being restarted; try again shortly") from error
                log.warning("a replica went away (%s); asking another one", type(error).__name__)
            except (BackPressureError, DeploymentUnavailableError) as error:
                raise Problem(503, "the service has more requests than it can take; try again shortly") from error
            except TimeoutError as error:
                raise Problem(504, f"a part of the service did not answer within {self._args.request_timeout_s:g} s") from error
        raise AssertionError("unreachable: the second attempt returns or raises")


async def _awaited(call: Callable[[], Awaitable[T]]) -> T:
    return await call()


def _merge(
    pinned: Retriever, answers: Sequence[Sequence[Hits]], queries: Sequence[NDArray[np.float32]], query: SearchQuery
) -> Sequence[Any]:
    """Lists by shard and segment become one."""
    depth = query.k + (query.id is not None)
    by_segment = [merge_partitions([parts[number] for parts in answers], depth) for number in range(len(pinned.segments))]
    return finish(pinned.release, by_segment, dict(enumerate(pinned.segments)), queries, query.k, leave_out=[query.id])[0]
