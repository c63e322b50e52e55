"""What a proxy does where Ray Serve leaves off: a gateway that dies, a queue that is full."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from serving_suite import assert_problem
from starlette.types import Message, Receive, Scope, Send

from serve.ahead import Ahead
from serve.proxy import ENVIRONMENT, Again, middlewares

App = Callable[[Scope, Receive, Send], Awaitable[None]]
START: Message = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]}


async def read(receive: Receive) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body


class Gateways:
    """In place of Serve's proxy: each request goes to the next of these, and the rest of them to the last."""

    def __init__(self, *gateways: App) -> None:
        self.gateways = gateways
        self.asked = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.asked += 1
        await self.gateways[min(self.asked, len(self.gateways)) - 1](scope, receive, send)


async def answers(scope: Scope, receive: Receive, send: Send) -> None:
    body = await read(receive)
    await send(START)
    await send({"type": "http.response.body", "body": body or b"{}"})


async def dies_at_once(scope: Scope, receive: Receive, send: Send) -> None:
    pass  # Serve notes its error, and sends nothing


async def dies_reading(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()


async def dies_before_its_body(scope: Scope, receive: Receive, send: Send) -> None:
    await read(receive)
    await send(START)


async def fails(scope: Scope, receive: Receive, send: Send) -> None:
    raise RuntimeError("a defect of the proxy")


async def is_full(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 503, "headers": [(b"content-type", b"text/plain"), (b"retry-after", b"7")]})
    await send({"type": "http.response.body", "body": b"Request dropped ", "more_body": True})
    await send({"type": "http.response.body", "body": b"due to backpressure"})


def sent(gateways: Gateways, method: str = "POST", path: str = "/v1/search", **given: Any) -> httpx.Response:
    async def send() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(Again(gateways)), base_url="http://127.0.0.1") as client:
            return await client.request(method, path, **given)

    return asyncio.run(send())


@pytest.mark.parametrize("death", [dies_at_once, dies_reading, dies_before_its_body, fails])
def test_a_question_whose_gateway_dies_is_put_to_another_one_whole(death: App) -> None:
    gateways = Gateways(death, answers)
    chunks = [b'{"text": ', b'"a red ', b'circle"}']

    async def body() -> Any:
        for chunk in chunks:
            yield chunk

    answer = sent(gateways, content=body())
    assert answer.status_code == 200 and answer.content == b"".join(chunks) and gateways.asked == 2


def test_it_is_asked_twice_and_no_more() -> None:
    gateways = Gateways(dies_at_once)
    answer = sent(gateways, json={"text": "a"}, headers={"X-Request-Id": "mine"})
    assert_problem(answer, 503, "died")
    assert answer.headers["retry-after"] == "1" and answer.json()["request_id"] == "mine" and gateways.asked == 2


@pytest.mark.parametrize(
    ("method", "path", "headers", "asked"),
    [
        ("GET", "/v1/items/a", {}, 2),
        ("POST", "/v1/search/batch", {}, 2),
        ("POST", "/v1/items", {"Idempotency-Key": "k"}, 2),
        ("DELETE", "/v1/items/a", {"Idempotency-Key": "k"}, 2),
        ("POST", "/v1/items", {}, 1),
        ("DELETE", "/v1/items/a", {}, 1),
        ("POST", "/v1/rollback", {}, 1),
        ("POST", "/v1/releases/demo@v1/promote", {"Idempotency-Key": "k"}, 1),
    ],
)
def test_a_change_is_sent_twice_only_where_it_is_recognised(method: str, path: str, headers: dict[str, str], asked: int) -> None:
    gateways = Gateways(dies_reading, answers)
    answer = sent(gateways, method, path, headers=headers)
    assert gateways.asked == asked
    if asked == 1:
        assert_problem(answer, 502, "not known")
    else:
        assert answer.status_code == 200


def test_a_body_that_is_too_large_to_remember_is_not_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.proxy._REMEMBERED_BYTES", 10)

    async def reads_all(scope: Scope, receive: Receive, send: Send) -> None:
        await read(receive)

    gateways = Gateways(reads_all, answers)
    assert_problem(sent(gateways, content=b"x" * 11), 503)
    assert gateways.asked == 1
    assert sent(Gateways(answers), content=b"x" * 11).content == b"x" * 11


