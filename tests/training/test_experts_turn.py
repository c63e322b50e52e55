"""An expert in the loop: it becomes what fine-tuning makes, and but for its term the student learns what it would have without one."""

import copy
from collections.abc import Callable

import pytest
import torch

from perdure.encoders import Encoder
from perdure.strategies import STRATEGIES, Strategy, TaskContext
from perdure.training.loop import TaskData, train_task
from perdure.training.precision import Precision
from perdure.training.schedule import Schedule

SCHEDULE = Schedule(epochs=2, batch_size=16, per_class=4, lr=3e-3, crop=2, checkpoint_every=0)
PLAIN = {"teacher": {"adapts": False, "mirrored": False}}


@pytest.fixture(params=[False, True], ids=["images", "images and text"])
def learned(
    request: pytest.FixtureRequest, toy_encoder: Callable[..., Encoder], toy_task: Callable[..., TaskData], fp32: Precision
) -> Callable[..., tuple[Encoder, Strategy, list[set[str]]]]:
    """(encoder, strategy, the names of each step's terms) after a second task."""
    task, parent = toy_task(1, text=request.param), toy_encoder(text=request.param)

    def learn(name: str, **options: object) -> tuple[Encoder, Strategy, list[set[str]]]:
        encoder, strategy = copy.deepcopy(parent), STRATEGIES.build(name, options)
        strategy.begin_task(encoder, TaskContext(1, torch.arange(4, 8)))
        encoder.grow(num_classes=8)
        told: list[set[str]] = []
        summary = train_task(
            encoder, strategy, task, SCHEDULE, task_index=1, precision=fp32, on_step=lambda step, total, terms: told.append(set(terms))
        )
        assert summary.steps == len(told) and sorted(summary.read) == sorted(task.rows.tolist())
        return encoder, strategy, told

    return learn


def same(one: Encoder, other: Encoder) -> bool:
    return all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


def test_the_expert_becomes_what_fine_tuning_makes_to_the_bit(learned: Callable[..., tuple[Encoder, Strategy, list[set[str]]]]) -> None:
    fine_tuned, _, _ = learned("fine_tune")
    student, strategy, told = learned("lwf_expert")
    expert = strategy.trained()["expert"]
    assert isinstance(expert, Encoder) and same(expert, fine_tuned) and not same(student, fine_tuned)
    first, last = told[: len(told) // 2], told[len(told) // 2 :]
    assert all({"expert_triplet", "expert_cross_entropy"} <= names and "lwf" not in names for names in first)
    assert all({"triplet", "cross_entropy", "lwf", "expert"} <= names for names in last)


def test_a_term_of_no_weight_leaves_what_lwf_learns_to_the_bit(learned: Callable[..., tuple[Encoder, Strategy, list[set[str]]]]) -> None:
    held, _, _ = learned("lwf", weight=2.5)
    without, _, told = learned("lwf_expert", weight=2.5, expert_weight=0, **PLAIN)
    with_one, _, told_with = learned("lwf_expert", weight=2.5, expert_weight=1e-30, **PLAIN)
    assert same(held, without) and same(held, with_one)
    assert len(told) * 2 == len(told_with)
