"""What a release that is held answers, as the API shows it: searches, explained where it is asked for; items and their pictures."""

from collections.abc import Mapping, Sequence

import numpy as np

from perdure.errors import BadQuery, NotFound
from perdure.index import Entry, rows_that_pass
from perdure.records import Scalar
from perdure.retrieval.retriever import Hit, Retriever, SearchResult
from serve.problems import Problem
from serve.reading import SearchQuery, next_page
from serve.schemas import Explained, HitOut, ItemOut, SearchResponse, SegmentExplained

__all__ = ["answers_of", "gone", "image_of", "item_of", "known_item", "respond", "sample_of"]


def gone(release_id: str) -> Problem:
    """What is said of a cursor, or of a caller that names a release, where the release is not held."""
    return Problem(410, f"release {release_id} is not, or no longer, held here; begin again without a cursor or `release`")


def respond(
    retriever: Retriever, query: SearchQuery, found: SearchResult, topology: str, shards_ms: Sequence[float] | None = None
) -> SearchResponse:
    """An answer as the API shows it to who asked."""
    return SearchResponse(
        release=found.release,
        hits=[_hit_out(hit, query, retriever) for hit in found.hits],
        partial=found.partial,
        timings_ms=dict(found.timings_ms),
        next=next_page(query, found.release) if found.more else None,
        explain=_explained(retriever, query, found, topology, shards_ms) if query.explain else None,
    )


def _hit_out(hit: Hit, query: SearchQuery, retriever: Retriever) -> HitOut:
    return HitOut(
        id=hit.id,
        score=hit.score,
        label=hit.label,
        text=hit.text[0] if hit.text else "",
        task=hit.task,
        encoder=hit.encoder,
        payload=_payload_out(hit.payload, query.payload),
        segment=str(retriever.segments[hit.segment].ref) if query.explain else None,
        raw_score=hit.raw_score if query.explain else None,
    )


def _explained(
    retriever: Retriever, query: SearchQuery, found: SearchResult, topology: str, shards_ms: Sequence[float] | None
) -> Explained:
    release, segments = retriever.release, retriever.segments
    passing = rows_that_pass([segment.table for segment in segments], query.search.filter)
    told: list[SegmentExplained] = []
    for use, segment, rows, vector in zip(release.segments, segments, passing, found.put, strict=True):
        mean, std = segment.statistics.mean_std(vector[None])
        told.append(
            SegmentExplained(
                segment=str(segment.ref),
                made_by=str(use.made_by),
                queried_by=str(use.queried_by),
                compensated=use.compensated,
                kind=segment.kind,
                exact=segment.kind in ("flat", "binary") or query.search.exact or bool(query.search.filter),
                items=len(segment.alive),
                passing=int(rows[segment.alive].sum()),
                mean=float(mean[0]),
                std=float(std[0]),
            )
        )
    return Explained(
        topology=topology,
        merge=release.merge if len(segments) > 1 else "raw",
        segments=told,
        shards_ms=None if shards_ms is None else [round(ms, 3) for ms in shards_ms],
        expanded_by=list(found.moved_by),
    )


def _payload_out(payload: Mapping[str, Scalar], asked: bool | Sequence[str]) -> dict[str, Scalar] | None:
    if isinstance(asked, bool):
        return dict(payload) if asked else None
    return {name: value for name, value in payload.items() if name in asked}


def known_item(retriever: Retriever, item_id: str) -> tuple[int, int]:
    """(segment number, row) of an item.

    Raises:
        NotFound: the release does not hold it.
    """
    try:
        return retriever.locate(item_id)
    except BadQuery as error:
        raise NotFound(str(error)) from None


def answers_of(retriever: Retriever, queries: Sequence[SearchQuery]) -> list[SearchResponse]:
    """The answers of a release that is wholly held here."""
    for query in queries:
        if query.search.query.id is not None:
            known_item(retriever, query.search.query.id)
    found = retriever.answer([query.search for query in queries])
    return [respond(retriever, query, one, "fused") for query, one in zip(queries, found, strict=True)]


def item_of(retriever: Retriever, item_id: str) -> ItemOut:
    """What is known of an item; NotFound where the release does not hold it."""
    number, row = known_item(retriever, item_id)
    return _item_out(retriever, number, row, retriever.segments[number].table.entries([row])[0])


def _item_out(retriever: Retriever, number: int, row: int, entry: Entry) -> ItemOut:
    segment = retriever.segments[number]
    return ItemOut(
        id=entry.id,
        label=entry.label,
        group=entry.group,
        captions=list(entry.text),
        tags=list(entry.tags),
        payload=dict(entry.payload),
        task=entry.task,
        segment=str(segment.ref),
        encoder=str(segment.made_by),
        release=retriever.release.id,
        has_image=segment.picture(row) is not None,
    )


def sample_of(retriever: Retriever, count: int) -> list[ItemOut]:
    """Items at equal distances over all segments, so that every task has a chance to be among them."""
    alive = [segment.alive for segment in retriever.segments]
    sizes = [len(rows) for rows in alive]
    ends = np.cumsum(sizes)
    if not sizes or ends[-1] == 0:
        return []
    places = np.unique(np.linspace(0, ends[-1] - 1, num=min(count, int(ends[-1]))).astype(np.int64))
    found: list[ItemOut] = []
    for place in places:
        number = int(np.searchsorted(ends, place, side="right"))
        row = int(alive[number][place - (ends[number] - sizes[number])])
        found.append(_item_out(retriever, number, row, retriever.segments[number].table.entries([row])[0]))
    return found


def image_of(retriever: Retriever, item_id: str) -> bytes:
    """The stored picture of an item; NotFound where there is no such item, or it has none."""
    number, row = known_item(retriever, item_id)
    picture = retriever.segments[number].picture(row)
    if picture is None:
        raise NotFound(f"item '{item_id}' is stored without its picture ({retriever.segments[number].ref} has none of it)")
    return picture
