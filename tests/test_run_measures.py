"""What a run measures beside its retrieval matrices: before its first step, as a classifier, class by class."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_folder import enter

from perdure import pipeline
from perdure.config import RunConfig, parse
from perdure.metrics import continual
from perdure.metrics.retrieval import retrieval_metrics
from perdure.records import EncoderRef
from perdure.retrieval.classification import ClassMeans
from perdure.retrieval.evaluation import embed_split
from perdure.run import StreamRun, learn_stream

SMALL = {
    "name": "small",
    "stream": {
        "dataset": {"name": "scenes", "items": 180, "classes": 6, "size": 24},
        "kind": {"name": "class_incremental", "first": 2, "step": 2},
    },
    "encoder": {"name": "small_resnet", "image_size": 24, "width": 4, "embedding_dim": 16},
    "strategy": {"name": "fine_tune"},
    "train": {"epochs": 1, "batch_size": 24, "per_class": 6, "precision": "fp32", "max_steps": 2},
    "workers": 0,
    "registry": "registry",
}
CLASSIFIED = ("top1", "top1_known_task", "top1_ncm")


def config(*overrides: str) -> RunConfig:
    return parse(SMALL, list(overrides))


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A folder in which a run was learned, and its report."""
    folder = tmp_path_factory.mktemp("measures")
    with pytest.MonkeyPatch.context() as patch:
        enter(folder, patch)
        return folder, learn_stream(config())


