"""What Ray costs beside the plain loop, and what a second worker brings, at the same number of threads in all.

    python benchmarks/scaling.py [--steps 60] [--rounds 3] [--threads N] [--batch 128]

Each round learns the same task three times: in this process with all threads, on Ray Train with one worker that has all threads, and with
two that have half each. A step's time is from one line of the log to the next, so all that happens in between counts; the first ten
steps do not. Before it, what two workers say to each other in a step is timed alone: embeddings gathered, with their gradient on the way
back, and the gradients of all weights averaged.
"""

import argparse
import contextlib
import json
import os
import socket
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch import distributed as dist
from torch import multiprocessing

from perdure import pipeline
from perdure.cluster.train import learn_with_ray, ray_cluster
from perdure.config import RunConfig, parse
from perdure.encoders import build_encoder
from perdure.run import learn_stream
from perdure.training.gather import Distributed

SIZE, CLASSES, DIM = 32, 24, 128
LEFT_OUT = 10  # steps at the beginning
ARMS = {"in this process": 0, "Ray, 1 worker": 1, "Ray, 2 workers": 2}


def config(name: str, workers: int, given: argparse.Namespace) -> RunConfig:
    """One task of all classes; what comes after the training is as small as it can be."""
    return parse(
        {
            "name": name,
            "stream": {
                "dataset": {"name": "scenes", "items": 1536, "classes": CLASSES, "size": SIZE},
                "kind": {"name": "class_incremental", "first": CLASSES, "step": 1, "tasks": 1},
            },
            "encoder": {"name": "small_resnet", "image_size": SIZE, "embedding_dim": DIM, "text": "none"},
            "strategy": "fine_tune",
            "train": {
                "epochs": 1000,
                "max_steps": given.steps + LEFT_OUT,
                "batch_size": given.batch,
                "per_class": 4,
                "checkpoint_every": 0,
            },
            "workers": {"num": workers, "threads": max(1, given.threads // max(workers, 1))},
            "registry": "registry",
        }
    )


def seconds_a_step(name: str) -> float:
    """The mean over the steps that count."""
    lines = [json.loads(line) for line in Path("runs", name, "log.jsonl").read_text().splitlines()]
    times = [line["time_s"] for line in lines if line["kind"] == "step"][LEFT_OUT - 1 :]
    return (times[-1] - times[0]) / (len(times) - 1)


def talk(rank: int, port: int, batch: int, weights: int, repeats: int, out: str) -> None:
    """One of two workers that only talk; the first writes down the seconds of a gather with its way back, and of an average."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    workers, gradient = Distributed(), torch.randn(weights)
    seconds: list[tuple[float, float]] = []
    for _ in range(repeats + LEFT_OUT):
        rows = torch.randn(batch // 2, DIM, requires_grad=True)
        dist.barrier()
        started = time.perf_counter()
        workers.gather(rows, batch).square().sum().backward()
        between = time.perf_counter()
        workers.average([gradient])
        seconds.append((between - started, time.perf_counter() - between))
    if rank == 0:
        Path(out).write_text(json.dumps([statistics.median(column) for column in zip(*seconds[LEFT_OUT:], strict=True)]))
    dist.destroy_process_group()


def talking(batch: int, repeats: int) -> tuple[float, float]:
    """Seconds of a gather with its way back, and of an average of all gradients, between two processes."""
    encoder = build_encoder("small_resnet", {"image_size": SIZE, "embedding_dim": DIM, "text": "none"}, with_text=False, seed=0)
    weights = sum(parameter.numel() for parameter in encoder.parameters())
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    multiprocessing.spawn(talk, args=(port, batch, weights, repeats, "talk.json"), nprocs=2)
    gather, average = json.loads(Path("talk.json").read_text())
    return gather, average


def main() -> None:
    parser = argparse.ArgumentParser(description="Ray beside the plain loop; two workers beside one.")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--batch", type=int, default=128)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    times: dict[str, list[float]] = {arm: [] for arm in ARMS}
    startup: dict[str, list[float]] = {arm: [] for arm in ARMS}
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        os.environ.update(PERDURE_RUNS="runs", PERDURE_CACHE="cache")
        gather, average = talking(given.batch, given.steps)
        with ray_cluster(config("any", 2, given)):
            for turn in range(given.rounds):
                for arm, workers in ARMS.items():
                    name = f"turn-{turn}-{workers}"
                    started = time.perf_counter()
                    learn_stream(config(name, workers, given), learner=learn_with_ray if workers else pipeline.learn_here)
                    times[arm].append(seconds_a_step(name))
                    startup[arm].append(time.perf_counter() - started - times[arm][-1] * (given.steps + LEFT_OUT))
    base = times["in this process"]
    print(f"{given.threads} threads in all, batch {given.batch}, {SIZE} x {SIZE}, {given.rounds} rounds of {given.steps} steps")
    print(f"{'':18s} {'images/s':>9s} {'step, beside the plain loop':>28s} {'(range)':>14s} {'everything else, s':>19s}")
    for arm, own in times.items():
        ratios = [mine / plain for mine, plain in zip(own, base, strict=True)]
        print(
            f"{arm:18s} {given.batch / statistics.median(own):9.0f} {statistics.median(ratios):26.3f} x "
            f"{f'({min(ratios):.3f}-{max(ratios):.3f})':>14s} {statistics.median(startup[arm]):19.1f}"
        )
    two = statistics.median(times["Ray, 2 workers"])
    efficiency = statistics.median(one / both for one, both in zip(times["Ray, 1 worker"], times["Ray, 2 workers"], strict=True))
    print(f"two workers beside one, at the same number of threads in all: {100 * efficiency:.0f} %")
    print(
        f"two workers to each other, alone: gather and back {1000 * gather:.2f} ms, all gradients {1000 * average:.2f} ms, "
        f"{100 * (gather + average) / two:.1f} % of a step"
    )


if __name__ == "__main__":
    main()
