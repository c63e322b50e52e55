"""What a server can answer in place of what was asked, as exceptions.

PerdureError
'- ServerProblem         any problem+json: status, title, detail, request_id, errors
   |- BadRequest         400, 413, 415, 422: the request cannot be answered as it stands
   |- KeyRefused         401, 403: no key, an unknown one, or one that may not do this
   |- Missing            404: no such item or release
   |- Gone               410: the release of a cursor is no longer held; begin again without it
   |- NotAvailable       503, 504: not now, also not after the retries
   |- UnexpectedAnswer   what came back is not of a Perdure server
   '- Unreachable        no answer at all
"""

import json
from typing import Any

import httpx

from perdure.errors import PerdureError

__all__ = ["BadRequest", "Gone", "KeyRefused", "Missing", "NotAvailable", "ServerProblem", "UnexpectedAnswer", "Unreachable", "problem_of"]


class ServerProblem(PerdureError):
    """A request that was not answered as it was meant to be."""

    def __init__(
        self, detail: str, *, status: int = 0, title: str = "", request_id: str = "", errors: tuple[dict[str, str], ...] = ()
    ) -> None:
        self.detail = detail
        self.status = status
        self.title = title
        self.request_id = request_id  # to look for in the server's log
        self.errors = errors  # of fields: where (`pointer`) and what (`detail`)
        super().__init__(f"{status} {title}: {detail}" if status else detail)


class BadRequest(ServerProblem):
    """The request cannot be answered as it stands."""


class KeyRefused(ServerProblem):
    """No key, an unknown one, or one that may not do this."""


class Missing(ServerProblem):
    """No such item or release."""


class Gone(ServerProblem):
    """The release of a cursor is no longer held."""


class NotAvailable(ServerProblem):
    """Not now, also not after the retries."""


class UnexpectedAnswer(ServerProblem):
    """Not the answer of a Perdure server."""


class Unreachable(ServerProblem):
    """No answer at all."""


_BY_STATUS: dict[int, type[ServerProblem]] = {
    **dict.fromkeys((400, 413, 415, 422), BadRequest),
    **dict.fromkeys((401, 403), KeyRefused),
    404: Missing,
    410: Gone,
    **dict.fromkeys((503, 504), NotAvailable),
}


def problem_of(response: httpx.Response) -> ServerProblem:
    """The exception for an answer whose status is 400 or more; a proxy on the way may not speak problem+json."""
    try:
        told: Any = response.json()
    except (json.JSONDecodeError, UnicodeDecodeError):
        told = None
    plain: dict[str, Any] = told if isinstance(told, dict) else {}
    kind = _BY_STATUS.get(response.status_code, ServerProblem)
    return kind(
        str(plain.get("detail") or f"{response.request.url} answered without saying why"),
        status=response.status_code,
        title=str(plain.get("title") or response.reason_phrase),
        request_id=str(plain.get("request_id") or ""),
        errors=tuple(plain.get("errors") or ()),
    )
