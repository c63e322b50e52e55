"""Whatever is sent: never a 500, never an answer that is not what the API describes; other origins get nothing; callers have a rate."""

import asyncio
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from conftest import Gallery
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving_suite import assert_problem
from test_serve_api import client_of, make_sharded, quick

from serve.api import make_app
from serve.backend import FollowingBackend, FusedBackend
from serve.limits import Limited

EXAMPLES = int(os.environ.get("PERDURE_FUZZ", "120"))  # more of them are drawn anew each time

JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["", "\x00", "\ud800", "demo@v1", "../..", "𝕏" * 50]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FILTERS = st.dictionaries(
    st.sampled_from(["label", "task", "price", "sale", "drawn", "tags", "id", "none", ""]),
    JUNK | st.dictionaries(st.sampled_from(["gt", "gte", "lt", "lte", "not", "x"]), JUNK, max_size=3),
    max_size=3,
)
KNOWN = {
    "text": st.sampled_from(["a red circle", "", " ", "\x00"]) | st.text(max_size=40),
    "id": st.sampled_from(["set/00.png", "none", "", "a" * 5000]),
    "image": st.sampled_from(["", "AAAA", "data:image/png;base64,", "data:,", "iVBORw0KGgo="]) | st.text(max_size=30),
    "cursor": st.sampled_from(["", "e30", "W10", "bnVsbA"]) | st.text(max_size=30),
    "release": st.sampled_from(["demo@v1", "demo@v2", "demo@v99", "x"]),
    "filter": FILTERS,
}


