"""The peak of a task's memory: what was taken and given back counts, what came before does not."""

import os

import numpy as np
import pytest
import torch

from perdure.strategies import STRATEGIES
from perdure.strategies.strategy import TaskContext
from perdure.training.loop import train_task
from perdure.training.memory import PeakMemory
from perdure.training.schedule import Schedule

CPU = torch.device("cpu")


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="this system cannot start its count anew")
def test_memory_that_was_given_back_counts_and_only_from_when_counting_began() -> None:
    big = np.ones(64 * 2**20, dtype=np.uint8)
    before = PeakMemory(CPU).mib()
    assert before > 64
    counting = PeakMemory(CPU)
    more = np.ones(96 * 2**20, dtype=np.uint8)
    size = len(big) + len(more)
    del more
    peak = counting.mib()
    assert peak > before + 80, f"{size / 2**20:.0f} MiB were held at once"
    assert PeakMemory(CPU).mib() < peak - 60, "a new count begins with what is held now"


def test_a_task_records_its_peak(toy_encoder, toy_task, fp32) -> None:
    encoder, strategy = toy_encoder(), STRATEGIES.build("fine_tune", {})
    strategy.begin_task(encoder, TaskContext(index=0, class_ids=torch.arange(4)))
    summary = train_task(encoder, strategy, toy_task(0), Schedule(epochs=1, batch_size=16, per_class=4), precision=fp32)
    assert summary.peak_memory_mb is not None
    assert 50 < summary.peak_memory_mb < 20_000
