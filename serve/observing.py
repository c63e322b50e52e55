"""Every request is measured and leaves one line in the log, as JSON, with the id that its answer carries as `X-Request-Id`."""

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from perdure.records import base_of
from serve.metrics import Metrics, version_of
from serve.problems import request_id
from serve.schemas import SearchResponse

__all__ = ["Observed", "told_of"]

log = logging.getLogger("perdure.requests")

_QUIET = ("/healthz", "/readyz", "/metrics", "/static")  # asked every few seconds, and all alike


class Observed:
    """ASGI middleware, the outermost: what is refused is seen as well."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and note what came of it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        known = request_id(scope)
        status = 500

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", known.encode("latin-1", "replace"))]
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            self._note(scope, known, status, time.perf_counter() - started)

    def _note(self, scope: Scope, known: str, status: int, took_s: float) -> None:
        route = getattr(scope.get("route"), "path", None) or ("/static" if scope["path"].startswith("/static/") else "none")
        self._metrics.add("perdure_requests_total", route=route, status=str(status))
        self._metrics.observe("perdure_request_seconds", took_s, route=route)
        told: _Told | None = scope.get("state", {}).get("told")
        if told is not None:
            self._count(told)
        if route not in _QUIET or status >= 400:
            line: dict[str, Any] = {"request": known, "method": scope["method"], "route": route, "status": status}
            line["ms"] = round(took_s * 1e3, 2)
            log.info("%s", json.dumps(line | (told.line() if told else {}), ensure_ascii=False))

    def _count(self, told: "_Told") -> None:
        first, release = told.answers[0], base_of(told.answers[0].release)
        self._metrics.add("perdure_searches_total", len(told.answers), release=release, version=told.version, channel=told.channel)
        for phase, ms in first.timings_ms.items():
            self._metrics.observe("perdure_phase_seconds", max(ms, 0.0) / 1e3, release=release, phase=phase)
        partial = sum(answer.partial for answer in told.answers)
        if partial:
            self._metrics.add("perdure_partial_answers_total", partial, release=release)


@dataclass(frozen=True)
class _Told:
    """A search that was answered."""

    answers: Sequence[SearchResponse]  # all of one release
    version: str
    channel: str

    def line(self) -> dict[str, Any]:
        """What is logged of it."""
        first = self.answers[0]
        return {
            "release": first.release,
            "channel": self.channel,
            "queries": len(self.answers),
            "hits": sum(len(answer.hits) for answer in self.answers),
            "partial": any(answer.partial for answer in self.answers),
            "phases_ms": first.timings_ms,
        }


def told_of(scope: Scope, answers: Sequence[SearchResponse], encoder: str, channel: str) -> None:
    """Have the answers of a search counted, and told in its line of the log, once they are sent.

    Args:
        scope: of the request.
        answers: all of one release.
        encoder: that release's newest.
        channel: that it was answered from.
    """
    scope.setdefault("state", {})["told"] = _Told(answers, version_of(encoder), channel)
