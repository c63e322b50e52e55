"""Items that come and go by hand, against a plain dict: on a folder and on S3, one writer and several, over every kind of partition."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from s3_server import S3Server
from written import OLD, Plain, apply, begin, best, change, gallery, live, vector, write

from perdure.errors import BadQuery, Conflict, Corrupt, NotFound
from perdure.index import BinaryPartition
from perdure.registry import Registry, open_registry
from perdure.retrieval.compaction import fold, put_together
from perdure.retrieval.edits import edited, release_at
from perdure.retrieval.writes import Outcome, Writer

GENERATE = (Phase.explicit, Phase.reuse, Phase.generate)  # a sequence that fails is short as it is
IDS = [*OLD[:8], *(f"new-{number}" for number in range(8))]
STEPS = st.one_of(
    st.dictionaries(st.sampled_from(IDS), st.integers(0, 10**6), min_size=1, max_size=6),
    st.lists(st.sampled_from(IDS), min_size=1, max_size=6),
    st.sampled_from(["put together", "fold", "fold all", "first release", "rollback"]),
)


@pytest.fixture(autouse=True, scope="module")
def _no_power_cut() -> Iterator[None]:
    """What these tests claim is not about a disk that loses its power, and waiting for it is most of the time of a write."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


def same(registry: Registry, plain: Plain, query: int) -> None:
    """The gallery is the dict, and a search of it finds what a scan of the dict finds."""
    assert gallery(registry) == plain
    q = vector(query)
    scores = {item_id: float(vector(seed) @ q) for item_id, seed in plain.items()}
    for k, label in ((1, None), (7, None), (100, None), (5, "class 1")):
        found = best(registry, q, k, None if label is None else {"label": label})
        those = [item_id for item_id in scores if label is None or plain[item_id] % 3 == 1]
        expected = sorted((scores[item_id] for item_id in those), reverse=True)[:k]
        np.testing.assert_allclose([score for _, score in found], expected, atol=1e-5)
        assert all(abs(scores[item_id] - score) < 1e-5 for item_id, score in found) and len({name for name, _ in found}) == len(found)


def follow(registry: Registry, plain: Plain, steps: list[Any]) -> None:
    """Do some steps to both."""
    for step in steps:
        if isinstance(step, dict | list):
            changed = change(step) if isinstance(step, dict) else change(removed=step)
            write(registry, changed)
            apply(plain, changed)
        elif step == "put together":
            put_together(registry, "shop")
        elif step == "first release":
            registry.promote("shop@v1", by="test")
        elif step == "rollback":
            try:
                registry.rollback(by="test")
            except NotFound:
                continue
        else:
            fold(registry, small=10_000 if step == "fold all" else 4)


@settings(max_examples=25, deadline=None, phases=GENERATE, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEPS, max_size=12), query=st.integers(0, 1000))
def test_any_sequence_of_writes_and_compactions_is_that_of_a_dict(
    tmp_path_factory: pytest.TempPathFactory, steps: list[Any], query: int
) -> None:
    registry, plain = begin(tmp_path_factory.mktemp("shop"))
    follow(registry, plain, steps)
    same(registry, plain, query)


@settings(max_examples=4, deadline=None, phases=GENERATE, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEPS, min_size=3, max_size=8), query=st.integers(0, 1000))
def test_on_s3_too(s3: S3Server, steps: list[Any], query: int) -> None:
    place = f"s3://tests/writes/{np.random.default_rng().integers(2**62)}"
    registry, plain = begin(place)
    follow(registry, plain, steps)
    same(open_registry(place), plain, query)


def test_two_writers_at_once_both_survive(tmp_path: Path) -> None:
    registry, plain = begin(tmp_path / "shop")
    release, segments = live(registry)

    def bring(number: int) -> set[int]:
        own = Writer(open_registry(tmp_path / "shop"), "shop")
        outcomes = [own.commit(release, segments, [change({f"by {number}, {at}": at})])[0] for at in range(10)]
        assert all(isinstance(outcome, Outcome) for outcome in outcomes)
        return {outcome.edit for outcome in outcomes if isinstance(outcome, Outcome)}

    with ThreadPoolExecutor(3) as pool:
        edits = list(pool.map(bring, range(3)))
    assert sum(map(len, edits)) == len(set.union(*edits)) == 30, "every write is an edit of its own"
    assert gallery(registry) == plain | {f"by {number}, {at}": at for number in range(3) for at in range(10)}
    assert len(live(registry)[0].segments) <= 10


def test_many_small_writes_leave_few_segments_and_compaction_one(tmp_path: Path) -> None:
    registry, plain = begin(tmp_path / "shop")
    writer = Writer(registry, "shop")
    release, segments = live(registry)
    for at in range(80):
        writer.commit(release, segments, [change({f"n{at % 60}": at})])
        plain[f"n{at % 60}"] = at
    assert len(registry.edits("shop").active(80)) <= 9
    edit = put_together(registry, "shop")
    assert edit is not None and edit.active == (81,) and len(edit.segments) == 1 and put_together(registry, "shop") is None
    assert gallery(registry) == plain
    folded = fold(registry)
    assert folded is not None and len(folded.segments) == 1 and live(registry)[0] == folded and fold(registry) is None
    assert gallery(registry) == plain
    entry = registry.journal()[-1]
    assert (entry["release"], entry["by"]) == ("shop@v2", "compact") and "80" in entry["reason"]


