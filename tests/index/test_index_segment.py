"""Segments: one maker, unique ids, partitions by id that together equal the whole, exact filters, the same bytes twice."""

import operator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.errors import BadQuery, ConfigError, Corrupt, DataError, Incompatible, NotLoaded
from perdure.index import Segment, SegmentTable, build_segment, load_segment, merge_partitions, rows_that_pass
from perdure.records import EncoderRef, Item, SegmentRef

REF, MAKER, OTHER = SegmentRef("demo", 1), EncoderRef("demo", 1), EncoderRef("demo", 2)
N, D = 300, 8


def unit(count: int, dim: int = D, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


ITEMS = [
    Item(
        id=f"item-{i}",
        label=f"class {i % 5}",
        group="odd" if i % 2 else "even",
        captions=(f"picture {i}", "ünïcode") if i % 3 else (),
        tags=tuple(name for name, every in (("third", 3), ("seventh", 7)) if i % every == 0),
    )
    for i in range(N)
]
TASKS = [i // 100 for i in range(N)]
VECTORS = unit(N)


def built(folder: Path, *, only=None, **options) -> Segment:
    files = build_segment(VECTORS, ITEMS, task=TASKS, folder=folder, **options)
    return load_segment(files, ref=REF, made_by=MAKER, only=only)


@pytest.fixture(scope="module")
def segment(tmp_path_factory: pytest.TempPathFactory) -> Segment:
    return built(tmp_path_factory.mktemp("segment"), partitions=4, thumbnails=lambda i: b"picture %d" % i)


@pytest.fixture(scope="module")
def of_kind(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Segment]:
    return {kind: built(tmp_path_factory.mktemp(kind), kind=kind, partitions=3) for kind in ("flat", "hnsw", "ivfpq")}


def test_everything_comes_back_from_the_files(segment: Segment):
    assert len(segment) == N and segment.dim == D and segment.num_partitions == 4 and set(segment.partitions) == {0, 1, 2, 3}
    assert (segment.ref, segment.made_by) == (REF, MAKER)
    assert segment.table.ids == [item.id for item in ITEMS] and segment.table.labels == [item.label for item in ITEMS]
    entry = segment.table.entries([161])[0]
    item = ITEMS[161]
    assert (entry.id, entry.label, entry.text, entry.group, entry.task, entry.tags) == (
        item.id, item.label, item.captions, item.group, 1, item.tags,
    )  # fmt: skip
    assert segment.table.row("item-161") == 161 and segment.table.row("nobody") is None
    assert [segment.picture(row) for row in (0, 255, 256, 299)] == [b"picture 0", b"picture 255", b"picture 256", b"picture 299"]
    np.testing.assert_array_equal(segment.vectors(np.arange(N)[::-1]), VECTORS[::-1])
    assert segment.statistics.count == N


def test_an_item_finds_itself_and_the_number_of_the_segment_is_in_the_hits(segment: Segment):
    found = segment.search(VECTORS, 3, encoder=MAKER, number=5)
    np.testing.assert_array_equal(found.rows[:, 0], np.arange(N))
    assert (found.segments == 5).all() and found.metric == "ip"


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivfpq"])
def test_replicas_that_hold_some_partitions_together_equal_the_whole(kind: str, tmp_path: Path):
    options = {"kind": kind, "partitions": 5, "ef_search": 400}
    whole = built(tmp_path, **options)
    queries = unit(20, seed=1)
    parts = [built(tmp_path, only=only, **options).search(queries, 10, encoder=MAKER) for only in ([0, 3], [1], [2, 4])]
    merged, expected = merge_partitions(parts, 10), whole.search(queries, 10, encoder=MAKER)
    np.testing.assert_array_equal(merged.rows, expected.rows)
    np.testing.assert_array_equal(merged.scores, expected.scores)


def test_a_replica_without_partitions_knows_the_table_and_finds_nothing(tmp_path: Path):
    table_only = built(tmp_path, partitions=2, only=[])
    assert table_only.search(unit(3), 5, encoder=MAKER).rows.shape == (3, 0)
    assert table_only.table.entries([7])[0].id == "item-7"
    with pytest.raises(NotLoaded, match="is not held here, only"):
        table_only.vectors(np.array([7]))


def test_queries_of_an_encoder_that_did_not_make_it_are_refused_also_when_the_dimension_agrees(segment: Segment):
    queries = unit(1)
    with pytest.raises(Incompatible, match=r"segment/demo@v1 was made by encoder/demo@v1 .* these queries come from encoder/demo@v2"):
        segment.search(queries, 1, encoder=OTHER)
    assert segment.search(queries, 1, encoder=OTHER, allowed=OTHER).rows.shape == (1, 1)  # a release of policy keep says so
    with pytest.raises(Incompatible):
        segment.search(queries, 1, encoder=MAKER, allowed=OTHER)
    with pytest.raises(Incompatible):
        segment.search(queries, 1, encoder=EncoderRef("other", 1))


def test_bad_queries_are_clear_errors(segment: Segment):
    with pytest.raises(BadQuery, match=r"segment/demo@v1 has D=8, the queries have shape \(1, 7\)"):
        segment.search(unit(1, 7), 1, encoder=MAKER)
    with pytest.raises(BadQuery, match="k=0"):
        segment.search(unit(1), 0, encoder=MAKER)
    with pytest.raises(BadQuery, match="NaN"):
        segment.search(np.full((1, D), np.nan, np.float32), 1, encoder=MAKER)


FILTER = st.fixed_dictionaries(
    {},
    optional={
        "id": st.lists(st.sampled_from(["item-1", "item-30", "item-31", "nobody"]), min_size=1, max_size=3),
        "label": st.sampled_from(["class 0", "class 3", "no such class", ["class 0", "class 1"]]),
        "group": st.sampled_from(["odd", "even", ["odd", "even"]]),
        "task": st.sampled_from([0, 2, [0, 1], 9]),
        "tags": st.sampled_from(["third", "seventh", ["third", "seventh"], "none"]),
    },
)


@given(filter=FILTER, k=st.integers(1, 400), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivfpq"])
def test_a_filter_gives_exactly_the_best_among_the_rows_that_satisfy_it(kind, of_kind, filter, k, seed):
    segment = of_kind[kind]
    query = unit(1, seed=seed)

    def holds(row: int, column: str, value) -> bool:
        item = ITEMS[row]
        have = {"id": [item.id], "label": [item.label], "group": [item.group], "task": [TASKS[row]], "tags": list(item.tags)}[column]
        return bool(set(have) & set(value if isinstance(value, list) else [value]))

    wanted = [row for row in range(N) if all(holds(row, column, value) for column, value in filter.items())]
    mask = segment.table.allowed(filter)
    assert np.flatnonzero(mask).tolist() == wanted
    best = sorted(wanted, key=lambda row: (-float(query[0] @ VECTORS[row]), row))[:k]
    found = segment.search(query, k, encoder=MAKER, rows=mask).rows[0].tolist()
    assert sorted(found) == sorted(best)


def test_a_filter_that_makes_no_sense_is_refused(segment: Segment):
    with pytest.raises(BadQuery, match=r"no column 'lable'; .*Did you mean 'label'"):
        segment.table.allowed({"lable": "x"})
    for filter in ({"label": 3}, {"task": "3"}, {"task": True}, {"group": None}, {"label": ["a", 1]}, {"tags": {"a": 1}}):
        with pytest.raises(BadQuery, match="expected a"):
            segment.table.allowed(filter)
    assert not segment.table.allowed({"label": []}).any()


PRICES = [i * 0.25 if i % 4 else None for i in range(N)]
STOCK = [i % 6 if i % 5 else None for i in range(N)]
DATES = [f"2026-{1 + i % 12:02d}" for i in range(N)]
PRICED = [
    replace(item, payload={name: value for name, value in (("price", price), ("stock", stock), ("date", date)) if value is not None})
    for item, price, stock, date in zip(ITEMS, PRICES, STOCK, DATES, strict=True)
]
NUMBERS = st.one_of(st.integers(-2, 80), st.floats(-2, 80))
BOUNDS = {"gt": operator.gt, "gte": operator.ge, "lt": operator.lt, "lte": operator.le}


def conditions(values: st.SearchStrategy) -> st.SearchStrategy:
    one = st.one_of(values, st.lists(values, max_size=3), st.dictionaries(st.sampled_from(list(BOUNDS)), values, min_size=1))
    both = st.tuples(st.dictionaries(st.sampled_from(list(BOUNDS)), values), one).map(lambda parts: {**parts[0], "not": parts[1]})
    return st.one_of(one, both)


def as_said(have, asked) -> bool:
    """The meaning of a condition on one value, written out."""
    if not isinstance(asked, dict):
        return have is not None and have in (asked if isinstance(asked, list) else [asked])
    bounds = {name: bound for name, bound in asked.items() if name != "not"}
    within = not bounds or (have is not None and all(BOUNDS[name](have, bound) for name, bound in bounds.items()))
    return within and ("not" not in asked or not as_said(have, asked["not"]))


@given(
    filter=st.fixed_dictionaries(
        {},
        optional={
            "price": conditions(NUMBERS),
            "stock": conditions(NUMBERS),
            "date": conditions(st.sampled_from(["2026-03", "2026-11", "2025", "z"])),
            "task": conditions(NUMBERS),
        },
    )
)
@settings(max_examples=200, deadline=None)
def test_conditions_on_the_payload_mean_what_they_say(filter):
    have = {"price": PRICES, "stock": STOCK, "date": DATES, "task": TASKS}
    expected = [all(as_said(have[name][row], asked) for name, asked in filter.items()) for row in range(N)]
    assert PRICED_TABLE.allowed(filter).tolist() == expected


PRICED_TABLE = SegmentTable.of(PRICED, TASKS)


def test_payload_comes_back_from_the_file_and_tables_may_differ_in_it(tmp_path: Path):
    PRICED_TABLE.save(tmp_path / "t")
    table = SegmentTable.load(tmp_path / "t")
    assert [entry.payload for entry in table.entries(range(N))] == [item.payload for item in PRICED]
    assert table.fields["price"] == table.fields["stock"] == "number" and table.fields["date"] == "text"
    plain, other = SegmentTable.of(ITEMS, TASKS), SegmentTable.of([replace(ITEMS[0], payload={"price": "dear"})], [0])
    assert [mask.sum() for mask in rows_that_pass([table, plain, other], {"price": {"gte": 70}})] == [15, 0, 0]
    assert [mask.sum() for mask in rows_that_pass([table, plain, other], {"price": "dear"})] == [0, 0, 1]
    assert [mask.sum() for mask in rows_that_pass([table, plain, other], {"price": {"not": [0.25, "dear"]}})] == [N - 1, N, 0]
    with pytest.raises(BadQuery, match="no column 'price'"):
        plain.allowed({"price": 1})


def test_numbers_at_the_edges_of_what_is_stored():
    large = SegmentTable.of([replace(ITEMS[0], payload={"n": 2**62 + 1}), replace(ITEMS[1], payload={"n": -5})], [0, 0])
    assert large.allowed({"n": 2**62 + 1}).tolist() == [True, False] and not large.allowed({"n": 2**62}).any()
    assert large.allowed({"n": {"gt": 2**62}}).tolist() == [True, False]
    assert not large.allowed({"task": 2**40}).any() and large.allowed({"task": {"lt": 2**40}}).all()
    for bad in (float("nan"), float("inf"), 2**63, 10**400, True):
        with pytest.raises(BadQuery, match="expected a number"):
            large.allowed({"n": bad})
    unknown = SegmentTable.of([replace(ITEMS[0], payload={"x": float("nan")}), replace(ITEMS[1], payload={"x": 1.0})], [0, 0])
    assert unknown.entries([0])[0].payload == {} and unknown.allowed({"x": {"not": 1}}).tolist() == [True, False]


def test_payload_that_cannot_be_kept_is_refused():
    for payload, message in (({"label": 1}, "a field named 'label'"), ({"": 1}, "a field named ''"), ({"x": 2**70}, "cannot be stored")):
        with pytest.raises(DataError, match=message):
            SegmentTable.of([replace(ITEMS[0], payload=payload)], [0])
    with pytest.raises(DataError, match="field 'x' holds values of int, str"):
        SegmentTable.of([replace(ITEMS[0], payload={"x": 1}), replace(ITEMS[1], payload={"x": "1"})], [0, 0])


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivfpq"])
def test_the_same_input_gives_the_same_bytes(kind: str, tmp_path: Path):
    options = {"task": TASKS, "kind": kind, "partitions": 3, "thumbnails": lambda i: b"%d" % i}
    one = build_segment(VECTORS, ITEMS, folder=tmp_path / "1", **options)
    two = build_segment(VECTORS, ITEMS, folder=tmp_path / "2", **options)
    assert list(one) == list(two) and len(one) == 7
    assert all(one[name].read_bytes() == two[name].read_bytes() for name in one)


def test_an_id_that_occurs_twice_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match=r"1 ids occur more than once \('item-0'\)"):
        build_segment(VECTORS[:3], [ITEMS[0], ITEMS[1], ITEMS[0]], task=0, folder=tmp_path)


def test_input_that_does_not_fit_together_is_refused(tmp_path: Path):
    for vectors, items, task in (
        (VECTORS[:2], ITEMS[:3], 0),
        (VECTORS[:3], ITEMS[:3], [0, 1]),
        (VECTORS[:0], [], 0),
        (VECTORS[0], ITEMS[:1], 0),
    ):
        with pytest.raises(DataError, match="expected N of each"):
            build_segment(vectors, items, task=task, folder=tmp_path)
    with pytest.raises(ValueError, match="NaN"):
        build_segment(np.full((1, D), np.nan, np.float32), ITEMS[:1], task=0, folder=tmp_path)
    with pytest.raises(ConfigError, match="no index named 'ivf'"):
        build_segment(VECTORS, ITEMS, task=0, folder=tmp_path, kind="ivf")


def test_more_partitions_than_items_works(tmp_path: Path):
    files = build_segment(VECTORS[:3], ITEMS[:3], task=0, folder=tmp_path, partitions=16)
    segment = load_segment(files, ref=REF, made_by=MAKER)
    assert sorted(segment.search(VECTORS[:1], 10, encoder=MAKER).rows[0].tolist()) == [0, 1, 2]
    assert segment.picture(0) is None


def test_files_that_are_missing_or_damaged_are_corrupt(tmp_path: Path):
    files = build_segment(VECTORS, ITEMS, task=0, folder=tmp_path, thumbnails=lambda i: b"x")
    for name in files:
        if name != "images.arrow":
            with pytest.raises(Corrupt, match=name.partition(".")[0]):
                load_segment({key: path for key, path in files.items() if key != name}, ref=REF, made_by=MAKER)
        whole = files[name].read_bytes()
        files[name].write_bytes(b"not what it was")
        with pytest.raises(Corrupt):
            load_segment(files, ref=REF, made_by=MAKER)
        files[name].write_bytes(whole)
    load_segment(files, ref=REF, made_by=MAKER)
