"""Feature extraction through the real loop: the first task is learned, after that no embedding moves by a bit."""

import copy
from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor

from perdure.encoders import Encoder
from perdure.strategies import STRATEGIES, TaskContext
from perdure.training.gather import ALONE, Alone, Workers
from perdure.training.loop import TaskData, TrainSummary, train_task
from perdure.training.precision import Precision
from perdure.training.schedule import Schedule

SCHEDULE = Schedule(epochs=3, batch_size=16, per_class=4, lr=3e-2, crop=2, checkpoint_every=0)


class Seven(Alone):
    """Seven workers that all hold the same: their mean is a sum of seven, divided."""

    num = 7

    def average(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            mean = torch.stack([tensor.detach()] * 7).sum(dim=0) / 7
            tensor.detach().copy_(mean)


def learn(
    encoder: Encoder, data: TaskData, index: int, precision: Precision, *, workers: Workers = ALONE, **ranking: float
) -> tuple[TrainSummary, dict[str, Tensor]]:
    """A task, and the grown encoder's weights and buffers before its first step."""
    strategy = STRATEGIES.build("feature_extraction", {"ranking": ranking})
    strategy.begin_task(encoder, TaskContext(index, torch.arange(4) + 4 * index))
    encoder.grow(num_classes=4 * (index + 1), captions=["some new words"])
    before = copy.deepcopy(encoder.state_dict())
    summary = train_task(encoder, strategy, data, SCHEDULE, task_index=index, precision=precision, workers=workers)
    strategy.end_task(encoder)
    return summary, before


def moved(encoder: Encoder, before: dict[str, Tensor]) -> set[str]:
    return {name.split(".")[0] for name, value in encoder.state_dict().items() if not torch.equal(value, before[name])}


@pytest.mark.parametrize("text", [False, True], ids=["images", "images and text"])
@pytest.mark.parametrize("workers", [ALONE, Seven()], ids=["alone", "seven"])
def test_a_later_task_moves_the_classifier_and_not_one_bit_of_a_tower(
    text: bool, workers: Workers, toy_encoder: Callable[..., Encoder], toy_task: Callable[..., TaskData], fp32: Precision
) -> None:
    encoder = toy_encoder(text=text)
    learn(encoder, toy_task(0, text=text), 0, fp32)
    summary, before = learn(encoder, toy_task(1, text=text), 1, fp32, workers=workers)
    assert moved(encoder, before) == {"classifier"}
    assert summary.curves["cross_entropy"][-1] < summary.curves["cross_entropy"][0]
    assert not encoder.training


def test_the_first_task_is_learned_by_all_parts(
    toy_encoder: Callable[..., Encoder], toy_task: Callable[..., TaskData], fp32: Precision
) -> None:
    encoder = toy_encoder(text=True)
    _, before = learn(encoder, toy_task(0, text=True), 0, fp32)
    assert moved(encoder, before) == {"image", "text", "classifier"}


def test_without_a_classifier_term_a_later_task_moves_nothing_at_all(
    toy_encoder: Callable[..., Encoder], toy_task: Callable[..., TaskData], fp32: Precision
) -> None:
    encoder = toy_encoder()
    summary, before = learn(encoder, toy_task(1), 1, fp32, cross_entropy=0)
    assert moved(encoder, before) == set()
    assert summary.steps == 9 and "triplet" in summary.terms


def test_old_pictures_and_old_words_are_embedded_as_before(
    toy_encoder: Callable[..., Encoder], toy_task: Callable[..., TaskData], fp32: Precision
) -> None:
    encoder = toy_encoder(text=True)
    learn(encoder, toy_task(0, text=True), 0, fp32)
    images, texts = torch.rand(5, 3, 16, 16), ["a red patch", "blue"]
    expected = encoder.embed_images(images), encoder.embed_texts(texts)
    learn(encoder, toy_task(1, text=True), 1, fp32)
    assert torch.equal(encoder.embed_images(images), expected[0])
    assert torch.equal(encoder.embed_texts(texts), expected[1])
