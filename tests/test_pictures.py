"""What a run leaves for its report: queries asked of two releases, the map of features, Gram matrices; on a small run and on toys."""

import itertools
import json

import numpy as np
import pytest

from perdure.config import parse
from perdure.pictures.features import features_in_the_plane
from perdure.records import EncoderRef
from perdure.report import ReportPictures, write_run_html
from perdure.run import StreamRun, learn_stream

SMALL = {
    "name": "small",
    "stream": {
        "dataset": {"name": "scenes", "items": 180, "classes": 6, "size": 24},
        "kind": {"name": "class_incremental", "first": 3, "step": 3},
    },
    "encoder": {"name": "small_resnet", "image_size": 24, "width": 4, "embedding_dim": 16},
    "strategy": "fine_tune",
    "train": {"epochs": 1, "batch_size": 24, "per_class": 6, "precision": "fp32", "max_steps": 3},
    "workers": 0,
}


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A small run of two tasks, and the pictures in its folder."""
    folder = tmp_path_factory.mktemp("pictures")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PERDURE_RUNS", str(folder / "runs"))
        patch.setenv("PERDURE_CACHE", str(folder / "cache"))
        config = parse({**SMALL, "registry": str(folder / "registry")})
        learn_stream(config)
        yield StreamRun.open(config), ReportPictures.load(folder / "runs" / "small")


def first_hits(run, version, kind):
    """Whether each query of the first task is answered right at once by a search over all that was known after `version` tasks."""
    tasks, labels = run.prepared.stream.tasks, run.prepared.stream.labels
    gallery = np.concatenate([task.gallery for task in tasks[:version]])
    embeddings = run.measures.embeddings(EncoderRef("small", version))
    vectors, asked = embeddings.of(gallery).image, embeddings.of(tasks[0].query)
    out = []
    for at, row in enumerate(tasks[0].query):
        query = asked.image[at] if kind == "image" else asked.text[np.flatnonzero(asked.text_of == at)[0]]
        scores = [
            -np.inf if kind == "image" and other == row else float(vector @ query) for other, vector in zip(gallery, vectors, strict=True)
        ]
        best = gallery[int(np.argmax(scores))]
        out.append(best == row if kind == "text" else labels[best] == labels[row])
    return np.array(out)


@pytest.mark.parametrize("kind", ["image", "text"])
def test_the_counts_are_those_of_two_searches_written_as_loops(learned, kind):
    run, pictures = learned
    change = next(change for change in pictures.changes if change.kind == kind)
    before, after = first_hits(run, 1, kind), first_hits(run, 2, kind)
    assert change.queries == len(before)
    assert (change.right_before, change.right_after) == (before.sum(), after.sum())
    assert (change.lost, change.won) == ((before & ~after).sum(), (after & ~before).sum())


def test_a_query_of_an_earlier_task_has_the_answer_of_the_release_before(learned):
    run, pictures = learned
    earlier = set(run.prepared.stream.tasks[0].classes)
    for example in pictures.examples:
        assert (example.before is not None) == (example.task == 0) == (example.label in earlier)
        assert [hit["encoder"] for hit in example.hits] == ["encoder/small@v2"] * 6
        if example.before is not None:
            assert [hit["encoder"] for hit in example.before] == ["encoder/small@v1"] * 6
            assert {hit["label"] for hit in example.before} <= earlier, "what came later could not be found then"
            assert {hit["task"] for hit in example.before} == {0}
    assert {example.task for example in pictures.examples if not example.why} == {0, 1}


def test_hits_are_right_by_class_for_a_picture_and_by_itself_for_words(learned):
    _, pictures = learned
    for example in pictures.examples:
        flags = [hit["right"] for hit in example.hits]
        if example.kind == "image":
            assert flags == [hit["label"] == example.label for hit in example.hits]
        else:
            assert sum(flags) <= 1


def test_the_queries_shown_for_their_change_are_those_that_changed_most(learned):
    _, pictures = learned
    changed = [example for example in pictures.examples if example.why]
    assert changed

    def gain(example):
        return sum(
            (after["right"] - before["right"]) / k for k, (before, after) in enumerate(zip(example.before, example.hits, strict=True), 1)
        )

    assert all((gain(example) < 0) == (example.why == "lost") and gain(example) != 0 for example in changed)
    asked = [example.question() for example in pictures.examples]
    assert len(set(asked)) == len(asked), "no query is shown twice"


def test_the_map_has_test_pictures_of_both_tasks_by_the_first_encoder_and_the_last(learned):
    run, pictures = learned
    kept, labels = pictures.features, run.prepared.stream.labels
    first, last = run.prepared.stream.tasks
    assert kept.encoders == ["small@v1", "small@v2"]
    assert kept.task_of == [0, 0, 0, 1, 1, 1]
    assert kept.points.shape == (2, len(kept.rows), 2) and np.isfinite(kept.points).all()
    assert set(kept.rows) == {*first.query, *last.query}
    assert [kept.classes[label] for label in kept.class_of] == [run.prepared.dataset.items[row].label for row in kept.rows]
    for version, agreement in zip((1, 2), kept.agreement, strict=True):
        vectors = run.measures.embeddings(EncoderRef("small", version)).of(kept.rows).image
        for number in range(6):
            shares = []
            for at in np.flatnonzero(kept.class_of == number):
                others = sorted(
                    (other for other in range(len(vectors)) if other != at), key=lambda other: -float(vectors[at] @ vectors[other])
                )
                shares.append(np.mean([labels[kept.rows[other]] == labels[kept.rows[at]] for other in others[:10]]))
            assert agreement[number] == pytest.approx(np.mean(shares))


def test_gram_matrices_are_inner_products_sorted_by_class(learned):
    run, pictures = learned
    labels = pictures.gram_classes
    assert [label for label, _ in itertools.groupby(labels)] == list(dict.fromkeys(labels)), "a class stands together"
    assert set(labels) == set(run.prepared.stream.tasks[0].classes)
    for gram in pictures.grams.values():
        assert gram.shape == (len(labels), len(labels))
        assert np.diagonal(gram) == pytest.approx(1.0, abs=1e-5)


def test_the_page_of_a_run_shows_all_of_it(learned):
    run, _ = learned
    page = write_run_html(run.folder).read_text(encoding="utf-8")
    for title in ("before task 2", "what the last task changed", "Features before and after", "Gram matrices"):
        assert title in page
    assert json.loads((run.folder / "changes.json").read_text())[0]["kind"] == "image"


def clusters(seed, n=20, groups=4, size=16):
    rng = np.random.default_rng(seed)
    rows = np.repeat(rng.standard_normal((groups, size)), n, axis=0) + 0.1 * rng.standard_normal((groups * n, size))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32), np.repeat(np.arange(groups), n)


def test_neighbours_stay_neighbours_in_the_plane():
    vectors, labels = clusters(0)
    (points,) = features_in_the_plane([vectors], max_iterations=400)
    apart = ((points[:, None] - points) ** 2).sum(axis=2)
    np.fill_diagonal(apart, np.inf)
    assert (labels[apart.argmin(axis=1)] == labels).mean() > 0.95


def test_a_map_lies_like_the_one_before_so_that_equal_features_stay_in_their_places_and_every_time():
    vectors, _ = clusters(1)
    first, second = features_in_the_plane([vectors, vectors], max_iterations=400)
    for axis in range(2):
        assert np.corrcoef(first[:, axis], second[:, axis])[0, 1] > 0.9
    again = features_in_the_plane([vectors, vectors], max_iterations=400)
    assert np.array_equal(again, np.stack([first, second]))


@pytest.mark.parametrize("vectors", [np.ones((6, 4), np.float32) / 2, np.eye(5, dtype=np.float32), np.ones((8, 1), np.float32)])
def test_collapsed_and_few_and_thin_features_have_finite_places(vectors):
    assert np.isfinite(features_in_the_plane([vectors, vectors], max_iterations=250)).all()
