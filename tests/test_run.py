"""The whole path in one process: a stream is learned, measured, published and released, and a second start goes on where it stopped."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perdure import pipeline
from perdure.config import RunConfig, parse
from perdure.errors import ConfigError, Held
from perdure.metrics.retrieval import retrieval_metrics
from perdure.progress import Progress
from perdure.records import EncoderRef
from perdure.registry import open_registry, open_store
from perdure.registry.lease import hold
from perdure.report import write_run_html
from perdure.retrieval.retriever import Query, Retriever
from perdure.run import StreamRun, learn_stream
from perdure.strategies import STRATEGIES

SMALL = {
    "name": "small",
    "stream": {
        "dataset": {"name": "scenes", "items": 180, "classes": 6, "size": 24},
        "kind": {"name": "class_incremental", "first": 2, "step": 2},
    },
    "encoder": {"name": "small_resnet", "image_size": 24, "width": 4, "embedding_dim": 16},
    "train": {"epochs": 1, "batch_size": 24, "per_class": 6, "precision": "fp32"},
    "workers": 0,
    "registry": "registry",
}
QUICK: dict[str, dict[str, object]] = {
    "dual": {"inversion": {"pictures": 16, "iterations": 3}},
    "ewc": {"items": 8},
    "nce_ewc": {"items": 8},
    "meta_sequential": {"items": 16},
}
NEEDED = {"meta_sequential": ("encoder.joint={hidden: 16}",), "domain_uncertainty_hashing": ("encoder.hash_bits=8",)}  # by a strategy
pytestmark = pytest.mark.usefixtures("here")


def config(*overrides: str) -> RunConfig:
    return parse(SMALL, list(overrides))


class Counting:
    """A learner that counts, and may die."""

    def __init__(self, die_at: int | None = None) -> None:
        self.tasks: list[int] = []
        self.die_at = die_at

    def __call__(self, run: RunConfig, task: int, registry: str, folder: Path, progress: Progress) -> Path:
        if task == self.die_at:
            raise KeyboardInterrupt
        self.tasks.append(task)
        return pipeline.learn_here(run, task, registry, folder, progress)


def test_the_report_has_the_shape_that_others_rely_on(here: Path) -> None:
    report = learn_stream(config())
    assert json.loads((here / "runs/small/report.json").read_text()) == report
    assert {"name", "config", "definitions", "tasks", "metrics", "summary", "releases", "train"} <= report.keys()
    matrix = report["metrics"]["recall@1"]["matrix"]
    assert len(matrix) == 3 and all(len(row) == 3 for row in matrix)
    assert {"map", "map@r", "recall@5", "t2i_recall@1", "t2i_recall@10", "i2t_recall@1"} <= report["metrics"].keys()
    assert {"forgetting", "average_incremental", "last_average", "old", "new"} <= report["summary"].keys()
    assert report["summary"]["old"] == pytest.approx(np.mean(matrix[2][:2]))
    assert report["releases"] == ["small@v1", "small@v2", "small@v3"]
    assert [entry["task"] for entry in report["train"]] == [0, 1, 2]
    assert {"triplet", "cross_entropy", "pairs", "l2"} <= report["train"][1]["terms"].keys()


def test_no_image_of_an_earlier_task_is_read_by_any_strategy_but_joint(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perdure.run.stream_run.save_pictures", lambda *_: None)  # of the report, which nothing here reads
    seen = 0
    for name in STRATEGIES:
        strategy = json.dumps({"name": name, **QUICK.get(name, {})})
        learn_stream(config(f"name={name}", f"strategy={strategy}", "train.max_steps=3", *NEEDED.get(name, ())))
        reads = [set(json.loads(path.read_text())) for path in sorted((here / "runs" / name / "reads").glob("*.json"))]
        assert len(reads) == 3 and all(reads)
        overlap = (reads[0] & reads[1]) | (reads[0] & reads[2]) | (reads[1] & reads[2])
        assert bool(overlap) == (name == "joint"), name
        seen += 1
    assert seen == len(STRATEGIES) >= 5


def test_a_strategy_that_starts_each_task_over_trains_it_as_long_as_a_first_one(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perdure.run.stream_run.save_pictures", lambda *_: None)  # of the report, which nothing here reads
    steps = {}
    for name in ("joint", "fine_tune"):
        short = ("stream.dataset.items=60", "stream.dataset.classes=4", "train.first_epochs=3", "train.epochs=1")
        report = learn_stream(config(f"name={name}", f"strategy={name}", *short))
        steps[name] = [entry["steps"] for entry in report["train"]]
    assert steps == {"joint": [3, 6], "fine_tune": [3, 1]}  # of 24 items: a step an epoch for a task's own, two for both tasks'


def test_a_second_start_trains_nothing_again_and_gives_the_same_report(here: Path) -> None:
    first = learn_stream(config())
    counting = Counting()
    assert learn_stream(config(), learner=counting) == first
    assert counting.tasks == []


def test_a_driver_that_died_between_two_tasks_goes_on_with_the_next(here: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        learn_stream(config(), learner=Counting(die_at=1))
    counting = Counting()
    interrupted = learn_stream(config(), learner=counting)
    assert counting.tasks == [1, 2]
    whole = learn_stream(config("name=whole"))
    for key in ("metrics", "summary"):
        assert interrupted[key] == whole[key]


def test_a_second_driver_of_a_name_is_refused_before_it_learns_and_one_that_lost_the_name_publishes_nothing(here: Path) -> None:
    counting = Counting()
    with hold(open_store("registry"), "small"), pytest.raises(Held, match="'small' is being learned by process"):
        learn_stream(config(), learner=counting)
    assert counting.tasks == []

    def taken_over_meanwhile(*asked: Any) -> Path:
        store = open_store("registry")
        ours = store.read_pointer("leases/small.json")
        assert ours is not None
        store.swap_pointer("leases/small.json", json.dumps({**json.loads(ours[0]), "holder": "another"}).encode(), ours[1])
        return pipeline.learn_here(*asked)

    with pytest.raises(Held, match="was taken over by another driver"):
        learn_stream(config(), learner=taken_over_meanwhile)
    assert open_registry("registry").encoders("small") == []


def test_a_name_is_not_taken_twice_by_different_configurations(here: Path) -> None:
    learn_stream(config())
    with pytest.raises(ConfigError, match=r"train\.lr: was 0\.001, now 0\.01") as caught:
        learn_stream(config("train.lr=0.01"))
    assert "choose another name" in str(caught.value)
    learn_stream(config("index.partitions=3", "workers=1"))  # how it is spread and indexed is not what it is


def test_a_first_task_is_taken_over_only_when_it_is_the_same(here: Path) -> None:
    correlation = learn_stream(config())
    counting = Counting()
    fine = learn_stream(config("name=fine", "strategy={name: fine_tune}", "train.start_from=small"), learner=counting)
    assert counting.tasks == [1, 2]
    assert fine["metrics"]["recall@1"]["matrix"][0] == correlation["metrics"]["recall@1"]["matrix"][0]
    alone = learn_stream(config("name=alone", "strategy={name: fine_tune}"))
    assert fine["metrics"] == alone["metrics"]
    with pytest.raises(ConfigError, match="its first task differs"):
        learn_stream(config("name=other", "seed=1", "train.start_from=small"))
    with pytest.raises(ConfigError, match="learn that run first"):
        learn_stream(config("name=other2", "train.start_from=nobody"))


def test_the_search_of_a_release_is_the_metric_when_there_is_one_task(here: Path) -> None:
    report = learn_stream(config())
    first = report["search"]["small@v1"]
    assert first["search_recall@1"][0] == pytest.approx(report["metrics"]["recall@1"]["matrix"][0][0])
    assert first["search_t2i_recall@10"][0] == pytest.approx(report["metrics"]["t2i_recall@10"]["matrix"][0][0])


@pytest.mark.parametrize("policy", ["reindex", "keep", "versioned"])
def test_every_policy_says_who_made_and_who_queries_each_segment(policy: str, here: Path) -> None:
    learn_stream(config(f"index.policy={policy}"))
    last = open_registry("registry").release("small@v3")
    made = [use.made_by.version for use in last.segments]
    queried = [use.queried_by.version for use in last.segments]
    assert (made, queried) == {"reindex": ([3], [3]), "keep": ([1, 2, 3], [3, 3, 3]), "versioned": ([1, 2, 3], [1, 2, 3])}[policy]
    retriever = Retriever.load(open_registry("registry"), last)
    assert len(retriever.search(Query(text="a striped circle"), k=5).hits) == 5


def test_a_gallery_of_bits_is_built_released_and_searched(here: Path) -> None:
    report = learn_stream(config("index.kind=binary", "index.policy=versioned"))
    assert all(value is not None for value in report["search"]["small@v3"]["search_recall@1"])
    learn_stream(config("index.kind=binary", "name=one", "train.start_from=small"))
    registry = open_registry("registry")
    found = Retriever.load(registry, registry.release("one@v3")).search(Query(text="a striped circle"), k=4).hits
    eighths = [8 * hit.score for hit in found]  # of 16 bits: 1 - 2 d / 16
    assert len(found) == 4 and eighths == pytest.approx([round(each) for each in eighths], abs=1e-5)
    with pytest.raises(ConfigError, match="an embedding of 12 does not fit; choose a multiple of 8"):
        learn_stream(config("index.kind=binary", "encoder.embedding_dim=12", "name=odd"))


def test_versioned_search_inside_old_items_does_not_move_with_new_tasks(here: Path) -> None:
    """The promise of the policy: an old segment is still searched by the encoder that made it."""
    learn_stream(config("index.policy=versioned"))
    run = StreamRun.open(config("index.policy=versioned"))
    task = run.prepared.stream.tasks[0]
    labels = run.prepared.stream.labels
    before = run.measures.embeddings(EncoderRef("small", 1)).of(task.query)
    expected = retrieval_metrics(
        before.image, before.image, labels[task.query], labels[task.query], query_ids=task.query, gallery_ids=task.query
    )
    retriever = Retriever.load(run.registry, run.registry.release("small@v3"))
    hits = 0
    for row in task.query:
        item = run.prepared.dataset.items[int(row)]
        found = retriever.search(Query(image=run.prepared.dataset.image_bytes(int(row))), k=2, filter={"task": 0}).hits
        hits += next(hit for hit in found if hit.id != item.id).label == item.label
    assert hits / len(task.query) == pytest.approx(expected["recall@1"], abs=0.03)


def test_unseen_classes_are_measured_and_never_read(here: Path) -> None:
    report = learn_stream(config("stream.kind={name: class_incremental, first: 2, step: 2, unseen: 2}"))
    assert len(report["tasks"]) == 2
    assert {"seen", "unseen", "H"} <= report["summary"].keys()
    learned = {label for task in report["tasks"] for label in task["classes"]}
    assert len(learned) == 4


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("strategy={name: correlatoin}", "Did you mean 'correlation'"),
        ("strategy.wieght=1", "strategy.wieght: no such option. Did you mean 'weight'"),
        ("stream.dataset.name=scense", "Did you mean 'scenes'"),
        ("encoder.embeding_dim=3", "Did you mean 'embedding_dim'"),
        ("stream.kind.first=100", "100"),
        ("encoder.text={name: bilsm}", "bilstm"),
    ],
)
def test_a_wrong_word_in_a_config_is_told_with_the_right_one(override: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        learn_stream(config(override))


def test_an_image_only_stream_says_so_when_searched_by_text(here: Path) -> None:
    from perdure.errors import BadQuery

    learn_stream(config("encoder.text=none"))
    retriever = Retriever.load(open_registry("registry"), open_registry("registry").release("small@v3"))
    with pytest.raises(BadQuery, match="text"):
        retriever.search(Query(text="a circle"))


def test_the_plain_configuration_loads_again() -> None:
    plain: dict[str, Any] = config("strategy.weight=3").plain()
    assert parse(plain) == config("strategy.weight=3")


def test_a_run_that_hashes_is_measured_in_bits_and_searched_among_them(here: Path) -> None:
    binary = ("encoder.hash_bits=16", "strategy={name: domain_uncertainty_hashing}", "index.kind=binary")
    report = learn_stream(config(*binary))
    assert [entry["task"] for entry in report["codes"]] == [0, 1, 2]
    for entry in report["codes"]:
        assert entry["bits"] == 16
        for way in ("i2t", "t2i"):
            assert 0 < entry[way]["hamming_map"] <= 1 and 0 < entry[way]["real_map"] <= 1
            assert len(entry[way]["lookup_recall"]) == 17 and entry[way]["lookup_recall"][-1] == 1
    assert {"hamming_map", "lookup_precision", "real_map"} <= report["definitions"].keys()
    assert "bits" in write_run_html(here / "runs/small").read_text(encoding="utf-8")
    assert report["summary"]["by_metric"]["top1"]["last_average"] is None, "nothing trains a classifier"
