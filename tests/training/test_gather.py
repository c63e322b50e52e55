"""Two workers are one worker: real processes over gloo, the whole training step of every strategy."""

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from ports import free_port
from safetensors.torch import load_file, save_file
from third_task import OPTIONS, SHARED_LAYERS, equip, third_task
from torch import distributed as dist
from torch import multiprocessing

from perdure.encoders import Encoder
from perdure.strategies import STRATEGIES
from perdure.training.gather import ALONE, Distributed, Workers
from perdure.training.loop import TaskData, train_task
from perdure.training.precision import Precision
from perdure.training.schedule import Schedule

FP32 = Precision("fp32", torch.device("cpu"), channels_last=False)
METRICS = {  # fine-tuning by a loss whose parameters, or whose memory and random triplets, must be the same on every worker
    "proxies": {"name": "proxy_anchor"},
    "memory": {"name": "multi_similarity", "memory": 30, "miner": "distance_weighted"},
}


def learn(name: str, encoder: Encoder, task: TaskData, workers: Workers) -> tuple[Encoder, list[int], dict[str, float]]:
    """Two steps of a third task, BatchNorm frozen, plain gradient descent so that gradients are compared, not Adam's signs."""
    options = {"ranking": {"triplet": 0, "metric": METRICS[name]}} if name in METRICS else OPTIONS.get(name, {})
    strategy = STRATEGIES.build("fine_tune" if name in METRICS else name, options)
    equip(name, encoder)
    encoder.set_batch_norm_frozen(True)
    strategy.begin_task(encoder, third_task(encoder, task.labels))
    encoder.grow(num_classes=8)
    schedule = Schedule(epochs=1, batch_size=18, per_class=3, lr=0.05, optimizer="sgd", schedule="constant", crop=2, max_steps=2)
    summary = train_task(encoder, strategy, task, schedule, task_index=2, precision=FP32, workers=workers)
    return encoder, summary.read, summary.terms


def in_process(rank: int, num: int, port: int, names: list[str], encoder: Encoder, task: TaskData, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=num)
    for name in names:
        mine = copy.deepcopy(encoder)  # what arrives through torch.multiprocessing shares its memory with the parent and the siblings
        learned, read, terms = learn(name, mine, task, Distributed())
        save_file({key: value.contiguous() for key, value in learned.state_dict().items()}, f"{folder}/{name}-{num}-{rank}.safetensors")
        Path(folder, f"{name}-{num}-{rank}.json").write_text(json.dumps({"read": sorted(read), "terms": terms}))
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # all is written; on a busy machine the end of the interpreter once met a thread of gloo's, and abort()


def task_for(num: int, toy_encoder: Callable[..., Encoder], toy_task: Callable[..., TaskData], *, joint: bool) -> tuple[Encoder, TaskData]:
    """With text for two workers, without for three."""
    parent = toy_encoder(text=num == 2, joint=joint)
    for module in parent.modules():  # every worker draws its own dropout; without it the mathematics must agree
        if hasattr(module, "dropout") and isinstance(module.dropout, float):
            module.dropout = 0.0
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return parent, toy_task(1, text=num == 2)


@pytest.fixture(scope="module")
def by_workers(tmp_path_factory: pytest.TempPathFactory, toy_encoder: Callable[..., Encoder], toy_task: Callable[..., TaskData]) -> Path:
    """The folder with what the workers of each number learned: two by every strategy, three (slices of unequal length) by one."""
    folder = tmp_path_factory.mktemp("workers")
    plain = [name for name in (*STRATEGIES, *METRICS) if name not in SHARED_LAYERS]
    for num, names, joint in ((2, plain, False), (2, [*SHARED_LAYERS], True), (3, ["correlation"], False)):
        given = task_for(num, toy_encoder, toy_task, joint=joint)
        multiprocessing.spawn(in_process, args=(num, free_port(), names, *given, str(folder)), nprocs=num)
    return folder


@pytest.mark.parametrize(("name", "num"), [*((name, 2) for name in [*STRATEGIES, *METRICS]), ("correlation", 3)])
def test_workers_do_not_change_loss_gradient_or_weights(
    name: str, num: int, by_workers: Path, toy_encoder: Callable[..., Encoder], toy_task: Callable[..., TaskData]
) -> None:
    alone, read, terms = learn(name, *task_for(num, toy_encoder, toy_task, joint=name in SHARED_LAYERS), ALONE)
    for rank in range(num):
        together = load_file(by_workers / f"{name}-{num}-{rank}.safetensors")
        for key, value in alone.state_dict().items():
            torch.testing.assert_close(together[key], value, rtol=1e-5, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}")
        record = json.loads((by_workers / f"{name}-{num}-{rank}.json").read_text())
        assert record["read"] == sorted(read), "the read log is the union over the workers"
        assert record["terms"] == pytest.approx(terms, abs=2e-5)
