"""The API in one process: fused, and sharded with the replicas called directly instead of through Ray."""

import asyncio
import base64
import inspect
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import Gallery, damage
from query_suite import QuerySuite
from ray.exceptions import ActorUnavailableError
from ray.serve.exceptions import BackPressureError
from serving_suite import ApiSuite, Server, assert_problem, listening, wait

import perdure.retrieval.follow as follow_module
import serve.backend as backend_module
import serve.calls as calls_module
from perdure.errors import NotLoaded
from serve.api import make_app
from serve.backend import FollowingBackend, FusedBackend
from serve.batching import encode_batch
from serve.encoder import EncoderReplica
from serve.gateway import ShardedBackend
from serve.problems import Problem
from serve.schemas import ServeArgs
from serve.shard import ShardReplica


class DirectHandle:
    """Stands in for a deployment handle with one replica that lives in this process."""

    def __init__(self, name: str, replica: Any) -> None:
        self.deployment_name = name
        self.replica = replica

    def __getattr__(self, method: str) -> Any:
        class Method:
            @staticmethod
            async def remote(*given: Any) -> Any:
                call = getattr(self.replica, method)
                return await call(*given) if inspect.iscoroutinefunction(call) else await asyncio.to_thread(call, *given)

        return Method

    def broadcast(self, method: str, *given: Any) -> Any:
        class Answers:
            @staticmethod
            def results(timeout_s: float) -> list[Any]:
                return [getattr(self.replica, method)(*given)]

        return Answers


def make_sharded(args: ServeArgs) -> ShardedBackend:
    plain = args.resolved().model_dump()
    shards = [DirectHandle(f"Shard-{number}", ShardReplica(plain, number)) for number in range(args.shards)]
    return ShardedBackend(args, DirectHandle("Encoder", EncoderReplica(plain)), shards)  # type: ignore[arg-type]


@contextmanager
def client_of(backend: FollowingBackend, args: ServeArgs) -> Iterator[httpx.Client]:
    backend.start()
    with listening(make_app(backend, args)) as url, httpx.Client(base_url=url) as client:
        yield client
    backend.stop()


def quick(gallery_folder: Path, **more: Any) -> ServeArgs:
    return ServeArgs(registry=str(gallery_folder), poll_s=0.05, max_body_bytes=2**20, **more)


@pytest.fixture(params=["fused", "sharded"])
def server(request: pytest.FixtureRequest, gallery: Gallery, tmp_path: Path) -> Iterator[Server]:
    args = quick(gallery.folder, topology=request.param)
    backend: FollowingBackend = FusedBackend(args) if request.param == "fused" else make_sharded(args)
    backend.start()
    with listening(make_app(backend, args)) as url, httpx.Client(base_url=url) as client:
        yield Server(client, gallery, tmp_path, lambda: httpx.Client(base_url=url))
    backend.stop()


class TestInProcess(ApiSuite):
    pass


class TestQueriesInProcess(QuerySuite):
    pass


def test_an_empty_registry_is_alive_but_not_ready(tmp_path: Path) -> None:
    args = quick(tmp_path / "nothing-here")
    with client_of(FusedBackend(args), args) as client:
        assert client.get("/healthz").status_code == 200
        assert_problem(client.get("/readyz"), 503, "points to no release")
        assert_problem(client.post("/v1/search", json={"text": "a"}), 503, "points to no release")
        assert_problem(client.get("/v1/items/1"), 503)
        releases = client.get("/v1/releases").json()
    assert releases["releases"] == [] and releases["live"] is None and "no release" in releases["problem"]


def test_a_server_that_starts_while_the_live_release_is_bad_answers_from_the_one_before(gallery: Gallery) -> None:
    gallery.registry().promote("demo@v2", by="test")
    damage(gallery, "encoder", 2, "weights.safetensors")
    backend = FusedBackend(quick(gallery.folder))
    backend.start()
    state = backend.state()
    assert state.ready and state.serving == "demo@v1" and state.live == "demo@v2" and "damaged" in (state.problem or "")
    backend.stop()


@pytest.fixture
def sharded(gallery: Gallery) -> Iterator[tuple[ShardedBackend, httpx.Client]]:
    args = quick(gallery.folder, topology="sharded", shards=2, request_timeout_s=5.0)
    backend = make_sharded(args)
    with client_of(backend, args) as client:
        yield backend, client


