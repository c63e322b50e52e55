"""Ray Train's checkpoints on S3: a driver that is killed in the middle of a task goes on from there, and one that ended is not repeated."""

import os
import signal
from pathlib import Path

import pytest
import torch
import yaml
from driver import begin, ended, steps, until, went_on_from_a_checkpoint
from s3_server import S3Server

from perdure.encoders import load_encoder
from perdure.records import EncoderRef
from perdure.registry import open_registry

pytestmark = pytest.mark.cluster

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
    on_s3 = {**s3.environment, "PERDURE_STORAGE": f"s3://tests/{prefix}/ray"}

    first = begin(tmp_path, **on_s3, PERDURE_REGISTRY=f"s3://tests/{prefix}/one")
    until(lambda: any(step >= 24 for step in steps(tmp_path, "stored")), first)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    ended(begin(tmp_path, **on_s3, PERDURE_REGISTRY=f"s3://tests/{prefix}/one"))
    done = steps(tmp_path, "stored")
    went_on_from_a_checkpoint(done, every=10)
    assert not list((tmp_path / "runs/stored/ray").glob("task-*")), "no checkpoint lies in the run's folder"

    ended(begin(tmp_path, **on_s3, PERDURE_REGISTRY=f"s3://tests/{prefix}/two"))  # which has not the task, whose outcome is on S3
    assert steps(tmp_path, "stored") == done
    ended(begin(tmp_path, "name=here", "workers.num=0", PERDURE_REGISTRY=str(tmp_path / "three")))

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
