"""A gallery embedded by Ray workers beside a bare loop in this process, with the same number of threads in all, in one run, as a ratio.

    python benchmarks/encode.py [--items 2048] [--rounds 5] [--threads N] [--workers 2]

Two kinds of galleries: encoded pictures (PNG), which are decoded and embedded, as a backfill does; and pictures that are decoded
already, as a run's decode cache has them. The bare loop decodes a batch in as many threads and then embeds it with as many. The two take
turns, so that whatever else the machine does meets both; the figure is the median of the rounds' ratios. How long the workers take to
begin is told apart.
"""

import argparse
import os
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from perdure.cluster.embed import RayEmbedder
from perdure.cluster.train import ray_cluster
from perdure.config import WorkersConfig, parse
from perdure.data import DATASETS
from perdure.data.pixels import decode_image
from perdure.data.transforms import to_float
from perdure.encoders import Encoder, build_encoder
from perdure.progress import SilentProgress

SIZE, BATCH = 32, 64


def bare(encoder: Encoder, batches: list[Any], pool: ThreadPoolExecutor) -> Iterator[np.ndarray]:
    """What one writes first."""
    for batch in batches:
        pixels = batch if isinstance(batch, np.ndarray) else np.stack(list(pool.map(lambda data: decode_image(data, SIZE), batch)))
        yield encoder.embed_images(to_float(torch.from_numpy(pixels))).numpy()


def rate(made: Iterator[np.ndarray]) -> float:
    """Pictures per second."""
    started = time.perf_counter()
    done = sum(len(vectors) for vectors in made)
    return done / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description="Embedding by Ray workers beside a bare loop.")
    parser.add_argument("--items", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    encoder = build_encoder("small_resnet", {"image_size": SIZE, "text": "none"}, with_text=False, seed=0).eval()
    scenes = DATASETS.build("scenes", {"items": min(given.items, 1024), "classes": 24, "size": 2 * SIZE})
    encoded = [scenes.image_bytes(at % len(scenes.items)) for at in range(given.items)]
    stored: list[Any] = [encoded[at : at + BATCH] for at in range(0, given.items, BATCH)]
    galleries = {"encoded": stored, "decoded": [np.stack([decode_image(data, SIZE) for data in batch]) for batch in stored]}
    workers = WorkersConfig(num=given.workers, threads=max(1, given.threads // given.workers))
    rates: dict[tuple[str, str], list[float]] = {(kind, arm): [] for kind in galleries for arm in ("bare", "Ray")}
    config = parse({"workers": workers.model_dump()})
    with ray_cluster(config), ThreadPoolExecutor(given.threads) as pool, RayEmbedder(workers, SilentProgress()) as spread:
        started = time.perf_counter()
        list(spread(encoder, stored))  # warm, and both workers there
        apart = [np.abs(a - b).max() for a, b in zip(spread(encoder, stored), bare(encoder, stored, pool), strict=True)]
        startup = time.perf_counter() - started
        for turn in range(given.rounds):
            for kind, batches in galleries.items():
                for arm in ("bare", "Ray")[:: -1 if turn % 2 else 1]:
                    rates[kind, arm].append(rate(bare(encoder, batches, pool) if arm == "bare" else spread(encoder, batches)))
    print(f"{given.threads} threads in all, {given.workers} workers, {SIZE} x {SIZE}, {given.items} items, {given.rounds} rounds")
    for kind in galleries:
        ratios = [mine / plain for mine, plain in zip(rates[kind, "Ray"], rates[kind, "bare"], strict=True)]
        print(
            f"{kind:8s} bare {statistics.median(rates[kind, 'bare']):7.0f} pictures/s   Ray {statistics.median(rates[kind, 'Ray']):7.0f}   "
            f"{statistics.median(ratios):.2f} x bare ({min(ratios):.2f} to {max(ratios):.2f})"
        )
    print(f"largest difference of a number of a vector: {max(apart):.1e}; beginning, with a warm pass of each: {startup:.1f} s")


if __name__ == "__main__":
    main()
