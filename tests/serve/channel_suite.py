"""What a candidate beside the live release does, whatever the topology: the same claims run in-process and on a real Ray."""

import time
from collections import Counter
from typing import Any

import pytest
from conftest import damage, publish_task
from serving_suite import Server, Suite, assert_problem, ids

from perdure.cli import main
from perdure.retrieval.retriever import Query
from serve.channels import in_share

V1, V2 = "demo@v1", "demo@v2"


def beside(server: Server, release: str = V2, **given: Any) -> dict[str, Any]:
    """Put a release beside the live one and wait until it is ready."""
    answer = server.client.post(f"/v1/releases/{release}/promote", json={"channel": "candidate", **given})
    assert answer.status_code == 200 and answer.json()["candidate"], answer.text

    def ready(state: dict[str, Any]) -> bool:
        found = state["candidate"]
        asked = {name: given.get(name, 0) for name in ("share", "shadow")}
        return found is not None and found["ready"] and found["release"] == release and asked.items() <= found.items()

    return server.wait(f"candidate {release}", ready)


def came_from(server: Server, **headers: str) -> tuple[str, str]:
    """(release, channel) of an answer whose body and headers agree."""
    answer = server.client.post("/v1/search", json={"text": "a red circle"}, headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.headers["perdure-release"] == answer.json()["release"]
    return answer.json()["release"], answer.headers["perdure-channel"]


class ChannelSuite(Suite):
    """Channels, canaries, shadows."""

    @pytest.fixture(autouse=True)
    def _begin_without_traffic(self, server: Server, _begin_with_the_first_release: None) -> None:
        if server.gallery.registry().channel("candidate") is not None:
            beside(server, V1)

    def test_a_candidate_is_held_beside_the_live_release_and_answers_who_asks_for_it(self, server: Server) -> None:
        state = beside(server)
        assert state["live"] == state["serving"] == V1 and state["problem"] is None
        assert {one["id"] for one in state["releases"] if one["held"]} >= {V1, V2}
        assert came_from(server) == (V1, "live")
        assert came_from(server, **{"Perdure-Channel": "candidate"}) == (V2, "candidate")
        answer = server.client.post("/v1/search", json={"text": "a violet square", "k": 9}, headers={"Perdure-Channel": "Candidate"})
        assert ids(answer) == server.expected(V2, Query(text="a violet square"), 9)
        batch = server.client.post("/v1/search/batch", json={"queries": [{"text": "a"}] * 3}, headers={"Perdure-Channel": "candidate"})
        assert {one["release"] for one in batch.json()["results"]} == {V2}
        assert_problem(server.client.post("/v1/search", json={"text": "a"}, headers={"Perdure-Channel": "best"}), 422, "live or candidate")

    def test_a_share_is_chosen_by_the_sticky_key_and_stays(self, server: Server) -> None:
        beside(server, share=30)
        callers = [f"caller {number}" for number in range(40)]
        for _ in range(2):
            for caller in callers:
                expected = (V2, "candidate") if in_share("share", V2, caller, 30) else (V1, "live")
                assert came_from(server, **{"Perdure-Sticky": caller}) == expected
        assert 3 < sum(in_share("share", V2, caller, 30) for caller in callers) < 25
        assert came_from(server, **{"X-Request-Id": "caller 1"}) == came_from(server, **{"Perdure-Sticky": "caller 1"})
        chosen = next(caller for caller in callers if in_share("share", V2, caller, 30))
        assert came_from(server, **{"Perdure-Sticky": chosen, "Perdure-Channel": "live"}) == (V1, "live")
        beside(server, share=100)
        assert Counter(came_from(server) for _ in range(10)) == {(V2, "candidate"): 10}
        beside(server, share=0)
        assert Counter(came_from(server) for _ in range(10)) == {(V1, "live"): 10}

    def test_pages_of_a_candidate_stay_on_it(self, server: Server) -> None:
        beside(server)
        first = server.client.post("/v1/search", json={"text": "a", "k": 5}, headers={"Perdure-Channel": "candidate"}).json()
        page = server.search(text="a", k=5, cursor=first["next"])
        assert page.json()["release"] == V2
        assert [hit["id"] for hit in first["hits"]] + ids(page) == server.expected(V2, Query(text="a"), 10)

    def test_shadows_compare_off_the_path_and_are_told(self, server: Server) -> None:
        texts = [f"a {colour} {shape}" for colour in ("red", "blue") for shape in ("circle", "square", "triangle")]
        shares: list[float] = []
        for text in texts:
            one, other = (set(server.expected(release, Query(text=text), 6)) for release in (V1, V2))
            shares.append(len(one & other) / 6)
        assert 0 < sum(shares) < 6
        known = (beside(server, shadow=100)["candidate"]["shadows"] or {}).get("compared", 0)
        assert known == 0 or isinstance(known, int)
        for text in texts:
            assert server.search(text=text, k=6).json()["release"] == V1, "the answer is the live one's"
        state = server.wait("shadows", lambda state: ((state["candidate"]["shadows"] or {}).get("compared", 0)) >= known + 6)
        told = state["candidate"]["shadows"]
        if known == 0:
            assert told["compared"] == 6 and told["failed"] == told["left_out"] == 0 and told["live"] == V1
            assert abs(told["overlap"] - sum(shares) / 6) < 1e-3
            text = server.client.get("/metrics").text
            assert f'perdure_shadow_overlap_count{{candidate="{V2}",live="{V1}"}} 6.0' in text
            assert f'perdure_shadows_total{{candidate="{V2}",live="{V1}",outcome="compared"}} 6.0' in text

    def test_a_bad_candidate_touches_nobody(self, server: Server) -> None:
        version = 1 + max(int(release.id.rpartition("v")[2]) for release in server.gallery.registry().releases())
        bad = publish_task(server.gallery, version, server.scratch / f"candidate-{version}")
        damage(server.gallery, "segment", version, "partition-0001.faiss")
        given = {"channel": "candidate", "share": 100, "shadow": 100}
        assert server.client.post(f"/v1/releases/{bad}/promote", json=given).status_code == 200
        state = server.wait("the reason", lambda state: "damaged" in ((state["candidate"] or {}).get("problem") or ""))
        assert bad in state["candidate"]["problem"] and not state["candidate"]["ready"]
        assert state["problem"] is None and state["serving"] == V1
        ready = server.client.get("/readyz").json()
        assert ready["problem"] is None and "damaged" in ready["candidate_problem"]
        assert came_from(server) == (V1, "live")
        assert_problem(server.client.post("/v1/search", json={"text": "a"}, headers={"Perdure-Channel": "candidate"}), 503, "damaged")
        back = server.client.post("/v1/rollback", json={"channel": "candidate"})
        assert back.status_code in (200, 404)
        beside(server, V2)

    def test_a_candidate_that_is_promoted_answers_everybody(self, server: Server) -> None:
        beside(server, share=50)
        assert server.client.post(f"/v1/releases/{V2}/promote").status_code == 200
        server.wait(V2, lambda state: state["serving"] == V2)
        assert Counter(came_from(server) for _ in range(8)) == {(V2, "live"): 8}
        server.client.post("/v1/rollback")
        server.wait(V1, lambda state: state["serving"] == V1)

    def test_the_command_puts_a_release_beside_as_well(self, server: Server, capsys: pytest.CaptureFixture[str]) -> None:
        folder = str(server.gallery.folder)
        assert main(["promote", V2, "--channel", "candidate", "--share", "100", "--registry", folder]) == 0
        assert "candidate: " in capsys.readouterr().out
        server.wait(V2, lambda state: (state["candidate"] or {}).get("share") == 100 and state["candidate"]["ready"])
        assert came_from(server) == (V2, "candidate")
        assert main(["promote", V2, "--share", "10", "--registry", folder]) == 2
        assert main(["rollback", "--channel", "candidate", "--registry", folder]) in (0, 2)
        beside(server, V2)

    def test_a_search_may_name_a_release_that_is_held(self, server: Server) -> None:
        beside(server)
        named = server.search(text="a blue square", k=7, release=V2)
        assert named.json()["release"] == V2 and ids(named) == server.expected(V2, Query(text="a blue square"), 7)
        new = server.gallery.items[20].id  # of the second task
        assert_problem(server.client.get(f"/v1/items/{new}"), 404)
        assert server.client.get(f"/v1/items/{new}", params={"release": V2}).json()["release"] == V2
        assert server.client.get(f"/v1/items/{new}/image", params={"release": V2}).content == server.gallery.pictures[20]
        assert_problem(server.search(text="a", release="demo@v77"), 410, "demo@v77")
        assert_problem(server.search(text="a", release="../x"), 422, "release")
        mixed = {"queries": [{"text": "a", "release": V1}, {"text": "a", "release": V2}]}
        assert_problem(server.client.post("/v1/search/batch", json=mixed), 422, "different releases")

    def test_share_and_shadow_belong_to_the_candidate(self, server: Server) -> None:
        assert_problem(server.client.post(f"/v1/releases/{V2}/promote", json={"share": 10}), 422, "candidate")
        wrong = server.client.post(f"/v1/releases/{V2}/promote", json={"channel": "candidate", "share": 101})
        assert_problem(wrong, 422, "share")
        time.sleep(0.1)
        assert came_from(server) == (V1, "live")
