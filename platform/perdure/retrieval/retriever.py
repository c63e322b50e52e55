"""The request path, without Ray: encode the query, search the segments of one release, merge.

`Retriever` holds a whole release in one process. Its five steps are functions of their own, because a server may run them in
different processes: `plan` (which encoder for which segments), `encode`, `compensation.asked` (what is put to each segment),
`Segment.search`, `finish`.

Q queries, K top-k, D embedding, S segments of the release.
"""

import io
import time
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from perdure.data.pixels import decode_image
from perdure.data.transforms import to_float
from perdure.encoders import Encoder, load_encoder
from perdure.errors import BadQuery, DataError, Incompatible
from perdure.index import Entry, Segment, load_segment, merge_segments
from perdure.records import EncoderRef, Hits, Release, SegmentRef
from perdure.registry import Registry
from perdure.retrieval.compensation import Modality, QueryDrift, asked, load_drifts

__all__ = ["Hit", "Query", "Retriever", "SearchResult", "encode", "finish", "plan"]


_TYPES: dict[str, tuple[type, ...]] = {"text": (str,), "image": (bytes, np.ndarray), "id": (str,), "vectors": (Mapping,)}


@dataclass(frozen=True, eq=False)
class Query:
    """What to search by: exactly one of the four."""

    text: str | None = None
    image: bytes | NDArray[np.uint8] | None = None  # an encoded file, or (H, W, 3)
    id: str | None = None  # of an item in the gallery, which is then left out of the hits
    vectors: Mapping[EncoderRef, NDArray[np.float32]] | None = None  # (D,) unit, by the encoder that made it
    made_of: Modality | None = None  # the `vectors`; a release that compensates for drift has to know

    def kind(self) -> str:
        """Which of the four it is, by name.

        Raises:
            BadQuery: none of them, more than one, one of a wrong type, or an empty text.
        """
        given = [name for name in ("text", "image", "id", "vectors") if getattr(self, name) is not None]
        if len(given) != 1:
            raise BadQuery(f"a query has exactly one of text, image and id; this one has {' and '.join(given) or 'none'}")
        kind, value = given[0], getattr(self, given[0])
        if not isinstance(value, _TYPES[kind]):
            raise BadQuery(f"a query's {kind} cannot be {type(value).__name__}")
        if kind == "text" and not value.strip():
            raise BadQuery("the text to search by is empty")
        return kind

    def modality(self) -> Modality | None:
        """What its embedding is made of; None for vectors of which nobody said it."""
        return self.made_of if self.vectors is not None else "image" if self.text is None else "text"


@dataclass(frozen=True, slots=True)
class Hit:
    """One item that was found. `score`: cosine similarity, or with several standardised segments its distance above the segment's
    mean in standard deviations."""

    id: str
    score: float
    label: str
    text: tuple[str, ...]
    task: int
    encoder: str  # that made the vector
    group: str = ""


@dataclass(frozen=True)
class SearchResult:
    """Hits, best first; a shorter list than asked when the gallery, or the filter, allows no more."""

    release: str
    hits: list[Hit]
    partial: bool = False
    timings_ms: dict[str, float] = field(default_factory=dict)


def plan(release: Release) -> dict[EncoderRef, tuple[int, ...]]:
    """Which encoder embeds the query for which segments (numbers in the release)."""
    by_encoder: dict[EncoderRef, list[int]] = {}
    for number, use in enumerate(release.segments):
        by_encoder.setdefault(use.queried_by, []).append(number)
    return {encoder: tuple(numbers) for encoder, numbers in by_encoder.items()}


def encode(encoder: Encoder, queries: Sequence[str | bytes | NDArray[np.uint8]]) -> NDArray[np.float32]:
    """(Q, D) unit rows of texts and pictures, mixed, in their order.

    Raises:
        BadQuery: a text for an encoder without a text tower; bytes that are not a picture.
    """
    out = np.empty((len(queries), encoder.embedding_dim), np.float32)
    texts = [i for i, query in enumerate(queries) if isinstance(query, str)]
    if texts:
        out[texts] = encoder.embed_texts([str(queries[i]) for i in texts]).cpu().numpy()
    images = [i for i in range(len(queries)) if not isinstance(queries[i], str)]
    if images:
        pixels = np.stack([_pixels(queries[i], encoder.image_size) for i in images])
        out[images] = encoder.embed_images(to_float(torch.from_numpy(pixels))).cpu().numpy()
    return out


