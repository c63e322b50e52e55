"""Feature estimation in a whole run: the drifts are measured, recorded and handed to the next tasks; nothing else is kept."""

from pathlib import Path
from typing import Any

import pytest

from perdure.config import RunConfig, parse
from perdure.encoders.encoder import Encoder
from perdure.memory.accuracy_drift import AccuracyDrift, measure_drift
from perdure.records import EncoderRef
from perdure.registry import open_registry
from perdure.run import learn_stream
from perdure.strategies.correlation import CorrelationDistillation
from perdure.strategies.correlation_all_teachers import CorrelationAllTeachers
from perdure.strategies.strategy import TaskContext

TINY = {
    "name": "tiny",
    "stream": {
        "dataset": {"name": "scenes", "items": 120, "classes": 6, "size": 16},
        "kind": {"name": "class_incremental", "first": 2, "step": 2},
    },
    "encoder": {"name": "small_resnet", "image_size": 16, "width": 4, "embedding_dim": 8, "text": "none"},
    "strategy": {"name": "correlation", "estimation": True},
    "train": {"epochs": 1, "batch_size": 24, "per_class": 6, "precision": "fp32", "max_steps": 2},
    "workers": 0,
    "registry": "registry",
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PERDURE_RUNS", str(tmp_path / "runs"))


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[TaskContext]:
    """What every task of a correlation strategy was begun with."""
    contexts: list[TaskContext] = []
    original = CorrelationDistillation.begin_task

    def spy(self: CorrelationDistillation, encoder: Encoder, task: TaskContext) -> None:
        contexts.append(task)
        original(self, encoder, task)

    monkeypatch.setattr(CorrelationDistillation, "begin_task", spy)
    return contexts


def config(*overrides: str) -> RunConfig:
    return parse(TINY, list(overrides))


def matrix_of(report: dict[str, Any]) -> list[list[float | None]]:
    return report["metrics"]["map"]["matrix"]


def test_each_task_is_handed_the_drifts_of_all_before_it_as_the_matrix_has_them(begun: list[TaskContext]) -> None:
    matrix = matrix_of(learn_stream(config()))
    drifts = [measure_drift(matrix[task - 1], matrix[task], task) for task in (1, 2)]
    assert len(set(drifts)) == 2 and drifts[0] != AccuracyDrift(0, 0)
    assert [context.drifts for context in begun] == [(), (), (drifts[0],)]
    recorded = [open_registry("registry").manifest(EncoderRef("tiny", version)).meta.get("drift") for version in (1, 2, 3)]
    assert recorded == [None, {"drop": drifts[0].drop, "gain": drifts[0].gain}, {"drop": drifts[1].drop, "gain": drifts[1].gain}]


def test_estimation_changes_the_third_task_and_none_before() -> None:
    plain, estimating = (matrix_of(learn_stream(config(f"name=run-{on}", f"strategy.estimation={on}"))) for on in ("false", "true"))
    assert plain[:2] == estimating[:2]
    assert plain[2] != estimating[2]


def test_all_teachers_are_taken_from_the_registry(begun: list[TaskContext], monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []
    original = CorrelationAllTeachers.observe

    def spy(self: CorrelationAllTeachers, batch: Any) -> Any:
        seen = original(self, batch)
        held.append(("teacher_image" in seen) + (seen["elder_image"].shape[1] if "elder_image" in seen else 0))
        return seen

    monkeypatch.setattr(CorrelationAllTeachers, "observe", spy)
    learn_stream(config("strategy={name: correlation_all_teachers}"))
    assert held == [0, 0, 1, 1, 2, 2]
    assert [begun[2].ancestor(task).classifier.num_classes for task in (0, 1)] == [2, 4]