def of(name: str, schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """What a field may be, by its schema; and now and then what it may not."""
    kinds = [one.get("type") for one in schema.get("anyOf", [schema])]
    right: list[st.SearchStrategy[Any]] = [KNOWN[name]] if name in KNOWN else []
    low, high = schema.get("minimum", -5), schema.get("maximum", 50)
    if "integer" in kinds:
        right.append(st.integers(int(low), int(high)))
    if "number" in kinds:
        right.append(st.floats(float(low), float(high)))
    if "boolean" in kinds:
        right.append(st.booleans())
    if "enum" in schema:
        right.append(st.sampled_from(schema["enum"]))
    if "array" in kinds and "items" in schema:
        right.append(st.lists(of("", schema["items"]), max_size=3))
    if "properties" in schema:
        right.append(body_of(schema))
    return st.one_of(*right, *right, *right, JUNK) if right else JUNK


def body_of(schema: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    fields = {name: of(name, field) for name, field in schema.get("properties", {}).items()}
    return st.fixed_dictionaries({}, optional=fields | {"unknown": JUNK}).map(lambda body: body) if fields else st.just({})


def resolved(app: FastAPI, schema: dict[str, Any]) -> dict[str, Any]:
    for one in schema.get("anyOf", [schema]):
        if "$ref" in one:
            return app.openapi()["components"]["schemas"][one["$ref"].rpartition("/")[2]]
    return schema


def requests_of(app: FastAPI) -> st.SearchStrategy[tuple[str, str, dict[str, Any]]]:
    """Every route of the API's own description, with what it takes."""
    found: list[st.SearchStrategy[tuple[str, str, dict[str, Any]]]] = []
    for path, verbs in app.openapi()["paths"].items():
        for verb, route in verbs.items():
            place: st.SearchStrategy[str] = st.just(path)
            if "{" in path:
                named = st.sampled_from(["demo@v1", "demo@v2", "demo@v99", "set/00.png", "set%2F00.png", "%00", "..", "", "%ff"])
                filled = named | st.text(max_size=12).map(lambda text: quote(text.encode("utf-8", "surrogatepass"), safe=""))
                place = filled.map(lambda name, path=path: path[: path.index("{")] + name + path[path.index("}") + 1 :])
            query = {one["name"]: of(one["name"], one["schema"]) for one in route.get("parameters", []) if one["in"] == "query"}
            content = route.get("requestBody", {}).get("content", {})
            given_: dict[str, st.SearchStrategy[Any]] = {
                "params": st.fixed_dictionaries({}, optional=query).map(
                    lambda params: {name: str(value).encode("utf-8", "replace") for name, value in params.items()}
                ),
                "headers": st.fixed_dictionaries(
                    {},
                    optional={
                        "Perdure-Channel": st.sampled_from(["live", "candidate", "x", ""]),
                        "Perdure-Sticky": st.sampled_from(["me", "x" * 300, "\xff"]),
                        "X-Request-Id": st.sampled_from(["1", "\xff\xfe", "a\tb", "x" * 500]),
                    },
                ),
            }
            bodies: list[st.SearchStrategy[dict[str, Any]]] = [st.just({})]
            if "application/json" in content:
                shaped = body_of(resolved(app, content["application/json"]["schema"]))
                bodies = [shaped.map(as_json), shaped.map(as_json), JUNK.map(as_json), st.binary(max_size=40).map(as_bytes)]
            if "multipart/form-data" in content:
                pictures = st.sampled_from([b"", b"no picture", b"\x89PNG\r\n\x1a\n"]) | st.binary(max_size=30)
                bodies.append(pictures.map(lambda data: {"files": {"image": ("p.png", data)}}))
                bodies.append(st.binary(max_size=60).map(lambda data: {"content": data, "type": "multipart/form-data; boundary=x"}))
            found.append(st.tuples(st.just(verb.upper()), place, st.fixed_dictionaries(given_ | {"body": st.one_of(*bodies)})))
    return st.one_of(*found)


def as_json(value: Any) -> dict[str, Any]:
    return {"content": json.dumps(value).encode(), "type": "application/json"}


def as_bytes(data: bytes) -> dict[str, Any]:
    return {"content": data, "type": "application/json"}


async def send(client: httpx.AsyncClient, verb: str, path: str, told: dict[str, Any]) -> httpx.Response:
    body = dict(told["body"])
    headers = {name.encode(): value.encode("latin-1") for name, value in told["headers"].items()}
    if "type" in body:
        headers[b"Content-Type"] = body.pop("type").encode()
    return await client.request(verb, path, params=told["params"], headers=list(headers.items()), **body)


@pytest.mark.parametrize("topology", ["fused", "sharded"])
def test_no_request_that_the_api_describes_or_almost_describes_ends_in_a_500(gallery: Gallery, topology: str) -> None:
    args = quick(gallery.folder, topology=topology)
    backend: FollowingBackend = FusedBackend(args) if topology == "fused" else make_sharded(args)
    backend.start()
    app = make_app(backend, args)
    seen: dict[int, int] = {}
    with asyncio.Runner() as runner:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False, client=("127.0.0.1", 1))
        client = httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1")

        @settings(max_examples=EXAMPLES, deadline=None, database=None, derandomize=EXAMPLES == 120, suppress_health_check=list(HealthCheck))
        @given(requests_of(app))
        def hostile(asked: tuple[str, str, dict[str, Any]]) -> None:
            answer = runner.run(send(client, *asked))
            seen[answer.status_code] = seen.get(answer.status_code, 0) + 1
            assert answer.status_code < 500 or answer.status_code == 503, answer.text
            assert answer.headers["x-request-id"]
            if answer.status_code >= 400:
                assert answer.headers["content-type"] == "application/problem+json"
                told = answer.json()
                assert told["status"] == answer.status_code and told["detail"] and "Traceback" not in answer.text

        hostile()
        fine = runner.run(client.post("/v1/search", json={"text": "a red circle"}))
        runner.run(client.aclose())
    backend.stop()
    print(f"\n{topology}: {sum(seen.values())} requests, by status {dict(sorted(seen.items()))}")
    assert fine.status_code == 200
    assert {200, 404, 422} <= seen.keys() and sum(seen.values()) >= EXAMPLES / 2


@pytest.fixture
def client(gallery: Gallery) -> Iterator[httpx.Client]:
    args = quick(gallery.folder)
    with client_of(FusedBackend(args), args) as found:
        yield found


def test_other_origins_get_nothing(client: httpx.Client) -> None:
    elsewhere = {"Origin": "https://elsewhere.example", "Access-Control-Request-Method": "POST"}
    answers = [
        client.request("OPTIONS", "/v1/search", headers=elsewhere),
        client.request("OPTIONS", "/v1/rollback", headers=elsewhere),
        client.post("/v1/search", json={"text": "a"}, headers=elsewhere),
        client.get("/v1/releases", headers=elsewhere),
    ]
    assert [answer.status_code for answer in answers] == [405, 405, 200, 200]
    assert not any(name.startswith("access-control") for answer in answers for name in answer.headers)
    assert_problem(client.post("/v1/rollback", headers=elsewhere), 403, "this machine only")


def test_each_key_has_its_own_rate_and_health_is_free(gallery: Gallery, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("".join(f"search {hashlib.sha256(key.encode()).hexdigest()}\n" for key in ("one", "two")))
    args = quick(gallery.folder, keys_file=str(keys), rate_per_s=0.01, burst=3)
    with client_of(FusedBackend(args), args) as client:

        def ask(key: str) -> httpx.Response:
            return client.post("/v1/search", json={"text": "a"}, headers={"Authorization": f"Bearer {key}"})

        assert [ask("one").status_code for _ in range(4)] == [200, 200, 200, 429]
        refused = ask("one")
        assert_problem(refused, 429, "0.01 requests a second")
        assert 1 <= int(refused.headers["retry-after"]) <= 100
        assert ask("two").status_code == 200
        assert ask("none").status_code == 401, "a wrong key takes nobody's place"
        assert [client.get(path).status_code for path in ("/healthz", "/readyz", "/") for _ in range(5)] == [200] * 15


def test_a_bucket_fills_again_and_no_fuller_than_a_burst() -> None:
    now = [0.0]
    limited = Limited(FastAPI(), per_s=2.0, burst=2, clock=lambda: now[0])
    assert [limited._take("a"), limited._take("a"), limited._take("b")] == [0, 0, 0]
    assert limited._take("a") == 0.5
    now[0] = 0.5
    assert limited._take("a") == 0 and limited._take("a") > 0
    now[0] = 100.0
    assert [limited._take("a") > 0 for _ in range(3)] == [False, False, True]


def test_every_move_over_http_is_in_the_journal_with_who_made_it(gallery: Gallery, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"admin {hashlib.sha256(b'mine').hexdigest()}\n")
    args = quick(gallery.folder, keys_file=str(keys))
    with client_of(FusedBackend(args), args) as client:
        client.headers["Authorization"] = "Bearer mine"
        before = len(gallery.registry().journal())
        moves = [
            ("/v1/releases/demo@v2/promote", {"channel": "candidate", "share": 5, "reason": "try it"}),
            ("/v1/releases/demo@v2/promote", {"reason": "good"}),
            ("/v1/rollback", {"reason": "bad after all"}),
        ]
        assert [client.post(path, json=body).status_code for path, body in moves] == [200, 200, 200]
    told = gallery.registry().journal()[before:]
    assert [(one["channel"], one["action"], one["reason"]) for one in told] == [
        ("candidate", "promote", "try it"),
        ("live", "promote", "good"),
        ("live", "rollback", "bad after all"),
    ]
    name = f"http:key-{hashlib.sha256(b'mine').hexdigest()[:8]}"
    assert {one["by"] for one in told} == {name} and told[0]["traffic"] == {"share": 5.0, "shadow": 0.0}
