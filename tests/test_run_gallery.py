"""stream.gallery=rest: queries search everything of their classes that is not tested on."""

from pathlib import Path

import numpy as np
import pytest
from run_folder import enter

from perdure.config import parse
from perdure.data.tags import known_tags, tag_matrix
from perdure.pipeline import prepare
from perdure.records import EncoderRef, Item
from perdure.report import write_run_html
from perdure.retrieval.codes import code_metrics
from perdure.run import StreamRun, learn_stream
from perdure.stream import STREAMS
from perdure.stream.task_stream import searching_the_rest

SMALL = {
    "name": "small",
    "stream": {
        "dataset": {"name": "scenes", "items": 120, "classes": 4, "size": 24},
        "kind": {"name": "class_incremental", "first": 2, "step": 2},
        "gallery": "rest",
    },
    "encoder": {"name": "small_resnet", "image_size": 24, "width": 4, "embedding_dim": 16},
    "strategy": {"name": "fine_tune"},
    "train": {"epochs": 1, "batch_size": 24, "per_class": 6, "precision": "fp32", "max_steps": 2},
    "index": {"policy": "versioned"},
    "workers": 0,
    "registry": "registry",
}


def test_what_is_there_to_be_found_is_neither_learned_nor_asked() -> None:
    splits = ["train", "test", "gallery", "train", "gallery", "test"]
    items = [Item(f"{label}{at}", label, split=split) for label in "ab" for at, split in enumerate(splits)]
    rows = np.arange(12)
    usable = rows[rows != 4]
    plain = STREAMS.build("class_incremental", {"first": 1, "step": 1, "order": "sorted"}, items, usable, 0)
    assert [task.train.tolist() for task in plain.tasks] == [[0, 3], [6, 9]]
    assert all(task.gallery is task.query for task in plain.tasks)
    rest = searching_the_rest(plain)
    assert [task.query.tolist() for task in rest.tasks] == [[1, 5], [7, 11]]
    assert [task.gallery.tolist() for task in rest.tasks] == [[0, 2, 3], [6, 8, 9, 10]]
    assert [task.train.tolist() for task in rest.tasks] == [[0, 3], [6, 9]]


def test_an_item_that_is_there_to_be_found_is_of_its_own_task_alone_where_classes_come_again() -> None:
    items = [Item(f"{group}{at}", "a", group=group, split=split) for group in "xy" for at, split in enumerate(("train", "test", "gallery"))]
    stream = searching_the_rest(STREAMS.build("by_group", {}, items, np.arange(6), 0))
    assert [task.gallery.tolist() for task in stream.tasks] == [[0, 2], [3, 5]]


def test_a_run_searches_the_rest_and_says_nothing_of_pairs_that_are_not_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    enter(tmp_path, monkeypatch)
    report = learn_stream(parse(SMALL))
    tasks = prepare(parse(SMALL)).stream.tasks
    for task, told in zip(tasks, report["tasks"], strict=True):
        assert not np.isin(task.query, task.gallery).any() and np.array_equal(task.gallery, task.train)
        assert (told["query"], told["gallery"]) == (len(task.query), len(task.gallery))
    last = report["search"]["small@v2"]
    assert all(0 <= value <= 1 for value in last["search_recall@1"]) and last["search_t2i_recall@1"] == [None, None]
    assert report["metrics"]["recall@1"]["matrix"][1][0] is not None and "t2i_recall@1" not in report["metrics"]
    assert "small" in write_run_html(tmp_path / "runs/small").read_text()


def test_codes_are_asked_for_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    enter(tmp_path, monkeypatch)
    strategy = {"name": "domain_uncertainty_hashing"}
    hashing = {**SMALL, "encoder": {**SMALL["encoder"], "hash_bits": 16}, "strategy": strategy, "index": {"kind": "binary"}}
    report = learn_stream(parse(hashing))
    assert [found["task"] for found in report["codes"]] == [0, 1]
    measures = StreamRun.open(parse(hashing)).measures
    tasks, items = measures.prepared.stream.tasks, measures.prepared.dataset.items
    query, gallery = (np.unique(np.concatenate([getattr(task, side) for task in tasks])) for side in ("query", "gallery"))
    seen = measures.embeddings(EncoderRef("small", 2))
    tags = known_tags(items, range(len(items)))
    expected = code_metrics(seen.of(query), tag_matrix(items, query, tags), seen.of(gallery), tag_matrix(items, gallery, tags))
    assert {"task": 1, **expected} == report["codes"][1]
