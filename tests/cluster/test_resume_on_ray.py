"""A driver that is killed with -9 in the middle of a task: the same command goes on from the last checkpoint and ends the same."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from perdure.encoders import load_encoder
from perdure.records import EncoderRef
from perdure.registry import open_registry

pytestmark = pytest.mark.cluster
ROOT = Path(__file__).resolve().parents[2]

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


def command(folder: Path, *overrides: str) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "PERDURE_RUNS": str(folder / "runs"),
        "PERDURE_CACHE": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",
        "RAY_AUTH_MODE": "disabled",
    }
    for name in ("RAY_ADDRESS", "PERDURE_RAY"):
        environment.pop(name, None)
    words = [sys.executable, str(ROOT / "jobs" / "train.py"), "run.yaml", *overrides]
    return subprocess.Popen(
        words, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def steps(folder: Path) -> list[int]:
    path = folder / "runs/killed/log.jsonl"
    if not path.exists():
        return []
    lines = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    return [line["step"] for line in lines if line["kind"] == "step" and line["task"] == 0]


def test_killed_on_ray_and_resumed_equals_never_killed_in_process(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(RUN))
    first = command(tmp_path)
    deadline = time.monotonic() + 240
    while not any(step >= 24 for step in steps(tmp_path)):
        assert first.poll() is None, first.communicate()[0]
        assert time.monotonic() < deadline, "the run did not reach step 24"
        time.sleep(0.02)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert not (tmp_path / "registry/encoders/killed").exists(), "nothing half-learned was published"

    again = command(tmp_path)
    output = again.communicate(timeout=400)[0]
    assert again.returncode == 0, output
    done = steps(tmp_path)  # the worker outlives its driver by a few steps, until Ray takes it down
    restart = next(at for at in range(1, len(done)) if done[at] <= done[at - 1])
    assert done[restart] >= 10, "it went on from a checkpoint, not from the start"
    assert done[restart:] == list(range(done[restart], done[-1] + 1))

    whole = command(tmp_path, "name=whole", "workers.num=0")
    output = whole.communicate(timeout=400)[0]
    assert whole.returncode == 0, output
    registry = open_registry(tmp_path / "registry")
    for version in (1, 2):
        ours, theirs = (load_encoder(registry.folder(EncoderRef(name, version))).state_dict() for name in ("killed", "whole"))
        assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