def finish(
    release: Release,
    parts: Sequence[Hits],
    segments: Mapping[int, Segment],
    queries: Sequence[NDArray[np.float32]],
    k: int,
    *,
    leave_out: Sequence[str | None] = (),
) -> list[list[Hit]]:
    """Hits of segments become one list for each query.

    An item that several segments hold is listed once, where it scores best.

    Args:
        release: says which encoder queries which segment, and how lists are merged.
        parts: hits of segments; `segments` in each is the segment's number in the release. Segments may be missing.
        segments: table and statistics of each segment in `parts`, by number; partitions are not needed.
        queries: (Q, D) as they were put to each segment of the release, in its order; see `compensation.asked`.
        k: length of a list; parts must hold k + 1 where an item is left out.
        leave_out: Q item ids that may not be found, None for none; empty for none at all.
    """
    if not parts:
        return [[] for _ in range(len(queries[0]))]
    numbers = [int(part.segments[0, 0]) if part.segments.size else None for part in parts]
    filled = [(part, number) for part, number in zip(parts, numbers, strict=True) if number is not None]
    if not filled:
        return [[] for _ in range(len(parts[0].rows))]
    # One segment needs no calibration: its own scores order it, and a cosine says more to a reader.
    how = release.merge if len(release.segments) > 1 else "raw"
    merged = merge_segments(
        [part for part, _ in filled],
        sum(part.rows.shape[1] for part, _ in filled),
        how=how,
        statistics=[segments[number].statistics for _, number in filled],
        queries=[queries[number] for _, number in filled],
    )
    avoid = leave_out or [None] * len(merged.rows)
    return [_hits(merged, q, k, segments, avoid[q]) for q in range(len(merged.rows))]


class Retriever:
    """One release, wholly loaded."""

    def __init__(
        self,
        release: Release,
        encoders: Mapping[EncoderRef, Encoder],
        segments: Sequence[Segment],
        drifts: Mapping[int, QueryDrift] | None = None,
    ) -> None:
        """Take the encoders that the release needs, its segments in its order, and what `load_drifts` gave for it.

        Raises:
            Incompatible: a segment is not the one, or not by the encoder, that the release says.
        """
        for use, segment in zip(release.segments, segments, strict=True):
            if (segment.ref, segment.made_by) != (use.segment, use.made_by):
                raise Incompatible(
                    f"release {release.id} asks for {use.segment} made by {use.made_by}; loaded is {segment.ref} made by {segment.made_by}"
                )
        self.release = release
        self.encoders = dict(encoders)
        self.segments = tuple(segments)
        self.drifts = dict(drifts or {})

    @classmethod
    def load(
        cls,
        registry: Registry,
        release: Release | str,
        *,
        encoders_cache: MutableMapping[EncoderRef, Encoder] | None = None,
        segments_cache: MutableMapping[SegmentRef, Segment] | None = None,
    ) -> "Retriever":
        """Load a release from the registry, every file checked; what a cache holds is taken from it, and what is loaded put there.

        Raises:
            NotFound: the release or a part of it does not exist.
            Corrupt: a file's bytes are not those that were published.
            Incompatible: it compensates for a drift that was not measured.
        """
        release = registry.release(release) if isinstance(release, str) else release
        encoders = {} if encoders_cache is None else encoders_cache
        segments = {} if segments_cache is None else segments_cache
        for ref in release.encoders():
            if ref not in encoders:
                encoders[ref] = load_encoder(registry.folder(ref))
        for use in release.segments:
            if use.segment not in segments:
                segments[use.segment] = load_segment(registry.files(use.segment), ref=use.segment, made_by=registry.made_by(use.segment))
        parts = [segments[use.segment] for use in release.segments]
        return cls(release, {ref: encoders[ref] for ref in release.encoders()}, parts, load_drifts(registry, release))

    def search(self, query: Query, k: int = 10, filter: Mapping[str, Any] | None = None) -> SearchResult:
        """The best k items for a query.

        Args:
            query: a text, a picture, an item of the gallery, or vectors.
            k: at least 1.
            filter: equalities over id, label, group, task, tags; a list means any of its values.

        Raises:
            BadQuery: nothing to search by, an unknown id, not a picture, k < 1, a filter over another column; vectors without `made_of`
                where the release compensates for drift.
        """
        return self.search_many([query], k, filter)[0]

    def search_many(self, queries: Sequence[Query], k: int = 10, filter: Mapping[str, Any] | None = None) -> list[SearchResult]:
        """As `search`, for Q queries at once; the timings are those of all of them together."""
        if k < 1:
            raise BadQuery(f"k={k}: ask for 1 hit or more")
        if not queries:
            return []
        started = time.perf_counter()
        embedded = {encoder: self.embed(queries, encoder) for encoder in plan(self.release)}
        put = asked(self.release, embedded, [query.modality() for query in queries], self.drifts)
        encoded = time.perf_counter()
        leave_out = [query.id for query in queries]
        depth = k + any(leave_out)
        parts: list[Hits] = []
        for number, (use, segment) in enumerate(zip(self.release.segments, self.segments, strict=True)):
            rows = segment.table.allowed(filter) if filter else None
            parts.append(segment.search(put[number], depth, encoder=use.queried_by, allowed=use.queried_by, rows=rows, number=number))
        searched = time.perf_counter()
        lists = finish(self.release, parts, dict(enumerate(self.segments)), put, k, leave_out=leave_out)
        merged = time.perf_counter()
        timings = {
            "encode": round(1e3 * (encoded - started), 3),
            "search": round(1e3 * (searched - encoded), 3),
            "merge": round(1e3 * (merged - searched), 3),
        }
        return [SearchResult(self.release.id, hits, False, timings) for hits in lists]

    def embed(self, queries: Sequence[Query], encoder: EncoderRef) -> NDArray[np.float32]:
        """(Q, D) the queries as one encoder of the release sees them."""
        out: list[NDArray[np.float32] | None] = []
        raw: list[str | bytes | NDArray[np.uint8]] = []
        for query in queries:
            vector, source = self._resolve(query, encoder)
            out.append(vector)
            raw += [] if source is None else [source]
        fresh = iter(encode(self.encoders[encoder], raw)) if raw else iter(())
        return np.stack([next(fresh) if vector is None else vector for vector in out])

    def locate(self, item_id: str) -> tuple[int, int]:
        """(segment number, row) of an item, in the newest segment that holds it.

        Raises:
            BadQuery: no segment of the release holds it.
        """
        for number in reversed(range(len(self.segments))):
            row = self.segments[number].table.row(item_id)
            if row is not None:
                return number, row
        raise BadQuery(f"no item '{item_id}' in release {self.release.id}")

    def entry(self, item_id: str) -> Entry:
        """What is known of an item; see `locate`."""
        number, row = self.locate(item_id)
        return self.segments[number].table.entries([row])[0]

    def picture(self, item_id: str) -> bytes | None:
        """The encoded picture of an item, or None when its segment holds no pictures; see `locate`."""
        number, row = self.locate(item_id)
        return self.segments[number].picture(row)

    def _resolve(self, query: Query, encoder: EncoderRef) -> tuple[NDArray[np.float32] | None, str | bytes | NDArray[np.uint8] | None]:
        """The vector of a query that has one for this encoder already, or else what must be encoded."""
        kind = query.kind()
        if kind == "vectors":
            assert query.vectors is not None
            if encoder not in query.vectors:
                raise BadQuery(f"release {self.release.id} needs the query as seen by {encoder}; given: {_names(query.vectors)}")
            vector = np.asarray(query.vectors[encoder], dtype=np.float32)
            if vector.shape != (self.encoders[encoder].embedding_dim,):
                raise BadQuery(f"a query vector of shape {vector.shape}; {encoder} makes ({self.encoders[encoder].embedding_dim},)")
            return vector, None
        if kind == "id":
            assert query.id is not None
            return self._resolve_item(query.id, encoder)
        return None, query.text if query.text is not None else query.image

    def _resolve_item(self, item_id: str, encoder: EncoderRef) -> tuple[NDArray[np.float32] | None, bytes | None]:
        """The stored vector where this encoder made it, or else the stored picture."""
        number, _ = self.locate(item_id)
        for segment in self.segments:
            row = segment.table.row(item_id) if segment.made_by == encoder else None
            if row is not None:
                return segment.vectors(np.array([row]))[0], None
        picture = self.picture(item_id)
        if picture is None:
            raise BadQuery(
                f"item '{item_id}' is in {self.segments[number].ref}, made by {self.segments[number].made_by} and stored without its "
                f"picture; it cannot be embedded by {encoder}. Search by the picture itself."
            )
        return None, picture


