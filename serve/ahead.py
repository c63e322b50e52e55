"""A short body goes along with its request, from Serve's proxy to the gateway.

Serve hands a gateway the head of a request; for the body the gateway asks the proxy back, by a second call through Ray, and nothing can be
answered before that is there. Here the proxy puts a body that came in one piece beside the head (`ahead`), and the gateway reads it
there (`Ahead`). A body in several pieces takes Serve's way.
"""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["Ahead", "ahead"]

_BODY = "perdure.body"  # in a request's scope; a client can set headers, and no such thing


def ahead(scope: Scope, first: Message) -> Scope:
    """The scope with the body in it, if the first message that was received of the request holds all of it."""
    if first["type"] != "http.request" or first.get("more_body", False):
        return scope
    return {**scope, _BODY: first.get("body", b"")}


class Ahead:
    """ASGI middleware of a gateway, the outermost: a body that came along is received at once, and not again."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        body: bytes | None = scope.pop(_BODY, None)
        if body is None:
            await self._app(scope, receive, send)
            return
        given = False

        async def received() -> Message:
            nonlocal given
            if not given:
                given = True
                return {"type": "http.request", "body": body, "more_body": False}
            while (message := await receive())["type"] == "http.request":
                pass  # the same body, by Serve's way
            return message

        await self._app(scope, received, send)
