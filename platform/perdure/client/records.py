"""What a server answers, typed. What a newer server adds is left out; what an answer must have and has not is an error."""

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, TypeVar

from perdure.client.problems import UnexpectedAnswer

__all__ = [
    "Answer",
    "Hit",
    "ItemInfo",
    "ItemWritten",
    "ReleaseInfo",
    "ReleasesInfo",
    "Written",
    "answer_of",
    "read",
    "releases_of",
    "written_of",
]

R = TypeVar("R")
Scalar = str | int | float | bool


@dataclass(frozen=True, slots=True)
class Hit:
    """One item that was found."""

    id: str
    score: float  # larger is better; comparable within one answer only
    label: str
    text: str
    task: int
    encoder: str
    payload: Mapping[str, Scalar] | None = None  # where it was asked for
    segment: str | None = None  # where an explanation was asked for, as is the next
    raw_score: float | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """The hits of a search, best first, all from one release."""

    release: str
    hits: tuple[Hit, ...]
    partial: bool  # a shard did not answer, and that was allowed
    timings_ms: Mapping[str, float]
    next: str | None = None  # there are more: the cursor of the next page
    explain: Mapping[str, Any] | None = None

    def __iter__(self) -> Iterator[Hit]:
        return iter(self.hits)

    def __len__(self) -> int:
        return len(self.hits)

    def __getitem__(self, place: int) -> Hit:
        return self.hits[place]


@dataclass(frozen=True, slots=True)
class ItemInfo:
    """What is known about one item."""

    id: str
    label: str
    group: str
    captions: list[str]
    tags: list[str]
    payload: Mapping[str, Scalar]
    task: int
    segment: str
    encoder: str
    release: str
    has_image: bool


@dataclass(frozen=True, slots=True)
class ItemWritten:
    """What became of one item of a write."""

    id: str
    status: str  # "stored", "deleted" or "refused"
    detail: str | None = None  # why it was refused


@dataclass(frozen=True, slots=True)
class Written:
    """A write that is durable; answers of `<release>+<edit>`, and of later edits, show it."""

    edit: int  # 0: nothing was written
    refused: int  # how many items were not written
    results: tuple[ItemWritten, ...]


@dataclass(frozen=True, slots=True)
class ReleaseInfo:
    """One release of the registry."""

    id: str
    run: str
    task: int
    policy: str
    merge: str
    encoder: str
    segments: list[str]
    metrics: Mapping[str, Any]
    parent: str | None
    created: str
    live: bool
    serving: bool
    candidate: bool = False
    held: bool = False  # a search may name it


@dataclass(frozen=True, slots=True)
class ReleasesInfo:
    """All releases, newest first; which one is live, which one answers, and why these differ, if they do."""

    channel: str
    live: str | None
    serving: str | None
    problem: str | None
    releases: tuple[ReleaseInfo, ...]
    candidate: Mapping[str, Any] | None = None  # the release beside the live one, and what shadow queries found
    edit: int = 0  # the newest write that answers show


def read(kind: type[R], plain: Any) -> R:
    """A record from JSON.

    Raises:
        UnexpectedAnswer: something that it must have is not there.
    """
    known = fields(kind)  # type: ignore[arg-type]
    missing = [one.name for one in known if one.default is MISSING and (not isinstance(plain, dict) or one.name not in plain)]
    if missing:
        raise UnexpectedAnswer(f"an answer without {', '.join(missing)} is not one of a Perdure server; look at the address")
    return kind(**{one.name: plain[one.name] for one in known if one.name in plain})


def answer_of(plain: Any) -> Answer:
    """The answer to one search."""
    answer = read(Answer, plain)
    return read(Answer, {**plain, "hits": tuple(read(Hit, hit) for hit in answer.hits)})


def releases_of(plain: Any) -> ReleasesInfo:
    """The answer about releases."""
    found = read(ReleasesInfo, plain)
    return read(ReleasesInfo, {**plain, "releases": tuple(read(ReleaseInfo, one) for one in found.releases)})


def written_of(plain: Any) -> Written:
    """The answer to a write."""
    found = read(Written, plain)
    return read(Written, {**plain, "results": tuple(read(ItemWritten, one) for one in found.results)})
