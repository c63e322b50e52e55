"""What a server must do with items that are brought and taken away, whatever its topology."""

import base64
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
from conftest import draw
from query_suite import pages, promote
from serving_suite import Server, Suite, assert_problem, ids, wait

from perdure.retrieval import Query, Retriever
from perdure.retrieval.compaction import fold, put_together
from perdure.retrieval.edits import edited

PICTURES = [draw("violet", shape, 100 + seed) for seed, shape in enumerate(("circle", "square", "triangle") * 2)]


def encoded(picture: bytes) -> str:
    return base64.b64encode(picture).decode()


def item(number: int, **more: Any) -> dict[str, Any]:
    return {"id": f"new/{number}.png", "image": encoded(PICTURES[number % len(PICTURES)]), "label": "circle", **more}


def upsert(server: Server, *items: dict[str, Any], key: str | None = None) -> dict[str, Any]:
    """The answer to a write that is taken."""
    answer = server.client.post("/v1/items", json={"items": items}, headers={"Idempotency-Key": key} if key else {})
    assert answer.status_code == 200, answer.text
    return answer.json()


def delete(server: Server, *names: str) -> dict[str, Any]:
    answer = server.client.request("DELETE", "/v1/items", json={"ids": list(names)})
    assert answer.status_code == 200, answer.text
    return answer.json()


def shown(server: Server, edit: int) -> None:
    """Wait until answers show an edit."""
    server.wait(f"edit {edit}", lambda state: state["edit"] >= edit and state["problem"] is None)


def everything(server: Server, **more: Any) -> list[str]:
    return ids(server.search(text="a red circle", k=1000, **more))


