"""The two clients: the same calls, carried out by a thread that waits or by asyncio."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from perdure.client import calls
from perdure.client.calls import Ask, Call, Put
from perdure.client.problems import Unreachable
from perdure.client.records import Answer, ItemInfo, ReleaseInfo, ReleasesInfo, Written

__all__ = ["AsyncClient", "Client"]

R = TypeVar("R")

_TIMEOUT_S = 35.0  # a server gives up on its own parts after 30 s


class Client:
    """A server, asked from a thread. Close it, or use it in a `with`.

    Args:
        url: of the server, such as "http://127.0.0.1:8000".
        key: an API key, where the server wants one.
        timeout_s: how long to wait for an answer.
        retries: how often a search, or a write, that was answered 503 is sent again; see `calls.pause_s`. Promotions are never sent twice.
        longest_wait_s: before it is sent again, at most.
    """

    def __init__(
        self, url: str, key: str | None = None, *, timeout_s: float = _TIMEOUT_S, retries: int = 3, longest_wait_s: float = 10.0
    ) -> None:
        self._http = httpx.Client(base_url=url, headers=_headers(key), timeout=timeout_s)
        self._retries = retries
        self._longest_wait_s = longest_wait_s

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close its connections."""
        self._http.close()

    def search(self, ask: Ask | str) -> Answer:
        """The hits of a search; a text alone is a search by words.

        Raises:
            ServerProblem: see `perdure.client.problems`.
        """
        return self._do(calls.search(ask))

    def pages(self, ask: Ask | str) -> Iterator[Answer]:
        """The pages of a list, `ask.k` hits each, all from the release of the first."""
        ask = Ask(text=ask) if isinstance(ask, str) else ask
        answer = self.search(ask)
        yield answer
        while answer.next is not None:
            answer = self.search(replace(ask, offset=0, cursor=answer.next))
            yield answer

    def batch(self, asks: Sequence[Ask | str]) -> list[Answer]:
        """Several searches in one request, all answered from one release."""
        return self._do(calls.batch(asks))

    def item(self, item_id: str) -> ItemInfo:
        """What is known of an item."""
        return self._do(calls.item(item_id))

    def image(self, item_id: str) -> bytes:
        """The encoded picture of an item."""
        return self._do(calls.image(item_id))

    def upsert(self, items: Sequence[Put], key: str | None = None) -> Written:
        """Bring items, each in place of the one of its id; they are durable when this returns, and found within a poll of the server.

        Args:
            items: 1 to 256.
            key: the same key again is the same request again, which the server answers as before; for repetitions of your own.
        """
        return self._do(calls.upsert(items, key))

    def delete(self, ids: Sequence[str], key: str | None = None) -> Written:
        """Take items away; see `upsert`."""
        return self._do(calls.delete(ids, key))

    def sample(self, count: int = 12) -> list[ItemInfo]:
        """Some items, spread over all of them."""
        return self._do(calls.sample(count))

    def releases(self) -> ReleasesInfo:
        """All releases, and which one answers."""
        return self._do(calls.releases())

    def promote(self, release: str, *, reason: str = "", force: bool = False) -> ReleaseInfo:
        """Make a release the live one."""
        return self._do(calls.promote(release, reason=reason, force=force, candidate=None))

    def try_beside(self, release: str, *, share: float = 0.0, shadow: float = 0.0, reason: str = "") -> ReleaseInfo:
        """Put a release beside the live one as the candidate: `share` percent of the requests, `shadow` percent as shadow queries."""
        return self._do(calls.promote(release, reason=reason, force=False, candidate=(share, shadow)))

    def rollback(self) -> ReleaseInfo:
        """Make the release live that was live before."""
        return self._do(calls.rollback())

    def _do(self, call: Call[R]) -> R:
        tried = 0
        while True:
            try:
                response = self._http.request(call.method, call.path, json=call.body, headers=call.headers)
            except httpx.TransportError as error:
                raise _unreachable(self._http.base_url, error) from error
            wait_s = calls.pause_s(call, response, tried, self._retries, self._longest_wait_s)
            if wait_s is None:
                return calls.result(call, response)
            tried += 1
            time.sleep(wait_s)


class AsyncClient:
    """A server, asked from asyncio; otherwise as `Client`. Close it, or use it in an `async with`."""

    def __init__(
        self, url: str, key: str | None = None, *, timeout_s: float = _TIMEOUT_S, retries: int = 3, longest_wait_s: float = 10.0
    ) -> None:
        self._http = httpx.AsyncClient(base_url=url, headers=_headers(key), timeout=timeout_s)
        self._retries = retries
        self._longest_wait_s = longest_wait_s

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def close(self) -> None:
        """Close its connections."""
        await self._http.aclose()

    async def search(self, ask: Ask | str) -> Answer:
        """See `Client.search`."""
        return await self._do(calls.search(ask))

    async def pages(self, ask: Ask | str) -> AsyncIterator[Answer]:
        """See `Client.pages`."""
        ask = Ask(text=ask) if isinstance(ask, str) else ask
        answer = await self.search(ask)
        yield answer
        while answer.next is not None:
            answer = await self.search(replace(ask, offset=0, cursor=answer.next))
            yield answer

    async def batch(self, asks: Sequence[Ask | str]) -> list[Answer]:
        """See `Client.batch`."""
        return await self._do(calls.batch(asks))

    async def item(self, item_id: str) -> ItemInfo:
        """See `Client.item`."""
        return await self._do(calls.item(item_id))

    async def image(self, item_id: str) -> bytes:
        """See `Client.image`."""
        return await self._do(calls.image(item_id))

    async def upsert(self, items: Sequence[Put], key: str | None = None) -> Written:
        """See `Client.upsert`."""
        return await self._do(calls.upsert(items, key))

    async def delete(self, ids: Sequence[str], key: str | None = None) -> Written:
        """See `Client.delete`."""
        return await self._do(calls.delete(ids, key))

    async def sample(self, count: int = 12) -> list[ItemInfo]:
        """See `Client.sample`."""
        return await self._do(calls.sample(count))

    async def releases(self) -> ReleasesInfo:
        """See `Client.releases`."""
        return await self._do(calls.releases())

    async def promote(self, release: str, *, reason: str = "", force: bool = False) -> ReleaseInfo:
        """See `Client.promote`."""
        return await self._do(calls.promote(release, reason=reason, force=force, candidate=None))

    async def try_beside(self, release: str, *, share: float = 0.0, shadow: float = 0.0, reason: str = "") -> ReleaseInfo:
        """See `Client.try_beside`."""
        return await self._do(calls.promote(release, reason=reason, force=False, candidate=(share, shadow)))

    async def rollback(self) -> ReleaseInfo:
        """See `Client.rollback`."""
        return await self._do(calls.rollback())

    async def _do(self, call: Call[R]) -> R:
        tried = 0
        while True:
            try:
                response = await self._http.request(call.method, call.path, json=call.body, headers=call.headers)
            except httpx.TransportError as error:
                raise _unreachable(self._http.base_url, error) from error
            wait_s = calls.pause_s(call, response, tried, self._retries, self._longest_wait_s)
            if wait_s is None:
                return calls.result(call, response)
            tried += 1
            await asyncio.sleep(wait_s)


def _headers(key: str | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"} if key is not None else {}


def _unreachable(url: Any, error: httpx.TransportError) -> Unreachable:
    return Unreachable(f"{url} gave no answer ({type(error).__name__}: {error}); is the server up, and is this its address?")
