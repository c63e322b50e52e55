"""A driver that is killed with -9 in the middle of a task: the same command goes on from the last checkpoint and ends the same."""

import os
import signal
from pathlib import Path

import pytest
import torch
import yaml
from driver import begin, ended, steps, until, went_on_from_a_checkpoint

from perdure.encoders import load_encoder
from perdure.records import EncoderRef
from perdure.registry import open_registry

pytestmark = pytest.mark.cluster

RUN = {
    "name": "killed",
    "stream": {
        "dataset": {"name": "scenes", "items": 120, "classes": 4, "size": 24},
        "kind": {"name": "class_incremental", "first": 2, "step": 2},
    },
    "encoder": {"name": "small_resnet", "image_size": 24, "width": 4, "embedding_dim": 16},
    "train": {"epochs": 2, "first_epochs": 40, "batch_size": 24, "per_class": 6, "precision": "fp32", "checkpoint_every": 10},
    "workers": {"num": 1, "threads": 1},
}


def test_killed_on_ray_and_resumed_equals_never_killed_in_process(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(RUN))
    first = begin(tmp_path)
    until(lambda: any(step >= 24 for step in steps(tmp_path, "killed")), first)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert not (tmp_path / "registry/encoders/killed").exists(), "nothing half-learned was published"

    ended(begin(tmp_path))
    went_on_from_a_checkpoint(steps(tmp_path, "killed"), every=10)

    ended(begin(tmp_path, "name=whole", "workers.num=0"))
    registry = open_registry(tmp_path / "registry")
    for version in (1, 2):
        ours, theirs = (load_encoder(registry.folder(EncoderRef(name, version))).state_dict() for name in ("killed", "whole"))
        assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
