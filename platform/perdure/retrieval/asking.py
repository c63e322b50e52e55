"""What a search asks: what to search by, how many hits from where on, and what may be found.

A mixed query, of a picture and a text, is mixed after it was embedded, for each encoder by itself:

    q = unit( w q_image + (1 - w) q_text )        w = image_weight, 0..1

q_image and q_text are unit rows of the same encoder, each compensated for its own drift where the release says so.

Query expansion puts the m best hits of a first search into the query of a second one. Radenovic, Tolias and Chum, "Fine-tuning CNN Image
Retrieval with No Human Annotation", TPAMI 2019, section 3.4 (alpha QE), in words; as an equation,

    q' = unit( q + sum over hits i = 1..m of max(0, q . x_i)^alpha x_i )

x_i: the stored unit vector of a hit. alpha = 0 is the average query expansion of Chum, Philbin, Sivic, Isard and Zisserman, "Total Recall",
ICCV 2007, without its check of geometry. Deviations: a release may hold vectors of several encoders; a hit goes into the queries to
segments of its own encoder alone, because only there is q . x_i a similarity. A negative similarity counts as 0.

Q queries, P parts of queries, D embedding, S segments.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from perdure.errors import BadQuery
from perdure.records import EncoderRef, QueryModality, Release

__all__ = ["Parts", "Pass", "Query", "Search", "expanded", "passes"]

_TYPES: dict[str, tuple[type, ...]] = {"text": (str,), "image": (bytes, np.ndarray), "id": (str,), "vectors": (Mapping,)}
_CANCELLED = 1e-6  # of a mix of unit vectors; what is shorter points nowhere


@dataclass(frozen=True, eq=False)
class Query:
    """What to search by: exactly one of the four, or a picture and a text together."""

    text: str | None = None
    image: bytes | NDArray[np.uint8] | None = None  # an encoded file, or (H, W, 3)
    id: str | None = None  # of an item in the gallery, which is then left out of the hits
    vectors: Mapping[EncoderRef, NDArray[np.float32]] | None = None  # (D,) unit, by the encoder that made it
    made_of: QueryModality | None = None  # the `vectors`; a release that compensates for drift has to know
    image_weight: float = 0.5  # w, where there are a picture and a text

    def kind(self) -> str:
        """Which of the four it is, by name; "image and text" for both.

        Raises:
            BadQuery: none of them, too many, one of a wrong type, an empty text, or a weight outside 0..1.
        """
        given = [name for name in ("text", "image", "id", "vectors") if getattr(self, name) is not None]
        if len(given) != 1 and given != ["text", "image"]:
            raise BadQuery(f"a query is text, image, both, or id; this one has {' and '.join(given) or 'none'}")
        for kind in given:
            if not isinstance(getattr(self, kind), _TYPES[kind]):
                raise BadQuery(f"a query's {kind} cannot be {type(getattr(self, kind)).__name__}")
        if self.text is not None and not self.text.strip():
            raise BadQuery("the text to search by is empty")
        if not 0 <= self.image_weight <= 1:
            raise BadQuery(f"image_weight={self.image_weight}: from 0 (the text alone) to 1 (the picture alone)")
        return given[0] if len(given) == 1 else "image and text"

    def modality(self) -> QueryModality | None:
        """What its embedding is made of, of a mix for the most part; None for vectors of which nobody said it."""
        if self.vectors is not None:
            return self.made_of
        return "image" if self.text is None or (self.image is not None and self.image_weight >= 0.5) else "text"

    def parts(self) -> list[tuple[float, "Query"]]:
        """Itself; or of a mixed query the picture and the text, with their weights."""
        if self.kind() != "image and text":
            return [(1.0, self)]
        return [(self.image_weight, Query(image=self.image)), (1 - self.image_weight, Query(text=self.text))]


@dataclass(frozen=True, eq=False)
class Search:
    """A query, and which of the hits are wanted: `k` of them after the first `offset`."""

    query: Query
    k: int = 10
    offset: int = 0
    filter: Mapping[str, Any] = field(default_factory=dict)  # see `index.filters`
    exact: bool = False  # whether approximate partitions are scanned instead
    expand: int = 0  # m of query expansion; 0 = none
    alpha: float = 3.0  # of query expansion

    def check(self) -> None:
        """Refuse what makes no sense.

        Raises:
            BadQuery: a number out of range.
        """
        if self.k < 1:
            raise BadQuery(f"k={self.k}: ask for 1 hit or more")
        if self.offset < 0 or self.expand < 0:
            raise BadQuery(f"offset={self.offset}, expand={self.expand}: neither can be less than 0")
        if not (self.alpha >= 0 and math.isfinite(self.alpha)):
            raise BadQuery(f"alpha={self.alpha}: 0 (all hits count alike) or more (the nearest count most)")

    @property
    def wanted(self) -> int:
        """How long a list has to be to hold these hits, and one more that shows whether there are others."""
        return self.offset + self.k + 1

    @property
    def depth(self) -> int:
        """Hits of a segment that can be among the `wanted`: one more where an item is left out."""
        return self.wanted + (self.query.id is not None)

    @property
    def way(self) -> tuple[int, str, bool]:
        """Searches of one way can go through the segments together: depth, filter, whether all is scanned."""
        return self.depth, json.dumps(self.filter, sort_keys=True, default=str), self.exact

    def first(self) -> "Search":
        """The first search of an expansion."""
        return Search(self.query, self.expand, filter=self.filter, exact=self.exact)


@dataclass(frozen=True, eq=False)
class Parts:
    """Q queries as P simple ones, of one modality each."""

    queries: tuple[Query, ...]  # P
    owner: NDArray[np.int64]  # (P,) the query that each is a part of, ascending
    weight: NDArray[np.float32]  # (P,)

    @classmethod
    def of(cls, queries: Sequence[Query]) -> Self:
        """Take mixed queries apart."""
        apart = [(owner, weight, part) for owner, query in enumerate(queries) for weight, part in query.parts()]
        owners = np.array([owner for owner, _, _ in apart], dtype=np.int64)
        return cls(tuple(part for _, _, part in apart), owners, np.array([weight for _, weight, _ in apart], dtype=np.float32))

    @property
    def modalities(self) -> list[QueryModality | None]:
        """P, what each part is made of."""
        return [query.modality() for query in self.queries]

    def together(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """(P, D) unit rows of the parts -> (Q, D) of the queries.

        Raises:
            BadQuery: a picture and a text that cancel each other out.
        """
        of_one = np.bincount(self.owner)
        if (of_one == 1).all():
            return rows
        out = np.zeros((len(of_one), rows.shape[1]), np.float32)
        np.add.at(out, self.owner, self.weight[:, None] * rows)
        mixed = of_one > 1
        lengths = np.linalg.norm(out[mixed], axis=1, keepdims=True)
        if (lengths < _CANCELLED).any():
            raise BadQuery("the picture and the text to search by cancel each other out at these weights; choose another image_weight")
        out[mixed] /= lengths
        return out


@dataclass(frozen=True, eq=False)
class Pass:
    """Searches that go through the segments together: one depth, one filter."""

    places: list[int]
    depth: int
    filter: Mapping[str, Any]
    exact: bool


def passes(searches: Sequence[Search]) -> list[Pass]:
    """The fewest passes that answer some searches."""
    found: dict[tuple[int, str, bool], Pass] = {}
    for place, search in enumerate(searches):
        found.setdefault(search.way, Pass([], search.depth, search.filter, search.exact)).places.append(place)
    return list(found.values())


def expanded(
    release: Release,
    put: Sequence[NDArray[np.float32]],
    place: int,
    alpha: float,
    hits: Sequence[tuple[int, NDArray[np.float32]]],
) -> None:
    """Expand one query, in its place.

    Args:
        release: says who made the vectors of which segment.
        put: S times (Q, D), the queries as they are put to each segment; changed.
        place: of the query.
        alpha: 0 or more.
        hits: the best hits of the first search, as the number of the segment and the stored vector (D,) of each.
    """
    makers = [use.made_by for use in release.segments]
    for number, queries in enumerate(put):
        near = [vector for segment, vector in hits if makers[segment] == makers[number]]
        if near:
            x = np.stack(near)
            moved = queries[place] + (np.maximum(x @ queries[place], 0) ** alpha) @ x
            queries[place] = moved / max(float(np.linalg.norm(moved)), _CANCELLED)
