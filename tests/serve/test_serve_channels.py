"""Which channel a request goes to, and shadows that pile up."""

import asyncio
from typing import Any

import pytest
from channel_suite import ChannelSuite
from test_serve_api import server  # noqa: F401, a fixture

from perdure.errors import BadQuery
from perdure.records import Traffic
from perdure.registry import Registry
from perdure.retrieval.retriever import Query, Search
from serve.channels import AS_LIVE, Place, Route, in_share, route
from serve.metrics import Metrics
from serve.reading import SearchQuery
from serve.schemas import HitOut, SearchResponse
from serve.shadow import Shadows, overlap


class TestChannelsInProcess(ChannelSuite):
    pass


PLACE = Place("demo@v2", share=20, shadow=50, ready=True)


def test_a_request_is_chosen_alike_every_time_and_by_its_share() -> None:
    ways = [route({}, f"request {number}", PLACE) for number in range(5000)]
    assert ways == [route({}, f"request {number}", PLACE) for number in range(5000)]
    taken = sum(way.channel == "candidate" for way in ways)
    shadowed = sum(way.shadow for way in ways)
    assert 900 < taken < 1100, "20 % of 5,000"
    assert 1880 < shadowed < 2120, "half of the other 4,000"
    assert not any(way.shadow and way.channel == "candidate" for way in ways)


def test_whoever_is_on_the_candidate_stays_when_its_share_grows() -> None:
    keys = [f"key {number}" for number in range(500)]
    small, large = ({key for key in keys if in_share("share", "demo@v2", key, percent)} for percent in (10, 40))
    assert small < large
    other = {key for key in keys if in_share("share", "demo@v3", key, 40)}
    assert large != other, "another candidate is tried on others"
    assert not any(in_share("share", "demo@v2", key, 0) for key in keys) and all(in_share("share", "demo@v2", key, 100) for key in keys)


def test_headers_decide_first() -> None:
    full = Place("demo@v2", share=100, shadow=100, ready=True)
    assert route({"perdure-channel": " Live "}, "r", full) == Route("live", asked=True, shadow=True)
    assert route({"perdure-channel": "candidate"}, "r", None) == Route("candidate", asked=True)
    assert route({}, "r", full) == Route("candidate")
    assert route({}, "r", Place("demo@v2", 100, 100, ready=False)) == AS_LIVE
    for headers in ({"perdure-channel": "x"}, {"perdure-sticky": "x" * 257}):
        with pytest.raises(BadQuery):
            route(headers, "r", full)


def answer(release: str, *found: str) -> SearchResponse:
    hits = [HitOut(id=name, score=1.0, label="", text="", task=0, encoder="encoder/demo@v1") for name in found]
    return SearchResponse(release=release, hits=hits, partial=False, timings_ms={})


def test_overlap_is_of_sets_over_the_longer_list() -> None:
    assert overlap(answer("a", "1", "2", "3"), answer("b", "3", "2", "9")) == pytest.approx(2 / 3)
    assert overlap(answer("a", "1"), answer("b", "1", "2", "3", "4")) == 0.25
    assert overlap(answer("a"), answer("b")) == 1.0 and overlap(answer("a"), answer("b", "1")) == 0.0


def test_shadows_never_hold_up_who_asks_and_do_not_pile_up() -> None:
    query = SearchQuery(Search(Query(text="a"), 3), "digest")

    async def scenario() -> tuple[Any, Any]:
        go_on = asyncio.Event()
        at_once: list[int] = []

        async def search(queries: Any) -> list[SearchResponse]:
            assert queries[0].route == Route("candidate", asked=True)
            at_once.append(1)
            assert sum(at_once) == 1, "one at a time"
            await go_on.wait()
            at_once.pop()
            return [answer("demo@v2", "1", "2")]

        shadows = Shadows(search, Metrics(), max_waiting=4)
        for _ in range(10):
            shadows.compare([query], [answer("demo@v1", "1", "3")], 2.0, "demo@v2")
        before = shadows.told("demo@v1", "demo@v2")
        go_on.set()
        for _ in range(50):
            await asyncio.sleep(0)
        return before, shadows.told("demo@v1", "demo@v2")

    before, after = asyncio.run(scenario())
    assert before.left_out == 6 and before.compared == 0
    assert after.compared == 4 and after.left_out == 6 and after.overlap == 0.5 and after.same_first == 1.0


def test_a_shadow_that_fails_is_counted_and_nothing_else() -> None:
    async def scenario() -> Any:
        async def search(queries: Any) -> list[SearchResponse]:
            raise ZeroDivisionError

        shadows = Shadows(search, Metrics())
        shadows.compare([SearchQuery(Search(Query(text="a"), 3), "digest")], [answer("demo@v1")], 2.0, "demo@v2")
        for _ in range(10):
            await asyncio.sleep(0)
        return shadows.told("demo@v1", "demo@v2")

    assert asyncio.run(scenario()).failed == 1


def test_traffic_is_moved_with_the_channel_and_gone_after_a_rollback(gallery: Any) -> None:
    registry: Registry = gallery.registry()
    registry.promote("demo@v2", "candidate", traffic=Traffic(10, 50))
    registry.promote("demo@v2", "candidate", traffic=Traffic(20, 50))
    registry.promote("demo@v2", "candidate", traffic=Traffic(20, 50))  # once more changes nothing
    placed = registry.placed("candidate")
    assert placed is not None and placed[0].id == "demo@v2" and placed[1] == Traffic(20, 50)
    entries = [entry for entry in registry.journal() if entry["channel"] == "candidate"]
    assert [entry["traffic"]["share"] for entry in entries] == [10, 20]
    registry.promote("demo@v1", "candidate")
    assert registry.rollback("candidate").id == "demo@v2"
    assert registry.placed("candidate") == (registry.release("demo@v2"), Traffic())
    with pytest.raises(ValueError, match="percent"):
        Traffic(share=101)
