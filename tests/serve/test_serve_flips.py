"""Releases that go live and back under load, and releases that must not go live, in one process."""

import asyncio
import random
from pathlib import Path
from typing import Any

import httpx
import pytest
from bad_release_suite import BadReleaseSuite
from conftest import Gallery, publish_task
from open_loop import TEXTS, K, Load, Truth, open_loop
from test_serve_api import make_sharded, quick, server  # noqa: F401, a fixture

from perdure.records import Traffic
from serve.api import make_app
from serve.backend import FollowingBackend, FusedBackend
from serve.channels import in_share

MOVES, PER_S = 10, 125
SHARE = 20


class TestBadReleasesInProcess(BadReleaseSuite):
    pass


@pytest.mark.parametrize(("topology", "requests"), [("fused", 2000), ("sharded", 500)])
def test_ten_moves_under_an_open_loop_lose_nothing_and_mix_nothing(gallery: Gallery, tmp_path: Path, topology: str, requests: int) -> None:
    publish_task(gallery, 3, tmp_path)
    gallery.registry().promote("demo@v3", "candidate", traffic=Traffic(SHARE, 10))
    truth = Truth(gallery, "demo@v1", "demo@v2", "demo@v3")
    args = quick(gallery.folder, topology=topology, retire_after_s=1.0 if topology == "fused" else 60.0)  # callees: longer than a request
    backend: FollowingBackend = FusedBackend(args) if topology == "fused" else make_sharded(args)
    backend.start()
    try:
        load, moves = asyncio.run(_scenario(backend, args, truth, requests))
    finally:
        backend.stop()
    print(f"\n{load.line(f'{topology}, {moves} moves')}; {dict(load.counts())}")
    assert moves == MOVES
    assert set(load.counts()) == {"right demo@v1", "right demo@v2", "right demo@v3"}, load.counts()
    assert len(load.came) >= requests
    assert load.counts()["right demo@v3"] > requests * SHARE / 100 * 0.7


async def _scenario(backend: FollowingBackend, args: Any, truth: Truth, requests: int) -> tuple[Load, int]:
    """Ask while the channel moves; what came of it, and the number of moves."""
    transport = httpx.ASGITransport(make_app(backend, args), client=("127.0.0.1", 1))
    draw = random.Random(0)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=60) as client:

        async def ask(number: int) -> str:
            text, request = TEXTS[draw.randrange(len(TEXTS))], f"request {number}"
            answer = await client.post("/v1/search", json={"text": text, "k": K}, headers={"X-Request-Id": request})
            verdict = truth.of(answer, text)
            if not verdict.startswith("right"):
                return verdict
            channel, release = answer.headers["perdure-channel"], answer.headers["perdure-release"]
            if release not in verdict or answer.headers["x-request-id"] != request:
                return "wrong: headers and body disagree"
            beside = in_share("share", "demo@v3", request, SHARE)
            in_place = (channel == "candidate") == (release == "demo@v3") == beside
            return verdict if in_place else f"wrong: in the channel {channel}"

        return await open_loop(ask, per_s=PER_S, requests=requests, meanwhile=_move(client))


async def _move(client: httpx.AsyncClient) -> int:
    """Promote and roll back in turn, each once the one before is answered from."""
    for number in range(MOVES):
        release, path = [("demo@v2", "/v1/releases/demo@v2/promote"), ("demo@v1", "/v1/rollback")][number % 2]
        assert (await client.post(path)).status_code == 200
        while (await client.get("/readyz")).json()["serving"] != release:
            await asyncio.sleep(0.02)
        await asyncio.sleep(1.0)
    return MOVES
