"""Workers and nodes that die in the middle of a task, on a real cluster of several nodes: no step is lost or taken twice."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml
from ray_processes import ray_processes

from perdure.encoders import load_encoder
from perdure.records import EncoderRef
from perdure.registry import open_registry

pytestmark = pytest.mark.cluster
HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]

RUN = {
    "stream": {
        "dataset": {"name": "scenes", "items": 120, "classes": 4, "size": 24},
        "kind": {"name": "class_incremental", "first": 4, "step": 1, "tasks": 1},
    },
    "encoder": {"name": "small_resnet", "image_size": 24, "width": 4, "embedding_dim": 16},
    "train": {
        "epochs": 20,
        "batch_size": 24,
        "per_class": 6,
        "precision": "fp32",
        "checkpoint_every": 10,
        "freeze_batch_norm": True,  # else each worker's own statistics, and with them the number of workers, are in the weights
        "optimizer": "sgd",
        "lr": 0.01,
    },
    "workers": {"num": 2, "threads": 1},
}


class Nodes:
    """The cluster of `nodes.py`."""

    def __init__(self) -> None:
        self.process = subprocess.Popen([sys.executable, str(HERE / "nodes.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.address = self._answer()

    def tell(self, verb: str, name: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{verb} {name}\n")
        self.process.stdin.flush()
        assert self._answer() == name

    def _answer(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        assert line, "the cluster ended by itself"
        return line

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(120)

    def train_workers(self) -> list[int]:
        """The processes of Ray Train's workers, as pids."""
        return ray_processes("RayTrainWorker", of=self.process.pid)


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    cluster = Nodes()
    for name in ("a", "b"):
        cluster.tell("add", name)
    yield cluster
    cluster.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def whole(folder: Path, nodes: Nodes) -> dict[str, torch.Tensor]:
    """What two workers learn whom nothing happens to."""
    ended(run(folder, nodes, "whole"))
    return weights(folder, "whole")


def run(folder: Path, nodes: Nodes, name: str, *overrides: str) -> subprocess.Popen[str]:
    (folder / "run.yaml").write_text(yaml.safe_dump(RUN))
    environment = {
        **os.environ,
        "PERDURE_RUNS": str(folder / "runs"),
        "PERDURE_CACHE": str(folder / "cache"),
        "PERDURE_RAY": nodes.address,
        "OMP_NUM_THREADS": "1",
        "RAY_AUTH_MODE": "disabled",
    }
    words = [sys.executable, str(ROOT / "jobs" / "train.py"), "run.yaml", f"name={name}", *overrides]
    return subprocess.Popen(words, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def ended(driver: subprocess.Popen[str]) -> str:
    output = driver.communicate(timeout=400)[0]
    assert driver.returncode == 0, output
    return output


def steps(folder: Path, name: str) -> list[int]:
    path = folder / "runs" / name / "log.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")] if path.exists() else []
    return [line["step"] for line in lines if line["kind"] == "step"]


def until(what: Callable[[], bool], driver: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 240
    while not what():
        assert driver.poll() is None, driver.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def weights(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """Of the version, of which there is one, with the release that it was published for."""
    registry = open_registry(folder / "registry")
    assert registry.encoders(name) == [EncoderRef(name, 1)]
    assert [release.task for release in registry.releases(name)] == [0]
    return load_encoder(registry.folder(EncoderRef(name, 1))).state_dict()


def went_on_from_a_checkpoint(done: list[int]) -> None:
    """All steps up to the fault; then from a checkpoint on all that were left, none twice."""
    restart = next(at for at in range(1, len(done)) if done[at] <= done[at - 1])
    assert done[:restart] == list(range(restart))
    assert done[restart] >= 10 and done[restart] % 10 == 0, "it began at a checkpoint, not anew"
    assert done[restart:] == list(range(done[restart], done[-1] + 1))


def test_a_worker_that_is_killed_is_replaced_and_the_task_ends_as_if_nothing_had_happened(
    folder: Path, nodes: Nodes, whole: dict[str, torch.Tensor]
) -> None:
    driver = run(folder, nodes, "worker")
    until(lambda: any(step >= 24 for step in steps(folder, "worker")), driver)
    workers = nodes.train_workers()
    assert len(workers) == 2
    os.kill(workers[0], signal.SIGKILL)
    ended(driver)
    went_on_from_a_checkpoint(steps(folder, "worker"))
    assert steps(folder, "worker")[-1] == steps(folder, "whole")[-1]
    for key, value in weights(folder, "worker").items():
        torch.testing.assert_close(value, whole[key], rtol=1e-6, atol=1e-6)


def test_a_node_that_dies_leaves_fewer_workers_who_go_on_with_the_same_samples(
    folder: Path, nodes: Nodes, whole: dict[str, torch.Tensor]
) -> None:
    driver = run(folder, nodes, "node", "workers.num=[1,2]")
    until(lambda: any(step >= 24 for step in steps(folder, "node")), driver)
    assert len(nodes.train_workers()) == 2
    nodes.tell("kill", "b")
    until(lambda: len(nodes.train_workers()) == 1 and max(steps(folder, "node")) < steps(folder, "whole")[-1], driver)
    ended(driver)
    nodes.tell("add", "b")
    went_on_from_a_checkpoint(steps(folder, "node"))
    for key, value in weights(folder, "node").items():
        torch.testing.assert_close(value, whole[key], rtol=1e-3, atol=2e-4)  # rounding of 80 steps, summed by one and by two


def test_workers_that_can_never_be_placed_are_told_of_and_nothing_is_taken(folder: Path, nodes: Nodes) -> None:
    driver = run(folder, nodes, "many", "workers.num=5", "workers.start_timeout_s=3")
    output = driver.communicate(timeout=120)[0]
    assert driver.returncode != 0
    assert "no room for the workers in 3 s: asked for 5 x 1 CPU, the cluster has 2 CPU in all" in " ".join(output.split())
    assert open_registry(folder / "registry").encoders("many") == []
