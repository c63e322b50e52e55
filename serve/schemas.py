"""What goes over the wire and what a deployment may be told: requests, answers, problems (RFC 9457) and `ServeArgs`.

Annotations are real objects here, never strings: Ray Serve reads the type of the builder's argument, and with postponed
annotations it would silently hand the builder a plain dict.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from perdure.records import Release, Scalar, base_of
from perdure.settings import settings

__all__ = [
    "MAX_DEPTH",
    "RELEASE_ID",
    "BatchRequest",
    "BatchResponse",
    "CandidateOut",
    "DeploymentArgs",
    "ExpandRequest",
    "Explained",
    "HitOut",
    "ItemOut",
    "MatrixOut",
    "MeasuredOut",
    "ProblemOut",
    "PromoteRequest",
    "ReleaseOut",
    "ReleasesOut",
    "RollbackRequest",
    "SearchRequest",
    "SearchResponse",
    "SegmentExplained",
    "ServeArgs",
    "ShadowOut",
    "State",
]

RELEASE_ID = r"^[A-Za-z0-9][A-Za-z0-9._-]*@v\d+$"
MAX_K = 1000
MAX_DEPTH = 10_000  # hits of a list that can be paged through, and of all lists of a batch
MAX_QUERIES = 64  # of a batch


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
    runs: str | None = Field(default=None, description="folder of the runs' reports, for the page; null = PERDURE_RUNS, else ./runs")
    topology: Literal["fused", "sharded"] = Field(default="fused", description="one process for everything, or Gateway + Encoder + shards")
    shards: int = Field(default=2, ge=1, le=256, description="S of the sharded topology: partition p is held by shard p mod S")
    channel: str = Field(default="live", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="the registry's channel that is followed")
    candidate: str | None = Field(
        default="candidate",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="the channel whose release is held beside it, for a share of the requests and for shadow queries; null = none",
    )
    poll_s: float = Field(default=1.0, gt=0, le=3600, description="seconds between two looks at the channel")
    retire_after_s: float = Field(default=60.0, ge=0, description="an unused release is let go after this; longer than the longest request")
    request_timeout_s: float = Field(default=30.0, gt=0, description="a call to the encoder or a shard is given up after this")
    second_call_after_s: float = Field(
        default=1.0, gt=0, description="a call to the encoder or a shard that is not answered by then is made to another replica as well"
    )
    health_check_timeout_s: float = Field(default=10.0, gt=0, description="a replica that is three times slower than this is replaced")
    host: str = Field(
        default="127.0.0.1", description="address that HTTP listens on, as in http_options; beyond loopback, writes need a keys file"
    )
    keys_file: str | None = Field(default=None, description="file of API keys; null = PERDURE_KEYS, else none")
    max_body_bytes: int = Field(default=16 * 2**20, ge=1024, description="a larger request body is refused with 413")
    rate_per_s: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="of a key (without keys, an address), to one gateway; null = any",
    )
    burst: int = Field(default=20, ge=1, description="with rate_per_s: requests at once, after a pause")
    threads: int = Field(default=1, ge=1, le=256, description="threads of torch and faiss in each replica")
    max_shadows: int = Field(default=32, ge=0, le=4096, description="shadow queries that may wait in a gateway; more are left out")
    max_batch: int = Field(
        default=32,
        ge=1,
        le=4096,
        description="queries that are embedded in one pass, and searches that are answered in one; 1 = one by one",
    )
    texts_in_gateway: bool = Field(
        default=True,
        description="sharded: a gateway holds the models, too, and embeds texts itself, which saves a call; false = the encoder does",
    )
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
        runs = str(Path(self.runs or here.runs).expanduser().resolve())
        keys = str(Path(keys).expanduser().resolve()) if keys else None
        return self.model_copy(update={"registry": registry, "keys_file": keys, "runs": runs})


class ExpandRequest(BaseModel):
    """Query expansion: a first search's best hits are put into the query of a second one."""

    model_config = ConfigDict(extra="forbid")

    hits: int = Field(default=5, ge=1, le=100, strict=True, description="how many of them")
    alpha: float = Field(
        default=3.0, ge=0, le=100, allow_inf_nan=False, description="each counts as its similarity to this power; 0 = all alike"
    )


