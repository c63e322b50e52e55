"""Feature estimation in a whole run: the drifts are measured, recorded and handed to the next tasks; nothing else is kept."""

from dataclasses import asdict, dataclass

import pytest
import torch
from torch import Tensor

from perdure.config import parse
from perdure.encoders import load_encoder
from perdure.encoders.encoder import Encoder
from perdure.memory.accuracy_drift import AccuracyDrift, measure_drift
from perdure.records import Batch, EncoderRef
from perdure.registry import open_registry
from perdure.run import learn_stream
from perdure.strategies.correlation import CorrelationDistillation
from perdure.strategies.correlation_all_teachers import CorrelationAllTeachers
from perdure.strategies.strategy import TaskContext

TINY: dict[str, object] = {
    "stream": {
        "dataset": {"name": "scenes", "items": 120, "classes": 6, "size": 16},
        "kind": {"name": "class_incremental", "first": 2, "step": 2},
    },
    "encoder": {"name": "small_resnet", "image_size": 16, "width": 4, "embedding_dim": 8, "text": "none"},
    "train": {"epochs": 1, "batch_size": 24, "per_class": 6, "precision": "fp32", "max_steps": 2},
    "workers": 0,
    "registry": "registry",
}


@dataclass
class Learned:
    """Three runs of one stream, and what each task of them was begun with and asked."""

    matrices: dict[str, list[list[float | None]]]  # of mAP
    weights: dict[str, list[dict[str, Tensor]]]  # of the encoder after each task: figures of so small a run may agree where these do not
    contexts: dict[str, list[TaskContext]]
    drifts: list[dict[str, float] | None]  # in the manifests of the run with estimation
    teachers: list[int]  # whose embeddings a batch of the run with all teachers came with, step by step


def run(which: str, strategy: dict[str, object]) -> list[list[float | None]]:
    name = which.replace(" ", "-")
    return learn_stream(parse({**TINY, "name": name, "strategy": strategy}))["metrics"]["map"]["matrix"]


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Learned:
    strategies: dict[str, dict[str, object]] = {
        "plain": {"name": "correlation"},
        "estimating": {"name": "correlation", "estimation": True},
        "all teachers": {"name": "correlation_all_teachers"},
    }
    matrices: dict[str, list[list[float | None]]] = {}
    contexts: dict[str, list[TaskContext]] = {}
    teachers: list[int] = []
    begin, observe = CorrelationDistillation.begin_task, CorrelationAllTeachers.observe
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("estimation")
        patch.chdir(folder)
        patch.setenv("PERDURE_RUNS", str(folder / "runs"))
        patch.setenv("PERDURE_CACHE", str(folder / "cache"))
        for which, strategy in strategies.items():
            begun = contexts.setdefault(which, [])

            def begin_task(self: CorrelationDistillation, encoder: Encoder, task: TaskContext, begun: list[TaskContext] = begun) -> None:
                begun.append(task)
                begin(self, encoder, task)

            def look(self: CorrelationAllTeachers, batch: Batch) -> dict[str, Tensor]:
                seen = observe(self, batch)
                teachers.append(("teacher_image" in seen) + (seen["elder_image"].shape[1] if "elder_image" in seen else 0))
                return seen

            patch.setattr(CorrelationDistillation, "begin_task", begin_task)
            patch.setattr(CorrelationAllTeachers, "observe", look)
            matrices[which] = run(which, strategy)
        registry = open_registry("registry")
        weights = {
            which: [load_encoder(registry.folder(EncoderRef(which.replace(" ", "-"), v))).state_dict() for v in (1, 2, 3)]
            for which in strategies
        }
        drifts = [registry.manifest(EncoderRef("estimating", version)).meta.get("drift") for version in (1, 2, 3)]
        assert [contexts["all teachers"][2].ancestor(task).classifier.num_classes for task in (0, 1)] == [2, 4]
    return Learned(matrices, weights, contexts, drifts, teachers)


def test_each_task_is_handed_the_drifts_of_all_before_it_as_the_matrix_has_them(learned: Learned) -> None:
    matrix = learned.matrices["estimating"]
    drifts = [measure_drift(matrix[task - 1], matrix[task], task) for task in (1, 2)]
    assert len(set(drifts)) == 2 and drifts[0] != AccuracyDrift(0, 0)
    assert [context.drifts for context in learned.contexts["estimating"]] == [(), (), (drifts[0],)]
    assert learned.drifts == [None, asdict(drifts[0]), asdict(drifts[1])]


def same(these: dict[str, Tensor], those: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, those[key]) for key, value in these.items())


def test_estimation_changes_the_third_task_and_none_before(learned: Learned) -> None:
    plain, estimating = learned.weights["plain"], learned.weights["estimating"]
    assert learned.matrices["plain"][:2] == learned.matrices["estimating"][:2]
    assert [same(*pair) for pair in zip(plain, estimating, strict=True)] == [True, True, False]


def test_task_t_asks_t_teachers_where_all_are_kept(learned: Learned) -> None:
    assert learned.teachers == [0, 0, 1, 1, 2, 2]
    plain, kept = learned.weights["plain"], learned.weights["all teachers"]
    assert [same(*pair) for pair in zip(plain, kept, strict=True)] == [True, True, False]