@pytest.fixture
def hasty(gallery: Gallery) -> Iterator[tuple[ShardedBackend, httpx.Client]]:
    """The same with little patience for callees."""
    args = quick(gallery.folder, topology="sharded", shards=2, request_timeout_s=2.0, second_call_after_s=0.5)
    backend = make_sharded(args)
    with client_of(backend, args) as client:
        yield backend, client


def test_a_callee_that_lacks_the_pinned_release_makes_the_request_start_again(sharded: tuple[ShardedBackend, httpx.Client]) -> None:
    backend, client = sharded
    replica = backend.shards[1].replica  # type: ignore[attr-defined]
    search, refusals = replica.search, []

    def lacks_it_once(release_id: str, *given: Any) -> Any:
        if not refusals:
            refusals.append(release_id)
            raise NotLoaded(f"release {release_id} is not loaded here")
        return search(release_id, *given)

    replica.search = lacks_it_once
    answer = client.post("/v1/search", json={"text": "a red circle", "k": 30})
    assert answer.status_code == 200 and len(answer.json()["hits"]) == 15 and refusals == ["demo@v1"]


def test_nobody_has_a_common_release(sharded: tuple[ShardedBackend, httpx.Client]) -> None:
    backend, client = sharded
    replica = backend.shards[0].replica  # type: ignore[attr-defined]
    replica.search = lambda *_: (_ for _ in ()).throw(NotLoaded("not here"))
    replica.hold = lambda wanted: ([], {})
    assert_problem(client.post("/v1/search", json={"text": "a"}), 503)


def test_a_shard_that_stays_away_is_503_or_said_to_be_missing(sharded: tuple[ShardedBackend, httpx.Client]) -> None:
    backend, client = sharded
    replica = backend.shards[0].replica  # type: ignore[attr-defined]
    replica.search = lambda *_: (_ for _ in ()).throw(Problem(503, "gone"))
    assert_problem(client.post("/v1/search", json={"text": "a"}), 503)
    answer = client.post("/v1/search", json={"text": "a", "k": 30, "partial_ok": True}).json()
    assert answer["partial"] is True and 0 < len(answer["hits"]) < 15


def test_a_call_that_hangs_is_made_once_more_and_the_first_answer_counts(hasty: tuple[ShardedBackend, httpx.Client]) -> None:
    backend, client = hasty
    replica = backend.shards[1].replica  # type: ignore[attr-defined]
    search, go_on, calls = replica.search, threading.Event(), []

    def hangs_once(*given: Any) -> Any:
        calls.append(time.monotonic())
        if len(calls) == 1:
            go_on.wait(30)
        return search(*given)

    replica.search = hangs_once
    answer = client.post("/v1/search", json={"text": "a red circle", "k": 30}).json()
    took_s = time.monotonic() - calls[0]
    assert len(answer["hits"]) == 15 and not answer["partial"] and len(calls) == 2
    assert 0.4 < calls[1] - calls[0] <= took_s < 2.0  # second_call_after_s is 0.5, from before the first began; request_timeout_s is 2
    go_on.set()
    assert backend.ask.again == 0


def test_texts_are_embedded_in_the_gateway_and_pictures_by_the_encoder_and_both_find_what_the_encoder_alone_does(gallery: Gallery) -> None:
    picture = base64.b64encode(gallery.pictures[0]).decode()
    searches = [
        {"text": "a red circle"},
        {"image": picture},
        {"text": "a blue triangle", "image": picture},
        {"queries": [{"text": "a red circle"}, {"image": picture}, {"text": "a blue star"}]},
    ]
    answers: dict[bool, list[Any]] = {}
    calls: dict[bool, list[list[str]]] = {True: [], False: []}
    gallery.registry().promote("demo@v2", by="test")
    for here in (True, False):
        args = quick(gallery.folder, topology="sharded", texts_in_gateway=here)
        backend = make_sharded(args)
        replica = backend._encoder.replica  # type: ignore[attr-defined]
        encode = replica.encode

        async def noted(release_id: str, encoders: Any, queries: Any, here: bool = here, encode: Any = encode) -> Any:
            calls[here].append([type(query).__name__ for query in queries])
            return await encode(release_id, encoders, queries)

        replica.encode = noted
        with client_of(backend, args) as client:
            found = []
            for body in searches:
                answer = client.post("/v1/search/batch" if "queries" in body else "/v1/search", json=body)
                assert answer.status_code == 200, answer.text
                lists = answer.json()["results"] if "queries" in body else [answer.json()]
                found.append([[(hit["id"], round(hit["score"], 5)) for hit in one["hits"]] for one in lists])
            answers[here] = found
    assert answers[True] == answers[False]
    assert calls[True] and all(kind == "bytes" for call in calls[True] for kind in call)
    assert {kind for call in calls[False] for kind in call} == {"bytes", "str"}