def put(app: App, *pieces: bytes) -> bytes:
    """What an app answers to a body in pieces; the caller leaves after them."""
    last = len(pieces) - 1
    coming: list[Message] = [{"type": "http.request", "body": piece, "more_body": at < last} for at, piece in enumerate(pieces)]
    answered: list[Message] = []

    async def receive() -> Message:
        return coming.pop(0) if coming else {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        answered.append(message)

    async def call() -> None:
        await app({"type": "http", "method": "POST", "path": "/v1/search", "headers": []}, receive, send)

    asyncio.run(call())
    return b"".join(message.get("body", b"") for message in answered)


def test_a_body_in_one_piece_goes_along_with_its_request_and_is_received_once() -> None:
    told: list[Any] = []

    async def gateway(scope: Scope, receive: Receive, send: Send) -> None:
        told.append(sorted(scope))
        told.append(await read(receive))
        await send(START)
        await send({"type": "http.response.body", "body": told[-1]})
        told.append((await receive())["type"])  # whether the caller is still there

    async def serves(scope: Scope, receive: Receive, send: Send) -> None:
        """Serve's part: what is asked for takes another call."""

        async def asked() -> Message:
            message = await receive()
            told.append(message.get("body", b"nothing"))
            return message

        await Ahead(gateway)(scope, asked, send)

    head = ["headers", "method", "path", "type"]
    assert put(Again(serves), b"a red circle") == b"a red circle"
    assert told == [head, b"a red circle", b"a red circle", b"nothing", "http.disconnect"]
    told.clear()
    assert put(Again(serves), b"a red ", b"circle") == b"a red circle"
    assert told == [head, b"a red ", b"circle", b"a red circle", b"nothing", "http.disconnect"]
    told.clear()
    assert put(Again(Gateways(dies_at_once, serves)), b"a red circle") == b"a red circle"
    assert told[:2] == [head, b"a red circle"]


def test_an_application_without_our_middleware_receives_its_body_as_ever() -> None:
    assert put(Again(answers), b"a red circle") == b"a red circle"
    assert put(Again(answers), b"a red ", b"circle") == b"a red circle"


def test_a_caller_who_leaves_before_the_body_is_there_is_not_served() -> None:
    gateways = Gateways(answers)
    assert put(Again(gateways)) == b"" and gateways.asked == 0


def test_a_refusal_of_serve_is_a_problem_and_is_not_asked_again() -> None:
    gateways = Gateways(is_full, answers)
    answer = sent(gateways, json={"text": "a"})
    assert_problem(answer, 503, "more requests than it can take")
    assert answer.headers["retry-after"] == "7" and gateways.asked == 1


def test_a_problem_of_a_gateway_passes_as_it_is() -> None:
    async def not_ready(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 503, "headers": [(b"content-type", b"application/problem+json")]})
        await send({"type": "http.response.body", "body": b'{"detail": "no release is loaded yet"}'})

    assert sent(Gateways(not_ready)).json() == {"detail": "no release is loaded yet"}


def test_an_answer_that_has_begun_is_not_begun_again() -> None:
    async def dies_in_its_body(scope: Scope, receive: Receive, send: Send) -> None:
        await send(START)
        await send({"type": "http.response.body", "body": b"[1, ", "more_body": True})
        raise RuntimeError("the rest never came")

    gateways = Gateways(dies_in_its_body, answers)
    with pytest.raises(RuntimeError, match="never came"):
        sent(gateways)
    assert gateways.asked == 1


def test_a_caller_that_is_gone_is_not_answered() -> None:
    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        raise AssertionError(message)

    gateways = Gateways(dies_reading, answers)
    scope = {"type": "http", "method": "GET", "path": "/v1/items/a", "headers": []}
    asyncio.run(Again(gateways)(scope, receive, send))
    assert gateways.asked == 1


def test_what_is_of_serve_itself_passes() -> None:
    gateways = Gateways(is_full)
    assert sent(gateways, "GET", "/-/healthz").text == "Request dropped due to backpressure"


def test_serve_finds_it_where_the_environment_says() -> None:
    from ray._common.utils import import_attr

    assert import_attr(ENVIRONMENT["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"]) is middlewares
    assert [middleware.cls for middleware in middlewares()] == [Again]