def test_a_compaction_that_a_write_overtakes_lies_below_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry, plain = begin(tmp_path / "shop")
    large = {f"n{at}": at for at in range(20)}
    for number in range(3):  # too large to be taken in by what is small
        write(registry, change({f"{name}/{number}": at for name, at in large.items()}))
    log = registry.edits("shop")
    append, overtaken = log.append, []

    def late(edit: Any) -> None:
        if edit.action == "compact" and not overtaken:
            overtaken.append(write(open_registry(tmp_path / "shop"), change({"late": 5}, ["n0/0"])))
        append(edit)

    monkeypatch.setattr(log, "append", late)
    edit = put_together(registry, "shop")
    assert overtaken and edit is not None and edit.active == (5, 4) and edit.last == 3
    plain |= {f"{name}/{number}": at for name, at in large.items() for number in range(3)} | {"late": 5}
    del plain["n0/0"]
    assert gallery(registry) == plain


def test_a_key_is_remembered_through_merges_and_compactions(tmp_path: Path) -> None:
    registry, plain = begin(tmp_path / "shop")
    asked = change({"a": 1}, ["old-0"], key="once", digest="d")
    (first,) = write(registry, asked)
    write(registry, change({"a": 2}))
    for _ in range(3):
        write(registry, change({"b": 3}))
        put_together(registry, "shop")
        assert write(registry, asked) == [first]
    fold(registry)
    assert write(registry, asked) == [first]
    assert gallery(registry) == {name: seed for name, seed in plain.items() if name != "old-0"} | {"a": 2, "b": 3}
    (refused,) = write(registry, change({"a": 1}, key="once", digest="another"))
    assert isinstance(refused, BadQuery) and "another request" in str(refused)


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivfpq", "binary"])
def test_lists_are_whole_and_right_over_buried_rows(tmp_path: Path, kind: str) -> None:
    options = {"ivf_probes": 4} if kind == "ivfpq" else {"ef_search": 32} if kind == "hnsw" else {}
    registry, plain = begin(tmp_path / "shop", kind, 3000, **options)
    query = vector(77)
    ordered = [name for name, _ in best(registry, query, 3000)]
    gone = ordered[:40]  # where a search looks
    write(registry, change({"near": 77, gone[0]: 78}, gone[1:]))
    for name in gone[1:]:
        del plain[name]
    plain |= {"near": 77, gone[0]: 78}
    kept = BinaryPartition.kept if kind == "binary" else (lambda rows: rows)
    scores = {name: float((kept(vector(seed)[None]) @ kept(query[None])[0])[0]) for name, seed in plain.items()}
    for k in (1, 10, 200, 2962):
        found = best(registry, query, k)
        assert len(found) == k and not set(gone[1:]) & {name for name, _ in found}
        limit = sorted(scores.values(), reverse=True)[k - 1]
        assert np.mean([scores[name] >= limit - 1e-5 for name, _ in found]) >= (0.9 if kind in ("hnsw", "ivfpq") else 1)
    filtered = best(registry, query, 3000, {"label": "class 1"})
    assert {name for name, _ in filtered} == {name for name, seed in plain.items() if seed % 3 == 1}


def test_an_edit_that_was_changed_behind_its_back_is_found(tmp_path: Path) -> None:
    registry, _ = begin(tmp_path / "shop")
    write(registry, change({"a": 1}))
    path = tmp_path / "shop" / "edits" / "shop" / "1.json"
    path.write_text(path.read_text().replace('"removed": []', '"removed": ["old-1"]'))
    with pytest.raises(Corrupt, match=r"edits/shop/1\.json"):
        edited(open_registry(tmp_path / "shop"), registry.release("shop@v1"))


def test_a_release_is_named_with_its_edit(tmp_path: Path) -> None:
    registry, _ = begin(tmp_path / "shop")
    assert live(registry)[0].id == "shop@v1"
    write(registry, change({"a": 1}))
    write(registry, change({"b": 1}))
    release, _ = live(registry)
    assert (release.id, release.base, release.edit) == ("shop@v1+2", "shop@v1", 2)
    assert release_at(registry, "shop@v1+2") == release and len(release_at(registry, "shop@v1+1").segments) == 3
    for wrong in ("shop@v1+3", "shop@v1+x", "shop@v1+0"):
        with pytest.raises(NotFound):
            release_at(registry, wrong)


def test_when_writers_are_always_too_late_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry, _ = begin(tmp_path / "shop")
    log = registry.edits("shop")
    write(registry, change({"a": 1}))
    monkeypatch.setattr(log, "newest", lambda: 0)
    monkeypatch.setattr("perdure.retrieval.writes._ATTEMPTS", 3)
    with pytest.raises(Conflict, match="send it again"):
        write(registry, change({"b": 1}))
