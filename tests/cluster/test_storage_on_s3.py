"""Ray Train's checkpoints on S3: a driver that is killed in the middle of a task goes on from there, and one that ended is not repeated."""

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
from s3_server import S3Server

from perdure.encoders import load_encoder
from perdure.records import EncoderRef
from perdure.registry import open_registry

pytestmark = pytest.mark.cluster
ROOT = Path(__file__).resolve().parents[2]

RUN = {
    "name": "stored",
    "stream": {
        "dataset": {"name": "scenes", "items": 120, "classes": 4, "size": 24},
        "kind": {"name": "class_incremental", "first": 2, "step": 2},
    },
    "encoder": {"name": "small_resnet", "image_size": 24, "width": 4, "embedding_dim": 16},
    "train": {"epochs": 1, "first_epochs": 40, "batch_size": 24, "per_class": 6, "precision": "fp32", "checkpoint_every": 10},
    "workers": {"num": 1, "threads": 1},
}


def test_a_run_whose_checkpoints_are_on_s3_equals_one_in_process(tmp_path: Path, s3: S3Server) -> None:
    prefix = f"{tmp_path.parent.name}/{tmp_path.name}"
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(RUN))
    environment = {
        **os.environ,
        **s3.environment,
        "PERDURE_RUNS": str(tmp_path / "runs"),
        "PERDURE_CACHE": str(tmp_path / "cache"),
        "PERDURE_STORAGE": f"s3://tests/{prefix}/ray",
        "OMP_NUM_THREADS": "1",
    }

    def begin(registry: str, *overrides: str) -> subprocess.Popen[str]:
        words = [sys.executable, str(ROOT / "jobs/train.py"), "run.yaml", *overrides]
        place = {"cwd": tmp_path, "env": {**environment, "PERDURE_REGISTRY": registry}, "start_new_session": True}
        return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **place)

    def finish(process: subprocess.Popen[str]) -> None:
        output = process.communicate(timeout=400)[0]
        assert process.returncode == 0, output

    def steps() -> list[int]:
        path = tmp_path / "runs/stored/log.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")] if path.exists() else []
        return [line["step"] for line in lines if line["kind"] == "step" and line["task"] == 0]

    first = begin(f"s3://tests/{prefix}/one")
    deadline = time.monotonic() + 240
    while not any(step >= 24 for step in steps()):
        assert first.poll() is None, first.communicate()[0]
        assert time.monotonic() < deadline, "the run did not reach step 24"
        time.sleep(0.02)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    finish(begin(f"s3://tests/{prefix}/one"))
    done = steps()
    restart = next(at for at in range(1, len(done)) if done[at] <= done[at - 1])
    assert done[restart] >= 10, "it went on from a checkpoint, not from the start"
    assert done[restart:] == list(range(done[restart], done[-1] + 1))
    assert not list((tmp_path / "runs/stored/ray").glob("task-*")), "no checkpoint lies in the run's folder"

    finish(begin(f"s3://tests/{prefix}/two"))  # a registry without the task, whose outcome is on S3
    assert steps() == done
    finish(begin(str(tmp_path / "three"), "name=here", "workers.num=0"))

    def weights(url: str, name: str) -> dict[str, torch.Tensor]:
        return load_encoder(open_registry(url).folder(EncoderRef(name, 1))).state_dict()

    expected = weights(str(tmp_path / "three"), "here")
    for registry in ("one", "two"):
        state = weights(f"s3://tests/{prefix}/{registry}", "stored")
        assert all(torch.equal(value, state[key]) for key, value in expected.items())
    client = s3.client()
    stored = [entry["Key"] for entry in client.list_objects_v2(Bucket="tests", Prefix=f"{prefix}/ray/stored/task-0-")["Contents"]]
    assert any(key.endswith("/outcome.json") for key in stored)
    secret = s3.environment["AWS_SECRET_ACCESS_KEY"].encode()
    assert not [key for key in stored if secret in client.get_object(Bucket="tests", Key=key)["Body"].read()]
