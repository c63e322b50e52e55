"""What goes over the wire and what a deployment may be told: requests, answers, problems (RFC 9457) and `ServeArgs`.

Annotations are real objects here, never strings: Ray Serve reads the type of the builder's argument, and with postponed
annotations it would silently hand the builder a plain dict.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from perdure.records import Release
from perdure.settings import settings

__all__ = [
    "DeploymentArgs",
    "HitOut",
    "ItemOut",
    "ProblemOut",
    "PromoteRequest",
    "ReleaseOut",
    "ReleasesOut",
    "SearchQuery",
    "SearchRequest",
    "SearchResponse",
    "ServeArgs",
    "State",
]

MAX_K = 1000


class DeploymentArgs(BaseModel):
    """The share of the cluster that one deployment takes."""

    model_config = ConfigDict(extra="forbid")

    num_replicas: int = Field(default=1, ge=1, le=1024)
    num_cpus: float = Field(default=0.25, ge=0, description="logical CPUs that Ray sets aside for a replica; 0 = none")
    max_ongoing_requests: int = Field(default=32, ge=1, description="requests a replica works on at once; more wait in its callers")
    max_queued_requests: int = Field(default=512, ge=-1, description="waiting requests per caller before 503; -1 = no bound")


class ServeArgs(BaseModel):
    """Everything that `serve.graph:build` is told; the `args` of an application in a `serve deploy` YAML."""

    model_config = ConfigDict(extra="forbid")

    registry: str | None = Field(default=None, description="folder or URL; null = PERDURE_REGISTRY, else ./registry")
    topology: Literal["fused", "sharded"] = Field(default="fused", description="one process for everything, or Gateway + Encoder + shards")
    shards: int = Field(default=2, ge=1, le=256, description="S of the sharded topology: partition p is held by shard p mod S")
    channel: str = Field(default="live", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="the registry's channel that is followed")
    poll_s: float = Field(default=1.0, gt=0, le=3600, description="seconds between two looks at the channel")
    retire_after_s: float = Field(default=60.0, ge=0, description="an unused release is let go after this; longer than the longest request")
    request_timeout_s: float = Field(default=30.0, gt=0, description="a call to the encoder or a shard is given up after this")
    host: str = Field(
        default="127.0.0.1", description="address that HTTP listens on, as in http_options; beyond loopback, writes need a keys file"
    )
    keys_file: str | None = Field(default=None, description="file of API keys; null = PERDURE_KEYS, else none")
    max_body_bytes: int = Field(default=16 * 2**20, ge=1024, description="a larger request body is refused with 413")
    threads: int = Field(default=1, ge=1, le=256, description="threads of torch and faiss in each replica")
    max_batch: int = Field(default=32, ge=1, le=4096, description="queries that the sharded encoder embeds in one pass")
    gateway: DeploymentArgs = DeploymentArgs()
    encoder: DeploymentArgs = DeploymentArgs()
    shard: DeploymentArgs = DeploymentArgs()

    def resolved(self) -> "ServeArgs":
        """The same with the environment's answers filled in and folders made absolute: replicas have other working directories."""
        here = settings()
        registry = self.registry or here.registry or "registry"
        if "://" not in registry:
            registry = str(Path(registry).expanduser().resolve())
        keys = self.keys_file or (str(here.keys) if here.keys else None)
        return self.model_copy(update={"registry": registry, "keys_file": str(Path(keys).expanduser().resolve()) if keys else None})


class SearchRequest(BaseModel):
    """`POST /v1/search` as JSON: exactly one of `text`, `image` and `id`."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"text": "a striped circle in the snow", "k": 10}, {"id": "42", "filter": {"task": [0, 1]}}]},
    )

    text: str | None = Field(default=None, max_length=4096, description="words to search by")
    image: str | None = Field(
        default=None, description="base64 of an encoded picture (PNG, JPEG, WebP ...), with or without a data: prefix"
    )
    id: str | None = Field(default=None, max_length=4096, description="search for items similar to this one, which is left out of the hits")
    k: int = Field(default=10, ge=1, le=MAX_K, strict=True, description="number of hits")
    filter: dict[str, Any] = Field(default_factory=dict, description="equality on label, group, task, id or tags; a list means any of")
    partial_ok: bool = Field(default=False, description="when a shard stays away: true = answer without it and say so, false = 503")


@dataclass(frozen=True, eq=False)
class SearchQuery:
    """A search request once it has been read: exactly one of the first three is not None."""

    text: str | None
    image: bytes | None
    id: str | None
    k: int
    filter: dict[str, Any]
    partial_ok: bool = False


class HitOut(BaseModel):
    """One result."""

    id: str
    score: float = Field(description="larger is better; comparable within one answer only")
    label: str
    text: str = Field(description="a caption of the item, if it has one")
    task: int = Field(description="the task of the stream that brought the item")
    encoder: str = Field(description="the encoder version that made the item's vector")


class SearchResponse(BaseModel):
    """The answer to a search, all of it from one release."""

    release: str
    hits: list[HitOut]
    partial: bool = Field(description="true when a shard did not answer and the caller allowed it")
    timings_ms: dict[str, float] = Field(description="where the time in this server went, in milliseconds; they add up")


class ItemOut(BaseModel):
    """What is known about one item."""

    id: str
    label: str
    group: str
    captions: list[str]
    tags: list[str]
    task: int
    segment: str
    encoder: str
    release: str
    has_image: bool


class ReleaseOut(BaseModel):
    """One release of the registry."""

    id: str
    run: str
    task: int
    policy: str
    merge: str
    encoder: str
    segments: list[str]
    metrics: dict[str, Any]
    parent: str | None
    created: str
    live: bool = Field(description="the channel points to it")
    serving: bool = Field(description="this gateway answers from it")

    @classmethod
    def of(cls, release: Release, live: str | None, serving: str | None) -> "ReleaseOut":
        """A release as the API shows it."""
        return cls(
            id=release.id,
            run=release.run,
            task=release.task,
            policy=release.policy,
            merge=release.merge,
            encoder=str(release.encoder),
            segments=[str(use.segment) for use in release.segments],
            metrics=release.metrics,
            parent=release.parent,
            created=release.created,
            live=release.id == live,
            serving=release.id == serving,
        )


class ReleasesOut(BaseModel):
    """All releases, newest first; which one the channel points to; which one answers."""

    channel: str
    live: str | None
    serving: str | None
    problem: str | None = Field(description="why the live release is not the one that answers, if so")
    releases: list[ReleaseOut]


class PromoteRequest(BaseModel):
    """Optional body of a promotion."""

    model_config = ConfigDict(extra="forbid")

    force: bool = Field(default=False, description="promote although a gate refuses; the journal keeps who did it")
    reason: str = Field(default="", max_length=1000, description="a line for the journal")


class State(BaseModel):
    """Whether a gateway can answer, and from what."""

    ready: bool
    topology: str
    channel: str
    live: str | None
    serving: str | None
    problem: str | None


class ProblemOut(BaseModel):
    """RFC 9457 problem details, `application/problem+json`."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    request_id: str
    errors: list[dict[str, str]] = Field(default_factory=list)
