"""Many callers, one call: what is asked while a call runs shares the next one, and nobody notices but by the time that it takes."""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import Gallery
from serving_suite import Server, assert_problem, ids, listening, wait
from test_serve_api import make_sharded, quick

from perdure.errors import BadQuery
from serve.api import make_app
from serve.backend import FollowingBackend, FusedBackend
from serve.batching import Batcher

GATE_S = 10.0


class Gate:
    """Work whose first call waits until it is let through; it notes what each call was given."""

    def __init__(self) -> None:
        self.calls: list[list[Any]] = []
        self.open = asyncio.Event()

    async def __call__(self, asked: list[Any]) -> list[Any]:
        self.calls.append(asked)
        if len(self.calls) == 1:
            await asyncio.wait_for(self.open.wait(), GATE_S)
        return [BadQuery("bad") if one == "bad" else f"{one}!" for one in asked]


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def test_what_is_asked_while_a_call_runs_shares_the_next_one_up_to_a_size() -> None:
    async def scenario() -> None:
        work = Gate()
        batcher: Batcher[str, str] = Batcher(work, 3)
        first = asyncio.create_task(batcher("a"))
        await settled()
        others = [asyncio.create_task(batcher(one)) for one in "bcdef"]
        await settled()
        assert work.calls == [["a"]]
        work.open.set()
        assert await asyncio.gather(first, *others) == [f"{one}!" for one in "abcdef"]
        assert work.calls == [["a"], ["b", "c", "d"], ["e", "f"]]

    asyncio.run(scenario())


def test_different_keys_neither_share_a_call_nor_wait_for_each_other() -> None:
    async def scenario() -> None:
        work = Gate()
        batcher: Batcher[str, str] = Batcher(work, 3, key=str.isupper)
        first = asyncio.create_task(batcher("a"))
        await settled()
        assert await batcher("A") == "A!"
        assert work.calls == [["a"], ["A"]]
        work.open.set()
        assert await first == "a!"

    asyncio.run(scenario())


def test_a_call_that_takes_too_long_holds_nobody_back_where_calls_may_overlap() -> None:
    async def scenario() -> None:
        work = Gate()
        batcher: Batcher[str, str] = Batcher(work, 3, patience_s=0.02)
        first = asyncio.create_task(batcher("a"))
        await settled()
        assert await asyncio.wait_for(batcher("b"), GATE_S) == "b!"
        assert not first.done()
        work.open.set()
        assert await first == "a!"

    asyncio.run(scenario())


def test_who_gives_up_alone_gives_his_call_up_and_holds_nobody_back() -> None:
    async def scenario() -> None:
        work, ended = Gate(), list[str]()

        async def noted(asked: list[Any]) -> list[Any]:
            try:
                return await work(asked)
            except asyncio.CancelledError:
                ended.append(asked[0])
                raise

        batcher: Batcher[str, str] = Batcher(noted, 3, patience_s=GATE_S)
        first, bad = asyncio.create_task(batcher("a")), asyncio.create_task(batcher("bad"))
        await settled()
        other = asyncio.create_task(batcher("b"))
        await settled()
        assert work.calls == [["a"]]
        first.cancel()
        assert await other == "b!" and ended == ["a"] and work.calls == [["a"], ["bad", "b"]]
        with pytest.raises(BadQuery):
            await bad
        with pytest.raises(BadQuery):
            await batcher("bad")

    asyncio.run(scenario())


@pytest.mark.parametrize("patience_s", [None, GATE_S])
def test_a_call_that_answers_too_few_is_an_error_and_holds_nobody_back(patience_s: float | None) -> None:
    async def scenario() -> None:
        async def work(asked: list[str]) -> list[str]:
            return asked[1:] if "bad" in asked else asked

        batcher: Batcher[str, str] = Batcher(work, 3, patience_s=patience_s)
        for _ in range(2):
            with pytest.raises(RuntimeError, match="1 were asked at once and 0 answered"):
                await asyncio.wait_for(batcher("bad"), GATE_S)
        assert await asyncio.wait_for(batcher("a"), GATE_S) == "a"

    asyncio.run(scenario())


def test_where_calls_may_not_overlap_one_whose_caller_gave_up_is_waited_for() -> None:
    async def scenario() -> None:
        work = Gate()
        batcher: Batcher[str, str] = Batcher(work, 3)
        first = asyncio.create_task(batcher("a"))
        await settled()
        first.cancel()
        other = asyncio.create_task(batcher("b"))
        await settled()
        assert first.cancelled() and work.calls == [["a"]]
        work.open.set()
        assert await other == "b!" and work.calls == [["a"], ["b"]]

    asyncio.run(scenario())


def test_an_error_and_a_caller_who_gave_up_are_nobody_elses_business() -> None:
    async def scenario() -> None:
        work = Gate()
        batcher: Batcher[str, str] = Batcher(work, 4)
        tasks = [asyncio.create_task(batcher("a"))]
        await settled()
        tasks += [asyncio.create_task(batcher(one)) for one in ("b", "bad", "c", "d")]
        await settled()
        tasks[0].cancel()
        tasks[1].cancel()
        work.open.set()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(answer) for answer in answers[:3]] == [asyncio.CancelledError, asyncio.CancelledError, BadQuery]
        assert answers[3:] == ["c!", "d!"] and work.calls == [["a"], ["bad", "c", "d"]]
        assert await batcher("e") == "e!"

    asyncio.run(scenario())


