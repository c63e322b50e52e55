"""Retrieval across modalities against the metric written out, pair by pair."""

import numpy as np
import pytest

from perdure.records import Modality, Task
from perdure.retrieval.evaluation import SplitEmbeddings
from perdure.retrieval.modalities import MODALITY_METRICS, across_modalities, over_tasks

KINDS: tuple[Modality, ...] = ("image", "text", "sketch")
LABELS = np.arange(30) % 2
ROWS = np.arange(30)
TASKS = tuple(
    Task(index, kind, ("a", "b"), ROWS[:0], ROWS[10 * index : 10 * index + 10], ROWS[10 * index : 10 * index + 10], kind)
    for index, kind in enumerate(KINDS)
)


@pytest.fixture
def embeddings() -> SplitEmbeddings:
    draw = np.random.default_rng(0).normal(size=(30, 4)) + 0.5 * LABELS[:, None]
    return SplitEmbeddings(ROWS, (draw / np.linalg.norm(draw, axis=1, keepdims=True)).astype(np.float32), None, ROWS[:0])


def written_out(embeddings: SplitEmbeddings, asking: int, asked: int) -> tuple[float, float]:
    first, precisions = [], []
    for q in range(10 * asking, 10 * asking + 10):
        order = sorted(range(10 * asked, 10 * asked + 10), key=lambda n: -float(embeddings.image[q] @ embeddings.image[n]))
        right = [LABELS[n] == LABELS[q] for n in order]
        first.append(right[0])
        precisions.append(np.mean([sum(right[: k + 1]) / (k + 1) for k in range(10) if right[k]]))
    return float(np.mean(first)), float(np.mean(precisions))


def test_equals_recall_and_average_precision_written_as_loops(embeddings: SplitEmbeddings) -> None:
    found = across_modalities(embeddings, TASKS, LABELS, learned=3)
    assert len(found) == 6
    for i, asking in enumerate(KINDS):
        for j, asked in enumerate(KINDS):
            if i != j:
                recall, average = written_out(embeddings, i, j)
                assert found[f"{asking} -> {asked}"] == pytest.approx({"recall@1": recall, "map": average}, abs=1e-6)


def test_nothing_is_measured_before_both_were_learned_and_means_are_over_what_was(embeddings: SplitEmbeddings) -> None:
    rows = [across_modalities(embeddings, TASKS, LABELS, learned=learned) for learned in (1, 2, 3)]
    assert all(value is None for pair in rows[0].values() for value in pair.values())
    assert {name for name, pair in rows[1].items() if pair["map"] is not None} == {"image -> text", "text -> image"}
    told = over_tasks(rows, [task.modality for task in TASKS])
    assert told["order"] == list(KINDS) and len(told["pairs"]) == 6
    for key in MODALITY_METRICS:
        assert told["mean"][key][0] is None
        assert told["mean"][key][1] == pytest.approx(np.mean([rows[1][name][key] for name in ("image -> text", "text -> image")]))
        assert told["mean"][key][2] == pytest.approx(np.mean([pair[key][2] for pair in told["pairs"]]))
    image_to_sketch = next(pair for pair in told["pairs"] if (pair["query"], pair["gallery"]) == ("image", "sketch"))
    assert image_to_sketch["map"][:2] == [None, None] and image_to_sketch["map"][2] == rows[2]["image -> sketch"]["map"]