class SearchRequest(BaseModel):
    """`POST /v1/search` as JSON: one of `text`, `image` and `id`, or `text` and `image` together."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"text": "a striped circle in the snow", "k": 10}, {"id": "42", "filter": {"price": {"lt": 20}}}]},
    )

    text: str | None = Field(default=None, max_length=4096, description="words to search by")
    image: str | None = Field(
        default=None, description="base64 of an encoded picture (PNG, JPEG, WebP ...), with or without a data: prefix"
    )
    id: str | None = Field(default=None, max_length=4096, description="search for items similar to this one, which is left out of the hits")
    image_weight: float | None = Field(
        default=None,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="with text and image: how much the picture counts, 0 = the text alone, 1 = the picture alone; null = 0.5",
    )
    k: int = Field(default=10, ge=1, le=MAX_K, strict=True, description="number of hits")
    offset: int = Field(
        default=0,
        ge=0,
        le=MAX_DEPTH,
        strict=True,
        description="hits to leave out at the beginning; a `cursor` also stays on one release",
    )
    cursor: str | None = Field(default=None, max_length=1024, description="`next` of an answer to this query: the page after it")
    release: str | None = Field(
        default=None,
        pattern=RELEASE_ID,
        description="answer from this release, which must be held: /v1/releases says which are; null = the one that the channel decides",
    )
    filter: dict[str, Any] = Field(
        default_factory=dict,
        description="conditions on id, label, group, task, tags and any field of the payload, all to be satisfied: a value, a list of "
        'values (any of them), a range {"gte": 10, "lt": 20}, or {"not": ...} one of these',
    )
    exact: bool = Field(default=False, description="scan what is otherwise searched approximately (hnsw, ivfpq)")
    expand: ExpandRequest | None = Field(default=None, description="query expansion; null = none")
    explain: bool = Field(default=False, description="tell how the answer came about")
    payload: bool | Annotated[list[str], Field(max_length=64)] = Field(
        default=False, description="true = each hit with its payload, a list = with these fields of it"
    )
    partial_ok: bool = Field(default=False, description="when a shard stays away: true = answer without it and say so, false = 503")


class BatchRequest(BaseModel):
    """`POST /v1/search/batch`."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"queries": [{"text": "a circle"}, {"id": "42", "k": 3}]}]})

    queries: list[SearchRequest] = Field(min_length=1, max_length=MAX_QUERIES, description="as for `POST /v1/search`, but without a cursor")


class HitOut(BaseModel):
    """One result."""

    id: str
    score: float = Field(description="larger is better; comparable within one answer only")
    label: str
    text: str = Field(description="a caption of the item, if it has one")
    task: int = Field(description="the task of the stream that brought the item")
    encoder: str = Field(description="the encoder version that made the item's vector")
    payload: dict[str, Scalar] | None = Field(default=None, description="what else is known of the item, where it was asked for")
    segment: str | None = Field(default=None, description="explain: the segment that holds the vector")
    raw_score: float | None = Field(default=None, description="explain: the similarity in its segment, before `merge` made it `score`")


class SegmentExplained(BaseModel):
    """How one segment of the release was searched."""

    segment: str
    made_by: str = Field(description="the encoder of its vectors")
    queried_by: str = Field(description="the encoder of the query that was put to it")
    compensated: bool | Literal["bridge"] = Field(
        description="true: the drift between these two was taken off the query; bridge: it was turned back by a map between them"
    )
    kind: str = Field(description="of its partitions: flat, hnsw, binary or ivfpq")
    exact: bool = Field(description="whether all that passes was compared: flat and binary always, others under a filter or `exact`")
    items: int
    passing: int = Field(description="items that the filter lets pass")
    mean: float = Field(description="of the query's scores over the whole segment")
    std: float = Field(description="of the same; with merge=standardised, score = (raw_score - mean) / std")


class Explained(BaseModel):
    """How an answer came about; its times are in `timings_ms`."""

    topology: str
    merge: str = Field(description="how lists of segments became one; raw where there is one segment")
    segments: list[SegmentExplained]
    shards_ms: list[float] | None = Field(default=None, description="sharded: what each shard that answered took, over all its passes")
    expanded_by: list[str] = Field(description="items that were put into the query")


class SearchResponse(BaseModel):
    """The answer to a search, all of it from one release."""

    release: str
    hits: list[HitOut]
    partial: bool = Field(description="true when a shard did not answer and the caller allowed it")
    timings_ms: dict[str, float] = Field(
        description="where the time in this server went, in milliseconds; they add up; of a batch, the time of all of it"
    )
    next: str | None = Field(default=None, description="there are more: send the request again with this as `cursor`")
    explain: Explained | None = None