@pytest.fixture(params=["fused", "sharded"])
def held(request: pytest.FixtureRequest, gallery: Gallery, tmp_path: Path) -> Iterator[tuple[FollowingBackend, Server, "Held"]]:
    """A server, the first answer of which is held back until the test lets it go."""
    args = quick(gallery.folder, topology=request.param)
    backend: FollowingBackend = FusedBackend(args) if request.param == "fused" else make_sharded(args)
    backend.start()
    hold = Held(backend)
    with listening(make_app(backend, args)) as url, httpx.Client(base_url=url, timeout=30) as client:
        yield backend, Server(client, gallery, tmp_path, lambda: httpx.Client(base_url=url, timeout=30)), hold
    backend.stop()


class Held:
    """Stands before the `_answer` of a backend: how many searches each call had, and a gate for the first of them."""

    def __init__(self, backend: FollowingBackend) -> None:
        self.sizes: list[int] = []
        self.gate = threading.Event()
        answer = backend._answer
        backend._together._patience_s = None

        async def noted(pinned: Any, queries: Any) -> Any:
            self.sizes.append(len(queries))
            if len(self.sizes) == 1:
                await asyncio.to_thread(self.gate.wait, GATE_S)
            return await answer(pinned, queries)

        backend._answer = noted  # type: ignore[method-assign]

    def ask(self, backend: FollowingBackend, server: Server, bodies: list[dict[str, Any]]) -> list[httpx.Response]:
        """Answers to searches of different callers, the others asked while the first is answered."""
        pool = ThreadPoolExecutor(len(bodies))
        asked = [pool.submit(server.search, **bodies[0])]
        wait(lambda: len(self.sizes) == 1)
        asked += [pool.submit(server.search, **body) for body in bodies[1:]]
        wait(lambda: sum(map(len, backend._together._waiting.values())) == len(bodies) - 1)
        self.gate.set()
        return [one.result() for one in asked]


def test_searches_of_many_callers_are_answered_together_as_they_are_alone(held: tuple[FollowingBackend, Server, Held]) -> None:
    backend, server, hold = held
    bodies: list[dict[str, Any]] = [
        {"text": f"a {colour} {shape}"} for colour in ("red", "blue", "green") for shape in ("circle", "square")
    ]
    found = hold.ask(backend, server, bodies)
    assert hold.sizes == [1, 5]
    for body, answer in zip(bodies, found, strict=True):
        alone = server.search(**body)
        assert ids(answer) == ids(alone) and answer.json()["release"] == "demo@v1"
        assert [hit["score"] for hit in answer.json()["hits"]] == pytest.approx([hit["score"] for hit in alone.json()["hits"]], abs=1e-5)
    assert hold.sizes[2:] == [1] * len(bodies)
    told = server.client.get("/metrics").text
    assert "perdure_search_batch_sum 12.0" in told and "perdure_search_batch_count 8.0" in told


def test_items_to_search_by_are_answered_together_too(held: tuple[FollowingBackend, Server, Held]) -> None:
    backend, server, hold = held
    bodies: list[dict[str, Any]] = [{"id": f"set/{row:02d}.png", "k": 5} for row in (0, 3, 7, 12)]
    found = hold.ask(backend, server, bodies)
    assert hold.sizes == [1, 3]
    for body, answer in zip(bodies, found, strict=True):
        assert ids(answer) == ids(server.search(**body)) and body["id"] not in ids(answer)


def test_who_asks_what_makes_no_sense_spoils_nobody_elses_answer(held: tuple[FollowingBackend, Server, Held]) -> None:
    backend, server, hold = held
    known = {"id": "set/03.png", "k": 5}
    first, unknown, other = hold.ask(backend, server, [known, {"id": "nobody", "k": 5}, {"id": "set/04.png", "k": 5}])
    assert hold.sizes == [1, 2, 1, 1]
    assert_problem(unknown, 404, "nobody")
    assert ids(first) == ids(server.search(**known)) and ids(other) == ids(server.search(id="set/04.png", k=5))


def test_searches_that_go_another_way_or_need_long_lists_are_not_put_together(gallery: Gallery) -> None:
    args = quick(gallery.folder)
    backend = FusedBackend(args)
    backend.start()
    sizes: list[int] = []
    answer_many = backend._together._work

    async def noted(asked: Any) -> Any:
        sizes.append(len(asked))
        return await answer_many(asked)

    backend._together._work = noted
    bodies: list[dict[str, Any]] = [
        {"text": "a red circle"},
        {"text": "a red circle", "k": 3},
        {"text": "a red circle", "filter": {"label": "circle"}},
        {"text": "a red circle", "exact": True},
        {"text": "a red circle", "partial_ok": True},
    ]
    alone: list[dict[str, Any]] = [{"text": "a red circle", "k": 900}, {"text": "a red circle", "expand": {"hits": 2}}]

    async def scenario() -> None:
        transport = httpx.ASGITransport(make_app(backend, args))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            answers = await asyncio.gather(*(client.post("/v1/search", json=body) for body in [*bodies, *alone]))
            assert [answer.status_code for answer in answers] == [200] * 7

    try:
        asyncio.run(scenario())
    finally:
        backend.stop()
    assert sizes == [1] * len(bodies)
