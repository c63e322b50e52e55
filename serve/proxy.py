"""In every HTTP proxy of Ray Serve, in front of the gateways: a question whose gateway dies is put to another one.

Serve hands a request to one replica; when that dies, the caller gets a bare 500. Here what may be asked twice is asked once more, and
of a change it is said that its outcome is not known. What Serve refuses by itself (its queue is full) becomes problem+json, too. And a
short body goes along with its request, see `ahead`.

Serve's controller takes this from its environment: `ENVIRONMENT`, or `controller_options` in a YAML for `serve deploy`.
"""

import logging

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.ahead import ahead
from serve.problems import problem_response

__all__ = ["ENVIRONMENT", "Again", "middlewares"]

log = logging.getLogger(__name__)

ENVIRONMENT = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serve.proxy:middlewares"}

_WITHOUT_BODY = ("GET", "HEAD")
_QUESTIONS = ("/v1/search", "/v1/search/batch")  # POSTs that change nothing
_REMEMBERED_BYTES = 2**24  # of a body; a request with a larger one is not asked again


def middlewares() -> list[Middleware]:
    """What a proxy calls when it starts."""
    return [Middleware(Again)]


class Again:
    """ASGI middleware around Serve's proxy."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, at most twice."""
        if scope["type"] != "http" or scope["path"].startswith("/-/"):  # Serve's own
            await self._app(scope, receive, send)
            return
        body, twice = _Body(receive), _may_be_asked_twice(scope)
        if scope["method"] not in _WITHOUT_BODY:
            scope = ahead(scope, await body.first())
            if body.caller_is_gone:
                return
        for last in (False, True):
            answer = _Answer(scope, send)
            try:
                await self._app(dict(scope), body.from_its_start(), answer.send)
            except Exception:
                if answer.begun:
                    raise
                log.exception("%s %s failed in the proxy", scope["method"], scope["path"])
            if answer.begun or body.caller_is_gone:
                return
            if last or not twice or not body.is_remembered:
                break
            log.warning("the gateway that was to answer %s %s died; asking another one", scope["method"], scope["path"])
        if twice:
            refusal = problem_response(scope, 503, "the process that was answering died; try again shortly")
        else:
            detail = "the process that carried this out died; whether it was done is not known. Look before you send it again"
            refusal = problem_response(scope, 502, detail)
        await refusal(scope, receive, send)


class _Body:
    """A request's body, which can be received from its start again."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._messages: list[Message] = []
        self._bytes = 0
        self.caller_is_gone = False

    @property
    def is_remembered(self) -> bool:
        """Whether what was received is here wholly."""
        return self._bytes <= _REMEMBERED_BYTES

    async def first(self) -> Message:
        """The first message, which stays to be received."""
        message = await self.from_its_start()()
        if not self.is_remembered:
            self._messages.append(message)
        return message

    def from_its_start(self) -> Receive:
        """What receives it whole."""
        place = 0

        async def receive() -> Message:
            nonlocal place
            if place < len(self._messages):
                place += 1
                return self._messages[place - 1]
            message = await self._receive()
            if message["type"] != "http.request":
                self.caller_is_gone = True
                return message
            self._bytes += len(message.get("body", b""))
            if self.is_remembered:
                self._messages.append(message)
                place += 1
            else:
                self._messages.clear()
            return message

        return receive


class _Answer:
    """An answer on its way to the caller: it begins with the first byte of its body, before which it can still be another one."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._scope = scope
        self._send = send
        self._start: Message | None = None
        self._replaced = False
        self.begun = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._start = message
            return
        if self._replaced:
            return
        self.begun = True
        if self._start is not None:
            start, self._start = self._start, None
            if start["status"] == 503 and not _is_problem(start):
                self._replaced = True
                await self._refuse(start)
                return
            await self._send(start)
        await self._send(message)

    async def _refuse(self, start: Message) -> None:
        """In place of a refusal of Serve's own, which is plain text."""
        after = {name.decode("latin-1"): value.decode("latin-1") for name, value in start["headers"] if name.lower() == b"retry-after"}
        detail = "the service has more requests than it can take, or is not up; try again shortly"
        refusal = problem_response(self._scope, 503, detail, headers={"Retry-After": after.get("retry-after", "1")})
        await refusal(self._scope, _nothing, self._send)


async def _nothing() -> Message:
    raise AssertionError("an answer that is ready reads no body")


def _is_problem(start: Message) -> bool:
    return any(name.lower() == b"content-type" and value == b"application/problem+json" for name, value in start["headers"])


def _may_be_asked_twice(scope: Scope) -> bool:
    """Nothing is changed, or the change has a key by which it is recognised."""
    if scope["method"] in _WITHOUT_BODY or scope["path"] in _QUESTIONS:
        return True
    return scope["path"].startswith("/v1/items") and any(name.lower() == b"idempotency-key" for name, _ in scope["headers"])
