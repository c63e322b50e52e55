"""Keys, scopes, the loopback rule."""

import asyncio
import hashlib
import os
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from serving_suite import assert_problem

from perdure.errors import ConfigError
from serve.keys import Guard, Keys, is_loopback


def line(scopes: str, key: str) -> str:
    return f"{scopes} {hashlib.sha256(key.encode()).hexdigest()}\n"


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text("# who may do what\n\n" + line("search", "reader") + line("search,admin", "boss") + line("write", "feeder"))
    return path


def ask(
    method: str,
    path: str,
    *,
    keys: Keys | None = None,
    host: str = "127.0.0.1",
    client: str = "127.0.0.1",
    url: str = "http://127.0.0.1:8000",
    headers: dict[str, str] | None = None,
) -> httpx.Response:
    """A request to an app that says 200 to whatever the guard lets through."""
    inner = FastAPI(openapi_url=None)

    @inner.api_route("/{rest:path}", methods=["GET", "POST", "DELETE"])
    async def anything(rest: str) -> dict[str, str]:
        return {"path": rest}

    async def go() -> httpx.Response:
        transport = httpx.ASGITransport(Guard(inner, keys=keys, host=host, max_body_bytes=1000), client=(client, 1))
        async with httpx.AsyncClient(transport=transport, base_url=url) as http:
            return await http.request(method, path, headers=headers)

    return asyncio.run(go())


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


PROMOTE = ("POST", "/v1/releases/demo@v1/promote")


@pytest.mark.parametrize(
    ("request_line", "scope"),
    [
        (("POST", "/v1/search"), "search"),
        (("POST", "/v1/search/batch"), "search"),
        (("GET", "/v1/items/a/b.png"), "search"),
        (("GET", "/v1/items/a/b.png/image"), "search"),
        (("GET", "/v1/releases"), "search"),
        (("GET", "/openapi.json"), "search"),
        (("POST", "/v1/items"), "write"),
        (("DELETE", "/v1/items/a"), "write"),
        (PROMOTE, "admin"),
        (("POST", "/v1/rollback"), "admin"),
        (("POST", "/v1/whatever-comes-later"), "admin"),
    ],
)
def test_every_route_needs_its_scope(keys_file: Path, request_line: tuple[str, str], scope: str) -> None:
    keys = Keys(keys_file)
    for key, scopes in {"reader": {"search"}, "boss": {"search", "admin"}, "feeder": {"write"}}.items():
        answer = ask(*request_line, keys=keys, headers=bearer(key))
        if scope in scopes:
            assert answer.status_code == 200
        else:
            assert_problem(answer, 403, f"'{scope}'")
    for headers in ({}, bearer("wrong"), bearer(""), {"Authorization": "Basic cmVhZGVy"}, {"Authorization": "reader"}):
        answer = ask(*request_line, keys=keys, headers=headers)
        assert_problem(answer, 401, "Bearer")
        assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("path", ["/", "/healthz", "/readyz", "/docs", "/static/app.js", "/static/style.css"])
def test_health_and_the_page_need_no_key(keys_file: Path, path: str) -> None:
    assert ask("GET", path, keys=Keys(keys_file)).status_code == 200


def test_a_digest_is_not_a_key(keys_file: Path) -> None:
    assert ask("GET", "/v1/releases", keys=Keys(keys_file), headers=bearer(hashlib.sha256(b"reader").hexdigest())).status_code == 401


def test_a_key_is_revoked_without_a_restart(keys_file: Path) -> None:
    keys = Keys(keys_file)
    assert keys.scopes("reader") == {"search"}
    keys_file.write_text(line("search", "another one"))
    os.utime(keys_file, (1, 1))
    assert keys.scopes("reader") is None and keys.scopes("another one") == {"search"}
    keys_file.write_text("nonsense\n")
    os.utime(keys_file, (2, 2))
    assert keys.scopes("another one") is None  # broken: nobody, rather than everybody
    keys_file.unlink()
    assert keys.scopes("another one") is None


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "holds no key"),
        ("# only a comment\n", "holds no key"),
        ("search\n", "line 1"),
        (line("reading", "k"), "line 1"),
        ("search abc\n", "sha256"),
        (line("search", "k") + "search " + "g" * 64, "line 2"),
    ],
)
def test_a_bad_keys_file_is_refused(tmp_path: Path, text: str, word: str) -> None:
    path = tmp_path / "keys"
    path.write_text(text)
    with pytest.raises(ConfigError, match=word):
        Keys(path)


def test_a_missing_keys_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        Keys(tmp_path / "none")


@pytest.mark.parametrize(
    ("given", "allowed"),
    [
        ({}, True),
        ({"url": "http://localhost:8000"}, True),
        ({"url": "http://[::1]:8000", "client": "::1", "host": "::1"}, True),
        ({"headers": {"Origin": "http://127.0.0.1:8000"}}, True),
        ({"host": "0.0.0.0"}, False),  # it listens to the world
        ({"client": "10.0.0.7"}, False),  # a stranger
        ({"url": "http://search.example:8000"}, False),  # another name that was made to point here, or a proxy
        ({"headers": {"Origin": "http://evil.example"}}, False),  # somebody else's web page in the operator's browser
        ({"headers": {"Origin": "null"}}, False),
    ],
)
def test_without_keys_changes_come_from_this_machine_only(given: dict[str, Any], allowed: bool) -> None:
    answer = ask(*PROMOTE, **given)
    if allowed:
        assert answer.status_code == 200
    else:
        assert_problem(answer, 403, "keys file")
    assert ask("POST", "/v1/search", **given).status_code == 200  # questions are open


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        *[(host, True) for host in ("127.0.0.1", "127.8.8.8", "::1", "[::1]", "LocalHost")],
        *[(host, False) for host in ("0.0.0.0", "10.0.0.1", "::", "", "localhost.example")],
    ],
)
def test_loopback_addresses(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback
