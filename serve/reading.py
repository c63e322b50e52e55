"""Requests as a backend takes them: JSON or a form is read, its limits are checked, a cursor is opened.

A cursor is what an answer calls `next`: the release that answered, how many hits came before, and a digest of the query, so that the pages
of a list are all of one release, and of one list. It is base64 of JSON and holds no secret; who alters it gets another page.
"""

import base64
import binascii
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from pydantic_core import from_json
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException

from perdure.errors import BadQuery
from perdure.retrieval.retriever import Query, Search
from serve.channels import AS_LIVE, Route
from serve.problems import Problem
from serve.schemas import MAX_DEPTH, BatchRequest, SearchRequest

__all__ = ["SearchQuery", "next_page", "picture_of", "read_batch", "read_query"]

# Fields of a form are text; these are JSON in it.
_AS_JSON = {
    "k",
    "offset",
    "image_weight",
    "filter",
    "exact",
    "expand",
    "payload",
    "explain",
    "partial_ok",
}


@dataclass(frozen=True, eq=False)
class SearchQuery:
    """A search request once it has been read."""

    search: Search
    digest: str  # of what decides the list that the hits are a page of
    release: str | None = None  # that a cursor is pinned to, or that the caller named
    payload: bool | Sequence[str] = False
    explain: bool = False
    partial_ok: bool = False
    route: Route = AS_LIVE  # the channel that answers, where no release is named


async def read_query(request: Request) -> SearchQuery:
    """A search request from JSON or from a multipart form.

    Raises:
        Problem: 400 not JSON, 413 too large, 415 neither of the two, 422 a field is wrong.
        BadQuery: nothing to search by, or too much.
    """
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind in ("application/json", ""):
        asked = _parsed(SearchRequest, await request.body())
        return _query(asked, _picture(asked))
    if kind == "multipart/form-data":
        try:
            async with request.form(max_files=4, max_fields=16) as form:
                return await _from_form(form)
        except Problem:
            raise
        except HTTPException as error:
            raise Problem(400, f"the multipart body cannot be read: {error.detail}") from None
    raise Problem(415, f"Content-Type is '{kind}'; send application/json, or multipart/form-data with the picture as the file 'image'")


async def read_batch(request: Request) -> list[SearchQuery]:
    """The searches of a batch, from JSON.

    Raises:
        Problem: 400 not JSON, 413 too large, 422 a field is wrong.
        BadQuery: a query with nothing to search by, or a cursor; more hits than `MAX_DEPTH` in all.
    """
    batch = _parsed(BatchRequest, await request.body())
    queries: list[SearchQuery] = []
    for number, asked in enumerate(batch.queries):
        try:
            queries.append(_query(asked, _picture(asked)))
        except BadQuery as error:
            raise BadQuery(f"queries/{number}: {error}") from None
        if asked.cursor is not None:
            raise BadQuery(f"queries/{number}: a cursor; a batch is answered from one release, so ask for further pages one by one")
    if len({query.release for query in queries}) > 1:
        raise BadQuery("the queries name different releases; a batch is answered from one, so name it in all of them or in none")
    hits = sum(query.search.offset + query.search.k for query in queries)
    if hits > MAX_DEPTH:
        raise BadQuery(f"the batch asks for {hits:,} hits in all (k + offset of each query); at most {MAX_DEPTH:,}: send several")
    return queries


def next_page(query: SearchQuery, release: str) -> str:
    """The cursor of the hits that follow a query's."""
    held = {"release": release, "offset": query.search.offset + query.search.k, "query": query.digest}
    return base64.urlsafe_b64encode(json.dumps(held, separators=(",", ":")).encode()).decode().rstrip("=")


def _opened(cursor: str) -> tuple[str, int, str]:
    """Release, offset and digest of a cursor."""
    try:
        held = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        release, offset, digest = held["release"], held["offset"], held["query"]
    except (ValueError, KeyError, TypeError, RecursionError):
        release = offset = digest = None
    if not (isinstance(release, str) and type(offset) is int and offset >= 0 and isinstance(digest, str)):
        raise BadQuery(f"the cursor '{cursor[:40]}' is none of ours; send the 'next' of an answer as it is, or none for the first page")
    return release, offset, digest


def _parsed(model: type[Any], body: bytes) -> Any:
    if not body.strip():
        raise BadQuery("the body is empty; send JSON with one of text, image (base64) and id, or multipart with the picture as 'image'")
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        if error.errors()[0]["type"] == "json_invalid":
            raise Problem(400, f"the body is not JSON: {error.errors()[0].get('ctx', {}).get('error', 'not JSON')}") from None
        raise _wrong_fields(error) from None


def _wrong_fields(error: ValidationError) -> RequestValidationError:
    return RequestValidationError([{**problem, "loc": ("body", *problem["loc"])} for problem in error.errors()])


def _picture(asked: SearchRequest) -> bytes | None:
    return None if asked.image is None else picture_of(asked.image)


def picture_of(image: str) -> bytes:
    """An encoded picture out of base64, with or without a `data:` prefix.

    Raises:
        BadQuery: it is not base64.
    """
    text = image.partition(",")[2] if image.startswith("data:") else image
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
        raise _wrong_fields(error) from None
    return _query(asked, picture)


def _form_value(name: str, value: str) -> Any:
    """Form fields are text; those that are not text in JSON are read as JSON."""
    if name not in _AS_JSON:
        return value
    try:
        return from_json(value)  # which, unlike json's, refuses what is nested without end
    except ValueError:
        raise BadQuery(f"the form field '{name}' is '{value[:80]}', which is not a JSON value (k: 10, filter: {{\"task\": 1}})") from None


def _query(asked: SearchRequest, image: bytes | None) -> SearchQuery:
    given = [name for name, value in (("text", asked.text), ("image", image), ("id", asked.id)) if value is not None]
    if not given:
        raise BadQuery("nothing to search by; send one of text, image and id, or text and image together")
    if len(given) > 1 and given != ["text", "image"]:
        raise BadQuery(f"{' and '.join(given)} are given; a search is by one of text, image and id, or by text and image together")
    if asked.text is not None and not asked.text.strip():
        raise BadQuery("text is empty; nothing to search by")
    if image is not None and not image:
        raise BadQuery("the picture is empty (0 bytes); send an encoded picture (PNG, JPEG, WebP ...)")
    if asked.id is not None and not asked.id:
        raise BadQuery("id is empty; nothing to search by")
    if asked.image_weight is not None and len(given) < 2:
        raise BadQuery(f"image_weight weighs a picture against a text, but only {given[0]} is given; send both, or leave it out")
    weight = 0.5 if asked.image_weight is None else asked.image_weight
    expand = (asked.expand.hits, asked.expand.alpha) if asked.expand is not None else (0, 0.0)
    picture = None if image is None else hashlib.sha256(image).hexdigest()
    decides = json.dumps([asked.text, picture, asked.id, weight, asked.filter, asked.exact, *expand], sort_keys=True)
    digest = hashlib.blake2b(decides.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
    release, offset = asked.release, asked.offset
    if asked.cursor is not None:
        if asked.offset:
            raise BadQuery("offset and cursor are given; a cursor knows where its page begins, so send one of them")
        release, offset, belongs_to = _opened(asked.cursor)
        if asked.release not in (None, release):
            raise BadQuery(f"the cursor is of release {release}, and {asked.release} is named; send one of them")
        if belongs_to != digest:
            raise BadQuery("the cursor belongs to another query; send it with the text, image, id, filter, exact, expand that it came from")
    if offset + asked.k > MAX_DEPTH:
        raise BadQuery(f"hits {offset + 1:,} to {offset + asked.k:,}: lists end at {MAX_DEPTH:,}; narrow the search with a filter")
    query = Query(text=asked.text, image=image, id=asked.id, image_weight=weight)
    search = Search(query, asked.k, offset, asked.filter, asked.exact, *expand)
    return SearchQuery(search, digest, release, asked.payload, asked.explain, asked.partial_ok)
