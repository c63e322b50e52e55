"""The nouns that pass between rooms, frozen.

Letters: B batch, D embedding, N gallery, Q queries, K top-k, L words of a caption, n items of a split.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

__all__ = [
    "Batch",
    "Edit",
    "Embedded",
    "EncoderRef",
    "Hits",
    "Item",
    "Modality",
    "QueryModality",
    "Release",
    "Scalar",
    "SegmentRef",
    "SegmentUse",
    "Task",
    "Traffic",
    "base_of",
]

Modality = Literal["image", "text", "sketch"]
"""What an item is, where it is one thing alone: a picture, words, or a drawing."""

QueryModality = Literal["image", "text"]
"""What a query is made of."""

Scalar = str | int | float | bool
"""A value of the payload."""

_REF = re.compile(r"^(?:(encoder|segment|release)/)?([A-Za-z0-9][A-Za-z0-9._-]*)@v(\d+)$")


@dataclass(frozen=True, slots=True)
class Item:
    """One picture of a dataset and what is known about it; its pixels are asked of the dataset by row."""

    id: str
    label: str
    group: str = ""
    captions: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    split: str = "train"  # "train", "test", or "gallery": neither learned nor asked for, there to be found (stream.gallery=rest)
    modality: Modality | None = None  # None: a picture, and words where it has captions; "text": words alone, the picture is for show
    payload: Mapping[str, Scalar] = field(default_factory=dict, hash=False)  # whatever else is known, to filter by and to be shown


@dataclass(frozen=True, eq=False)
class Task:
    """One step of a stream: rows of the dataset, of the classes that this task brings.

    `classes` are the labels learned in this task; empty for held-out classes that no task learns.
    """

    index: int
    name: str
    classes: tuple[str, ...]
    train: NDArray[np.int64]  # (n,) rows
    query: NDArray[np.int64]  # (Q,) rows
    gallery: NDArray[np.int64]  # (N,) rows
    modality: Modality | None = None  # of all of its items, in a stream that learns one modality after another


@dataclass(frozen=True, eq=False)
class Batch:
    """What one worker encodes in one step, all on the device of the encoder.

    Items are pictures, with a caption each where there are `tokens`; or, where `is_text` says so, each is of one modality alone: then
    `images` has the pictures among the B items and `tokens` the others, in their order, and either may be None.
    """

    rows: Tensor  # (B,) int64 rows of the dataset
    labels: Tensor  # (B,) int64 class ids, in the order in which the stream introduces the classes
    images: Tensor | None  # (B, 3, H, W) float32, normalised
    tokens: Tensor | None = None  # (B, L) int64 word ids of one caption each, 0 = padding
    synthetic: Tensor | None = None  # (B', 3, H, W) float32, pictures that a strategy made up, learned beside the others
    tags: Tensor | None = None  # (B, C) float32 of 0 and 1, every label that applies; for a strategy that `reads_tags`
    tasks: Tensor | None = None  # (B,) int64 the task that each row came with; None where all came with one
    is_text: Tensor | None = None  # (B,) bool, which items are words alone

    @property
    def inputs(self) -> tuple[Tensor | None, ...]:
        """What an encoder is called with: images and tokens, and which are which where they are not the same items."""
        return (self.images, self.tokens) if self.is_text is None else (self.images, self.tokens, self.is_text)

    def item(self, row: int) -> "Batch":
        """A batch of one."""
        own = slice(row, row + 1)
        if self.is_text is None:
            assert self.images is not None
            return Batch(self.rows[own], self.labels[own], self.images[own], None if self.tokens is None else self.tokens[own])
        is_text = self.is_text[own]
        before = int(self.is_text[:row].sum())  # words
        if bool(is_text):
            assert self.tokens is not None
            return Batch(self.rows[own], self.labels[own], None, self.tokens[before : before + 1], is_text=is_text)
        assert self.images is not None
        return Batch(self.rows[own], self.labels[own], self.images[row - before : row - before + 1], is_text=is_text)


@dataclass(frozen=True, eq=False)
class Embedded:
    """Embeddings of the GLOBAL batch (gathered over the workers, with gradient), before normalisation.

    Losses over pairs need every row of the batch, so this is what a strategy's `loss_terms` gets.
    """

    labels: Tensor  # (B,) int64
    image: Tensor  # (B, D) float32, before normalisation; of the items, whatever they are, where each is of one modality alone
    text: Tensor | None = None  # (B, D) float32, before normalisation; row i is a caption of picture i
    features: Tensor | None = None  # (B, H) what `image` was made of, where the encoder has a joint trunk
    text_features: Tensor | None = None  # (B, H) what `text` was made of
    teacher_image: Tensor | None = None  # (B, D) the frozen teacher's, no gradient
    teacher_text: Tensor | None = None
    elder_image: Tensor | None = None  # (B, m, D) of m frozen teachers before it, the youngest first, no gradient
    elder_text: Tensor | None = None
    synthetic: Tensor | None = None  # (B', D) of the made-up pictures, before normalisation
    synthetic_labels: Tensor | None = None  # (B',) int64
    teacher_synthetic: Tensor | None = None  # (B', D) the frozen teacher's
    tags: Tensor | None = None  # (B, C) as in `Batch`
    guide_image: Tensor | None = None  # (B, D) of an encoder that is trained beside the student, with gradient
    expert_image: Tensor | None = None  # (B, D) of an encoder that learned the task before the student, no gradient
    expert_text: Tensor | None = None
    tasks: Tensor | None = None  # (B,) int64 the task that each row came with; None where all came with one
    seed: int = 0  # of the strategy's own draws in this step: the same on every worker, and again when the step is
    step: int = 0  # of the task, from 0


@dataclass(frozen=True, order=True, slots=True)
class _Ref:
    """A name and a version number."""

    run: str
    version: int

    kind = "?"

    @classmethod
    def parse(cls, text: str) -> Self:
        """`encoder/demo@v3` -> EncoderRef("demo", 3).

        Raises:
            ValueError: the text is not a reference of this kind.
        """
        match = _REF.match(text)
        if match is None or (match[1] or "release") != cls.kind:
            raise ValueError(f"'{text}' is not a reference to {cls.kind}; expected something like '{cls('demo', 3)}'")
        return cls(match[2], int(match[3]))


@dataclass(frozen=True, order=True, slots=True)
class EncoderRef(_Ref):
    """One version of one run's encoder: `encoder/demo@v3`."""

    kind = "encoder"

    def __str__(self) -> str:
        return f"encoder/{self.run}@v{self.version}"


