"""Which release a request is answered from: the live one, the candidate beside it, or one that the request names.

A request says it (`Perdure-Channel: candidate`), or a share of the requests is chosen by a hash, so that the same caller
(`Perdure-Sticky`, else the request's id) stays on the same side for as long as the candidate is the same, and whoever is on it stays
when the share grows.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from perdure.errors import BadQuery

__all__ = ["AS_LIVE", "CANDIDATE", "LIVE", "ChannelName", "Place", "Route", "in_share", "route"]

ChannelName = Literal["live", "candidate"]

LIVE: ChannelName = "live"
CANDIDATE: ChannelName = "candidate"
MAX_STICKY = 256


@dataclass(frozen=True)
class Place:
    """The candidate at this moment: what the channel beside the live one points to and is given."""

    release: str
    share: float  # percent of the requests that it answers
    shadow: float  # percent of the requests that are put to it as well
    ready: bool  # held by all who take part in an answer, and not what is answered from anyway


@dataclass(frozen=True)
class Route:
    """Where one request goes."""

    channel: ChannelName = LIVE
    asked: bool = False  # the request named the channel, so nothing else will do
    shadow: bool = False  # its queries are put to the candidate as well, off its path


AS_LIVE = Route()


def route(headers: Mapping[str, str], request_id: str, candidate: Place | None) -> Route:
    """Choose by header, else by share; the same request chosen twice is chosen alike.

    Raises:
        BadQuery: a header with a value that makes no sense.
    """
    named = headers.get("perdure-channel", "").strip().lower()
    if named not in ("", LIVE, CANDIDATE):
        raise BadQuery(f"Perdure-Channel: '{named[:40]}'; expected live or candidate, or no such header")
    sticky = headers.get("perdure-sticky", "").strip()
    if len(sticky) > MAX_STICKY:
        raise BadQuery(f"Perdure-Sticky has {len(sticky)} characters; at most {MAX_STICKY}, such as a hash of the user's name")
    if named == CANDIDATE:
        return Route(CANDIDATE, asked=True)
    if candidate is None or not candidate.ready:
        return Route(LIVE, asked=bool(named))
    key = sticky or request_id
    if not named and in_share("share", candidate.release, key, candidate.share):
        return Route(CANDIDATE)
    return Route(LIVE, asked=bool(named), shadow=in_share("shadow", candidate.release, key, candidate.shadow))


def in_share(purpose: str, release: str, key: str, percent: float) -> bool:
    """Whether a key is among so many percent: a hash of purpose, release and key, taken as a number in [0, 100)."""
    digest = hashlib.sha256(f"{purpose}\n{release}\n{key}".encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8]) / 2**64 * 100 < percent
