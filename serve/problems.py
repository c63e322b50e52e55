"""Errors as RFC 9457 `application/problem+json`: what was asked, what was found, what to do, and the id to look for in the log."""

import logging
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from perdure.errors import BadQuery, Conflict, Corrupt, DataError, Exists, GateRefused, Incompatible, NotFound, NotLoaded, PerdureError

__all__ = ["Problem", "plain_message", "problem_response", "register", "request_id"]

log = logging.getLogger(__name__)

_TITLES = {
    400: "Bad request",
    401: "A key is needed",
    403: "Not allowed",
    404: "Not found",
    405: "Method not allowed",
    409: "Conflict",
    410: "No longer held",
    413: "Body too large",
    415: "Unsupported media type",
    422: "The request cannot be answered as it stands",
    429: "Too many requests",
    500: "Internal error",
    502: "The outcome is not known",
    503: "Not available now",
    504: "Too slow",
}

_STATUS: tuple[tuple[type[PerdureError], int], ...] = (
    (BadQuery, 422),
    (DataError, 422),  # on these routes the only data that is read is the caller's picture
    (NotFound, 404),
    (Conflict, 409),
    (Exists, 409),
    (GateRefused, 409),
    (Incompatible, 409),
    (Corrupt, 409),
    (NotLoaded, 503),
)


class Problem(HTTPException):
    """A problem that the API found by itself.

    It is an HTTPException so that FastAPI lets it pass when it is raised while a body is read.
    """

    def __init__(
        self, status: int, detail: str, *, errors: Sequence[dict[str, str]] = (), headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(status, detail, dict(headers or {}))
        self.errors = list(errors)


def request_id(scope: Mapping[str, Any]) -> str:
    """The id that the proxy gave the request, or a new one, remembered for the rest of the request."""
    state: dict[str, Any] = scope.setdefault("state", {})  # type: ignore[attr-defined]
    if "request_id" not in state:
        given = dict(scope.get("headers", ())).get(b"x-request-id", b"").decode("latin-1")
        state["request_id"] = given[:64] if given.isprintable() and given else str(uuid.uuid4())
    return state["request_id"]


def problem_response(
    scope: Mapping[str, Any], status: int, detail: str, *, errors: Sequence[dict[str, str]] = (), headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """A `problem+json` answer."""
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": _TITLES.get(status, "Error"),
        "status": status,
        "detail": detail,
        "instance": scope.get("path", ""),
        "request_id": request_id(scope),
    }
    if errors:
        body["errors"] = list(errors)
    extra = dict(headers or {})
    if status == 503:
        extra.setdefault("Retry-After", "1")
    return JSONResponse(body, status, extra, "application/problem+json")


def register(app: FastAPI) -> None:
    """Turn every exception of an app into problem+json."""

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        errors = error.errors if isinstance(error, Problem) else ()
        detail = error.detail
        if error.status_code == 404 and not isinstance(error, Problem):
            detail = f"no such route: {request.method} {request.url.path}; the routes are listed at /docs"
        if error.status_code == 405:
            detail = f"{request.url.path} does not take {request.method}; the routes are listed at /docs"
        return problem_response(request.scope, error.status_code, detail, errors=errors, headers=error.headers)

    @app.exception_handler(RequestValidationError)
    async def validation(request: Request, error: RequestValidationError) -> JSONResponse:
        errors = [{"pointer": "/".join(["#", *map(str, p["loc"][1:])]), "detail": p["msg"]} for p in error.errors()]
        return problem_response(request.scope, 422, "; ".join(f"{e['pointer']}: {e['detail']}" for e in errors), errors=errors)

    @app.exception_handler(PerdureError)
    async def ours(request: Request, error: PerdureError) -> JSONResponse:
        status = next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
        if status == 500:
            log.error("request %s: %s", request_id(request.scope), error, exc_info=error)
        return problem_response(request.scope, status, plain_message(error))

    @app.exception_handler(Exception)
    async def anything(request: Request, error: Exception) -> JSONResponse:
        log.error("request %s failed", request_id(request.scope), exc_info=error)
        return problem_response(request.scope, 500, f"an unexpected error; the server's log has it under {request_id(request.scope)}")


def plain_message(error: PerdureError) -> str:
    """The message as it was written: one that crossed processes carries a remote traceback in its text, and its cause beside it."""
    cause = getattr(error, "cause", None)
    return str(cause if isinstance(cause, PerdureError) else error)
