"""Writing over HTTP: items are read, embedded, and committed together with those that arrive beside them.

A write is answered when it is durable in the registry; every replica shows it within a poll, and one edit shows all of it or nothing. What
it asks is answered item by item: one picture that cannot be read keeps no other item out.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, Protocol, TypeVar

import numpy as np
from fastapi import FastAPI, Header, Request
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from perdure.data.pixels import picture_to_store
from perdure.errors import BadQuery, PerdureError
from perdure.records import Item, Scalar
from perdure.registry import Registry
from perdure.retrieval.retriever import Retriever
from perdure.retrieval.writes import Change, NewItem, Outcome, Writer
from serve.batching import Batcher, in_thread
from serve.problems import plain_message
from serve.reading import picture_of

__all__ = ["DeleteRequest", "Desk", "ItemIn", "ItemWritten", "UpsertRequest", "WriteAsked", "WriteOut", "add_routes"]

T = TypeVar("T")

Key = Annotated[str | None, Header(alias="Idempotency-Key", min_length=1, max_length=200)]

MAX_ITEMS = 256  # of a request
MAX_IDS = 10_000
_TOGETHER = 64  # requests that become one edit


class ItemIn(BaseModel):
    """An item to be found from now on, in place of the one of this id if there is one."""

    model_config = ConfigDict(extra="forbid")

    id: str = Field(min_length=1, max_length=512)
    image: str | None = Field(default=None, description="base64 of an encoded picture; what is searched, where there is one")
    text: list[Annotated[str, Field(max_length=4096)]] = Field(
        default_factory=list,
        max_length=16,
        description="captions; without an image the first one is what is searched, if the encoder reads",
    )
    label: str = Field(default="", max_length=512)
    group: str = Field(default="", max_length=512)
    tags: list[Annotated[str, Field(max_length=512)]] = Field(default_factory=list, max_length=64)
    payload: dict[str, Annotated[str, Field(max_length=4096)] | bool | int | float] = Field(
        default_factory=dict, max_length=64, description="fields of your own; of the kinds that they have in the gallery"
    )


class UpsertRequest(BaseModel):
    """`POST /v1/items`."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"items": [{"id": "sku-7", "text": ["a striped circle"], "label": "circle", "payload": {"price": 9}}]}]
        },
    )

    items: list[ItemIn] = Field(min_length=1, max_length=MAX_ITEMS)