class BatchResponse(BaseModel):
    """The answers to the queries of a batch, in their order, all of them from one release."""

    results: list[SearchResponse]


class ItemOut(BaseModel):
    """What is known about one item."""

    id: str
    label: str
    group: str
    captions: list[str]
    tags: list[str]
    payload: dict[str, Scalar]
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
    candidate: bool = Field(default=False, description="the channel beside the live one points to it")
    held: bool = Field(default=False, description="this gateway holds it, so that a search may name it")

    @classmethod
    def of(
        cls, release: Release, live: str | None, serving: str | None, candidate: str | None = None, held: Sequence[str] = ()
    ) -> "ReleaseOut":
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
            live=release.id == base_of(live or ""),
            serving=release.id == base_of(serving or ""),
            candidate=release.id == base_of(candidate or ""),
            held=release.id in map(base_of, held),
        )


class ShadowOut(BaseModel):
    """What shadow queries found, on the gateway that answers, since the candidate was put beside the live release."""

    live: str
    compared: int = Field(description="queries that both releases answered")
    failed: int = Field(description="requests that the candidate failed to answer")
    left_out: int = Field(description="requests whose shadow was left out, because too many were waiting")
    overlap: float | None = Field(description="mean overlap@k: hits in common / length of the longer list")
    same_first: float | None = Field(description="share of the queries with the same best hit")
    live_ms: float | None = Field(description="mean time of a request")
    candidate_ms: float | None


class CandidateOut(BaseModel):
    """The release beside the live one."""

    channel: str
    release: str
    share: float = Field(description="percent of the requests that it answers")
    shadow: float = Field(description="percent of the requests that are put to it as well, for comparison")
    ready: bool = Field(description="held by all who take part in an answer")
    problem: str | None = Field(description="why not")
    shadows: ShadowOut | None = None


class ReleasesOut(BaseModel):
    """All releases, newest first; which one the channel points to; which one answers."""

    channel: str
    live: str | None
    serving: str | None
    edit: int = Field(description="the newest edit of its items that the answers show; 0 = nothing was written")
    problem: str | None = Field(description="why the live release is not the one that answers, if so")
    candidate: CandidateOut | None = Field(default=None, description="the release beside it, if there is one")
    releases: list[ReleaseOut]


class MatrixOut(BaseModel):
    """Row t, column j: task j after task t was learned; null = not measured."""

    metric: str
    matrix: list[list[float | None]]


class MeasuredOut(BaseModel):
    """What was measured of a release; what was not is null."""

    release: str
    run: str
    accuracy: MatrixOut | None
    compatibility: dict[str, Any] | None = Field(description="matrix[i][j]: encoder i asks the gallery of encoder j; AC, BC, keep")
    no_compatibility: str | None = Field(description="why there is none")
    backfill: dict[str, Any] | None = Field(description="the backfill that the release is a step of: its points, from the start on")
    gates: list[dict[str, Any]]


class PromoteRequest(BaseModel):
    """Optional body of a promotion."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"channel": "candidate", "share": 5, "shadow": 50}]})

    channel: Literal["live", "candidate"] = Field(default="live", description="live, or candidate: beside the live release")
    share: float = Field(default=0, ge=0, le=100, allow_inf_nan=False, description="candidate: percent of the requests that it answers")
    shadow: float = Field(
        default=0, ge=0, le=100, allow_inf_nan=False, description="candidate: percent of the requests that are put to it as well"
    )

    force: bool = Field(default=False, description="promote although a gate refuses; the journal keeps who did it")
    reason: str = Field(default="", max_length=1000, description="a line for the journal")


class RollbackRequest(BaseModel):
    """Optional body of a rollback."""

    model_config = ConfigDict(extra="forbid")

    channel: Literal["live", "candidate"] = "live"
    reason: str = Field(default="", max_length=1000, description="a line for the journal")


class State(BaseModel):
    """Whether a gateway can answer, and from what."""

    ready: bool
    topology: str
    channel: str
    live: str | None
    serving: str | None
    problem: str | None
    candidate: str | None = None
    candidate_problem: str | None = None


class ProblemOut(BaseModel):
    """RFC 9457 problem details, `application/problem+json`."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    request_id: str
    errors: list[dict[str, str]] = Field(default_factory=list)
