"""The Shard deployments of the sharded topology: shard i of S holds every partition p with p mod S = i, of every segment in use."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perdure.index import Segment, load_segment
from perdure.records import Hits, Release, SegmentRef, base_of
from perdure.registry import open_registry
from perdure.retrieval.asking import Pass
from perdure.retrieval.edits import buried
from perdure.retrieval.follow import Holder, Poller
from perdure.retrieval.retriever import search_segments
from serve.backend import limit_process
from serve.following import loads_measured
from serve.metrics import Metrics
from serve.ray_metrics import ray_sinks
from serve.schemas import ServeArgs

__all__ = ["ShardReplica"]

_MORE_THAN_ANY = 2**31  # partitions


class ShardReplica:
    """Holds {segment: its partitions here} of the releases that are live or still answered from."""

    def __init__(self, args: dict[str, Any], number: int) -> None:
        self._args = ServeArgs.model_validate(args)
        self._metrics = Metrics(*ray_sinks())
        limit_process(self._args)
        self._number = number
        self._registry = open_registry(str(self._args.registry))
        self._segments: dict[SegmentRef, Segment] = {}
        self._holder: Holder[tuple[Release, list[Segment]]] = Holder(
            self._registry,
            self._load,
            channel=self._args.channel,
            beside=self._args.candidate,
            retire_after_s=self._args.retire_after_s,
            forget=self._forget,
            loaded=loads_measured(self._metrics, f"shard-{number}"),
        )
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

    def search(self, release_id: str, queries: Sequence[NDArray[np.float32]], step: Pass) -> tuple[list[Hits], float]:
        """The best of each segment of a release among the partitions here, in the release's order, and the milliseconds it took.

        `queries`: (Q, D) as they are put to each segment, in the release's order.

        Raises:
            NotLoaded: this replica does not hold the release.
            BadQuery: a filter that makes no sense.
        """
        started = time.perf_counter()
        release, segments = self._holder.get(release_id)
        found, took_s = search_segments(release, segments, queries, step), time.perf_counter() - started
        self._metrics.observe("perdure_shard_seconds", took_s, release=base_of(release_id), shard=str(self._number))
        return found, took_s * 1e3

    def vectors(self, release_id: str, places: Sequence[tuple[int, int]]) -> list[NDArray[np.float32]]:
        """(D,) stored vectors of some places: the segment's number in the release, and the row.

        Raises:
            NotLoaded: this replica does not hold the release, or not one of these rows.
        """
        _, segments = self._holder.get(release_id)
        return [segments[number].vectors(np.array([row]))[0] for number, row in places]

    def _load(self, release: Release) -> tuple[Release, list[Segment]]:
        for use in release.segments:
            if use.segment not in self._segments:
                mine = range(self._number, _MORE_THAN_ANY, self._args.shards)
                files = self._registry.files(use.segment)
                segment = load_segment(files, ref=use.segment, made_by=self._registry.made_by(use.segment), only=mine)
                segment.search(np.zeros((1, segment.dim), np.float32), 1, encoder=segment.made_by)
                self._segments[use.segment] = segment
        return release, buried(release, [self._segments[use.segment] for use in release.segments])

    def _forget(self, kept: list[tuple[Release, list[Segment]]]) -> None:
        for ref in self._segments.keys() - {segment.ref for _, segments in kept for segment in segments}:
            del self._segments[ref]