class DeleteRequest(BaseModel):
    """`DELETE /v1/items`."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"ids": ["sku-7", "sku-8"]}]})

    ids: list[Annotated[str, Field(min_length=1, max_length=512)]] = Field(min_length=1, max_length=MAX_IDS)


class ItemWritten(BaseModel):
    """What became of one item."""

    id: str
    status: Literal["stored", "deleted", "refused"]
    detail: str | None = Field(default=None, description="refused: why")


class WriteOut(BaseModel):
    """The answer to a write: it is durable, whatever happens next."""

    edit: int = Field(description="the edit that has it; answers of `<release>+<this or a later one>` show it. 0 = nothing was written")
    refused: int = Field(description="how many items were not written")
    results: list[ItemWritten] = Field(description="of each item, in the order of the request")


class WriteAsked(BaseModel):
    """A write, whichever route it came by."""

    items: list[ItemIn] = []
    ids: list[str] = []
    by: str
    key: str | None = None

    def digest(self) -> str:
        """What has to be the same under the same key."""
        return hashlib.sha256(self.model_dump_json(include={"items", "ids"}).encode()).hexdigest()


class _Backend(Protocol):
    """What a desk needs of the backend that it stands in."""

    async def embed_new(self, pinned: Retriever, sources: Sequence[str | bytes]) -> list[NDArray[np.float32] | PerdureError]: ...
    async def run(self, work: Callable[..., T], *given: object) -> T: ...


class Desk:
    """Takes writes, and commits those that wait together as one edit."""

    def __init__(self, registry: Registry, backend: _Backend) -> None:
        self._registry = registry
        self._backend = backend
        self._writers: dict[str, Writer] = {}
        self._commit: Batcher[tuple[Retriever, Change], Outcome] = Batcher(in_thread(self._committed), _TOGETHER)

    async def write(self, pinned: Retriever, asked: WriteAsked) -> WriteOut:
        """Carry out a write over the release that is answered from.

        Raises:
            BadQuery: an id twice, or a key that belongs to another request.
            RegistryError: it could not be stored; to send it again is harmless.
        """
        ids = asked.ids or [item.id for item in asked.items]
        if len(set(ids)) < len(ids):
            ((twice, _),) = Counter(ids).most_common(1)
            raise BadQuery(f"the id '{twice}' is in the request twice; an id names one item")
        items, refused = await self._embedded(pinned, asked.items)
        change = Change(items, asked.ids, asked.by, asked.key, asked.digest(), refused)
        outcome = await self._commit((pinned, change))
        done: Literal["deleted", "stored"] = "deleted" if asked.ids else "stored"
        results = [
            ItemWritten(id=item_id, status="refused", detail=outcome.refused[item_id])
            if item_id in outcome.refused
            else ItemWritten(id=item_id, status=done)
            for item_id in ids
        ]
        return WriteOut(edit=outcome.edit, refused=len(outcome.refused), results=results)

    async def _embedded(self, pinned: Retriever, items: Sequence[ItemIn]) -> tuple[list[NewItem], dict[str, str]]:
        """The items with their vectors, and why the others have none."""
        refused: dict[str, str] = {}
        sources: list[tuple[ItemIn, str | bytes]] = []
        for item in items:
            try:
                sources.append((item, _source(item)))
            except BadQuery as error:
                refused[item.id] = str(error)
        vectors = await self._backend.embed_new(pinned, [source for _, source in sources]) if sources else []
        new: list[NewItem] = []
        for (item, source), vector in zip(sources, vectors, strict=True):
            if isinstance(vector, PerdureError):
                refused[item.id] = plain_message(vector)
                continue
            picture = await self._backend.run(picture_to_store, source) if isinstance(source, bytes) else None
            payload: dict[str, Scalar] = dict(item.payload)
            known = Item(item.id, item.label, item.group, tuple(item.text), tuple(item.tags), payload=payload)
            new.append(NewItem(known, vector, pinned.release.encoder, pinned.release.task, picture))
        return new, refused

    def _committed(self, asked: list[tuple[Retriever, Change]]) -> list[Outcome | PerdureError]:
        """One commit for each run among some changes; there is one, but for the moment in which the channel goes to another run."""
        outcomes: dict[int, Outcome | PerdureError] = {}
        for run in dict.fromkeys(pinned.release.run for pinned, _ in asked):
            places = [place for place, (pinned, _) in enumerate(asked) if pinned.release.run == run]
            pinned = asked[places[-1]][0]
            writer = self._writers.setdefault(run, Writer(self._registry, run))
            own = writer.commit(pinned.release, pinned.segments, [asked[place][1] for place in places])
            outcomes |= dict(zip(places, own, strict=True))
        return [outcomes[place] for place in range(len(asked))]


def add_routes(app: FastAPI, write: Callable[[WriteAsked], Any], caller: Callable[[Request], str]) -> None:
    """`POST /v1/items`, `DELETE /v1/items` and `DELETE /v1/items/{id}`."""

    @app.post("/v1/items", tags=["items"], response_model=WriteOut, response_model_exclude_none=True)
    async def upsert(request: Request, body: UpsertRequest, idempotency_key: Key = None) -> WriteOut:
        """Bring items, each in place of the one of its id. Durable when it is answered, and found by every replica within a poll.

        The same request again leaves the same items. With an `Idempotency-Key` it is recognised, and answered as before, also when
        others have written the same ids since.
        """
        return await write(WriteAsked(items=body.items, by=caller(request), key=idempotency_key))

    @app.delete("/v1/items", tags=["items"], response_model=WriteOut, response_model_exclude_none=True)
    async def delete_some(request: Request, body: DeleteRequest, idempotency_key: Key = None) -> WriteOut:
        """Take items away; an id that nobody has is as good as taken away."""
        return await write(WriteAsked(ids=body.ids, by=caller(request), key=idempotency_key))

    @app.delete("/v1/items/{item_id:path}", tags=["items"], response_model=WriteOut, response_model_exclude_none=True)
    async def delete(request: Request, item_id: str, idempotency_key: Key = None) -> WriteOut:
        """Take one item away."""
        return await write(WriteAsked(ids=[item_id], by=caller(request), key=idempotency_key))


def _source(item: ItemIn) -> str | bytes:
    """What an item is embedded by: its picture, or else its first caption.

    Raises:
        BadQuery: neither is there, or the picture is not base64.
    """
    if item.image is not None:
        return picture_of(item.image)
    if item.text and item.text[0].strip():
        return item.text[0]
    raise BadQuery("an item is embedded by its image, or by its text; this one has neither")
