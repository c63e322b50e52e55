"""A lifelong stream in one process: two datasets one after another, half of the classes of each unseen, seen / unseen / H measured."""

import json
from typing import Any

import numpy as np
import pytest

from perdure.config import RunConfig, parse
from perdure.metrics.datasets import DATASET_DEFINITIONS
from perdure.metrics.retrieval import retrieval_metrics
from perdure.progress import SilentProgress
from perdure.records import EncoderRef
from perdure.report.tables import summary_table
from perdure.run import StreamRun, learn_stream


def drawn(seed: int, name: str, **more: Any) -> dict[str, Any]:
    return {"dataset": {"name": "scenes", "items": 120, "classes": 4, "size": 24, "seed": seed}, "as": name, **more}


LIFELONG = {
    "name": "lifelong",
    "stream": {
        "dataset": {"name": "sequence", "parts": [drawn(0, "morning"), drawn(1, "evening", test_share=0.4)]},
        "kind": {"name": "dataset_sequence", "unseen": 0.5},
    },
    "encoder": {"name": "small_resnet", "image_size": 24, "width": 4, "embedding_dim": 16, "text": "none"},
    "train": {"epochs": 1, "batch_size": 24, "per_class": 6, "precision": "fp32", "optimizer": "adam", "lr": 1e-2, "backbone_lr": 1e-3},
    "workers": 0,
    "registry": "registry",
}


class Heard(SilentProgress):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, dict[str, Any], StreamRun, list[str]]:
    """The run, learned once for all tests of this file."""
    here = tmp_path_factory.mktemp("lifelong")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        patch.setenv("PERDURE_CACHE", str(here / "cache"))
        patch.setenv("PERDURE_RUNS", str(here / "runs"))
        config, heard = parse({**LIFELONG, "registry": str(here / "registry")}), Heard()
        report = learn_stream(config, progress=heard)
        return config, report, StreamRun.open(config), heard.lines


Learned = tuple[RunConfig, dict[str, Any], StreamRun, list[str]]


def test_seen_unseen_and_h_are_measured_for_every_dataset_after_every_task(learned: Learned) -> None:
    """Against the run's own encoders: retrieval among the items of the learned, and of the unseen classes of a dataset."""
    _, report, run, _ = learned
    stream = run.prepared.stream
    found = report["metrics"]["recall@1"]
    for t in range(2):
        embeddings = run.measures.embeddings(EncoderRef("lifelong", t + 1))
        for j, (task, apart) in enumerate(zip(stream.tasks, stream.unseen_of, strict=True)):
            assert apart is not None
            pair: list[float] = []
            for measured in (task, apart):
                image, labels = embeddings.of(measured.query).image, stream.labels[measured.query]
                metrics = retrieval_metrics(image, image, labels, labels, query_ids=measured.query, gallery_ids=measured.query)
                pair.append(metrics["recall@1"])
            s, u = pair
            assert 0 < s <= 1 and 0 < u <= 1
            assert [found["matrix"][t][j], found["unseen"][t][j]] == pytest.approx([s, u])
            assert found["H"][t][j] == pytest.approx(2 * s * u / (s + u))


def test_the_report_tells_each_dataset_in_a_row_and_sums_up_by_the_definitions(learned: Learned) -> None:
    _, report, _, _ = learned
    rows = {(row["name"], row["after"]): row for row in report["datasets"]}
    assert set(rows) == {("morning", 0), ("morning", 1), ("evening", 1)}
    found, last = report["metrics"]["recall@1"], [rows["morning", 1], rows["evening", 1]]
    assert [(row["seen"], row["unseen"], row["H"]) for row in last] == list(
        zip(found["matrix"][1], found["unseen"][1], found["H"][1], strict=True)
    )
    summary = report["summary"]
    assert summary["metric"] == "recall@1" == last[0]["metric"]
    s, u = np.mean([row["seen"] for row in last]), np.mean([row["unseen"] for row in last])
    assert [summary["seen"], summary["unseen"]] == pytest.approx([s, u])
    assert summary["H"] == pytest.approx(2 * s * u / (s + u))
    assert summary["H_datasets"] == pytest.approx(np.mean([row["H"] for row in last]))
    assert summary["by_metric"]["map"]["H_datasets"] == pytest.approx(np.mean(report["metrics"]["map"]["H"][1]))
    assert all(report["definitions"][key] == text for key, text in DATASET_DEFINITIONS.items())
    assert "H" not in report["metrics"]["lone_queries"] and report["metrics"]["lone_queries"]["unseen"] == [[0, 0], [0, 0]]


def test_half_of_the_classes_are_learned_and_no_item_of_the_other_half_is_ever_read(learned: Learned) -> None:
    _, report, run, _ = learned
    label_of = {item.id: item.label for item in run.prepared.dataset.items}
    for task, name in zip(report["tasks"], ("morning", "evening"), strict=True):
        seen, unseen = set(task["classes"]), set(task["unseen_classes"])
        assert len(seen) == len(unseen) == 2 and not seen & unseen and {label.partition("/")[0] for label in seen | unseen} == {name}
        assert sorted(seen | unseen)[:2] == sorted(seen)
        assert task["unseen_query"] == sum(label in unseen for label in label_of.values())
        read = json.loads((run.folder / "reads" / f"{task['index']:03d}.json").read_text())
        assert read and {label_of[key] for key in read} == seen


def test_a_person_is_told_of_the_unseen_classes_while_it_runs_and_at_the_end(learned: Learned) -> None:
    _, report, _, lines = learned
    value = report["metrics"]["recall@1"]["unseen"][1][1]
    assert any(line.startswith("task 2 learned") and f"{100 * value:.1f} % on the unseen ones of its dataset" in line for line in lines)
    table = summary_table(report)
    row = next(line.split() for line in table.splitlines() if line.startswith("evening"))
    last = report["datasets"][-1]
    assert row[1:] == [f"{100 * last[key]:.1f}" for key in ("seen", "unseen", "H")]
