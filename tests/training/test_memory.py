"""The peak of a task's memory: what was taken and given back counts, what came before does not."""

import os
import subprocess
import sys

import pytest
import torch

from perdure.strategies import STRATEGIES
from perdure.strategies.strategy import TaskContext
from perdure.training.loop import train_task
from perdure.training.schedule import Schedule

# In a process of its own: what this one holds, and gives back when Python likes, is the other tests'.
_COUNTS = """
import numpy as np
import torch
from perdure.training.memory import PeakMemory

big = np.ones(64 * 2**20, dtype=np.uint8)
before = PeakMemory(torch.device("cpu")).mib()
counting = PeakMemory(torch.device("cpu"))
more = np.ones(96 * 2**20, dtype=np.uint8)
del more
print(before, counting.mib(), PeakMemory(torch.device("cpu")).mib(), len(big))
"""


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="this system cannot start its count anew")
def test_memory_that_was_given_back_counts_and_only_from_when_counting_began() -> None:
    said = subprocess.run([sys.executable, "-c", _COUNTS], check=True, capture_output=True, text=True, timeout=120).stdout
    before, peak, anew, _ = map(float, said.split())
    assert before > 64
    assert peak > before + 80, "160 MiB were held at once"
    assert anew < peak - 60, "a new count begins with what is held now"


def test_a_task_records_its_peak(toy_encoder, toy_task, fp32) -> None:
    encoder, strategy = toy_encoder(), STRATEGIES.build("fine_tune", {})
    strategy.begin_task(encoder, TaskContext(index=0, class_ids=torch.arange(4)))
    summary = train_task(encoder, strategy, toy_task(0), Schedule(epochs=1, batch_size=16, per_class=4), precision=fp32)
    assert summary.peak_memory_mb is not None
    assert 50 < summary.peak_memory_mb < 20_000
