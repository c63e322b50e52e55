"""Releases that go live and back under load, and releases that must not go live, in one process."""

import asyncio
import random
import statistics
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest
from bad_release_suite import BadReleaseSuite
from conftest import Gallery, publish_task
from test_serve_api import make_sharded, quick, server  # noqa: F401, a fixture

from perdure.records import Traffic
from perdure.retrieval.retriever import Query, Retriever
from serve.api import make_app
from serve.backend import FollowingBackend, FusedBackend
from serve.channels import in_share

MOVES, PER_S = 10, 125
TEXTS = ("a red circle", "a blue square", "a violet triangle", "a yellow circle number 9")
SHARE = 20


class TestBadReleasesInProcess(BadReleaseSuite):
    pass


@pytest.mark.parametrize(("topology", "requests"), [("fused", 2000), ("sharded", 500)])
def test_ten_moves_under_an_open_loop_lose_nothing_and_mix_nothing(gallery: Gallery, tmp_path: Path, topology: str, requests: int) -> None:
    publish_task(gallery, 3, tmp_path)
    gallery.registry().promote("demo@v3", "candidate", traffic=Traffic(SHARE, 10))
    expected = {
        (release, text): [(hit.id, hit.encoder) for hit in Retriever.load(gallery.registry(), release).search(Query(text=text), 8).hits]
        for release in ("demo@v1", "demo@v2", "demo@v3")
        for text in TEXTS
    }
    args = quick(gallery.folder, topology=topology, retire_after_s=1.0 if topology == "fused" else 60.0)  # callees: longer than a request
    backend: FollowingBackend = FusedBackend(args) if topology == "fused" else make_sharded(args)
    backend.start()
    counts: Counter[str] = Counter()
    times: list[float] = []
    try:
        began = time.perf_counter()
        moves = asyncio.run(_scenario(backend, args, expected, counts, times, requests))
        took_s = time.perf_counter() - began
    finally:
        backend.stop()
    p99 = statistics.quantiles(times, n=100)[98] * 1e3
    print(
        f"\n{topology}: {sum(counts.values())} requests in {took_s:.1f} s, {moves} moves, {dict(counts)}; "
        f"p50 {statistics.median(times) * 1e3:.1f} ms, p99 {p99:.1f} ms"
    )
    assert moves == MOVES
    assert set(counts) == {"live demo@v1", "live demo@v2", "candidate demo@v3"}, counts
    assert sum(counts.values()) >= requests
    assert counts["candidate demo@v3"] > requests * SHARE / 100 * 0.7


async def _scenario(
    backend: FollowingBackend,
    args: Any,
    expected: dict[tuple[str, str], list[tuple[str, str]]],
    counts: Counter[str],
    times: list[float],
    requests: int,
) -> int:
    """Ask at a fixed rate, whatever the answers do, until there were enough moves and requests; the number of moves."""
    transport = httpx.ASGITransport(make_app(backend, args), client=("127.0.0.1", 1))
    draw = random.Random(0)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=60) as client:

        async def ask(number: int) -> None:
            text = TEXTS[draw.randrange(len(TEXTS))]
            started = time.perf_counter()
            answer = await client.post("/v1/search", json={"text": text, "k": 8}, headers={"X-Request-Id": f"request {number}"})
            times.append(time.perf_counter() - started)
            counts[_verdict(answer, text, f"request {number}", expected)] += 1

        moving = asyncio.create_task(_move(client))
        asked: list[asyncio.Task[None]] = []
        begin = time.perf_counter()
        while len(asked) < requests or not moving.done():
            await asyncio.sleep(max(0.0, begin + len(asked) / PER_S - time.perf_counter()))
            asked.append(asyncio.create_task(ask(len(asked))))
        await asyncio.gather(*asked)
        return await moving


async def _move(client: httpx.AsyncClient) -> int:
    """Promote and roll back in turn, each once the one before is answered from."""
    for number in range(MOVES):
        release, path = [("demo@v2", "/v1/releases/demo@v2/promote"), ("demo@v1", "/v1/rollback")][number % 2]
        assert (await client.post(path)).status_code == 200
        while (await client.get("/readyz")).json()["serving"] != release:
            await asyncio.sleep(0.02)
        await asyncio.sleep(1.0)
    return MOVES


def _verdict(answer: httpx.Response, text: str, request: str, expected: dict[tuple[str, str], list[tuple[str, str]]]) -> str:
    """`<channel> <release>` of an answer that is right, else what is wrong with it."""
    if answer.status_code != 200:
        return f"failed {answer.status_code}: {answer.text[:200]}"
    told = answer.json()
    release, channel = told["release"], answer.headers["perdure-channel"]
    if answer.headers["perdure-release"] != release or answer.headers["x-request-id"] != request:
        return "headers and body disagree"
    hits = [(hit["id"], hit["encoder"]) for hit in told["hits"]]
    if hits != expected[release, text]:
        others = [other for (other, query), found in expected.items() if query == text and hits == found]
        return f"mixed: {release} says what {others} says" if others else f"wrong or mixed: {release}"
    if (channel == "candidate") != in_share("share", "demo@v3", request, SHARE):
        return f"in the wrong channel: {channel}"
    return f"{channel} {release}"
