"""Workers and nodes that die in the middle of a task, on a real cluster of several nodes: no step is lost or taken twice."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from driver import begin, ended, steps, until, went_on_from_a_checkpoint
from several import Nodes

from perdure.encoders import load_encoder
from perdure.records import EncoderRef
from perdure.registry import open_registry

pytestmark = pytest.mark.cluster

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
    return begin(folder, f"name={name}", *overrides, PERDURE_RAY=nodes.address)


def weights(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """Of the version, of which there is one, with the release that it was published for."""
    registry = open_registry(folder / "registry")
    assert registry.encoders(name) == [EncoderRef(name, 1)]
    assert [release.task for release in registry.releases(name)] == [0]
    return load_encoder(registry.folder(EncoderRef(name, 1))).state_dict()


def test_a_worker_that_is_killed_is_replaced_and_the_task_ends_as_if_nothing_had_happened(
    folder: Path, nodes: Nodes, whole: dict[str, torch.Tensor]
) -> None:
    driver = run(folder, nodes, "worker")
    until(lambda: any(step >= 24 for step in steps(folder, "worker")), driver)
    workers = nodes.train_workers()
    assert len(workers) == 2
    os.kill(workers[0], signal.SIGKILL)
    ended(driver)
    went_on_from_a_checkpoint(steps(folder, "worker"), every=10)
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
    went_on_from_a_checkpoint(steps(folder, "node"), every=10)
    for key, value in weights(folder, "node").items():
        torch.testing.assert_close(value, whole[key], rtol=1e-3, atol=2e-4)  # rounding of 80 steps, summed by one and by two


def test_workers_that_can_never_be_placed_are_told_of_and_nothing_is_taken(folder: Path, nodes: Nodes) -> None:
    driver = run(folder, nodes, "many", "workers.num=5", "workers.start_timeout_s=3")
    output = driver.communicate(timeout=120)[0]
    assert driver.returncode != 0
    assert "no room for the workers in 3 s: asked for 5 x 1 CPU, the cluster has 2 CPU in all" in " ".join(output.split())
    assert open_registry(folder / "registry").encoders("many") == []
