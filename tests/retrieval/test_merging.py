"""Merging the spaces of a release, and what its calibration is fitted from."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from perdure.errors import ConfigError, Corrupt, Incompatible
from perdure.index import Segment, SegmentStatistics, build_segment, load_segment
from perdure.records import EncoderRef, Hits, Item, Release, SegmentRef, SegmentUse
from perdure.registry import open_registry
from perdure.retrieval import next_release
from perdure.retrieval.calibration import Calibration, Known, fit_calibration, fold_of, load_calibration
from perdure.retrieval.merging import MERGES, merge_release

E1, E2 = EncoderRef("demo", 1), EncoderRef("demo", 2)
DIM = 6


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


class Gallery:
    """Two tasks of two classes. Encoder 1 tells its own two classes apart well, encoder 2 its own; both tell the tasks apart."""

    def __init__(self, folder: Path, *, both: bool = False) -> None:
        self.folder = folder
        draw = np.random.default_rng(0)
        self.labels = np.repeat(np.arange(4), 40)
        self.tasks = self.labels // 2
        self.items = [Item(f"item-{row}", f"class {label}") for row, label in enumerate(self.labels)]
        self.seen = {}
        for ref, sharp in ((E1, 0), (E2, 1)):
            centres = np.zeros((4, DIM))
            centres[np.arange(4), self.of_task(np.arange(4)) * 3] = 1.0
            centres[2 * sharp, 1], centres[2 * sharp + 1, 2] = 1.5, 1.5
            self.seen[ref] = unit(centres[self.labels] + 0.25 * draw.standard_normal((160, DIM)))
        self.old = self.segment(1, E1, np.flatnonzero(self.tasks == 0))
        self.new = self.segment(2, E2, np.flatnonzero(self.tasks == 1))
        first = next_release("versioned", None, encoder=E1, segment=self.old.ref, id="demo@v1", run="demo", task=0)
        self.again = self.segment(3, E1, np.flatnonzero(self.tasks == 1))
        extra = [(self.again.ref, E1)] if both else []
        self.release = next_release(
            "versioned", first, encoder=E2, segment=self.new.ref, id="demo@v2", run="demo", task=1, merge="routed", both=extra
        )
        self.segments = [self.old, *([self.again] if both else []), self.new]

    @staticmethod
    def of_task(labels: np.ndarray) -> np.ndarray:
        return labels // 2

    def segment(self, version: int, ref: EncoderRef, rows: np.ndarray) -> Segment:
        items = [self.items[row] for row in rows]
        files = build_segment(self.seen[ref][rows], items, task=self.tasks[rows].tolist(), folder=self.folder / str(version), partitions=2)
        return load_segment(files, ref=SegmentRef("demo", version), made_by=ref)

    def arrived(self) -> dict[EncoderRef, list[Known]]:
        rows = np.flatnonzero(self.tasks == 1)
        ids, labels = [self.items[row].id for row in rows], [self.items[row].label for row in rows]
        return {ref: [Known(ids, labels, self.tasks[rows], self.seen[ref][rows])] for ref in (E1, E2)}

    def spoken(self, seed: int = 1) -> dict[EncoderRef, np.ndarray]:
        """A caption of each item, which lies elsewhere than its picture, and whose first axes mean the other task."""
        draw = np.random.default_rng(seed)
        far = {ref: seen[:, [3, 1, 2, 0, 4, 5]] + np.array([0, 0, 0, 0, 3, 0]) for ref, seen in self.seen.items()}
        return {ref: unit(rows + 0.05 * draw.standard_normal(rows.shape)) for ref, rows in far.items()}

    def heard(self) -> dict[EncoderRef, list[Known]]:
        """What arrived, and captions: of what encoder 1 made and of what came, of what came alone for encoder 2."""
        out = self.arrived()
        for ref, rows in ((E1, np.arange(160)), (E2, np.flatnonzero(self.tasks == 1))):
            ids, labels = [self.items[row].id for row in rows], [self.items[row].label for row in rows]
            out[ref].append(Known(ids, labels, self.tasks[rows], self.spoken()[ref][rows], "text"))
        return out

    def search(self, release: Release, k: int, calibration: Calibration | None, rows=slice(None)) -> Hits:
        queries = [self.seen[use.queried_by][rows] for use in release.segments]
        parts = {
            number: segment.search(queries[number], k, encoder=segment.made_by, number=number)
            for number, segment in enumerate(self.segments)
        }
        return merge_release(release, parts, dict(enumerate(self.segments)), queries, k * len(parts), calibration)

    def right(self, merge: str, calibration: Calibration) -> float:
        """Recall@1, each item itself left out."""
        found = self.search(replace(self.release, merge=merge), 3, calibration)
        count = 0
        for q, item in enumerate(self.items):
            named = [self.segments[s].table.entries([row])[0] for s, row in zip(found.segments[q], found.rows[q], strict=True) if row >= 0]
            count += next(entry.label for entry in named if entry.id != item.id) == item.label
        return count / len(self.items)


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Gallery:
    return Gallery(tmp_path_factory.mktemp("gallery"))


@pytest.fixture(scope="module")
def calibration(gallery: Gallery) -> Calibration:
    return fit_calibration(gallery.release, gallery.segments, gallery.arrived())


def test_a_hit_scores_the_probability_of_its_task_times_that_of_its_score(gallery: Gallery, calibration: Calibration):
    found = gallery.search(gallery.release, 4, calibration)
    shares = calibration.router.shares({E1: gallery.seen[E1], E2: gallery.seen[E2]}, [0, 1]) ** (1 / 3)
    shares /= shares.sum(axis=1, keepdims=True)
    for q in range(0, 160, 13):
        for score, s, row in zip(found.scores[q], found.segments[q], found.rows[q], strict=True):
            segment = gallery.segments[s]
            own = float(segment.vectors(np.array([row]))[0] @ gallery.seen[segment.made_by][q])
            expected = shares[q, s] * calibration.curve(segment.made_by)(np.array([own], np.float32))[0]
            assert score == pytest.approx(expected, abs=1e-4)
        assert (np.diff(found.scores[q]) <= 0).all()


def test_texts_are_routed_by_what_texts_say_and_pictures_by_pictures_in_one_batch(gallery: Gallery):
    heard = fit_calibration(gallery.release, gallery.segments, gallery.heard(), use=lambda item_id: fold_of(item_id) != 0)
    deaf = fit_calibration(gallery.release, gallery.segments, gallery.arrived(), use=lambda item_id: fold_of(item_id) != 0)
    assert {(view.encoder, view.modality) for view in heard.router.views} == {(E1, "image"), (E1, "text")}
    unseen = np.array([fold_of(item.id) == 0 for item in gallery.items])
    by = {made_of: heard.router.shares(gallery.spoken(seed=2), [0, 1], made_of).argmax(axis=1) for made_of in ("text", "image")}
    assert (by["text"] == gallery.tasks)[unseen].mean() > 0.9 > 0.5 > (by["image"] == gallery.tasks)[unseen].mean()
    np.testing.assert_array_equal(deaf.router.shares(gallery.spoken(), [0, 1], "text"), 0.5)

    made_of = ["text" if row % 2 else "image" for row in range(160)]
    mixed = {
        ref: np.where(np.arange(160)[:, None] % 2, gallery.spoken()[ref], gallery.seen[ref]).astype(np.float32) for ref in gallery.seen
    }
    queries = [mixed[use.queried_by] for use in gallery.release.segments]
    parts = {n: each.search(queries[n], 4, encoder=each.made_by, number=n) for n, each in enumerate(gallery.segments)}
    held = dict(enumerate(gallery.segments))
    together = merge_release(gallery.release, parts, held, queries, 8, heard, (), made_of)
    for kind in ("text", "image"):
        own = np.flatnonzero(np.array(made_of) == kind)
        apart = {n: Hits(part.scores[own], part.rows[own], part.segments[own], part.metric) for n, part in parts.items()}
        alone = merge_release(gallery.release, apart, held, [each[own] for each in queries], 8, heard, (), [kind] * len(own))
        np.testing.assert_allclose(together.scores[own], alone.scores, rtol=1e-6)
        np.testing.assert_array_equal(together.rows[own], alone.rows)


def test_what_captions_said_is_carried_on_where_a_step_has_none(gallery: Gallery):
    heard = fit_calibration(gallery.release, gallery.segments, gallery.heard())
    after = fit_calibration(gallery.release, gallery.segments, gallery.arrived(), heard)
    assert [view.modality for view in after.router.views].count("text") == 1
    assert after.curve(E1, "text") is heard.curve(E1, "text") and after.curve(E1, "text") is not after.curve(E1)
    assert Calibration.from_bytes(after.to_bytes()).to_bytes() == after.to_bytes()


def test_the_router_knows_the_task_of_items_that_it_did_not_see(gallery: Gallery):
    fitted = fit_calibration(gallery.release, gallery.segments, gallery.arrived(), use=lambda item_id: fold_of(item_id) != 1)
    shares = fitted.router.shares(gallery.seen, [0, 1])
    unseen = np.array([fold_of(item.id) == 1 for item in gallery.items])
    assert 20 < unseen.sum() < 60
    assert (shares.argmax(axis=1) == gallery.tasks)[unseen].mean() > 0.9
    assert fitted.router.views[0].count.sum() == (~unseen).sum()


def test_what_old_pictures_would_tell_is_not_asked_for(gallery: Gallery, calibration: Calibration):
    """Encoder 2 has a view of no pair of tasks: nobody may know what it makes of items of task 0."""
    assert [view.encoder for view in calibration.router.views] == [E1]
    assert set(calibration.curves) == {(E1, "image"), (E2, "image")}


def test_routing_finds_at_least_what_raw_scores_do(gallery: Gallery, calibration: Calibration):
    found = {merge: gallery.right(merge, calibration) for merge in MERGES}
    assert found["routed"] >= max(found["raw"], found["calibrated"]) and found["routed"] > 0.9


@pytest.mark.parametrize("merge", MERGES)
def test_segments_of_one_encoder_are_one_space_however_they_are_cut(tmp_path: Path, merge: str):
    whole = Gallery(tmp_path / "whole")
    calibration = fit_calibration(whole.release, whole.segments, whole.arrived())
    cut = Gallery(tmp_path / "cut")
    halves = [cut.segment(8 + half, E1, np.flatnonzero((cut.tasks == 0) & (np.arange(160) % 2 == half))) for half in (0, 1)]
    cut.segments = [*halves, cut.new]
    uses = (*(SegmentUse(half.ref, E1, E1) for half in halves), SegmentUse(cut.new.ref, E2, E2))
    release = replace(whole.release, merge=merge)
    one, two = whole.search(release, 6, calibration), cut.search(replace(release, segments=uses), 6, calibration)
    np.testing.assert_allclose(one.scores[:, :6], two.scores[:, :6], atol=2e-5)


def test_new_items_under_both_encoders_are_in_the_older_space_too_and_ranks_add_up(tmp_path: Path):
    gallery = Gallery(tmp_path, both=True)
    assert [(use.segment, use.made_by) for use in gallery.release.segments] == [
        (gallery.old.ref, E1), (gallery.again.ref, E1), (gallery.new.ref, E2)
    ]  # fmt: skip
    found = gallery.search(replace(gallery.release, merge="reciprocal_rank"), 160, None, rows=slice(80, 84))
    for q in range(4):
        scores: dict[str, set[float]] = {}
        for score, s, row in zip(found.scores[q], found.segments[q], found.rows[q], strict=True):
            scores.setdefault(gallery.segments[s].table.entries([row])[0].id, set()).add(round(float(score), 6))
        own = scores[f"item-{80 + q}"]
        assert own == {round(2 / 61, 6)}  # first in both spaces, and listed twice with one score
    pooled = SegmentStatistics.pooled([gallery.old.statistics, gallery.again.statistics])
    z = gallery.search(replace(gallery.release, merge="standardised"), 3, None, rows=slice(0, 5))
    mean, std = pooled.mean_std(gallery.seen[E1][:5])
    own = [z.scores[q][(z.segments[q] == 0) & (z.rows[q] == q)][0] for q in range(5)]
    np.testing.assert_allclose(own, (1 - mean) / std, atol=1e-3)


def test_a_calibration_comes_back_from_the_registry_and_a_flipped_byte_is_found(gallery: Gallery, calibration: Calibration, tmp_path: Path):
    registry = open_registry(tmp_path)
    digest = registry.publish_calibration(calibration.to_bytes())
    assert registry.publish_calibration(calibration.to_bytes()) == digest
    release = replace(gallery.release, calibration=digest)
    again = load_calibration(registry, release)
    assert again is not None and again.to_bytes() == calibration.to_bytes()
    np.testing.assert_array_equal(gallery.search(release, 5, again).scores, gallery.search(release, 5, calibration).scores)
    assert load_calibration(registry, gallery.release) is None
    path = tmp_path / "calibrations" / f"{digest}.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    with pytest.raises(Corrupt, match="sha256"):
        load_calibration(registry, release)
    path.unlink()
    with pytest.raises(Corrupt, match="is gone"):
        load_calibration(registry, release)
    with pytest.raises(Corrupt, match="not the calibration"):
        Calibration.from_bytes(b"nothing")


def test_a_learned_merge_without_what_it_was_fitted_to_is_refused(gallery: Gallery, calibration: Calibration):
    with pytest.raises(Incompatible, match="its calibration was not loaded"):
        gallery.search(gallery.release, 3, None)
    with pytest.raises(Incompatible, match="no calibrated scores for vectors made by encoder/demo@v2"):
        gallery.search(gallery.release, 3, replace(calibration, curves={(E1, "image"): calibration.curve(E1)}))


def test_where_old_vectors_are_queried_by_a_newer_encoder_nothing_can_be_fitted(gallery: Gallery):
    keep = replace(gallery.release, segments=(SegmentUse(gallery.old.ref, E1, E2), gallery.release.segments[1]))
    with pytest.raises(Incompatible, match="cannot be known without their pictures"):
        fit_calibration(keep, gallery.segments, {})
    for asked in ({"merge": "routed"}, {"merge": "calibrated"}, {"both": [(gallery.old.ref, E1)]}):
        with pytest.raises(ConfigError, match="choose versioned or backfilling"):
            next_release("keep", None, encoder=E1, segment=gallery.old.ref, id="demo@v1", run="demo", task=0, **asked)


def test_an_item_that_may_not_be_found_takes_no_rank(gallery: Gallery):
    """Else the ranks of the space that holds it would all be one too low, and the other space would come first."""
    release = replace(gallery.release, merge="reciprocal_rank")
    queries = [gallery.seen[use.queried_by][:5] for use in release.segments]
    parts = {number: each.search(queries[number], 4, encoder=each.made_by, number=number) for number, each in enumerate(gallery.segments)}
    own = [item.id for item in gallery.items[:5]]
    found = merge_release(release, parts, dict(enumerate(gallery.segments)), queries, 8, None, own)
    for q in range(5):
        assert (found.segments[q, :2].tolist(), found.rows[q, 0]) == ([0, 1], parts[0].rows[q, 1])
        np.testing.assert_allclose(found.scores[q, :2], 1 / 61, rtol=1e-6)
        assert q not in found.rows[q][found.segments[q] == 0]