def test_a_shard_that_hangs_altogether_is_504_in_time_or_said_to_be_missing(hasty: tuple[ShardedBackend, httpx.Client]) -> None:
    backend, client = hasty
    replica = backend.shards[1].replica  # type: ignore[attr-defined]
    go_on = threading.Event()
    replica.search = lambda *_: go_on.wait(30)
    began = time.monotonic()
    assert_problem(client.post("/v1/search", json={"text": "a"}, timeout=30), 504, "within 2 s")
    assert 2.0 <= time.monotonic() - began < 15.0  # and not the 30 that it hangs
    answer = client.post("/v1/search", json={"text": "a", "k": 30, "partial_ok": True}, timeout=30).json()
    assert answer["partial"] is True and 0 < len(answer["hits"]) < 15
    go_on.set()


def test_a_replica_that_dies_is_asked_no_more_and_one_that_refuses_does_not_spoil_what_another_says(
    hasty: tuple[ShardedBackend, httpx.Client],
) -> None:
    backend, _ = hasty
    died, full = ActorUnavailableError("died", None), BackPressureError(num_queued_requests=1, max_queued_requests=1)

    def come(*outcomes: tuple[float, Any]) -> tuple[Any, int]:
        """What comes of a call whose attempts take so long and yield, or raise, that; and how many there were."""
        attempts = iter(outcomes)
        calls = 0

        async def call() -> Any:
            nonlocal calls
            calls += 1
            seconds, outcome = next(attempts)
            await asyncio.sleep(seconds)
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        try:
            return asyncio.run(backend.ask(call)), calls
        except Problem as problem:
            return problem.status_code, calls

    assert come((0, "said")) == ("said", 1)
    assert come((0, died), (0, "said")) == ("said", 2)
    assert come((0, died), (0, died)) == (503, 2)
    assert come((0, full)) == (503, 1)
    assert come((0.8, "said"), (0, full)) == ("said", 2)
    assert come((0.8, "said"), (0, died)) == ("said", 2)
    assert come((9, "late"), (0.1, "said")) == ("said", 2)
    assert come((9, "late"), (9, "late"), (0.1, "said")) == ("said", 3)  # both to one that hangs
    assert come((9, "late"), (9, "late"), (9, "late")) == (504, 3)
    assert come((9, "late"), (0, died), (0, "said")) == ("said", 3)