def _pixels(query: Any, size: int) -> NDArray[np.uint8]:
    """A picture of a query as (size, size, 3)."""
    if isinstance(query, np.ndarray):
        if query.dtype != np.uint8 or query.ndim != 3 or query.shape[2] != 3:
            raise BadQuery(f"a picture as an array is uint8 (H, W, 3); found {query.dtype} {query.shape}")
        buffer = io.BytesIO()
        Image.fromarray(query).save(buffer, "BMP")
        query = buffer.getvalue()
    try:
        return decode_image(query, size)
    except DataError as error:
        raise BadQuery(f"the picture to search by: {error}") from None


def _hits(merged: Hits, q: int, k: int, segments: Mapping[int, Segment], leave_out: str | None) -> list[Hit]:
    """One query's list, without padding, repeats and the item that is left out."""
    real = merged.rows[q] >= 0
    scores, rows, numbers = merged.scores[q][real], merged.rows[q][real], merged.segments[q][real]
    entries: dict[int, tuple[Segment, Entry]] = {}
    for number in np.unique(numbers).tolist():
        places = np.flatnonzero(numbers == number)
        known = segments[number].table.entries(rows[places])
        entries |= {place: (segments[number], entry) for place, entry in zip(places.tolist(), known, strict=True)}
    hits: list[Hit] = []
    seen = {leave_out}
    for place, score in enumerate(scores.tolist()):
        segment, entry = entries[place]
        if entry.id not in seen and len(hits) < k:
            seen.add(entry.id)
            hits.append(Hit(entry.id, score, entry.label, entry.text, entry.task, str(segment.made_by), entry.group))
    return hits


def _names(refs: Iterable[EncoderRef]) -> str:
    return ", ".join(map(str, refs)) or "none"
