"""What a server must do whatever its topology: the same claims run in-process and on a real Ray, fused and sharded."""

import base64
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from conftest import Gallery, damage, known, publish_task
from fastapi import FastAPI

from perdure.retrieval.retriever import Query, Retriever

PATIENCE_S = 30.0


def wait(true: Callable[[], bool], what: str = "") -> None:
    """Wait until something is true."""
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline, f"waited {PATIENCE_S} s {what}"
        time.sleep(0.02)


@dataclass
class Server:
    """A server under test, and what it serves."""

    client: httpx.Client
    gallery: Gallery
    scratch: Path
    new_client: Callable[[], httpx.Client]
    retrievers: dict[str, Retriever] = field(default_factory=dict)

    def search(self, **body: Any) -> httpx.Response:
        return self.client.post("/v1/search", json=body)

    def state(self) -> dict[str, Any]:
        return self.client.get("/v1/releases").json()

    def wait(self, what: str, true_of: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Wait until something is true of /v1/releases."""
        found: list[dict[str, Any]] = []
        wait(lambda: found.append(self.state()) or true_of(found[-1]), what)
        return found[-1]

    def expected(self, release: str, query: Query, k: int, filter: dict[str, Any] | None = None) -> list[str]:
        """Ids that the plain retriever finds."""
        if release not in self.retrievers:
            self.retrievers[release] = Retriever.load(self.gallery.registry(), release)
        return [hit.id for hit in self.retrievers[release].search(query, k, filter).hits]


@contextmanager
def listening(app: FastAPI) -> Iterator[str]:
    """An app behind a real socket, on a thread; its address."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="critical"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(10)


def ids(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [hit["id"] for hit in answer.json()["hits"]]


def assert_problem(answer: httpx.Response, status: int, *words: str) -> None:
    """RFC 9457, and readable."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["status"] == status and problem["title"] and problem["request_id"] and problem["instance"].startswith("/")
    for word in words:
        assert word in problem["detail"], problem["detail"]
    assert "Traceback" not in answer.text


class Suite:
    """Needs a fixture `server` that gives a `Server` over a registry with demo@v1 and demo@v2."""

    @pytest.fixture(autouse=True)
    def _begin_with_the_first_release(self, server: Server) -> Iterator[None]:
        server.gallery.registry().promote("demo@v1", by="test")
        server.wait("demo@v1", lambda state: state["serving"] == "demo@v1" and state["problem"] is None)
        yield
        assert server.client.get("/healthz").status_code == 200, "the server did not survive the test"
        assert server.search(text="a red circle").status_code == 200


class ApiSuite(Suite):
    """Searches, items, the page, releases, and what is wrong with a request."""

    # -- answers ----------------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("release", ["demo@v1", "demo@v2"])
    def test_answers_are_those_of_the_plain_retriever(self, server: Server, release: str) -> None:
        server.gallery.registry().promote(release, by="test")
        server.wait(release, lambda state: state["serving"] == release)
        picture = server.gallery.pictures[4]
        encoded = base64.b64encode(picture).decode()
        by_text = server.search(text="a violet square", k=7)
        assert by_text.json()["release"] == release and not by_text.json()["partial"]
        assert ids(by_text) == server.expected(release, Query(text="a violet square"), 7)
        assert ids(server.search(image=encoded, k=4)) == server.expected(release, Query(image=picture), 4)
        assert ids(server.search(image=f"data:image/png;base64,{encoded}", k=4)) == server.expected(release, Query(image=picture), 4)
        upload = server.client.post("/v1/search", files={"image": ("p.png", picture)}, data={"k": "4"})
        assert ids(upload) == server.expected(release, Query(image=picture), 4)
        item = server.gallery.items[2].id
        similar = ids(server.search(id=item, k=6))
        assert similar == server.expected(release, Query(id=item), 6) and item not in similar
        only = {"label": ["circle", "square"], "task": 0}
        assert ids(server.search(text="red", k=5, filter=only)) == server.expected(release, Query(text="red"), 5, only)

    def test_a_hit_tells_what_the_contract_says(self, server: Server) -> None:
        answer = server.search(text="a red circle", k=1).json()
        assert set(answer) == {"release", "hits", "partial", "timings_ms", "next"}
        (hit,) = answer["hits"]
        assert set(hit) == {"id", "score", "label", "text", "task", "encoder"}
        assert hit["task"] == 0 and hit["encoder"] == "encoder/demo@v1" and hit["text"].startswith("a ")
        assert {"encode", "search", "merge", "other"} <= set(answer["timings_ms"])

    def test_k_beyond_the_gallery_gives_the_gallery(self, server: Server) -> None:
        assert len(ids(server.search(text="a red circle", k=1000))) == 15

    def test_items_and_their_pictures(self, server: Server) -> None:
        item = server.gallery.items[3]
        told = server.client.get(f"/v1/items/{item.id}").json()
        assert told["id"] == item.id and told["label"] == item.label and told["captions"] == list(item.captions) and told["has_image"]
        picture = server.client.get("/v1/items/set%2F03.png/image")
        assert picture.content == server.gallery.pictures[3] and picture.headers["content-type"] == "image/png"
        assert_problem(server.client.get("/v1/items/none"), 404, "none")
        assert_problem(server.client.get("/v1/items/none/image"), 404, "none")
        sample = server.client.get("/v1/items", params={"sample": 4}).json()
        assert len({one["id"] for one in sample}) == 4

    # -- filters and payload ----------------------------------------------------------------------------------------------

    @pytest.mark.parametrize(
        ("filter", "holds"),
        [
            ({"price": {"gte": 6, "lt": 30.5}}, lambda row: 6 <= row * 1.5 < 30.5),
            ({"price": [3, 4.5, 1000]}, lambda row: row in (2, 3)),
            ({"price": {"gt": 6, "not": 7.5}, "task": 0}, lambda row: 6 < row * 1.5 != 7.5 and row < 15),
            ({"sale": True}, lambda row: row % 6 == 0),
            ({"sale": {"not": True}}, lambda row: row % 6 != 0),
            ({"drawn": {"gte": "2026-04-01", "lt": "2026-08-01"}}, lambda row: row >= 15 and 4 <= 1 + row % 12 < 8),
            ({"drawn": {"not": {"gte": "2026-04-01"}}}, lambda row: row < 15 or 1 + row % 12 < 4),
            ({"label": {"not": ["circle", "square"]}}, lambda row: row % 3 == 2),
            ({"tags": {"not": "red"}, "label": "circle"}, lambda row: row % 3 == 0 and row not in (0, 15)),
        ],
    )
    def test_a_filter_finds_all_that_pass_it_and_nothing_else(
        self, server: Server, filter: dict[str, Any], holds: Callable[[int], bool]
    ) -> None:
        server.gallery.registry().promote("demo@v2", by="test")
        server.wait("demo@v2", lambda state: state["serving"] == "demo@v2")
        passing = [item.id for row, item in enumerate(server.gallery.items) if holds(row)]
        assert 0 < len(passing) < 30
        everything = ids(server.search(text="a red circle", k=30))
        for k in (3, 30):
            assert ids(server.search(text="a red circle", k=k, filter=filter)) == [name for name in everything if name in passing][:k]

    def test_payload_is_told_to_who_asks(self, server: Server) -> None:
        for hit in server.search(text="a", k=15, payload=True).json()["hits"]:
            assert hit["payload"] == known(int(hit["id"][4:6]))
        for hit in server.search(text="a", k=15, payload=["sale", "nothing"]).json()["hits"]:
            assert hit["payload"] == {name: value for name, value in known(int(hit["id"][4:6])).items() if name == "sale"}
        assert server.client.get(f"/v1/items/{server.gallery.items[3].id}").json()["payload"] == known(3)

    # -- bad requests -----------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize(
        ("body", "status", "word"),
        [
            ({}, 422, "nothing to search by"),
            ({"text": "a", "id": "b"}, 422, "text and id"),
            ({"text": "a", "image": "aGk=", "id": "b"}, 422, "text and image and id"),
            ({"text": "  "}, 422, "empty"),
            ({"text": "a", "k": 0}, 422, "k"),
            ({"text": "a", "k": 1001}, 422, "k"),
            ({"text": "a", "k": "many"}, 422, "k"),
            ({"text": "a", "limit": 5}, 422, "limit"),
            ({"text": 7}, 422, "text"),
            ({"image": "%%%not base64"}, 422, "base64"),
            ({"image": ""}, 422, "0 bytes"),
            ({"image": base64.b64encode(b"plain words, no picture").decode()}, 422, "picture"),
            ({"id": "unknown"}, 404, "unknown"),
            ({"text": "a", "filter": {"colour": "red"}}, 422, "colour"),
            ({"text": "a", "filter": {"task": "first"}}, 422, "task"),
            ({"text": "a", "filter": {"price": "dear"}}, 422, "expected a number"),
            ({"text": "a", "filter": {"price": {"above": 3}}}, 422, "gt, gte, lt, lte"),
            ({"text": "a", "filter": {"pric": 3}}, 422, "Did you mean 'price'?"),
            ({"text": "a", "filter": {"drawn": {"lt": "2026"}}}, 422, "no column 'drawn'"),
            ({"text": "a", "filter": {"sale": {"gt": True}}}, 422, "has no order"),
            ({"text": "a", "filter": {"price": {"not": {"not": 1}}}}, 422, "'not' within 'not'"),
            ({"text": "a", "filter": {"label": ["x"] * 1025}}, 422, "at most 1,024"),
            ({"text": "a", "payload": "price"}, 422, "payload"),
        ],
    )
    def test_a_wrong_body_is_a_problem(self, server: Server, body: dict[str, Any], status: int, word: str) -> None:
        assert_problem(server.search(**body), status, word)

    def test_bytes_that_are_not_json(self, server: Server) -> None:
        post = server.client.post
        assert_problem(post("/v1/search", content=b'{"text": ', headers={"Content-Type": "application/json"}), 400, "JSON")
        assert_problem(post("/v1/search", content=b"", headers={"Content-Type": "application/json"}), 422, "empty")
        assert_problem(post("/v1/search", content=b"[1]", headers={"Content-Type": "application/json"}), 422)
        assert_problem(post("/v1/search", content=b"\xff\xfe", headers={"Content-Type": "application/json"}), 400, "JSON")
        assert_problem(post("/v1/search", content=b"<a/>", headers={"Content-Type": "text/xml"}), 415, "text/xml")

    def test_bad_uploads(self, server: Server) -> None:
        def upload(name: str, data: bytes, **fields: str) -> httpx.Response:
            return server.client.post("/v1/search", files={name: ("file", data)}, data=fields)

        picture = server.gallery.pictures[0]
        assert_problem(upload("image", b""), 422, "0 bytes")
        assert_problem(upload("image", b"words in a text file\n" * 9), 422, "picture")
        assert_problem(upload("image", picture[: len(picture) // 2]), 422, "picture")
        assert_problem(upload("picture", picture), 422, "'image'")
        assert_problem(upload("image", picture, id="a"), 422, "image and id")
        assert_problem(upload("image", picture, k="ten"), 422, "'k'")
        assert_problem(upload("image", picture, k="1001"), 422, "k")
        assert_problem(server.client.post("/v1/search", files={}, data={"k": "3"}, headers={"Content-Type": "multipart/form-data"}), 400)

    def test_a_huge_body_is_refused(self, server: Server) -> None:
        huge = b"x" * (2**20 + 1)  # the servers under test take 1 MiB
        with server.new_client() as client:  # what follows an unread body on the same connection is not worth a claim
            assert_problem(client.post("/v1/search", files={"image": ("huge.png", huge)}), 413, "1,048,576")
        with server.new_client() as client:
            chunks = (huge[: 2**18] for _ in range(5))  # no Content-Length
            answer = client.post("/v1/search", content=chunks, headers={"Content-Type": "application/json"})
            assert_problem(answer, 413, "1,048,576")

    def test_unknown_routes_and_methods(self, server: Server) -> None:
        assert_problem(server.client.get("/v1/nothing"), 404, "/docs")
        assert_problem(server.client.get("/v1/search"), 405, "GET")

    # -- the page ---------------------------------------------------------------------------------------------------------

    def test_the_page_and_its_files(self, server: Server) -> None:
        page = server.client.get("/")
        assert (
            page.status_code == 200
            and "<title>Perdure</title>" in page.text
            and "default-src 'self'" in page.headers["content-security-policy"]
        )
        for name in ("app.js", "style.css", "icon.svg", "docs.js"):
            assert server.client.get(f"/static/{name}").status_code == 200
        assert server.client.get("/docs").status_code == 200
        assert "/v1/search" in server.client.get("/openapi.json").json()["paths"]
        assert_problem(server.client.get("/static/none.js"), 404)

    # -- releases ---------------------------------------------------------------------------------------------------------

    def test_promote_and_rollback_move_the_channel_and_searches_follow(self, server: Server) -> None:
        promoted = server.client.post("/v1/releases/demo@v2/promote", json={"reason": "better"})
        assert promoted.status_code == 200 and promoted.json()["live"]
        state = server.wait("demo@v2", lambda state: state["serving"] == "demo@v2")
        assert state["live"] == "demo@v2" and [one["id"] for one in state["releases"] if one["live"]] == ["demo@v2"]
        assert server.search(text="a red circle").json()["release"] == "demo@v2"
        back = server.client.post("/v1/rollback")
        assert back.status_code == 200 and back.json()["id"] == "demo@v1"
        server.wait("demo@v1", lambda state: state["serving"] == "demo@v1")
        last = server.gallery.registry().journal()[-2:]
        assert [entry["action"] for entry in last] == ["promote", "rollback"] and all(entry["by"].startswith("http:") for entry in last)
        assert last[0]["reason"] == "better"

    def test_promoting_what_is_not_there(self, server: Server) -> None:
        assert_problem(server.client.post("/v1/releases/demo@v99/promote"), 404, "demo@v99")
        assert_problem(server.client.post("/v1/releases/..%2Fx/promote"), 404)
        assert_problem(server.client.post("/v1/releases/demo/promote"), 422)
        assert_problem(server.client.post("/v1/releases/demo@v2/promote", json={"force": "perhaps"}), 422, "force")

    def test_one_answer_never_mixes_releases_while_the_channel_moves(self, server: Server) -> None:
        expected = {release: server.expected(release, Query(text="a blue triangle"), 8) for release in ("demo@v1", "demo@v2")}
        assert expected["demo@v1"] != expected["demo@v2"]
        stop = [False]

        def ask() -> list[tuple[str, bool]]:
            seen: list[tuple[str, bool]] = []
            with server.new_client() as client:
                while not stop[0]:
                    answer = client.post("/v1/search", json={"text": "a blue triangle", "k": 8})
                    release = answer.json().get("release", answer.text)
                    seen.append((release, answer.status_code == 200 and ids(answer) == expected[release]))
            return seen

        with ThreadPoolExecutor(2) as pool:
            callers = [pool.submit(ask) for _ in range(2)]
            try:
                for release in ("demo@v2", "demo@v1", "demo@v2"):
                    server.gallery.registry().promote(release, by="test")
                    server.wait(release, lambda state, release=release: state["serving"] == release)
            finally:
                stop[0] = True
            seen = [one for caller in callers for one in caller.result()]
        assert all(right for _, right in seen), [release for release, right in seen if not right][:3]
        assert {release for release, _ in seen} == {"demo@v1", "demo@v2"}

    @pytest.mark.parametrize(("kind", "name"), [("segment", "partition-0001.faiss"), ("encoder", "weights.safetensors")])
    def test_a_damaged_release_never_goes_live_and_the_reason_is_told(self, server: Server, kind: str, name: str) -> None:
        version = 1 + max(int(release.id.rpartition("v")[2]) for release in server.gallery.registry().releases())
        bad = publish_task(server.gallery, version, server.scratch / f"{kind}-{version}")
        damage(server.gallery, kind, version, name)
        assert server.client.post(f"/v1/releases/{bad}/promote").status_code == 200  # its manifests are whole
        state = server.wait("the reason", lambda state: "damaged" in (state["problem"] or ""))
        assert bad in state["problem"] and name in state["problem"]
        assert state["live"] == bad and state["serving"] == "demo@v1"
        ready = server.client.get("/readyz")
        assert ready.status_code == 200 and "damaged" in ready.json()["problem"]
        assert server.search(text="a red circle").json()["release"] == "demo@v1"
        server.client.post("/v1/rollback")
        server.wait("no problem", lambda state: state["problem"] is None and state["serving"] == "demo@v1")