class WritingSuite(Suite):
    """Needs a fixture `server`, as `ApiSuite` does."""

    def test_what_is_written_is_found_within_two_seconds_and_what_is_deleted_is_not(self, server: Server) -> None:
        before = everything(server)
        began = time.monotonic()
        told = upsert(server, item(0, text=["a violet thing"], payload={"price": 3, "colour": "violet"}, tags=["hand"], group="g"))
        assert told["results"] == [{"id": "new/0.png", "status": "stored"}] and told["refused"] == 0
        wait(lambda: "new/0.png" in everything(server))
        server.took_s = time.monotonic() - began  # type: ignore[attr-defined]
        (first,) = ids(server.search(image=encoded(PICTURES[0]), k=1))
        assert first == "new/0.png"
        (hit,) = server.search(image=encoded(PICTURES[0]), k=1, filter={"colour": "violet", "price": {"lt": 4}}, payload=True).json()[
            "hits"
        ]
        assert (
            hit["payload"] == {"price": 3, "colour": "violet"}
            and hit["text"] == "a violet thing"
            and hit["score"] == pytest.approx(1, abs=1e-4)
        )
        known = server.client.get("/v1/items/new/0.png").json()
        assert (known["label"], known["tags"], known["group"], known["has_image"]) == ("circle", ["hand"], "g", True)
        assert known["release"] == f"demo@v1+{told['edit']}"
        assert server.client.get("/v1/items/new/0.png/image").content == PICTURES[0]
        shown(server, delete(server, "new/0.png", before[0])["edit"])
        assert everything(server) == before[1:]
        assert_problem(server.client.get("/v1/items/new/0.png"), 404, "new/0.png")
        assert_problem(server.search(id=before[0]), 404, before[0])
        assert before[0] not in [one["id"] for one in server.client.get("/v1/items?sample=100").json()]

    def test_an_item_of_the_release_is_replaced_whole(self, server: Server) -> None:
        old = server.gallery.items[4]
        shown(server, upsert(server, {"id": old.id, "image": encoded(PICTURES[1]), "label": "other"})["edit"])
        assert len(everything(server)) == len(set(everything(server))) == 15
        assert ids(server.search(image=encoded(PICTURES[1]), k=1)) == [old.id]
        assert everything(server, filter={"label": "other"}) == [old.id]
        assert old.id not in everything(server, filter={"label": old.label})
        known = server.client.get(f"/v1/items/{old.id}").json()
        assert known["label"] == "other" and known["payload"] == {} and known["captions"] == []
        assert old.id not in ids(server.search(id=old.id, k=30))

    def test_words_alone_are_an_item_where_the_encoder_reads(self, server: Server) -> None:
        told = upsert(server, {"id": "words", "text": ["a red circle number 3"]})
        shown(server, told["edit"])
        assert ids(server.search(text="a red circle number 3", k=1)) == ["words"]
        assert server.client.get("/v1/items/words").json()["has_image"] is False
        assert_problem(server.client.get("/v1/items/words/image"), 404, "without its picture")

    def test_pages_searches_by_item_and_explanations_know_nothing_of_the_dead(self, server: Server) -> None:
        promote(server, "demo@v2")
        gone = [server.gallery.items[row].id for row in (0, 7, 16, 29)]
        edit = delete(server, *gone)["edit"]
        shown(server, upsert(server, item(1), item(2, label="square"))["edit"])
        whole = server.search(text="a red circle", k=1000)
        assert len(ids(whole)) == 28 and not set(gone) & set(ids(whole)) and edit
        found = pages(server, server.search(text="a red circle", k=5), text="a red circle", k=5)
        assert [name for page in found for name in ids(page)] == ids(whole)
        told = server.search(text="a", filter={"label": "circle"}, explain=True).json()["explain"]["segments"]
        assert [one["items"] for one in told] == [13, 13, 2] and sum(one["passing"] for one in told) == 10
        release = edited(server.gallery.registry(), server.gallery.registry().release("demo@v2"))
        plain = Retriever.load(server.gallery.registry(), release)
        for query in (Query(text="a blue square"), Query(id="new/1.png"), Query(image=PICTURES[3])):
            body = {"text": query.text, "id": query.id, "image": encoded(PICTURES[3]) if query.image else None}
            answer = server.search(**{name: value for name, value in body.items() if value}, k=9)
            assert ids(answer) == [hit.id for hit in plain.search(query, 9).hits]
            np.testing.assert_allclose(
                [hit["score"] for hit in answer.json()["hits"]], [hit.score for hit in plain.search(query, 9).hits], atol=1e-4
            )

    def test_one_bad_item_keeps_no_other_out_and_is_told_why(self, server: Server) -> None:
        told = upsert(
            server,
            item(0),
            {"id": "none"},
            {"id": "bad64", "image": "%%%"},
            {"id": "nopicture", "image": encoded(b"plain words")},
            item(3, payload={"price": "dear"}),
            item(4, payload={"big": 2**60}),
            item(5, payload={"label": "x"}),
        )
        assert [one["status"] for one in told["results"]] == ["stored"] + ["refused"] * 6 and told["refused"] == 6
        words = ["neither", "base64", "picture", "price", "2^53", "label"]
        assert all(word in one["detail"] for word, one in zip(words, told["results"][1:], strict=True))
        shown(server, told["edit"])
        assert len(everything(server)) == 16
        assert upsert(server, {"id": "none"})["edit"] == 0

    def test_a_wrong_body_is_a_problem(self, server: Server) -> None:
        def post(body: Any) -> httpx.Response:
            return server.client.post("/v1/items", json=body)

        assert_problem(post({"items": []}), 422, "#/items")
        assert_problem(post({"items": [{"id": ""}]}), 422, "#/items/0/id")
        assert_problem(post({"items": [{"id": "a", "colour": "red"}]}), 422, "#/items/0/colour")
        assert_problem(post({"items": [item(0)] * 2}), 422, "twice")
        assert_problem(post({"items": [{"id": str(number), "text": ["a"]} for number in range(257)]}), 422, "256")
        assert_problem(server.client.request("DELETE", "/v1/items", json={"ids": "a"}), 422, "#/ids")
        assert_problem(server.client.request("DELETE", "/v1/items"), 422)
        assert_problem(server.client.post("/v1/items", content=b"{"), 422)
        assert_problem(post({"items": [{"id": "a", "image": "x" * 2**20}]}), 413)

    def test_the_same_request_again_is_the_same_answer_and_nothing_twice(self, server: Server) -> None:
        first = upsert(server, item(0), {"id": "none"}, key="k1")
        upsert(server, item(0, label="later"))
        assert upsert(server, item(0), {"id": "none"}, key="k1") == first
        told = upsert(server, item(0, label="later"))
        assert [one["status"] for one in told["results"]] == ["stored"]
        shown(server, told["edit"])
        assert everything(server).count("new/0.png") == 1 and len(everything(server)) == 16
        assert server.client.get("/v1/items/new/0.png").json()["label"] == "later"
        answer = server.client.post("/v1/items", json={"items": [item(1)]}, headers={"Idempotency-Key": "k1"})
        assert_problem(answer, 422, "k1", "another request")
        one = server.client.delete("/v1/items/new/0.png").json()
        again = server.client.delete("/v1/items/new/0.png").json()
        assert one["results"] == again["results"] == [{"id": "new/0.png", "status": "deleted"}]
        shown(server, again["edit"])
        assert len(everything(server)) == 15

    def test_what_was_written_stays_when_releases_are_promoted_and_rolled_back(self, server: Server) -> None:
        shown(server, upsert(server, item(0))["edit"])
        shown(server, delete(server, server.gallery.items[2].id)["edit"])
        promote(server, "demo@v2")
        wait(lambda: "new/0.png" in everything(server) and len(everything(server)) == 30)
        server.client.post("/v1/rollback")
        server.wait("demo@v1", lambda state: state["serving"] == "demo@v1")
        assert len(everything(server)) == 15 and "new/0.png" in everything(server)

    def test_compaction_changes_no_answer(self, server: Server) -> None:
        promote(server, "demo@v2")
        for number in range(6):
            upsert(server, item(number, label=f"class {number}"))
        edit = delete(server, "new/3.png", server.gallery.items[20].id, server.gallery.items[3].id)["edit"]
        shown(server, edit)
        registry = server.gallery.registry()
        before = server.search(text="a red circle", k=1000)
        assert len(ids(before)) == 33
        put_together(registry, "demo")
        fold(registry)
        folded = registry.channel()
        assert folded is not None and len(folded.segments) == 2 and folded.edits_through >= edit
        state = server.wait("the fold", lambda state: state["serving"] == folded.id)
        assert state["edit"] >= edit
        assert sorted(everything(server)) == sorted(ids(before))
        plain = Retriever.load(registry, folded)
        assert everything(server) == [hit.id for hit in plain.search(Query(text="a red circle"), 1000).hits]
        assert server.client.get("/v1/items/new/4.png/image").content == PICTURES[4]

    def test_many_writers_at_once_lose_nothing_and_leave_few_segments(self, server: Server) -> None:
        def bring(number: int) -> dict[str, Any]:
            with server.new_client() as client:
                body = {"items": [{"id": f"many/{number}", "text": [f"number {number}"], "payload": {"number": number}}]}
                answer = client.post("/v1/items", json=body, timeout=60)
                assert answer.status_code == 200, answer.text
                return answer.json()

        with ThreadPoolExecutor(16) as pool:
            told = list(pool.map(bring, range(32)))
        edits = {one["edit"] for one in told}
        assert len(edits) < 32, "those that arrive together are one edit"
        shown(server, max(edits))
        assert {f"many/{number}" for number in range(32)} <= set(everything(server)) and len(everything(server)) == 47
        release = edited(server.gallery.registry(), server.gallery.registry().channel())
        assert release is not None and len(release.segments) <= 8