@pytest.fixture(autouse=True)
def here(learned: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    enter(learned[0], monkeypatch)


@pytest.fixture
def report(learned: tuple[Path, dict[str, Any]]) -> dict[str, Any]:
    return learned[1]


def test_the_baseline_is_the_encoder_before_its_first_step(report: dict[str, Any]) -> None:
    run = StreamRun.open(config())
    encoder = pipeline.untrained(run.config, run.prepared)
    rows = run.measures.test_rows()
    vectors = embed_split(encoder, run.prepared.pixels, run.prepared.dataset.items, rows).image
    for task in run.prepared.stream.tasks:
        at = np.searchsorted(rows, task.query)
        labels = run.prepared.stream.labels[task.query]
        found = retrieval_metrics(vectors[at], vectors[at], labels, labels, query_ids=task.query, gallery_ids=task.query)
        assert report["baseline"]["recall@1"][task.index] == found["recall@1"]
    assert encoder.vocabulary is not None and len(encoder.vocabulary) > 0
    assert report["baseline"].keys() == report["metrics"].keys() - {
        *CLASSIFIED,
        "queries",
        "lone_queries",
        "t2i_queries",
        "t2i_median_rank",
    }


def test_forward_transfer_is_told_of_every_metric_with_a_baseline(report: dict[str, Any]) -> None:
    for name, figures in report["summary"]["by_metric"].items():
        assert ("forward_transfer" in figures) == (name not in CLASSIFIED)
    matrix, baseline = report["metrics"]["map"]["matrix"], report["baseline"]["map"]
    expected = (matrix[0][1] - baseline[1] + matrix[1][2] - baseline[2]) / 2
    assert report["summary"]["by_metric"]["map"]["forward_transfer"] == pytest.approx(expected)
    assert report["summary"]["forward_transfer"] == report["summary"]["by_metric"]["recall@1"]["forward_transfer"]


def test_all_definitions_of_forgetting_are_in_the_summary_with_their_words(report: dict[str, Any]) -> None:
    names = {"forgetting", "forgetting_max", "forgetting_first", "forgetting_mammoth", "forgetting_continuum"}
    names |= {"backward_transfer", "backward_transfer_libcontinual", "average_incremental_micro", "last_average_micro"}
    assert names <= report["summary"].keys()
    told = {key for key in report["summary"] if key not in ("metric", "by_metric")}
    assert told <= report["definitions"].keys()
    assert {"top1", "top1_known_task", "top1_ncm", "curves", "per_class"} <= report["definitions"].keys()


def test_the_classification_matrices_are_measured_up_to_the_diagonal(report: dict[str, Any]) -> None:
    for name in CLASSIFIED:
        matrix = report["metrics"][name]["matrix"]
        assert [[value is None for value in row] for row in matrix] == [[j > t for j in range(3)] for t in range(3)], name
    told, task_free = (report["metrics"][name]["matrix"] for name in ("top1_known_task", "top1"))
    assert all(told[t][j] >= task_free[t][j] for t in range(3) for j in range(t + 1))
    assert told[0][0] == task_free[0][0]


def test_over_time_is_over_all_test_items_so_far(report: dict[str, Any]) -> None:
    sizes = [task["query"] for task in report["tasks"]]
    row = report["metrics"]["top1"]["matrix"][2]
    last = report["summary"]["top1_over_time"][-1]
    assert [one["classes"] for one in report["summary"]["top1_over_time"]] == [2, 4, 6]
    assert last["top1"] == pytest.approx(sum(value * size for value, size in zip(row, sizes, strict=True)) / sum(sizes))
    assert last["top1_ncm"] == pytest.approx(continual.last_average(report["metrics"]["top1_ncm"]["matrix"], sizes))


def test_class_means_are_kept_with_each_version_and_old_ones_do_not_move(report: dict[str, Any]) -> None:
    registry = StreamRun.open(config()).registry
    means = [ClassMeans.load(registry.files(EncoderRef("small", version))["class_means.safetensors"]) for version in (1, 2, 3)]
    assert [one.classes.tolist() for one in means] == [[0, 1], [0, 1, 2, 3], [0, 1, 2, 3, 4, 5]]
    assert np.array_equal(means[2].means[:2], means[0].means) and np.array_equal(means[2].means[2:4], means[1].means[2:])


def test_curves_and_classes_of_the_last_encoder_add_up_to_its_matrix(report: dict[str, Any]) -> None:
    assert [(curve["task"], curve["name"]) for curve in report["curves"]] == [(j, task["name"]) for j, task in enumerate(report["tasks"])]
    for curve in report["curves"]:
        assert len(curve["recall"]) == len(curve["precision"]) == 11
        assert curve["precision"] == sorted(curve["precision"], reverse=True)
    for task in (0, 1, 2):
        rows = [row for row in report["per_class"] if row["task"] == task]
        assert [row["class"] for row in rows] == report["tasks"][task]["classes"]
        total = sum(row["recall@1"] * row["queries"] for row in rows) / sum(row["queries"] for row in rows)
        assert total == pytest.approx(report["metrics"]["recall@1"]["matrix"][2][task], abs=1e-4)


def test_training_says_how_much_memory_it_took(report: dict[str, Any]) -> None:
    assert all(entry["peak_memory_mb"] > 50 for entry in report["train"])


def test_a_second_report_measures_no_baseline_again(report: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "untrained", lambda *_: pytest.fail("the baseline was there already"))
    assert StreamRun.open(config()).report() == report == json.loads(Path("runs/small/report.json").read_text())


def test_a_classifier_without_cross_entropy_is_null_and_its_class_means_are_not() -> None:
    ranking = "strategy={name: fine_tune, ranking: {cross_entropy: 0}}"
    report = learn_stream(config("name=unclassified", ranking, "stream.kind.tasks=2"))
    assert report["metrics"]["top1"]["matrix"] == report["metrics"]["top1_known_task"]["matrix"] == [[None, None], [None, None]]
    assert report["metrics"]["top1_ncm"]["matrix"][1][0] is not None
    assert report["summary"]["top1_over_time"][1]["top1"] is None


def test_a_run_without_a_single_step_is_measured_and_has_no_class_means() -> None:
    report = learn_stream(config("name=untouched", "train.epochs=0", "stream.kind.tasks=2"))
    assert [task["items_read"] for task in report["tasks"]] == [0, 0]
    assert report["metrics"]["recall@1"]["matrix"][1][0] is not None
    assert report["metrics"]["top1_ncm"]["matrix"] == [[None, None], [None, None]]
    half = learn_stream(config("name=half", "train.first_epochs=0", "stream.kind.tasks=2"))
    assert half["metrics"]["top1_ncm"]["matrix"][1] == [None, None], "the first task's classes have no mean"


def test_a_first_task_that_is_taken_over_is_measured_on_the_tasks_of_this_run(report: dict[str, Any]) -> None:
    cut_otherwise = learn_stream(config("name=wider", "train.start_from=small", "stream.kind.step=4"))
    for name in ("recall@1", "top1", "top1_ncm"):
        matrix = cut_otherwise["metrics"][name]["matrix"]
        assert [len(row) for row in matrix] == [2, 2]
        assert matrix[0][0] == report["metrics"][name]["matrix"][0][0]


def test_versions_that_were_published_before_there_was_such_a_thing_are_reported_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    run = StreamRun.open(config())
    manifest = run.registry.manifest

    def without(ref: Any) -> Any:
        found = manifest(ref)
        if isinstance(ref, EncoderRef) and ref.version == 1:
            found.meta["metrics"].pop("classification", None)
            found.meta["train"].pop("peak_memory_mb", None)
        return found

    monkeypatch.setattr(run.registry, "manifest", without)
    report = run.report()
    assert report["metrics"]["top1"]["matrix"][0] == [None, None, None]
    assert report["metrics"]["top1"]["matrix"][2][2] is not None
    assert report["train"][0]["peak_memory_mb"] is None
    assert report["summary"]["top1_over_time"][0]["top1"] is None
