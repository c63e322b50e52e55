"""Pruning: what merges of writes left behind goes after a while, whatever is used stays, on a folder and on S3."""

import random
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from written import Plain, apply, begin, change, gallery, live, write

from perdure.cli import main
from perdure.errors import RegistryError
from perdure.records import SegmentRef
from perdure.registry import Registry
from perdure.registry.pruning import is_marked, prune
from perdure.retrieval.compaction import fold, put_together

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)


def some_writes(registry: Registry, plain: Plain, number: int, seed: int = 0) -> None:
    rng = random.Random(seed)
    for _ in range(number):
        made = change({f"new-{rng.randrange(20)}": rng.randrange(10**6)}, [f"old-{rng.randrange(24)}"])
        write(registry, made)
        apply(plain, made)


def written(registry: Registry) -> list[SegmentRef]:
    return registry.segments("shop.writes")


@pytest.fixture(params=["folder", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return str(tmp_path)
    request.getfixturevalue("s3")
    return f"s3://tests/{tmp_path.parent.name}/{tmp_path.name}"


def test_what_nothing_uses_is_marked_and_gone_a_day_later_and_the_rest_is_as_it_was(url: str) -> None:
    registry, plain = begin(url)
    some_writes(registry, plain, 12)
    release, _ = live(registry)
    used = {use.segment for use in release.segments if use.segment.run == "shop.writes"}
    behind = set(written(registry)) - used
    assert behind and used

    first = prune(registry, now=NOON)
    assert (set(first.marked), first.waiting, first.deleted, first.freed_bytes) == (behind, [], [], 0)
    later = prune(registry, now=NOON + DAY - timedelta(seconds=1))
    assert (later.marked, set(later.waiting), later.deleted) == ([], behind, [])
    assert prune(registry, now=NOON + DAY, dry_run=True).deleted and set(written(registry)) == behind | used
    last = prune(registry, now=NOON + DAY)
    assert set(last.deleted) == behind and last.freed_bytes > 0
    assert set(written(registry)) == used
    keys = [key for key in registry.store.list("") if any(f"v{ref.version}" in key.split("/") for ref in behind)]
    assert keys == [] and registry.store.list("unused/") == []
    assert gallery(registry) == plain
    some_writes(registry, plain, 3, seed=1)
    assert gallery(registry) == plain


def test_writes_folds_and_prunes_in_any_order_lose_nothing(tmp_path: Path) -> None:
    for seed in range(6):
        rng, now = random.Random(seed), NOON
        with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
            registry, plain = begin(folder)
            for _ in range(25):
                kind = rng.choices(["write", "put together", "fold", "prune"], [5, 1, 1, 4])[0]
                if kind == "write":
                    some_writes(registry, plain, 1, seed=rng.randrange(40))  # the same rows come again and again
                elif kind == "put together":
                    put_together(registry, "shop")
                elif kind == "fold":
                    fold(registry)
                else:
                    now += rng.choice([HOUR / 2, HOUR, 30 * HOUR])
                    prune(registry, after=HOUR, now=now)
                assert gallery(registry) == plain, (seed, kind)


def test_a_release_keeps_what_it_was_folded_from(tmp_path: Path) -> None:
    registry, plain = begin(tmp_path)
    some_writes(registry, plain, 5)
    folded = fold(registry, small=1)
    assert folded is not None
    prune(registry, now=NOON)
    prune(registry, now=NOON + DAY)
    for release in registry.releases():
        for use in release.segments:
            registry.files(use.segment)
    assert gallery(registry) == plain


def test_the_rows_of_a_marked_segment_are_laid_anew(tmp_path: Path) -> None:
    registry, plain = begin(tmp_path)
    once = change({"a": 1})
    write(registry, once)
    (first,) = written(registry)
    write(registry, change(removed=["a"]))
    put_together(registry, "shop")
    assert prune(registry, now=NOON).marked == [first] and is_marked(registry, first)
    write(registry, once)
    apply(plain, once)
    assert prune(registry, now=NOON + DAY).deleted == [first]
    assert first not in written(registry) and gallery(registry) == plain


def test_what_is_used_again_loses_its_mark(tmp_path: Path) -> None:
    """As when a writer laid the same rows again just before they were marked, and its edit came after."""
    registry, plain = begin(tmp_path)
    some_writes(registry, plain, 1)
    (ref,) = written(registry)
    key = f"unused/shop.writes/v{ref.version}.json"
    registry.store.create(key, b'{"since": "2026-01-01T00:00:00+00:00"}')
    assert prune(registry, now=NOON).deleted == [] and not is_marked(registry, ref)
    assert gallery(registry) == plain


def test_a_deletion_that_was_cut_off_is_finished_by_the_next_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry, plain = begin(tmp_path)
    some_writes(registry, plain, 12)
    prune(registry, now=NOON)
    whole, left = registry.store.delete, [3]

    def until_it_dies(key: str) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        whole(key)

    monkeypatch.setattr(registry.store, "delete", until_it_dies)
    with pytest.raises(KeyboardInterrupt):
        prune(registry, now=NOON + DAY)
    monkeypatch.undo()
    assert gallery(registry) == plain
    prune(registry, now=NOON + DAY)
    named = {f"segments/shop.writes/v{ref.version}" for ref in written(registry)}
    assert {"/".join(key.split("/")[:3]) for key in registry.store.list("segments/shop.writes/")} == named
    assert registry.store.list("unused/") == [] and gallery(registry) == plain


def test_too_short_a_time_is_refused(tmp_path: Path) -> None:
    registry, _ = begin(tmp_path)
    with pytest.raises(RegistryError, match="at least 1:00:00"):
        prune(registry, after=timedelta(minutes=5))


def test_the_command_says_what_it_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    registry, plain = begin(tmp_path)
    some_writes(registry, plain, 12)
    assert main(["prune", "--registry", str(tmp_path), "--dry-run"]) == 0
    assert "would be marked as unused" in capsys.readouterr().out and registry.store.list("unused/") == []
    assert main(["prune", "--registry", str(tmp_path)]) == 0
    assert "marked as unused" in capsys.readouterr().out and registry.store.list("unused/")
    assert main(["prune", "--registry", str(tmp_path), "--after-hours", "0"]) == 2