@dataclass(frozen=True, order=True, slots=True)
class SegmentRef(_Ref):
    """An immutable set of gallery vectors made by exactly one encoder version: `segment/demo@v5`."""

    kind = "segment"

    def __str__(self) -> str:
        return f"segment/{self.run}@v{self.version}"


@dataclass(frozen=True, slots=True)
class SegmentUse:
    """A segment in a release: who made its vectors, and the encoder that embeds the queries for it."""

    segment: SegmentRef
    made_by: EncoderRef
    queried_by: EncoderRef
    compensated: bool | Literal["bridge"] = (
        False  # True: the drift of queries since `made_by` is taken off them (`retrieval.compensation`);
    )
    # "bridge": they are turned back by an orthogonal map (`retrieval.bridge`)


@dataclass(frozen=True)
class Edit:
    """One entry of a run's log of writes, which lies over whichever release of the run is live; see `retrieval.edits`."""

    number: int  # from 1
    active: tuple[int, ...]  # numbers of the edits that count from here on, in their order, this one among them
    last: int  # the newest write that is in it: its own number, or, of edits put together, that of the last of them
    segments: tuple[tuple[SegmentRef, EncoderRef], ...]  # of the items that it brings, and who made each
    removed: tuple[str, ...]  # ids of items that are gone
    items: int  # that it brings
    fields: Mapping[str, str]  # name -> kind of each field of the payload of all written items so far
    requests: Mapping[str, Mapping[str, Any]]  # key -> what was asked under it and answered, so that it is not done twice
    action: str  # "write" or "compact"
    by: str
    user: str
    at: str  # ISO 8601, UTC

    @property
    def size(self) -> int:
        """How many items it touches."""
        return self.items + len(self.removed)


def base_of(release_id: str) -> str:
    """The published release of an id that may carry edits: "demo@v3+17" -> "demo@v3"."""
    return release_id.partition("+")[0]


@dataclass(frozen=True)
class Release:
    """Query encoders + segments + index policy + merge: the unit that is promoted, served and rolled back."""

    id: str  # "demo@v3"
    run: str
    task: int
    policy: str  # "reindex", "keep", "versioned" or "backfilling"
    merge: str  # how hits of several segments become one list; see `retrieval.merging`
    encoder: EncoderRef  # the newest encoder; new items are embedded by it
    segments: tuple[SegmentUse, ...]
    metrics: dict[str, Any] = field(default_factory=dict)
    parent: str | None = None
    created: str = ""  # ISO 8601, UTC
    calibration: str | None = None  # sha256 of what its merge was fitted to, where that is a learned one
    edits_through: int = 0  # writes up to this one are in its segments
    edits: tuple[Edit, ...] = ()  # that lie over it; then its id is "demo@v3+17", and its last segments are theirs

    @property
    def base(self) -> str:
        """The id without its edits."""
        return base_of(self.id)

    @property
    def edit(self) -> int:
        """The number of the newest edit that it shows; also where it has that one in its own segments."""
        return int(self.id.partition("+")[2] or self.edits_through)

    def encoders(self) -> tuple[EncoderRef, ...]:
        """Every encoder version that a query may need, newest first, without repeats."""
        return tuple(dict.fromkeys([self.encoder, *(use.queried_by for use in self.segments)]))

    @property
    def compensated(self) -> bool:
        """Whether queries to any of its segments are compensated for drift."""
        return any(use.compensated for use in self.segments)


@dataclass(frozen=True, slots=True)
class Traffic:
    """What a channel beside the live one is given, in percent of the requests; what names the channel itself is answered in any case."""

    share: float = 0.0  # answered from it
    shadow: float = 0.0  # answered from the live release and put to it as well, for comparison

    def __post_init__(self) -> None:
        for name, value in (("share", self.share), ("shadow", self.shadow)):
            if not 0 <= value <= 100:
                raise ValueError(f"{name} is {value}; expected percent, 0 to 100")


@dataclass(frozen=True, eq=False)
class Hits:
    """The best K of each of Q queries, best first; row -1 pads a list that is shorter than K.

    The metric travels with the hits: only "ip" (inner product) is larger-is-better, "l2" (squared distance) and "hamming" are
    smaller-is-better, and merging two lists without knowing which is how results get silently reversed.
    """

    scores: NDArray[np.float32]  # (Q, K)
    rows: NDArray[np.int64]  # (Q, K) row of the segment's item table
    segments: NDArray[np.int32]  # (Q, K) number of the segment within the release (0 when there is one)
    metric: str = "ip"
