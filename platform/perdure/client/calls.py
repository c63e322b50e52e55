"""Requests and how their answers are read, without sending anything: what both clients have in common."""

import base64
import email.utils
import json
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import httpx

from perdure.client.problems import UnexpectedAnswer, problem_of
from perdure.client.records import Answer, ItemInfo, ReleaseInfo, ReleasesInfo, Written, answer_of, read, releases_of, written_of

__all__ = [
    "Ask",
    "Call",
    "Put",
    "batch",
    "delete",
    "image",
    "item",
    "pause_s",
    "promote",
    "releases",
    "result",
    "rollback",
    "sample",
    "search",
    "upsert",
]

R = TypeVar("R")


@dataclass(frozen=True)
class Ask:
    """One search: by `text`, by `image`, by both, or by the `id` of an item; the rest as `POST /v1/search` says."""

    text: str | None = None
    image: bytes | Path | None = None  # an encoded picture, or its file
    id: str | None = None
    image_weight: float | None = None  # with text and image, how much the picture counts, 0..1
    k: int = 10
    offset: int = 0
    cursor: str | None = None  # `Answer.next`, for the page after it
    release: str | None = None  # answer from this one, which the server must hold
    filter: Mapping[str, Any] = field(default_factory=dict)
    exact: bool = False
    expand: int = 0  # hits of a first search that are put into the query; 0 = none
    alpha: float = 3.0  # of expand
    payload: bool | Sequence[str] = False
    explain: bool = False
    partial_ok: bool = False

    def body(self) -> dict[str, Any]:
        """As JSON; what is as by default is left out."""
        given: dict[str, Any] = {
            "text": self.text,
            "image": _base64(self.image),
            "id": self.id,
            "image_weight": self.image_weight,
            "k": self.k,
            "offset": self.offset or None,
            "cursor": self.cursor,
            "release": self.release,
            "filter": dict(self.filter) or None,
            "exact": self.exact or None,
            "expand": {"hits": self.expand, "alpha": self.alpha} if self.expand else None,
            "payload": self.payload if isinstance(self.payload, bool) else list(self.payload),
            "explain": self.explain or None,
            "partial_ok": self.partial_ok or None,
        }
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True)
class Put:
    """An item to be found from now on, in place of the one of this id; embedded by its image, or by its first text where it has none."""

    id: str
    image: bytes | Path | None = None  # an encoded picture, or its file
    text: Sequence[str] = ()
    label: str = ""
    group: str = ""
    tags: Sequence[str] = ()
    payload: Mapping[str, Any] = field(default_factory=dict)

    def body(self) -> dict[str, Any]:
        """As JSON; what is empty is left out."""
        given: dict[str, Any] = {
            "image": _base64(self.image),
            "text": list(self.text),
            "label": self.label,
            "group": self.group,
            "tags": list(self.tags),
            "payload": dict(self.payload),
        }
        return {"id": self.id} | {name: value for name, value in given.items() if value}


@dataclass(frozen=True)
class Call(Generic[R]):
    """A request, and how its answer is read."""

    method: str
    path: str
    read: Callable[[httpx.Response], R]
    body: Any = None
    changes: bool = False  # whether doing it twice is more than doing it once, so that it is sent once and no more
    headers: Mapping[str, str] = field(default_factory=dict)


def search(ask: Ask | str) -> Call[Answer]:
    """`POST /v1/search`; a text alone is a search by words."""
    body = (Ask(text=ask) if isinstance(ask, str) else ask).body()
    return Call("POST", "/v1/search", lambda response: answer_of(response.json()), body)


def batch(asks: Sequence[Ask | str]) -> Call[list[Answer]]:
    """`POST /v1/search/batch`."""
    queries = [(Ask(text=ask) if isinstance(ask, str) else ask).body() for ask in asks]
    return Call("POST", "/v1/search/batch", lambda response: [answer_of(one) for one in response.json()["results"]], {"queries": queries})


def item(item_id: str) -> Call[ItemInfo]:
    """`GET /v1/items/{id}`."""
    return Call("GET", f"/v1/items/{quote(item_id, safe='')}", lambda response: read(ItemInfo, response.json()))


def image(item_id: str) -> Call[bytes]:
    """`GET /v1/items/{id}/image`."""
    return Call("GET", f"/v1/items/{quote(item_id, safe='')}/image", lambda response: response.content)


def sample(count: int) -> Call[list[ItemInfo]]:
    """`GET /v1/items`."""
    return Call("GET", f"/v1/items?sample={count}", lambda response: [read(ItemInfo, one) for one in response.json()])


def upsert(items: Sequence[Put], key: str | None) -> Call[Written]:
    """`POST /v1/items`."""
    body = {"items": [item.body() for item in items]}
    return Call("POST", "/v1/items", lambda response: written_of(response.json()), body, headers=_under(key))


def delete(ids: Sequence[str], key: str | None) -> Call[Written]:
    """`DELETE /v1/items`."""
    return Call("DELETE", "/v1/items", lambda response: written_of(response.json()), {"ids": list(ids)}, headers=_under(key))


def releases() -> Call[ReleasesInfo]:
    """`GET /v1/releases`."""
    return Call("GET", "/v1/releases", lambda response: releases_of(response.json()))


def promote(release: str, *, reason: str, force: bool, candidate: tuple[float, float] | None) -> Call[ReleaseInfo]:
    """`POST /v1/releases/{id}/promote`; `candidate`: its share and shadows in percent, None = make it the live one."""
    body: dict[str, Any] = {"reason": reason, "force": force}
    if candidate is not None:
        body |= {"channel": "candidate", "share": candidate[0], "shadow": candidate[1]}
    path = f"/v1/releases/{quote(release, safe='')}/promote"
    return Call("POST", path, lambda response: read(ReleaseInfo, response.json()), body, changes=True)


def rollback() -> Call[ReleaseInfo]:
    """`POST /v1/rollback`."""
    return Call("POST", "/v1/rollback", lambda response: read(ReleaseInfo, response.json()), changes=True)


def result(call: Call[R], response: httpx.Response) -> R:
    """What a call is for.

    Raises:
        ServerProblem: the server says why not, or the answer is none of a Perdure server.
    """
    if response.status_code >= 400:
        raise problem_of(response)
    try:
        return call.read(response)
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise UnexpectedAnswer(
            f"{response.request.url} answered {response.status_code}, but not as a Perdure server does ({error!r}); look at the address"
        ) from None


def pause_s(call: Call[Any], response: httpx.Response, tried: int, retries: int, longest_s: float) -> float | None:
    """How long to wait before a call is made once more; None = not again.

    A 503 of a call that changes nothing is tried again after its Retry-After, in seconds or as a date, else after 1, 2, 4 ... s.
    """
    if response.status_code != 503 or call.changes or tried >= retries:
        return None
    said = response.headers.get("retry-after", "")
    if said.isdecimal():
        return min(float(said), longest_s)
    date = email.utils.parsedate_tz(said)
    wait_s = email.utils.mktime_tz(date) - time.time() if date is not None else 2.0**tried
    return min(max(wait_s, 0.0), longest_s)


def _base64(image: bytes | Path | None) -> str | None:
    picture = image.read_bytes() if isinstance(image, Path) else image
    return None if picture is None else base64.b64encode(picture).decode()


def _under(key: str | None) -> dict[str, str]:
    """A key under which the server knows a request that is sent again; without one of the caller's, one of our own."""
    return {"Idempotency-Key": key or uuid.uuid4().hex}
