"""The client of `benchmarks/serving.py`: a process that asks an arm for a while, and what came of it."""

import asyncio
import contextlib
import json
import multiprocessing
import random
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

import aiohttp
import numpy as np
from numpy.typing import NDArray

from benchmarks.serving_parts.arms import BEST, TEXTS, Plain, Rows
from perdure.index import FlatPartition
from serve.batching import Batcher, in_thread

WARM_S = 0.4  # asked before each measurement, and not counted


@dataclass(frozen=True)
class Load:
    """What a client does for a while: `clients` that ask again when they are answered, or else `rate` requests a second."""

    url: str
    seconds: float
    clients: int = 0
    rate: float = 0.0
    seed: int = 0


@dataclass
class Told:
    """What came of it."""

    ms: list[float] = field(default_factory=list)  # of each request that began in time
    failed: int = 0
    per_s: float = 0.0  # answers

    def percentile(self, percent: float) -> float:
        return float(np.percentile(self.ms, percent)) if self.ms else float("nan")


def client(orders: Connection) -> None:
    """The process that asks: takes loads, gives what came of them."""
    while (load := orders.recv()) is not None:
        orders.send(asyncio.run(carry_out(load)))


async def carry_out(load: Load) -> Told:
    """Ask."""
    told, drawn = Told(), random.Random(load.seed)
    timeout = aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=load.clients or 64)) as http:

        async def ask(since: float | None = None) -> None:
            began = time.perf_counter() if since is None else since
            body = json.dumps({"text": drawn.choice(TEXTS)})
            try:
                async with http.post(load.url, data=body, headers={"Content-Type": "application/json"}) as answer:
                    await answer.read()
                    answered = answer.status == 200
            except (aiohttp.ClientError, TimeoutError):
                answered = False
            if answered:
                told.ms.append((time.perf_counter() - began) * 1e3)
            else:
                told.failed += 1

        async def keep_asking(until: float) -> None:
            while time.perf_counter() < until:
                await ask()

        await asyncio.gather(*(keep_asking(time.perf_counter() + WARM_S) for _ in range(load.clients or 2)))
        told = Told()
        began = time.perf_counter()
        if load.clients:
            await asyncio.gather(*(keep_asking(began + load.seconds) for _ in range(load.clients)))
        else:
            at, tasks = began, list[asyncio.Task[None]]()
            while (at := at + drawn.expovariate(load.rate)) < began + load.seconds:
                await asyncio.sleep(max(0.0, at - time.perf_counter()))
                tasks.append(asyncio.create_task(ask(at)))
            await asyncio.gather(*tasks)
        told.per_s = len(told.ms) / (time.perf_counter() - began)
    return told


@contextlib.contextmanager
def client_process() -> Generator[Callable[[Load], Told]]:
    """A client that carries out loads, until the block ends."""
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    process = spawn.Process(target=client, args=(there,), daemon=True)
    process.start()

    def carried_out(load: Load) -> Told:
        here.send(load)
        return here.recv()

    yield carried_out
    here.send(None)
    process.join()


# -- in this process ------------------------------------------------------------------------------------------------------


def search_in_process(plain: Plain, seconds: float, rate: float = 0.0) -> Told:
    """One search after the other, or so many a second: what was not asked for a while has left the processor's caches."""
    told, drawn = Told(), random.Random(0)
    began = time.perf_counter()
    while time.perf_counter() < began + seconds:
        if rate:
            time.sleep(drawn.expovariate(rate))
        started = time.perf_counter()
        plain.nearest(plain.encode(TEXTS[len(told.ms) % len(TEXTS)]))
        told.ms.append((time.perf_counter() - started) * 1e3)
    told.per_s = len(told.ms) / (time.perf_counter() - began)
    return told


def scans(partition: FlatPartition, queries: Rows, *, callers: int, together: int, seconds: float) -> float:
    """Searches a second of a partition by so many callers at once, by way of the service's `Batcher`."""

    def work(asked: list[Rows]) -> list[NDArray[np.int64]]:
        return list(partition.search(np.stack(asked), BEST).rows)

    async def scenario() -> float:
        batcher: Batcher[Rows, NDArray[np.int64]] = Batcher(in_thread(work), together)
        answered = 0

        async def keep_asking(number: int, until: float) -> None:
            nonlocal answered
            while time.perf_counter() < until:
                await batcher(queries[(number + answered) % len(queries)])
                answered += 1

        began = time.perf_counter()
        await asyncio.gather(*(keep_asking(number, began + seconds) for number in range(callers)))
        return answered / (time.perf_counter() - began)

    return asyncio.run(scenario())
