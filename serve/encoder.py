"""The Encoder deployment of the sharded topology: query texts and pictures to vectors, for every encoder version that is in use."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from perdure.encoders import Encoder, load_encoder
from perdure.errors import PerdureError
from perdure.records import EncoderRef, Release, base_of
from perdure.registry import open_registry
from perdure.retrieval.follow import Holder, Poller
from perdure.retrieval.retriever import check_dim
from serve.backend import limit_process, warm_up
from serve.batching import Asked, Batcher, Vectors, encode_batch, in_thread
from serve.following import loads_measured
from serve.metrics import Metrics
from serve.ray_metrics import ray_sinks
from serve.schemas import ServeArgs

__all__ = ["EncoderReplica"]


class EncoderReplica:
    """Holds {encoder version: model} of the releases that are live or still answered from."""

    def __init__(self, args: dict[str, Any]) -> None:
        self._args = ServeArgs.model_validate(args)
        self._metrics = Metrics(*ray_sinks())
        limit_process(self._args)
        self._registry = open_registry(str(self._args.registry))
        self._models: dict[EncoderRef, Encoder] = {}
        self._holder: Holder[dict[EncoderRef, Encoder]] = Holder(
            self._registry,
            self._load,
            channel=self._args.channel,
            beside=self._args.candidate,
            retire_after_s=self._args.retire_after_s,
            forget=self._forget,
            loaded=loads_measured(self._metrics, "encoder"),
        )
        self._batch = Batcher(in_thread(self._encode), self._args.max_batch)
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

    async def encode(self, release_id: str, encoders: Sequence[EncoderRef], queries: Sequence[str | bytes]) -> tuple[Vectors, float]:
        """(Q, D) unit rows of the queries by each of the encoders, and the milliseconds that the longest pass took.

        Raises:
            NotLoaded: this replica does not hold the release.
            BadQuery: one is not a picture, or a text for an encoder without a text tower.
        """
        models = self._holder.get(release_id)
        wanted = {ref: models[ref] for ref in encoders}
        answers = await asyncio.gather(*(self._batch((wanted, query)) for query in queries))
        took_ms = max(ms for _, ms in answers)
        self._metrics.observe("perdure_encode_seconds", took_ms / 1e3, release=base_of(release_id))
        return {ref: np.concatenate([vectors[ref] for vectors, _ in answers]) for ref in encoders}, took_ms

    def _encode(self, asked: list[Asked]) -> list[tuple[Vectors, float] | PerdureError]:
        self._metrics.observe("perdure_encode_batch", len(asked))
        return encode_batch(asked)

    def _load(self, release: Release) -> dict[EncoderRef, Encoder]:
        for ref in release.encoders():
            if ref not in self._models:
                model = load_encoder(self._registry.folder(ref))
                warm_up([model])
                self._models[ref] = model
        for use in release.segments:
            described = json.loads(self._registry.file(use.segment, "segment.json").read_text(encoding="utf-8"))
            check_dim(release, use, self._models[use.queried_by].embedding_dim, described["dim"])
        return {ref: self._models[ref] for ref in release.encoders()}

    def _forget(self, kept: list[dict[EncoderRef, Encoder]]) -> None:
        for ref in self._models.keys() - {ref for models in kept for ref in models}:
            del self._models[ref]