def test_where_everything_hangs_few_calls_are_made_twice(
    hasty: tuple[ShardedBackend, httpx.Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, _ = hasty
    monkeypatch.setattr(calls_module, "_MOST_SECOND_CALLS", 3)
    calls = 0

    async def call() -> None:
        nonlocal calls
        calls += 1
        await asyncio.sleep(9)

    async def ask_often() -> list[Any]:
        return await asyncio.gather(*(backend.ask(call) for _ in range(20)), return_exceptions=True)

    found = asyncio.run(ask_often())
    assert [one.status_code for one in found] == [504] * 20 and calls == 23 and backend.ask.again == 0


def test_what_is_answered_from_stays_with_the_callees_while_the_registry_is_gone(gallery: Gallery) -> None:
    args = quick(gallery.folder, topology="sharded", retire_after_s=0.5)
    backend = make_sharded(args)
    with client_of(backend, args) as client:
        everything = client.post("/v1/search", json={"text": "a red circle", "k": 30}).json()["hits"]
        gallery.folder.rename(gallery.folder.with_name("away"))
        wait(lambda: backend.state().problem is not None)
        until = time.monotonic() + 2.0  # four times as long as an unused release is kept
        while time.monotonic() < until:
            assert client.post("/v1/search", json={"text": "a red circle", "k": 30}).json()["hits"] == everything
        assert client.get("/readyz").status_code == 200
        gallery.folder.with_name("away").rename(gallery.folder)
        wait(lambda: backend.state().problem is None)


def test_a_registry_that_hangs_holds_no_search_up_and_is_said_to(gallery: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow_module, "_SLOW_S", 0.5)
    args = quick(gallery.folder)
    backend = FusedBackend(args)
    with client_of(backend, args) as client:
        registry, go_on = backend._registry, threading.Event()
        channel = registry.channel
        monkeypatch.setattr(registry, "channel", lambda name: go_on.wait(30) and channel(name))

        def look() -> int:
            with httpx.Client(base_url=client.base_url, timeout=60) as another:
                return another.get("/v1/releases").status_code

        with ThreadPoolExecutor(12) as people:
            looks = [people.submit(look) for _ in range(12)]
            wait(lambda: "has not answered for" in (client.get("/readyz").json()["problem"] or ""))
            for _ in range(20):
                assert client.post("/v1/search", json={"text": "a red circle"}, timeout=5).status_code == 200
            assert not any(one.done() for one in looks)
            go_on.set()
            assert [one.result() for one in looks] == [200] * 12
        wait(lambda: backend.state().problem is None)


def test_a_gateway_flips_only_when_every_callee_holds_the_release(gallery: Gallery, sharded: tuple[ShardedBackend, httpx.Client]) -> None:
    backend, _ = sharded
    replica = backend.shards[1].replica  # type: ignore[attr-defined]
    hold = replica.hold
    replica.hold = lambda wanted: (["demo@v1"], {"demo@v2": "its disk is slow"})
    gallery.registry().promote("demo@v2", by="test")
    wait(lambda: backend.state().problem == "Shard-1: its disk is slow")
    assert backend.state().serving == "demo@v1"
    replica.hold = hold
    wait(lambda: backend.state().serving == "demo@v2" and backend.state().problem is None)


def test_a_batch_of_queries_fails_one_by_one(gallery: Gallery) -> None:
    replica = EncoderReplica(quick(gallery.folder).resolved().model_dump())
    models = replica._holder.get("demo@v1")
    (ref,) = models
    asked = [(models, "a red circle"), (models, b"no picture"), (models, gallery.pictures[0])]
    text, bad, image = encode_batch(asked)
    assert isinstance(bad, Exception) and "picture" in str(bad)
    for answer, alone in ((text, asked[0]), (image, asked[2])):
        assert not isinstance(answer, Exception)
        (expected,) = encode_batch([alone])
        assert not isinstance(expected, Exception)
        assert answer[0][ref].shape == (1, 16) and abs(answer[0][ref] - expected[0][ref]).max() < 1e-5


def test_an_unexpected_error_is_a_problem_without_its_insides(gallery: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    args = quick(gallery.folder)
    backend = FusedBackend(args)

    async def broken(queries: Any) -> Any:
        raise ZeroDivisionError("secret inside")

    monkeypatch.setattr(backend, "search", broken)
    with client_of(backend, args) as client:
        answer = client.post("/v1/search", json={"text": "a"})
    assert_problem(answer, 500)
    assert "secret" not in answer.text


def test_health_is_answered_while_a_search_computes(gallery: Gallery) -> None:
    args = quick(gallery.folder)
    backend = FusedBackend(args)
    backend.start()
    entered, release = threading.Event(), threading.Event()
    plain = backend_module.answers_of

    def slow(*given: Any) -> Any:
        entered.set()
        assert release.wait(10)
        return plain(*given)

    async def scenario() -> tuple[int, int]:
        transport = httpx.ASGITransport(make_app(backend, args))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            search = asyncio.create_task(client.post("/v1/search", json={"text": "a"}))
            await asyncio.to_thread(entered.wait, 10)
            health = await client.get("/healthz")
            release.set()
            return health.status_code, (await search).status_code

    backend_module.answers_of = slow
    try:
        assert asyncio.run(scenario()) == (200, 200)
    finally:
        backend_module.answers_of = plain
        backend.stop()
