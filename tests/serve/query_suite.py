"""What a search may ask beyond a query and k: pages, batches, mixes, expansion, exactness, an explanation; for every topology."""

import base64
from typing import Any

import httpx
import numpy as np
import pytest
from serving_suite import Server, Suite, assert_problem, ids

from perdure.retrieval import Query, Search


def promote(server: Server, release: str) -> None:
    server.gallery.registry().promote(release, by="test")
    server.wait(release, lambda state: state["serving"] == release)


def pages(server: Server, first: httpx.Response, most: int = 1000, **body: Any) -> list[httpx.Response]:
    """An answer and those that follow it."""
    found = [first]
    while "next" in found[-1].json() and len(found) < most:
        found.append(server.search(**body, cursor=found[-1].json()["next"]))
    return found


class QuerySuite(Suite):
    """Needs a fixture `server`, as `ApiSuite` does."""

    # -- pages ------------------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("body", [{"text": "a red circle"}, {"id": "set/03.png"}, {"text": "red", "filter": {"price": {"lt": 33}}}])
    def test_pages_put_together_are_the_list(self, server: Server, body: dict[str, Any]) -> None:
        promote(server, "demo@v2")
        whole = server.search(**body, k=1000)
        assert "next" not in whole.json() and len(ids(whole)) >= 22
        for k in (1, 7, len(ids(whole))):
            found = pages(server, server.search(**body, k=k), **body, k=k)
            assert [name for page in found for name in ids(page)] == ids(whole)
            assert len(found) == -(-len(ids(whole)) // k)
        assert ids(server.search(**body, k=5, offset=4)) == ids(whole)[4:9]
        assert ids(server.search(**body, k=5, offset=500)) == []

    def test_pages_stay_on_the_release_that_they_began_on(self, server: Server) -> None:
        expected = server.expected("demo@v1", Query(text="a blue triangle"), 15)
        first = server.search(text="a blue triangle", k=4)
        promote(server, "demo@v2")
        assert server.search(text="a blue triangle", k=4).json()["release"] == "demo@v2"
        found = pages(server, first, text="a blue triangle", k=4)
        assert {page.json()["release"] for page in found} == {"demo@v1"}
        assert [name for page in found for name in ids(page)] == expected

    def test_a_cursor_that_does_not_fit_is_refused(self, server: Server) -> None:
        cursor = server.search(text="a", k=2).json()["next"]
        assert_problem(server.search(text="b", k=2, cursor=cursor), 422, "another query")
        assert_problem(server.search(text="a", k=2, cursor=cursor, filter={"task": 0}), 422, "another query")
        assert_problem(server.search(text="a", k=2, cursor=cursor, offset=1), 422, "offset and cursor")
        for forged in ("", "abc", "e30", "W10", cursor[:-3], "\u00fc", "x" * 1024):
            assert_problem(server.search(text="a", cursor=forged), 422, "cursor")
        held = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode()
        other = base64.urlsafe_b64encode(held.replace("demo@v1", "demo@v77").encode()).decode()
        assert_problem(server.search(text="a", cursor=other), 410, "demo@v77", "begin again")
        far = base64.urlsafe_b64encode(held.replace('"offset":2', '"offset":9999').encode()).decode()
        assert_problem(server.search(text="a", cursor=far), 422, "10,000")

    # -- batches ----------------------------------------------------------------------------------------------------------

    def test_a_batch_answers_each_query_as_if_alone_and_all_from_one_release(self, server: Server) -> None:
        promote(server, "demo@v2")
        picture = base64.b64encode(server.gallery.pictures[9]).decode()
        queries: list[dict[str, Any]] = [
            {"text": "a red circle", "k": 3},
            {"image": picture, "k": 3, "filter": {"label": "square"}},
            {"id": "set/07.png", "k": 2},
            {"text": "blue", "image": picture, "image_weight": 0.3, "offset": 2},
            {"text": "green", "expand": {"hits": 3}, "payload": True},
            {"text": "yellow", "k": 3},
        ]
        answer = server.client.post("/v1/search/batch", json={"queries": queries})
        assert answer.status_code == 200, answer.text
        results = answer.json()["results"]
        assert len(results) == len(queries) and {one["release"] for one in results} == {"demo@v2"}
        for query, result in zip(queries, results, strict=True):
            alone = server.search(**query).json()
            assert [hit["id"] for hit in result["hits"]] == [hit["id"] for hit in alone["hits"]]
            np.testing.assert_allclose([h["score"] for h in result["hits"]], [h["score"] for h in alone["hits"]], atol=1e-4)
            assert result.get("next") == alone.get("next")
        assert "payload" in results[4]["hits"][0] and "payload" not in results[0]["hits"][0]

    def test_a_batch_that_is_wrong_says_which_query(self, server: Server) -> None:
        def batch(*queries: Any) -> httpx.Response:
            return server.client.post("/v1/search/batch", json={"queries": list(queries)})

        good = {"text": "a"}
        assert_problem(batch(), 422, "#/queries")
        assert_problem(batch(*[good] * 65), 422, "64")
        assert_problem(batch(good, {"text": "a", "k": 0}), 422, "#/queries/1/k")
        assert_problem(batch(good, good, {}), 422, "queries/2: nothing to search by")
        assert_problem(batch({**good, "cursor": "x"}), 422, "cursor")
        assert_problem(batch(*[{"text": "a", "k": 1000}] * 11), 422, "11,000", "10,000")
        assert_problem(batch(good, {"id": "nobody"}), 404, "nobody")
        assert_problem(server.client.post("/v1/search/batch", content=b"[]"), 422)

    # -- mixes and expansion ----------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("release", ["demo@v1", "demo@v2"])
    def test_mixed_and_expanded_queries_are_those_of_the_plain_retriever(self, server: Server, release: str) -> None:
        promote(server, release)
        picture = server.gallery.pictures[4]
        encoded = base64.b64encode(picture).decode()
        server.expected(release, Query(text="warm"), 1)
        plain = server.retrievers[release]
        text, image = Query(text="a green triangle"), Query(image=picture)
        seen: set[tuple[str, ...]] = set()
        for weight in (0.0, 0.25, 0.5, 1.0):
            answer = ids(server.search(text=text.text, image=encoded, image_weight=weight, k=9))
            assert answer == server.expected(release, Query(text=text.text, image=picture, image_weight=weight), 9)
            seen.add(tuple(answer))
        assert tuple(server.expected(release, text, 9)) in seen and tuple(server.expected(release, image, 9)) in seen and len(seen) > 2
        form = server.client.post("/v1/search", files={"image": ("p.png", picture)}, data={"text": "a green triangle", "k": "9"})
        assert ids(form) == server.expected(release, Query(text=text.text, image=picture), 9)
        for expand, alpha in ((1, 3.0), (6, 0.0)):
            answer = server.search(text=text.text, k=9, expand={"hits": expand, "alpha": alpha}, filter={"task": 0})
            (expected,) = plain.answer([Search(text, 9, filter={"task": 0}, expand=expand, alpha=alpha)])
            assert ids(answer) == [hit.id for hit in expected.hits]
            np.testing.assert_allclose([h["score"] for h in answer.json()["hits"]], [h.score for h in expected.hits], atol=1e-4)

    # -- explanations -----------------------------------------------------------------------------------------------------

    def test_an_explanation_accounts_for_every_score(self, server: Server) -> None:
        promote(server, "demo@v2")
        body = {"text": "a red circle", "k": 30, "filter": {"label": ["circle", "square"]}, "expand": {"hits": 2, "alpha": 0}}
        answer = server.search(**body, explain=True).json()
        told = answer["explain"]
        assert told["merge"] == "standardised" and told["topology"] in ("fused", "sharded")
        assert [one["items"] for one in told["segments"]] == [15, 15] and [one["passing"] for one in told["segments"]] == [10, 10]
        assert [one["queried_by"] for one in told["segments"]] == ["encoder/demo@v1", "encoder/demo@v2"]
        assert all(one["kind"] == "flat" and one["exact"] and not one["compensated"] for one in told["segments"])
        assert len(told["expanded_by"]) == 2 and set(told["expanded_by"]) <= {hit["id"] for hit in answer["hits"]}
        assert (len(told["shards_ms"]) == 2) if told["topology"] == "sharded" else "shards_ms" not in told
        by_name = {one["segment"]: one for one in told["segments"]}
        for hit in answer["hits"]:
            own = by_name[hit["segment"]]
            assert hit["encoder"] == own["made_by"]
            assert hit["score"] == pytest.approx((hit["raw_score"] - own["mean"]) / own["std"], abs=1e-3)
        assert {"encode", "expand", "search", "merge", "other"} <= set(answer["timings_ms"])
        plain = server.search(**body).json()
        assert "explain" not in plain and "raw_score" not in plain["hits"][0]

    def test_every_reference_in_the_description_of_the_api_leads_somewhere(self, server: Server) -> None:
        document = server.client.get("/openapi.json").json()
        found: list[str] = []

        def visit(node: Any) -> None:
            for name, one in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
                found.extend([one] if name == "$ref" else [])
                visit(one)

        visit(document)
        assert len(found) > 5
        for reference in set(found):
            place = document
            for step in reference.removeprefix("#/").split("/"):
                place = place[step]
        body = document["paths"]["/v1/search/batch"]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert {"expand", "cursor", "image_weight"} <= set(body["properties"]["queries"]["items"]["properties"])

    # -- limits -----------------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize(
        ("body", "word"),
        [
            ({"offset": -1}, "offset"),
            ({"offset": 9_500, "k": 501}, "lists end at 10,000"),
            ({"offset": "3"}, "offset"),
            ({"image_weight": 0.4}, "only text is given"),
            ({"image_weight": 1.5}, "image_weight"),
            ({"expand": {"hits": 0}}, "#/expand/hits"),
            ({"expand": {"hits": 101}}, "#/expand/hits"),
            ({"expand": {"alpha": -1}}, "#/expand/alpha"),
            ({"expand": {"beta": 1}}, "#/expand/beta"),
            ({"expand": 5}, "#/expand"),
            ({"exact": "perhaps"}, "#/exact"),
            ({"explain": 3}, "#/explain"),
            ({"cursor": "x" * 1025}, "#/cursor"),
            ({"payload": ["x"] * 65}, "#/payload"),
        ],
    )
    def test_a_number_out_of_range_is_a_problem(self, server: Server, body: dict[str, Any], word: str) -> None:
        assert_problem(server.search(text="a", **body), 422, word)
