"""What is measured, the dashboard that shows it, and the log."""

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import Gallery
from prometheus_client.parser import text_string_to_metric_families
from serving_suite import Server
from test_serve_api import client_of, quick, server  # noqa: F401, a fixture

from serve.backend import FusedBackend
from serve.metrics import METRICS, Metrics

ROOT = Path(__file__).parents[2]
DASHBOARD = json.loads((ROOT / "k8s" / "monitoring" / "grafana-dashboard.json").read_text())
EXPRESSIONS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


def metric_of(name: str) -> str:
    """The metric of a series: histograms have three."""
    return name if name in METRICS else re.sub(r"_(bucket|sum|count)$", "", name)


def test_every_metric_of_the_dashboard_exists_and_every_metric_is_on_it() -> None:
    named = {f"perdure_{name}" for expression in EXPRESSIONS for name in re.findall(r"\$\{prefix\}(\w+)", expression)}
    for name in named:
        metric = METRICS[metric_of(name)]
        assert (metric.kind == "histogram") is (name not in METRICS), f"{name} is a {metric.kind}"
    shown = {metric_of(name) for name in named}
    assert shown == set(METRICS)
    prefix = next(one for one in DASHBOARD["templating"]["list"] if one["name"] == "prefix")
    assert [one["value"] for one in prefix["options"]] == ["ray_perdure_", "perdure_"]


def test_every_label_of_the_dashboard_is_one_of_its_metric() -> None:
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            (metric,) = {metric_of(f"perdure_{name}") for name in re.findall(r"\$\{prefix\}(\w+)", target["expr"])}
            known = {*METRICS[metric].labels, "le"}
            used = {label.strip() for group in re.findall(r"by \(([^)]*)\)", target["expr"]) for label in group.split(",")}
            used |= set(re.findall(r"(\w+)=~?\"", target["expr"])) | set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            assert used <= known, (panel["title"], used - known)


def test_the_dashboard_is_one_that_grafana_takes() -> None:
    panels = DASHBOARD["panels"]
    assert DASHBOARD["schemaVersion"] >= 36 and DASHBOARD["uid"] and DASHBOARD["title"]
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels) > 10
    places = {(place["x"], place["y"]) for place in (panel["gridPos"] for panel in panels)}
    assert len(places) == len(panels) and all(x + 8 <= 24 for x, _ in places)
    for expression in EXPRESSIONS:
        assert expression.count("(") == expression.count(")") and expression.count("{") == expression.count("}")


def samples(served: Server) -> dict[str, list[tuple[dict[str, str], float]]]:
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(served.client.get("/metrics").text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((dict(sample.labels), sample.value))
    return found


def test_a_gateway_counts_what_it_answers(server: Server) -> None:  # noqa: F811
    for _ in range(3):
        assert server.search(text="a red circle").status_code == 200
    server.search(text="")
    server.client.post("/v1/search/batch", json={"queries": [{"text": "a"}, {"text": "b"}]})
    found = samples(server)
    assert found["perdure_searches_total"] == [({"release": "demo@v1", "version": "v1", "channel": "live"}, 5.0)]
    requests = {(one["route"], one["status"]): value for one, value in found["perdure_requests_total"]}
    assert requests["/v1/search", "200"] == 3 and requests["/v1/search", "422"] == 1 and requests["/v1/search/batch", "200"] == 1
    assert ({"release": "demo@v1", "version": "v1"}, 1.0) in found["perdure_serving"] and found["perdure_ready"] == [({}, 1.0)]
    assert {one["phase"] for one, _ in found["perdure_phase_seconds_count"]} >= {"encode", "search", "merge", "other"}
    assert {name for name, metric in METRICS.items() if metric.kind == "gauge" and not metric.labels} <= found.keys()


def test_a_strange_path_makes_no_series_of_its_own(server: Server) -> None:  # noqa: F811
    for number in range(5):
        server.client.get(f"/nothing/{number}")
    routes = {one["route"] for one, _ in samples(server)["perdure_requests_total"]}
    assert "none" in routes and not any("nothing" in route for route in routes)


def test_every_request_leaves_one_line_with_its_id(gallery: Gallery, caplog: pytest.LogCaptureFixture) -> None:
    args = quick(gallery.folder)
    backend = FusedBackend(args)
    with caplog.at_level(logging.INFO, "perdure.requests"), client_of(backend, args) as client:
        answer = client.post("/v1/search", json={"text": "a red circle", "k": 4}, headers={"X-Request-Id": "mine-1"})
        assert answer.headers["x-request-id"] == "mine-1"
        refused = client.post("/v1/search", json={"text": ""})
        assert refused.headers["x-request-id"] == refused.json()["request_id"]
        client.get("/healthz")
        strange = client.get("/healthz", headers={"X-Request-Id": "a b" + "x" * 100})
        assert len(strange.headers["x-request-id"]) <= 64
    lines: list[dict[str, Any]] = [json.loads(record.getMessage()) for record in caplog.records if record.name == "perdure.requests"]
    assert [line["status"] for line in lines] == [200, 422], "health is asked too often to be told"
    assert lines[0]["request"] == "mine-1" and lines[0]["release"] == "demo@v1" and lines[0]["hits"] == 4 and lines[0]["channel"] == "live"
    assert lines[0]["phases_ms"]["encode"] >= 0 and lines[0]["ms"] > 0
    assert lines[1]["request"] == refused.json()["request_id"] and "a red circle" not in caplog.text, "queries are nobody's business"


def test_a_gauge_shows_nothing_but_what_it_was_last_told() -> None:
    metrics = Metrics()
    metrics.show("perdure_serving", {("demo@v1", "v1"): 1.0})
    metrics.show("perdure_serving", {("demo@v2", "v2"): 1.0})
    text = metrics.shown.text().decode()
    assert 'perdure_serving{release="demo@v1",version="v1"} 0.0' in text and 'perdure_serving{release="demo@v2",version="v2"} 1.0' in text
