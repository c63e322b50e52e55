"""The HTTP API over a backend, as a FastAPI app; nothing here knows Ray, so it is tested by calling it in-process."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Protocol

from fastapi import FastAPI, Query, Request, Response
from fastapi import Path as PathParameter
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse
from pydantic import BaseModel
from starlette.staticfiles import StaticFiles

import perdure
from serve.ahead import Ahead
from serve.channels import CANDIDATE, LIVE, Place, route
from serve.keys import Guard, Keys
from serve.limits import Limited
from serve.metrics import CONTENT_TYPE, Metrics
from serve.observing import Observed, told_of
from serve.problems import problem_response, register, request_id
from serve.reading import SearchQuery, read_batch, read_query
from serve.schemas import (
    RELEASE_ID,
    BatchRequest,
    BatchResponse,
    ItemOut,
    MeasuredOut,
    ProblemOut,
    PromoteRequest,
    ReleaseOut,
    ReleasesOut,
    RollbackRequest,
    SearchRequest,
    SearchResponse,
    ServeArgs,
    State,
)
from serve.shadow import Shadows
from serve.writes import WriteAsked, WriteOut, add_routes

__all__ = ["Backend", "make_app"]

Named = Annotated[str | None, Query(pattern=RELEASE_ID, description="a release that is held; default: the one that answers")]
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

    metrics: Metrics
    shadows: Shadows

    def state(self) -> State:
        """Whether it can answer, at once and without I/O."""
        ...

    def candidate(self) -> Place | None:
        """The release beside the live one, at once and without I/O."""
        ...

    def encoder_of(self, release_id: str) -> str:
        """The newest encoder of a release that is or was held."""
        ...

    async def search(self, queries: Sequence[SearchQuery]) -> list[SearchResponse]:
        """Answer all of them from one release: the one that the first names, or the one of its route."""
        ...

    async def item(self, item_id: str, release: str | None = None) -> ItemOut:
        """What is known about an item, of the release that answers or of one that is held."""
        ...

    async def sample(self, count: int) -> list[ItemOut]:
        """Some items of the release that answers, the same ones each time."""
        ...

    async def image(self, item_id: str, release: str | None = None) -> bytes:
        """The encoded picture of an item."""
        ...

    async def write(self, asked: WriteAsked) -> WriteOut:
        """Bring items or take them away; durable when it returns."""
        ...

    async def releases(self) -> ReleasesOut:
        """All releases of the registry."""
        ...

    async def measured(self, release_id: str) -> MeasuredOut:
        """What was measured of a release."""
        ...

    async def promote(self, release_id: str, request: PromoteRequest, by: str) -> ReleaseOut:
        """Point the channel to a release."""
        ...

    async def rollback(self, request: RollbackRequest, by: str) -> ReleaseOut:
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
    if args.rate_per_s is not None:
        app.add_middleware(Limited, per_s=args.rate_per_s, burst=args.burst)
    app.add_middleware(Guard, keys=keys, host=args.host, max_body_bytes=args.max_body_bytes)
    app.add_middleware(Observed, metrics=backend.metrics)  # around the one before
    app.add_middleware(Ahead)
    _health(app, backend)
    _search(app, backend)
    _items(app, backend)
    add_routes(app, backend.write, _caller)
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

    @app.get("/metrics", tags=["health"], response_class=PlainTextResponse)
    async def metrics() -> Response:
        """What this very replica has measured, in Prometheus' text format."""
        return PlainTextResponse(backend.metrics.shown.text(), media_type=CONTENT_TYPE)


