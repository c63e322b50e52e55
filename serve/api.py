"""The HTTP API over a backend, as a FastAPI app; nothing here knows Ray, so it is tested by calling it in-process."""

import base64
import binascii
import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Protocol

from fastapi import FastAPI, Query, Request, Response
from fastapi import Path as PathParameter
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from pydantic import ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles

import perdure
from perdure.errors import BadQuery
from serve.keys import Guard, Keys
from serve.problems import Problem, problem_response, register, request_id
from serve.schemas import (
    ItemOut,
    ProblemOut,
    PromoteRequest,
    ReleaseOut,
    ReleasesOut,
    SearchQuery,
    SearchRequest,
    SearchResponse,
    ServeArgs,
    State,
)

__all__ = ["Backend", "make_app"]

log = logging.getLogger(__name__)

RELEASE_ID = r"^[A-Za-z0-9][A-Za-z0-9._-]*@v\d+$"
WEB = Path(perdure.__file__).parent / "web"
_PAGE_HEADERS = {
    "Content-Security-Policy": "; ".join(
        ["default-src 'self'", "img-src 'self' blob: data:", "frame-ancestors 'none'", "base-uri 'none'", "form-action 'none'"]
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


class Backend(Protocol):
    """What answers. Methods do their blocking work elsewhere than on the event loop, and raise `perdure.errors`."""

    def state(self) -> State:
        """Whether it can answer, at once and without I/O."""
        ...

    async def search(self, query: SearchQuery) -> SearchResponse:
        """Answer from one release."""
        ...

    async def item(self, item_id: str) -> ItemOut:
        """What is known about an item."""
        ...

    async def sample(self, count: int) -> list[ItemOut]:
        """Some items of the release that answers, the same ones each time."""
        ...

    async def image(self, item_id: str) -> bytes:
        """The encoded picture of an item."""
        ...

    async def releases(self) -> ReleasesOut:
        """All releases of the registry."""
        ...

    async def promote(self, release_id: str, request: PromoteRequest, by: str) -> ReleaseOut:
        """Point the channel to a release."""
        ...

    async def rollback(self, by: str) -> ReleaseOut:
        """Point the channel to the release before."""
        ...


def make_app(backend: Backend, args: ServeArgs) -> FastAPI:
    """The routes of DESIGN 4 over a backend.

    Raises:
        ConfigError: the keys file cannot be read.
    """
    app = FastAPI(
        title="Perdure",
        version=perdure.__version__,
        description="Image and text search that keeps learning without forgetting.",
        docs_url=None,  # FastAPI's own page loads scripts from elsewhere; ours is served from here
        redoc_url=None,
        responses={"4XX": {"model": ProblemOut, "description": "problem+json"}, "503": {"model": ProblemOut, "description": "not ready"}},
    )
    keys = Keys(Path(args.keys_file)) if args.keys_file else None
    register(app)
    app.add_middleware(Guard, keys=keys, host=args.host, max_body_bytes=args.max_body_bytes)
    _health(app, backend)
    _search(app, backend)
    _items(app, backend)
    _releases(app, backend)
    _page(app)
    return app


def _health(app: FastAPI, backend: Backend) -> None:
    @app.get("/healthz", tags=["health"])
    async def healthz() -> dict[str, str]:
        """The process is alive; says nothing of what it can answer."""
        return {"status": "ok"}

    @app.get("/readyz", tags=["health"], response_model=State)
    async def readyz(request: Request) -> Response:
        """200 when searches are answered, 503 with the reason when not; `problem` says why a live release is not the one that answers."""
        state = backend.state()
        if not state.ready:
            return problem_response(request.scope, 503, state.problem or "no release is loaded yet")
        return JSONResponse(state.model_dump())


def _search(app: FastAPI, backend: Backend) -> None:
    form = {"type": "object", "properties": {"image": {"type": "string", "format": "binary"}, "k": {"type": "integer", "default": 10}}}
    body = {
        "required": True,
        "content": {
            "application/json": {"schema": SearchRequest.model_json_schema()},
            "multipart/form-data": {"schema": form},
        },
    }

    @app.post("/v1/search", tags=["search"], response_model=SearchResponse, openapi_extra={"requestBody": body})
    async def search(request: Request) -> SearchResponse:
        """Search by words, by a picture or by an item: JSON, or multipart with the picture as the file `image`."""
        started = time.perf_counter()
        query = await read_query(request)
        answer = await backend.search(query)
        elapsed_ms = (time.perf_counter() - started) * 1e3
        answer.timings_ms["other"] = round(elapsed_ms - sum(answer.timings_ms.values()), 3)  # reading the request, waiting for a thread
        log.info(
            "search request=%s release=%s hits=%d ms=%s", request_id(request.scope), answer.release, len(answer.hits), answer.timings_ms
        )
        return answer


def _items(app: FastAPI, backend: Backend) -> None:
    @app.get("/v1/items", tags=["items"])
    async def items(sample: Annotated[int, Query(ge=1, le=100)] = 12) -> list[ItemOut]:
        """A few items of the release that answers, spread over all of them: something to begin with."""
        return await backend.sample(sample)

    # Ids may hold slashes (file names do), so the route of the picture is tried before the one of the item.
    @app.get("/v1/items/{item_id:path}/image", tags=["items"], response_class=Response)
    async def image(item_id: str) -> Response:
        """The picture of an item, as it is kept with the index."""
        data = await backend.image(item_id)
        return Response(
            data, media_type=_media_type(data), headers={"Cache-Control": "private, max-age=300", "X-Content-Type-Options": "nosniff"}
        )

    @app.get("/v1/items/{item_id:path}", tags=["items"])
    async def item(item_id: str) -> ItemOut:
        """What is known about an item of the release that answers."""
        return await backend.item(item_id)


def _releases(app: FastAPI, backend: Backend) -> None:
    @app.get("/v1/releases", tags=["releases"])
    async def releases() -> ReleasesOut:
        """All releases, newest first, and which one is live."""
        return await backend.releases()

    @app.post("/v1/releases/{release_id}/promote", tags=["releases"])
    async def promote(
        request: Request, release_id: Annotated[str, PathParameter(pattern=RELEASE_ID)], body: PromoteRequest | None = None
    ) -> ReleaseOut:
        """Make a release the live one; replicas follow within a poll."""
        return await backend.promote(release_id, body or PromoteRequest(), _caller(request))

    @app.post("/v1/rollback", tags=["releases"])
    async def rollback(request: Request) -> ReleaseOut:
        """Make the release live that was live before."""
        return await backend.rollback(_caller(request))


def _page(app: FastAPI) -> None:
    app.mount("/static", StaticFiles(directory=WEB), name="static")

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(WEB / "index.html", headers=_PAGE_HEADERS)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return FileResponse(WEB / "docs.html", headers=_PAGE_HEADERS)

    @app.get("/favicon.ico", include_in_schema=False)
    async def icon() -> Response:
        return FileResponse(WEB / "icon.svg", media_type="image/svg+xml")


async def read_query(request: Request) -> SearchQuery:
    """A search request from JSON or from a multipart form.

    Raises:
        Problem: 400 not JSON, 413 too large, 415 neither of the two, 422 a field is wrong.
        BadQuery: nothing to search by, or more than one thing.
    """
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind in ("application/json", ""):
        return _from_json(await request.body())
    if kind == "multipart/form-data":
        try:
            async with request.form(max_files=4, max_fields=16) as form:
                return await _from_form(form)
        except Problem:
            raise
        except HTTPException as error:
            raise Problem(400, f"the multipart body cannot be read: {error.detail}") from None
    raise Problem(415, f"Content-Type is '{kind}'; send application/json, or multipart/form-data with the picture as the file 'image'")


def _from_json(body: bytes) -> SearchQuery:
    if not body.strip():
        raise BadQuery("the body is empty; send JSON with one of text, image (base64) and id, or multipart with the picture as 'image'")
    try:
        asked = SearchRequest.model_validate_json(body)
    except ValidationError as error:
        if error.errors()[0]["type"] == "json_invalid":
            raise Problem(400, f"the body is not JSON: {error.errors()[0].get('ctx', {}).get('error', 'not JSON')}") from None
        raise RequestValidationError([{**problem, "loc": ("body", *problem["loc"])} for problem in error.errors()]) from None
    picture = None if asked.image is None else _decode_base64(asked.image)
    return _one_of(asked.text, picture, asked.id, asked.k, asked.filter, asked.partial_ok)


def _decode_base64(text: str) -> bytes:
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadQuery(
            f"image is not base64: {error}. Send the encoded picture (PNG, JPEG ...) in base64, or as a multipart file"
        ) from None


async def _from_form(form: FormData) -> SearchQuery:
    fields: dict[str, Any] = {}
    picture: bytes | None = None
    for name, value in form.multi_items():
        if name in fields or (name == "image" and picture is not None):
            raise BadQuery(f"the form has the field '{name}' more than once; send it once")
        if name == "image":
            if not isinstance(value, UploadFile):
                raise BadQuery("the form field 'image' is not a file; send the picture as a file (curl: -F image=@picture.png)")
            picture = await value.read()
        elif isinstance(value, UploadFile):
            raise BadQuery(f"the form has a file named '{name}'; the picture's field is called 'image'")
        else:
            fields[name] = _form_value(name, value)
    try:
        asked = SearchRequest.model_validate(fields)
    except ValidationError as error:
        raise RequestValidationError([{**problem, "loc": ("body", *problem["loc"])} for problem in error.errors()]) from None
    return _one_of(asked.text, picture, asked.id, asked.k, asked.filter, asked.partial_ok)


def _form_value(name: str, value: str) -> Any:
    """Form fields are text; those that are not text in JSON are read as JSON."""
    if name not in ("k", "filter", "partial_ok"):
        return value
    try:
        return json.loads(value)
    except ValueError:
        raise BadQuery(f"the form field '{name}' is '{value[:80]}', which is not a JSON value (k: 10, filter: {{\"task\": 1}})") from None


def _one_of(text: str | None, image: bytes | None, item_id: str | None, k: int, filter: Mapping[str, Any], partial_ok: bool) -> SearchQuery:
    given = [name for name, value in (("text", text), ("image", image), ("id", item_id)) if value is not None]
    if not given:
        raise BadQuery("nothing to search by; send one of text, image and id")
    if len(given) > 1:
        raise BadQuery(f"{' and '.join(given)} are given; a search is by one of text, image and id")
    if text is not None and not text.strip():
        raise BadQuery("text is empty; nothing to search by")
    if image is not None and not image:
        raise BadQuery("the picture is empty (0 bytes); send an encoded picture (PNG, JPEG, WebP ...)")
    if item_id is not None and not item_id:
        raise BadQuery("id is empty; nothing to search by")
    return SearchQuery(text, image, item_id, k, dict(filter), partial_ok)


def _caller(request: Request) -> str:
    """Who stands in the journal: the key's name (see `Keys`), or the address where there are no keys."""
    client = request.client.host if request.client else "unknown"
    return f"http:{request.scope.get('state', {}).get('key_name', client)}"


def _media_type(data: bytes) -> str:
    """The media type of an encoded picture by its first bytes; what is unknown is never handed out as something a browser runs."""
    for start, kind in ((b"\x89PNG", "image/png"), (b"\xff\xd8", "image/jpeg"), (b"GIF8", "image/gif")):
        if data.startswith(start):
            return kind
    return "image/webp" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else "application/octet-stream"
