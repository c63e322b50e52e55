"""Requests at a fixed rate, whatever the answers do, and what came of each of them: for faults under load."""

import asyncio
import statistics
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import aiohttp
import httpx
from conftest import Gallery

from perdure.retrieval.retriever import Query, Retriever

__all__ = ["TEXTS", "Asker", "Came", "K", "Load", "Truth", "capacity", "open_loop"]

T = TypeVar("T")

K = 8
TEXTS = ("a red circle", "a blue square", "a violet triangle", "a yellow circle number 9")


class Truth:
    """What the plain retriever finds for each text in each release."""

    def __init__(self, gallery: Gallery, *releases: str) -> None:
        self._expected = {
            (release, text): [(hit.id, hit.encoder) for hit in Retriever.load(gallery.registry(), release).search(Query(text=text), K).hits]
            for release in releases
            for text in TEXTS
        }

    def verdict(self, told: dict[str, Any], text: str) -> str:
        """`right`, `mixed` or `wrong`, and the release that an answer names."""
        release, hits = told["release"], [(hit["id"], hit["encoder"]) for hit in told["hits"]]
        if hits == self._expected.get((release, text)) and not told["partial"]:
            return f"right {release}"
        parts = {part for (_, query), found in self._expected.items() if query == text for part in found}
        return f"{'mixed' if set(hits) <= parts else 'wrong'} {release}"

    def of(self, answer: httpx.Response, *texts: str) -> str:
        """The same of an HTTP answer to a search, or to a batch of them; `failed <status>` for a refusal that is as it should be."""
        if answer.status_code != 200:
            return _refusal(answer)
        told = answer.json()
        verdicts = {self.verdict(one, text) for one, text in zip(told.get("results", [told]), texts, strict=True)}
        return verdicts.pop() if len(verdicts) == 1 else f"mixed: {sorted(verdicts)}"


class Asker:
    """A client of a service for as much load as one process can make, to be entered and left.

    Not httpx: its pool looks through all connections for every request, and with hundreds that wait in an overload that took seconds,
    which look like the service's.
    """

    def __init__(self, url: str, timeout_s: float) -> None:
        self._url = url
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)

    async def __aenter__(self) -> "Asker":
        self._session = aiohttp.ClientSession(self._url, timeout=self._timeout, connector=aiohttp.TCPConnector(limit=0))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def post(self, path: str, body: dict[str, Any]) -> httpx.Response:
        """The answer.

        Raises:
            httpx.TransportError: none came.
        """
        try:
            async with self._session.post(path, json=body) as answer:
                return httpx.Response(answer.status, headers=dict(answer.headers), content=await answer.read())
        except (aiohttp.ClientError, TimeoutError) as error:
            raise httpx.TransportError(f"{type(error).__name__}: {error}") from error


def _refusal(answer: httpx.Response) -> str:
    status = answer.status_code
    if answer.headers.get("content-type") != "application/problem+json" or answer.json()["status"] != status:
        return f"no problem+json {status}: {answer.text[:200]}"
    if status == 503 and not answer.headers.get("retry-after", "").isdecimal():
        return "503 without Retry-After"
    return f"failed {status}"


@dataclass(frozen=True)
class Came:
    """What came of one request: when it was due (seconds since the load began), how much later it was answered, and the verdict."""

    due_s: float
    took_s: float
    verdict: str


@dataclass
class Load:
    """What came of all requests."""

    came: list[Came] = field(default_factory=list)

    def counts(self, word: int | None = None) -> Counter[str]:
        """Requests by verdict, or by the so-many-th word of it."""
        return Counter(one.verdict if word is None else one.verdict.split()[word] for one in self.came)

    def times(self, kind: str = "right") -> list[float]:
        """Seconds of the requests whose verdict begins so, sorted."""
        return sorted(one.took_s for one in self.came if one.verdict.startswith(kind))

    def answered_meanwhile(self, kind: str = "right") -> list[int]:
        """Of the requests whose verdict begins so, how many others were answered rightly between when each was due and its own answer.

        Sorted. Where time is uneven, as on a busy machine, this is what a place in a queue can be measured by.
        """
        right = sorted(one.due_s + one.took_s for one in self.came if one.verdict.startswith("right"))
        return sorted(
            bisect_left(right, one.due_s + one.took_s) - bisect_left(right, one.due_s) for one in self.came if one.verdict.startswith(kind)
        )

    def line(self, fault: str, **more: object) -> str:
        """The counts, for people."""
        kinds, times = self.counts(0), self.times()
        p99 = statistics.quantiles(times, n=100)[98]
        seconds = max(one.due_s for one in self.came)
        told = "".join(f", {name.replace('_', ' ')} {value}" for name, value in more.items())
        return (
            f"{fault}: {len(self.came):,} requests in {seconds:.0f} s, right {kinds['right']:,}, failed {kinds['failed']}, "
            f"wrong {kinds['wrong']}, mixed {kinds['mixed']}, lost {kinds['lost']}; "
            f"p50 {statistics.median(times) * 1e3:.0f} ms, p99 {p99 * 1e3:.0f} ms, slowest {times[-1] * 1e3:.0f} ms{told}"
        )


async def capacity(ask: Callable[[int], Awaitable[str]], *, at_once: int = 8, requests: int = 160) -> float:
    """Requests a second that a few callers get answered who each wait for their answer; the first quarter does not count."""
    numbers = iter(range(requests))
    counted_from = 0.0

    async def caller() -> None:
        nonlocal counted_from
        for number in numbers:
            if number == requests // 4:
                counted_from = time.perf_counter()
            await ask(number)

    await asyncio.gather(*(caller() for _ in range(at_once)))
    return (requests - requests // 4) / (time.perf_counter() - counted_from)


async def open_loop(ask: Callable[[int], Awaitable[str]], *, per_s: float, requests: int, meanwhile: Awaitable[T]) -> tuple[Load, T]:
    """Begin `per_s` requests a second until there were `requests` and what happens meanwhile has happened.

    Args:
        ask: make request number n, and say what came of it; see `Truth.of`. What it raises of httpx's errors counts as lost.
        per_s: of requests that begin, whether or not those before them are answered.
        requests: at least so many.
        meanwhile: begins with the load.
    Returns:
        What came of the requests, and of what happened meanwhile.
    """
    load = Load()
    began = time.perf_counter()

    async def one(number: int) -> None:
        due_s = number / per_s
        try:
            verdict = await ask(number)
        except httpx.HTTPError as error:
            verdict = f"lost {type(error).__name__}"
        load.came.append(Came(due_s, time.perf_counter() - began - due_s, verdict))

    happening = asyncio.ensure_future(meanwhile)
    asked: list[asyncio.Task[None]] = []
    while len(asked) < requests or not happening.done():
        await asyncio.sleep(max(0.0, began + len(asked) / per_s - time.perf_counter()))
        asked.append(asyncio.create_task(one(len(asked))))
    await asyncio.gather(*asked)
    return load, await happening