def _search(app: FastAPI, backend: Backend) -> None:
    fields = {name: schema for name, schema in _schema(SearchRequest)["properties"].items() if name != "image"}
    form = {"type": "object", "properties": {"image": {"type": "string", "format": "binary"}, **fields}}
    body = {"application/json": {"schema": _schema(SearchRequest)}, "multipart/form-data": {"schema": form}}
    batch = {"application/json": {"schema": _schema(BatchRequest)}}

    async def answered(request: Request, started: float, queries: Sequence[SearchQuery]) -> tuple[list[SearchResponse], dict[str, str]]:
        """The answers, and the headers that go with them."""
        candidate = backend.candidate()
        way = route(request.headers, request_id(request.scope), candidate)
        answers = await backend.search([replace(query, route=way) for query in queries])
        elapsed_ms = (time.perf_counter() - started) * 1e3
        for answer in answers:  # what is left: reading the request, waiting for a thread
            answer.timings_ms["other"] = round(elapsed_ms - sum(answer.timings_ms.values()), 3)
        first = answers[0]
        if way.shadow and candidate is not None and queries[0].release is None:
            backend.shadows.compare(queries, answers, elapsed_ms, candidate.release)
        of_candidate = candidate is not None and first.release == candidate.release and way.channel == CANDIDATE
        channel = CANDIDATE if of_candidate else LIVE
        told_of(request.scope, answers, backend.encoder_of(first.release), channel)
        return answers, {"Perdure-Release": first.release, "Perdure-Channel": channel}

    @app.post(
        "/v1/search",
        tags=["search"],
        response_model=SearchResponse,
        openapi_extra={"requestBody": {"required": True, "content": body}},
    )
    async def search(request: Request) -> Response:
        """Search by words, by a picture, by both, or by an item: JSON, or multipart with the picture as the file `image`.

        Further pages: the same request with the `next` of the answer as `cursor`; all pages come from the release of the first.
        """
        started = time.perf_counter()
        (answer,), headers = await answered(request, started, [await read_query(request)])
        return _written(answer, headers)

    @app.post(
        "/v1/search/batch",
        tags=["search"],
        response_model=BatchResponse,
        openapi_extra={"requestBody": {"required": True, "content": batch}},
    )
    async def search_batch(request: Request) -> Response:
        """Several searches at once, all answered from one release, in their order; one that cannot be answered fails the whole batch."""
        started = time.perf_counter()
        answers, headers = await answered(request, started, await read_batch(request))
        return _written(BatchResponse(results=answers), headers)


def _written(answer: BaseModel, headers: Mapping[str, str]) -> Response:
    """An answer as JSON. FastAPI, given the model, would check what we have just made once more before it writes the same."""
    return Response(answer.model_dump_json(exclude_none=True), media_type="application/json", headers=headers)


def _schema(model: type[BaseModel]) -> dict[str, Any]:
    """The schema of a body that is read by ourselves, whole: a reference to `$defs` would lead nowhere in the document of the API."""
    schema = model.model_json_schema()
    parts = schema.pop("$defs", {})

    def whole(node: Any) -> Any:
        if isinstance(node, list):
            return [whole(one) for one in node]
        if not isinstance(node, dict):
            return node
        part = parts[node["$ref"].rpartition("/")[2]] if "$ref" in node else {}
        return {name: whole(one) for name, one in {**part, **node}.items() if name != "$ref"}

    return whole(schema)


def _items(app: FastAPI, backend: Backend) -> None:
    @app.get("/v1/items", tags=["items"])
    async def items(sample: Annotated[int, Query(ge=1, le=100)] = 12) -> list[ItemOut]:
        """A few items of the release that answers, spread over all of them: something to begin with."""
        return await backend.sample(sample)

    # Ids may hold slashes (file names do), so the route of the picture is tried before the one of the item.
    @app.get("/v1/items/{item_id:path}/image", tags=["items"], response_class=Response)
    async def image(item_id: str, release: Named = None) -> Response:
        """The picture of an item, as it is kept with the index."""
        data = await backend.image(item_id, release)
        return Response(
            data, media_type=_media_type(data), headers={"Cache-Control": "private, max-age=300", "X-Content-Type-Options": "nosniff"}
        )

    @app.get("/v1/items/{item_id:path}", tags=["items"])
    async def item(item_id: str, release: Named = None) -> ItemOut:
        """What is known about an item of the release that answers."""
        return await backend.item(item_id, release)


def _releases(app: FastAPI, backend: Backend) -> None:
    @app.get("/v1/releases", tags=["releases"])
    async def releases() -> ReleasesOut:
        """All releases, newest first, and which one is live."""
        return await backend.releases()

    @app.get("/v1/releases/{release_id}/measured", tags=["releases"])
    async def measured(release_id: Annotated[str, PathParameter(pattern=RELEASE_ID)]) -> MeasuredOut:
        """The accuracy of every task after each, the compatibility of encoder versions, and the backfill that the release belongs to."""
        return await backend.measured(release_id)

    @app.post("/v1/releases/{release_id}/promote", tags=["releases"])
    async def promote(
        request: Request, release_id: Annotated[str, PathParameter(pattern=RELEASE_ID)], body: PromoteRequest | None = None
    ) -> ReleaseOut:
        """Make a release the live one, or put it beside as the candidate; replicas follow within a poll."""
        return await backend.promote(release_id, body or PromoteRequest(), _caller(request))

    @app.post("/v1/rollback", tags=["releases"])
    async def rollback(request: Request, body: RollbackRequest | None = None) -> ReleaseOut:
        """Make the release live that was live before; or, of the candidates, the one before."""
        return await backend.rollback(body or RollbackRequest(), _caller(request))


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
