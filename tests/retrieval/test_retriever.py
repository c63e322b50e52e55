"""The request path over a real registry and real (untrained) encoders: what is found, by whom, and what is refused."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from perdure.data.transforms import to_float
from perdure.encoders import Encoder, build_encoder, save_encoder
from perdure.errors import BadQuery, Corrupt, Incompatible, NotFound
from perdure.index import build_segment
from perdure.records import EncoderRef, Item, Release
from perdure.registry import Registry, open_registry
from perdure.retrieval import Query, Retriever, encode, finish, next_release, plan
from perdure.retrieval.compensation import asked

SIZE, PER_TASK = 16, 30
ITEMS = [
    Item(f"item-{i}", label=f"class {i % 3}", group="odd" if i % 2 else "even", captions=(f"a picture with number {i}",)) for i in range(60)
]
PIXELS = np.random.default_rng(0).integers(0, 256, (60, SIZE, SIZE, 3)).astype(np.uint8)
TASKS = [i // PER_TASK for i in range(60)]


def png(row: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS[row]).save(buffer, "PNG")
    return buffer.getvalue()


def make_encoder(seed: int, *, dim: int = 12, with_text: bool = True) -> Encoder:
    options = {"embedding_dim": dim, "image_size": SIZE, "width": 4}
    encoder = build_encoder("small_resnet", options, with_text=with_text, seed=seed)
    encoder.grow(num_classes=3, captions=[caption for item in ITEMS for caption in item.captions] if with_text else [])
    return encoder.eval()


def images(encoder: Encoder, rows) -> np.ndarray:
    return encoder.embed_images(to_float(torch.from_numpy(PIXELS[np.asarray(rows)]))).numpy()


class World:
    """Two tasks learned: an encoder and a segment each, and a release of every policy."""

    def __init__(self, folder: Path, *, thumbnails: bool = True, second_has_text: bool = True) -> None:
        self.registry: Registry = open_registry(folder / "registry")
        self.encoders = {EncoderRef("demo", 1): make_encoder(1), EncoderRef("demo", 2): make_encoder(2, with_text=second_has_text)}
        for ref, encoder in self.encoders.items():
            save_encoder(encoder, folder / str(ref.version))
            files = {path.name: path for path in (folder / str(ref.version)).iterdir()}
            assert self.registry.publish_encoder("demo", None, files) == ref
        self.e1, self.e2 = self.encoders
        self.old = self._segment(folder / "old", self.e1, range(PER_TASK), thumbnails)
        self.new = self._segment(folder / "new", self.e2, range(PER_TASK, 60), thumbnails)
        self.all = self._segment(folder / "all", self.e2, range(60), thumbnails)
        self.first = self._publish("reindex", None, 1, self.e1, self.old)
        self.reindex = self._publish("reindex", self.first, 2, self.e2, self.all)
        self.keep = self._publish("keep", self.first, 3, self.e2, self.new)
        self.versioned = self._publish("versioned", self.first, 4, self.e2, self.new)
        self.raw = self._publish("versioned", self.first, 5, self.e2, self.new, merge="raw")

    def _segment(self, folder: Path, ref: EncoderRef, rows, thumbnails: bool):
        rows = list(rows)
        pictures = (lambda i: png(rows[i])) if thumbnails else None
        files = build_segment(
            images(self.encoders[ref], rows),
            [ITEMS[row] for row in rows],
            task=[TASKS[row] for row in rows],
            folder=folder,
            partitions=2,
            thumbnails=pictures,
        )
        return self.registry.publish_segment("demo", None, files, made_by=ref)

    def _publish(self, policy: str, previous: Release | None, version: int, encoder: EncoderRef, segment, **options) -> Release:
        task = 0 if previous is None else 1
        return self.registry.publish_release(
            next_release(policy, previous, encoder=encoder, segment=segment, id=f"demo@v{version}", run="demo", task=task, **options)
        )

    def load(self, release: Release) -> Retriever:
        return Retriever.load(self.registry, release)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


def test_a_picture_finds_its_own_item_under_reindex(world: World):
    retriever = world.load(world.reindex)
    for row in (0, 31, 59):
        for query in (Query(image=png(row)), Query(image=PIXELS[row])):
            result = retriever.search(query, 5)
            hit = result.hits[0]
            assert (hit.id, hit.label, hit.task, hit.text) == (f"item-{row}", f"class {row % 3}", TASKS[row], ITEMS[row].captions)
            assert hit.score == pytest.approx(1, abs=1e-5) and hit.encoder == "encoder/demo@v2" and result.release == "demo@v2"
            assert len(result.hits) == 5 and not result.partial and set(result.timings_ms) == {"encode", "search", "merge"}


def test_hits_equal_brute_force_under_every_policy(world: World):
    queries = images(world.encoders[world.e1], range(0, 60, 7)), images(world.encoders[world.e2], range(0, 60, 7))
    old, new = images(world.encoders[world.e1], range(PER_TASK)), images(world.encoders[world.e2], range(PER_TASK, 60))

    def z(scores: np.ndarray) -> np.ndarray:
        return (scores - scores.mean(axis=1, keepdims=True)) / scores.std(axis=1, keepdims=True)

    expected = {
        "reindex": queries[1] @ images(world.encoders[world.e2], range(60)).T,
        "keep": np.hstack([z(queries[1] @ old.T), z(queries[1] @ new.T)]),
        "versioned": np.hstack([z(queries[0] @ old.T), z(queries[1] @ new.T)]),
        "raw": np.hstack([queries[0] @ old.T, queries[1] @ new.T]),
    }
    for release in expected:
        results = world.load(getattr(world, release)).search_many([Query(image=png(row)) for row in range(0, 60, 7)], 10)
        for q, result in enumerate(results):
            best = np.argsort(-expected[release][q], kind="stable")[:10]
            assert [hit.id for hit in result.hits] == [f"item-{row}" for row in best]
            np.testing.assert_allclose([hit.score for hit in result.hits], expected[release][q][best], atol=5e-3)


def test_each_segment_is_queried_by_the_encoder_that_the_release_names(world: World):
    assert plan(world.reindex) == {world.e2: (0,)}
    assert plan(world.keep) == {world.e2: (0, 1)}
    assert plan(world.versioned) == {world.e1: (0,), world.e2: (1,)}
    assert set(world.load(world.versioned).encoders) == {world.e1, world.e2} and set(world.load(world.keep).encoders) == {world.e2}
    encoders = {hit.task: hit.encoder for hit in world.load(world.versioned).search(Query(text="a picture"), 60).hits}
    assert encoders == {0: "encoder/demo@v1", 1: "encoder/demo@v2"}


def test_a_text_is_searched_by_its_own_embedding(world: World):
    words = "a picture with number 7"
    vector = world.encoders[world.e2].embed_texts([words]).numpy()[0]
    by_text = world.load(world.reindex).search(Query(text=words), 10)
    by_vector = world.load(world.reindex).search(Query(vectors={world.e2: vector}), 10)
    assert [hit.id for hit in by_text.hits] == [hit.id for hit in by_vector.hits]


def test_queries_of_several_kinds_in_one_call_equal_each_alone(world: World):
    retriever = world.load(world.versioned)
    vectors = {ref: images(encoder, [8])[0] for ref, encoder in world.encoders.items()}
    queries = [
        Query(image=png(3)),
        Query(text="number 5"),
        Query(id="item-40"),
        Query(vectors=vectors),
        Query(text="a"),
        Query(id="item-2"),
    ]
    together = retriever.search_many(queries, 6)
    for query, result in zip(queries, together, strict=True):
        alone = retriever.search(query, 6)
        assert [hit.id for hit in alone.hits] == [hit.id for hit in result.hits]
        np.testing.assert_allclose([hit.score for hit in alone.hits], [hit.score for hit in result.hits], atol=1e-4)
    assert retriever.search_many([], 6) == []


@pytest.mark.parametrize("release", ["reindex", "keep", "versioned", "raw"])
def test_an_item_is_searched_by_its_picture_and_is_not_among_its_own_hits(world: World, release: str):
    retriever = world.load(getattr(world, release))
    for row in (4, 44):
        by_id = retriever.search(Query(id=f"item-{row}"), 8)
        by_image = retriever.search(Query(image=png(row)), 9)
        assert [hit.id for hit in by_id.hits] == [hit.id for hit in by_image.hits if hit.id != f"item-{row}"][:8]
        assert len(by_id.hits) == 8
    assert len(retriever.search(Query(id="item-4"), 100).hits) == 59


def test_an_item_that_cannot_be_embedded_for_want_of_its_picture_says_so(tmp_path: Path):
    world = World(tmp_path, thumbnails=False)
    assert len(world.load(world.reindex).search(Query(id="item-4"), 5).hits) == 5  # its stored vector serves
    with pytest.raises(BadQuery, match=r"item 'item-4' is in segment/demo@v1, made by encoder/demo@v1 and stored without its picture"):
        world.load(world.versioned).search(Query(id="item-4"), 5)
    assert world.load(world.reindex).picture("item-4") is None


def test_a_filter_gives_the_best_among_those_that_satisfy_it(world: World):
    for release in (world.reindex, world.versioned):
        retriever = world.load(release)
        everything = retriever.search(Query(image=png(0)), 60).hits
        for filter, holds in (
            ({"label": "class 1"}, lambda hit: hit.label == "class 1"),
            ({"task": 0, "group": "odd"}, lambda hit: hit.task == 0 and hit.group == "odd"),
            ({"id": ["item-3", "item-50", "nobody"]}, lambda hit: hit.id in ("item-3", "item-50")),
            ({"label": "nothing"}, lambda hit: False),
        ):
            expected = [hit.id for hit in everything if holds(hit)]
            assert [hit.id for hit in retriever.search(Query(image=png(0)), 60, filter).hits] == expected
            assert [hit.id for hit in retriever.search(Query(image=png(0)), 3, filter).hits] == expected[:3]


def test_k_beyond_the_gallery_gives_the_whole_gallery(world: World):
    for release in (world.first, world.versioned):
        hits = world.load(release).search(Query(text="a"), 1000).hits
        assert len(hits) == len({hit.id for hit in hits}) == (30 if release is world.first else 60)
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


def test_an_item_in_two_segments_is_listed_once_and_the_list_is_full(world: World):
    both = replace(world.versioned, id="demo@v9", segments=(*world.versioned.segments, *world.reindex.segments))
    hits = world.load(world.registry.publish_release(both)).search(Query(image=png(35)), 60).hits
    assert sorted(hit.id for hit in hits) == sorted(item.id for item in ITEMS)


def test_a_query_must_be_one_thing(world: World):
    retriever = world.load(world.reindex)
    for query, message in (
        (Query(), "this one has none"),
        (Query(text="a", id="item-1"), "this one has text and id"),
        (Query(text="   "), "is empty"),
        (Query(text=b"a"), "text cannot be bytes"),  # type: ignore[arg-type]
        (Query(id="nobody"), "no item 'nobody' in release demo@v2"),
        (Query(image=b""), "the picture to search by: .*0 bytes"),
        (Query(image=b"words, not a picture"), "the picture to search by"),
        (Query(image=png(0)[:200]), "the picture to search by"),
        (Query(image=np.zeros((4, 4), np.uint8)), r"uint8 \(H, W, 3\); found uint8 \(4, 4\)"),
        (Query(image="text"), "image cannot be str"),  # type: ignore[arg-type]
        (Query(vectors={world.e1: np.zeros(12, np.float32)}), "needs the query as seen by encoder/demo@v2; given: encoder/demo@v1"),
        (Query(vectors={world.e2: np.zeros(5, np.float32)}), r"shape \(5,\); encoder/demo@v2 makes \(12,\)"),
        (Query(vectors={world.e2: np.full(12, np.nan, np.float32)}), "NaN"),
    ):
        with pytest.raises(BadQuery, match=message):
            retriever.search(query)
    with pytest.raises(BadQuery, match="k=0"):
        retriever.search(Query(text="a"), 0)
    with pytest.raises(BadQuery, match="no column 'colour'"):
        retriever.search(Query(text="a"), 1, {"colour": "red"})


def test_a_text_for_an_encoder_without_a_text_tower_is_refused(tmp_path: Path):
    world = World(tmp_path, second_has_text=False)
    with pytest.raises(BadQuery, match="no text tower"):
        world.load(world.reindex).search(Query(text="a"))
    assert len(world.load(world.reindex).search(Query(image=png(0)), 3).hits) == 3


def test_caches_are_used_and_filled(world: World):
    encoders, segments = {}, {}
    one = Retriever.load(world.registry, world.first, encoders_cache=encoders, segments_cache=segments)
    two = Retriever.load(world.registry, "demo@v4", encoders_cache=encoders, segments_cache=segments)
    assert two.encoders[world.e1] is one.encoders[world.e1] and two.segments[0] is one.segments[0]
    assert set(encoders) == {world.e1, world.e2} and set(segments) == {world.old, world.new}


def test_a_retriever_refuses_segments_that_are_not_those_of_the_release(world: World):
    loaded = world.load(world.versioned)
    with pytest.raises(Incompatible, match=r"asks for segment/demo@v1 .* loaded is segment/demo@v2"):
        Retriever(world.versioned, loaded.encoders, loaded.segments[::-1])


def test_damaged_and_missing_parts_are_found_on_loading(tmp_path: Path):
    world = World(tmp_path)
    with pytest.raises(NotFound):
        Retriever.load(world.registry, "demo@v77")
    for ref in (world.all, world.e2):
        for path in world.registry.files(ref).values():
            whole = path.read_bytes()
            path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
            with pytest.raises(Corrupt, match=path.name):
                world.load(world.reindex)
            path.write_bytes(whole)
    assert world.load(world.reindex).picture("item-9") == png(9)


def test_steps_taken_one_by_one_equal_the_whole_and_a_missing_segment_leaves_the_others(world: World):
    retriever = world.load(world.versioned)
    release, queries = world.versioned, [png(1), "a picture", PIXELS[41]]
    embedded = {ref: encode(retriever.encoders[ref], queries) for ref in plan(release)}
    parts = [
        retriever.segments[number].search(embedded[ref], 5, encoder=ref, allowed=ref, number=number)
        for ref, numbers in plan(release).items()
        for number in numbers
    ]
    segments = dict(enumerate(retriever.segments))
    put = asked(release, embedded, ["image", "text", "image"], {})
    lists = finish(release, parts, segments, put, 5)
    whole = retriever.search_many([Query(image=png(1)), Query(text="a picture"), Query(image=PIXELS[41])], 5)
    assert lists == [result.hits for result in whole]
    partial = finish(release, parts[1:], segments, put, 5)
    assert all({hit.task for hit in hits} == {1} for hits in partial)
    for hits, fewer in zip(finish(release, parts, segments, put, 60), partial, strict=True):
        assert [hit for hit in hits if hit.task == 1] == fewer  # what is left keeps its scores
    assert finish(release, [], segments, put, 5) == [[], [], []]
