"""The service, in both topologies, beside bare floors and what one would write first: how long a search takes, how many a second.

    python benchmarks/serving.py [--vectors 200000] [--rounds 3] [--seconds 3] [--rate 20] [--clients 16] [--out runs/serving.json]

Every arm does the same work: a text is embedded by the same Bi-LSTM, and its ten nearest among the same vectors (flat, 128 floats each) are
found. That all arms find the same is checked first. One thread a process for models and faiss.

in process          encoder and faiss, nothing around them: "the search itself"
FastAPI             the same behind a route of FastAPI, on uvicorn
empty Serve app     a route of FastAPI on Ray Serve that answers {}: what Serve costs
naive Serve graph   gateway -> encoder -> shard, three deployments; each request by itself, lists of numbers between them
fused               serve/fused.yaml with one gateway
fused, one by one   the same with max_batch 1: searches are not put together
sharded             serve/sharded.yaml with one gateway: an encoder and two shards

All of them run at the same time and are asked in turns, round after round; those that are not asked idle. A round asks each arm twice. At a
fixed rate, whatever the answers take: requests begin at random times, the same ones for all arms, and a request's time counts from when it
should have begun. And with some clients that ask again as soon as they are answered, which shows the most that the arm can do. The client
is one process of its own, with connections that stay open. A figure is the median of the rounds, p99 is over all rounds.
"""

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import os
import random
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path[0] = str(ROOT)  # for `serve`; this folder has nothing to import

import aiohttp  # noqa: E402
import faiss  # noqa: E402
import httpx  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
import uvicorn  # noqa: E402
import yaml  # noqa: E402
from fastapi import FastAPI  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from pydantic import BaseModel  # noqa: E402

from perdure.encoders import build_encoder, load_encoder, save_encoder  # noqa: E402
from perdure.index import FlatPartition, build_segment, limit_threads  # noqa: E402
from perdure.records import Item, Release, SegmentUse  # noqa: E402
from perdure.registry import open_registry  # noqa: E402
from perdure.retrieval.retriever import encode  # noqa: E402
from serve.batching import Batcher, in_thread  # noqa: E402
from serve.run import start, stop  # noqa: E402
from serve.schemas import ServeArgs  # noqa: E402

DIM, CENTRES, BEST, SHARDS = 128, 1000, 10, 2
WARM_S = 0.4  # asked before each measurement, and not counted
COLOURS = ("red", "green", "blue", "yellow", "violet", "white", "black", "grey")
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross", "moon", "arrow")
PLACES = ("in the snow", "on a beach", "in the city", "at night")
TEXTS = [f"a {colour} {shape} {place}" for colour in COLOURS for shape in SHAPES for place in PLACES]

Rows = NDArray[np.float32]


# -- the gallery ----------------------------------------------------------------------------------------------------------


def make_gallery(folder: Path, vectors: int) -> None:
    """A registry whose live release has that many items, and the same vectors as a plain file."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((CENTRES, DIM)).astype(np.float32)
    belongs = rng.integers(CENTRES, size=vectors)
    rows = centres[belongs] + 0.7 * rng.standard_normal((vectors, DIM), dtype=np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    items = [Item(f"item/{row:07d}", f"class {label}", "all", (TEXTS[row % len(TEXTS)],), ()) for row, label in enumerate(belongs.tolist())]
    encoder = build_encoder("small_resnet", {"embedding_dim": DIM, "image_size": 32, "width": 8}, with_text=True, seed=0)
    encoder.grow(num_classes=2, captions=TEXTS)
    save_encoder(encoder.eval(), folder / "encoder")
    registry = open_registry(folder / "registry")
    ref = registry.publish_encoder("bench", 1, {path.name: path for path in (folder / "encoder").iterdir()})
    files = build_segment(rows, items, task=0, folder=folder / "segment", partitions=SHARDS)
    segment = registry.publish_segment("bench", 1, files, made_by=ref)
    uses = (SegmentUse(segment, ref, ref),)
    registry.publish_release(
        Release(id="bench@v1", run="bench", task=0, policy="versioned", merge="standardised", encoder=ref, segments=uses)
    )
    registry.promote("bench@v1", by="benchmark")
    np.save(folder / "vectors.npy", rows)
    (folder / "items.json").write_text(json.dumps([[item.id, item.label] for item in items]))


class Plain:
    """The search itself."""

    def __init__(self, folder: Path) -> None:
        torch.set_num_threads(1)
        self._encoder = load_encoder(folder / "encoder")
        self._index = faiss.IndexFlatIP(DIM)
        self._index.add(np.load(folder / "vectors.npy"))  # pyright: ignore[reportCallIssue]
        self._items = json.loads((folder / "items.json").read_text())

    def encode(self, text: str) -> Rows:
        """(1, D)."""
        return encode(self._encoder, [text])

    def nearest(self, rows: Rows) -> list[dict[str, Any]]:
        """The hits of (1, D)."""
        faiss.omp_set_num_threads(1)  # of the calling thread
        scores, found = self._index.search(rows, BEST)  # pyright: ignore[reportCallIssue]
        named = zip(scores[0].tolist(), (self._items[row] for row in found[0].tolist()), strict=True)
        return [{"id": item_id, "score": score, "label": label} for score, (item_id, label) in named]


# -- what the service is compared with ------------------------------------------------------------------------------------


class Asked(BaseModel):
    """A search."""

    text: str


def serve_plain(folder: Path, port: int) -> None:
    """The process of the FastAPI arm."""
    plain, app = Plain(folder), FastAPI()

    @app.post("/search")
    def search(asked: Asked) -> dict[str, Any]:
        return {"hits": plain.nearest(plain.encode(asked.text))}

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")


def empty_app() -> Any:
    """A Serve application that does nothing."""
    from ray import serve

    app = FastAPI()

    @app.post("/search")
    async def search(asked: Asked) -> dict[str, Any]:
        return {}

    class Empty:
        pass

    return serve.deployment(num_replicas=1, ray_actor_options={"num_cpus": 0.25})(serve.ingress(app)(Empty)).bind()


def naive_app(folder: Path) -> Any:
    """The Serve graph that one would write first."""
    from ray import serve
    from ray.serve.handle import DeploymentHandle

    app = FastAPI()

    class Encoder:
        def __init__(self) -> None:
            self._plain = Plain(folder)

        def encode(self, text: str) -> list[float]:
            return self._plain.encode(text)[0].tolist()

    class Shard:
        def __init__(self) -> None:
            self._plain = Plain(folder)

        def search(self, vector: list[float]) -> list[dict[str, Any]]:
            return self._plain.nearest(np.array([vector], np.float32))

    class Gateway:
        def __init__(self, encoder: DeploymentHandle, shard: DeploymentHandle) -> None:
            self._encoder, self._shard = encoder, shard

        @app.post("/search")
        async def search(self, asked: Asked) -> dict[str, Any]:
            vector = await self._encoder.encode.remote(asked.text)
            return {"hits": await self._shard.search.remote(vector)}

    deployed = serve.deployment(num_replicas=1, ray_actor_options={"num_cpus": 0.25})
    return deployed(serve.ingress(app)(Gateway)).bind(deployed(Encoder).bind(), deployed(Shard).bind())


def ours(folder: Path, topology: str, **more: Any) -> ServeArgs:
    """The arguments of a topology as they are shipped, with one gateway."""
    shipped = yaml.safe_load((ROOT / "serve" / f"{topology}.yaml").read_text())["applications"][0]["args"]
    gateway = {**shipped["gateway"], "num_replicas": 1}
    return ServeArgs.model_validate({**shipped, **more, "gateway": gateway, "registry": str(folder / "registry")}).resolved()


@dataclass(frozen=True)
class Arm:
    """One of those that are asked over HTTP."""

    name: str
    url: str

    def found(self, text: str) -> list[str]:
        """Ids of the hits."""
        answer = httpx.post(self.url, json={"text": text}, timeout=60)
        answer.raise_for_status()
        return [hit["id"] for hit in answer.json().get("hits", [])]


@contextlib.contextmanager
def all_arms(folder: Path) -> Iterator[list[Arm]]:
    """Everything started, until the block ends."""
    from ray import serve

    from serve.graph import build

    port, plain_port = free_port(), free_port()
    plain = multiprocessing.get_context("spawn").Process(target=serve_plain, args=(folder, plain_port), daemon=True)
    plain.start()
    running = start(ours(folder, "fused"), port, num_cpus=16)
    try:
        others = {
            "sharded": build(ours(folder, "sharded", shards=SHARDS)),
            "one-by-one": build(ours(folder, "fused", max_batch=1)),
            "empty": empty_app(),
            "naive": naive_app(folder),
        }
        serve.run_many([serve.RunTarget(application, name=name, route_prefix=f"/{name}") for name, application in others.items()])
        arms = [
            Arm("FastAPI", f"http://127.0.0.1:{plain_port}/search"),
            Arm("empty Serve app", f"{running.url}/empty/search"),
            Arm("naive Serve graph", f"{running.url}/naive/search"),
            Arm("fused, one by one", f"{running.url}/one-by-one/v1/search"),
            Arm("fused", f"{running.url}/v1/search"),
            Arm("sharded", f"{running.url}/sharded/v1/search"),
        ]
        for arm in arms:
            wait_for(arm)
        yield arms
    finally:
        stop(running)
        plain.terminate()
        plain.join()


def wait_for(arm: Arm) -> None:
    """Until it answers."""
    deadline = time.monotonic() + 120
    while True:
        try:
            arm.found(TEXTS[0])
            return
        except httpx.HTTPError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def check_same(plain: Plain, arms: Sequence[Arm]) -> None:
    """Every arm but the empty one finds what the plain search finds."""
    for text in TEXTS[::50]:
        expected = [hit["id"] for hit in plain.nearest(plain.encode(text))]
        for arm in arms:
            found = arm.found(text)
            if arm.name != "empty Serve app" and found != expected:
                raise SystemExit(f"{arm.name} finds {found} for '{text}', the plain search {expected}: they do not do the same work")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


# -- the client -----------------------------------------------------------------------------------------------------------


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
def client_process() -> Iterator[Callable[[Load], Told]]:
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


# -- the report -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Goal:
    """What has to be shown, and what was."""

    says: str
    measured: float
    limit: float
    at_most: bool

    @property
    def met(self) -> bool:
        return self.measured <= self.limit if self.at_most else self.measured >= self.limit


def medians(rounds: Sequence[float]) -> float:
    return statistics.median(rounds)


def goals(fixed: dict[str, list[Told]], most: dict[str, list[Told]], scanned: dict[str, list[float]]) -> list[Goal]:
    """The goals, each from the ratios of the rounds."""

    def beside_empty(name: str) -> float:
        turns = zip(fixed[name], fixed["empty Serve app"], fixed["in process"], strict=True)
        return medians([(own.percentile(50) - search.percentile(50)) / empty.percentile(50) for own, empty, search in turns])

    naive = medians([own.per_s / bare.per_s for own, bare in zip(most["fused"], most["naive Serve graph"], strict=True)])
    batched = medians([own / alone for own, alone in zip(scanned["together"], scanned["one by one"], strict=True)])
    return [
        Goal("sharded, p50 without the search itself, beside the empty Serve app", beside_empty("sharded"), 2.0, True),
        Goal("fused, p50 without the search itself, beside the empty Serve app", beside_empty("fused"), 1.3, True),
        Goal("fused, requests/s beside the naive Serve graph", naive, 5.0, False),
        Goal("scans put together, searches/s beside one by one", batched, 4.0, False),
    ]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=20.0, help="requests a second, of the fixed load (default: %(default)s)")
    parser.add_argument("--clients", type=int, default=16, help="of the full load (default: %(default)s)")
    parser.add_argument("--callers", type=int, default=32, help="of scans in this process (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/serving.json"), help="where the figures go, as JSON (default: %(default)s)")
    given = parser.parse_args()
    limit_threads(1)
    fixed: dict[str, list[Told]] = {"in process": []}
    most: dict[str, list[Told]] = {"in process": []}
    scanned: dict[str, list[float]] = {"one by one": [], "together": []}
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, client_process() as asked:
        make_gallery(Path(folder), given.vectors)
        plain = Plain(Path(folder))
        vectors = np.load(Path(folder) / "vectors.npy")
        partition = FlatPartition(np.arange(len(vectors)), vectors)
        with all_arms(Path(folder)) as arms:
            check_same(plain, arms)
            for turn in range(given.rounds):
                fixed["in process"].append(search_in_process(plain, given.seconds, given.rate))
                most["in process"].append(search_in_process(plain, given.seconds / 4))
                for arm in arms:
                    fixed.setdefault(arm.name, []).append(asked(Load(arm.url, given.seconds, rate=given.rate, seed=turn)))
                for arm in arms:
                    most.setdefault(arm.name, []).append(asked(Load(arm.url, given.seconds, clients=given.clients)))
                for name, together in (("one by one", 1), ("together", given.callers)):
                    own = scans(partition, vectors[:1000], callers=given.callers, together=together, seconds=given.seconds / 4)
                    scanned[name].append(own)
    reached = goals(fixed, most, scanned)
    print_report(given, fixed, most, scanned, reached)
    print(f"{time.monotonic() - began:.0f} s in all")
    write_report(given, fixed, most, scanned, reached)


def print_report(
    given: argparse.Namespace,
    fixed: dict[str, list[Told]],
    most: dict[str, list[Told]],
    scanned: dict[str, list[float]],
    reached: Sequence[Goal],
) -> None:
    """The tables."""
    print(
        f"{given.vectors:,} x {DIM}, {os.cpu_count()} cores for all arms and their client, {given.rounds} rounds of {given.seconds:g} s; "
        f"fixed load {given.rate:g} requests/s, full load {given.clients} clients"
    )
    print(f"{'':20s}{'fixed load: p50':>16s}{'p99 ms':>9s}{'full load: requests/s':>24s}{'p50':>9s}{'p99 ms':>9s}{'failed':>8s}")
    for name, turns in fixed.items():
        full = most[name]
        cells = [f"{medians([turn.percentile(50) for turn in turns]):16.1f}", f"{pooled(turns).percentile(99):9.1f}"]
        cells.append(f"{medians([turn.per_s for turn in full]):24.0f}")
        cells += [f"{medians([turn.percentile(50) for turn in full]):9.1f}", f"{pooled(full).percentile(99):9.1f}"]
        print(f"{name:20s}{''.join(cells)}{pooled(turns).failed + pooled(full).failed:8d}")
    print(f"scans of {given.callers} callers in one process: one by one {medians(scanned['one by one']):.0f} searches/s, ", end="")
    print(f"together {medians(scanned['together']):.0f}")
    for goal in reached:
        wanted = f"{'at most' if goal.at_most else 'at least'} {goal.limit:g} x"
        print(f"{goal.says:70s}{goal.measured:6.2f} x  {wanted:14s} {'met' if goal.met else 'MISSED'}")


def pooled(turns: Sequence[Told]) -> Told:
    """All rounds as one."""
    return Told([ms for turn in turns for ms in turn.ms], sum(turn.failed for turn in turns))


def write_report(
    given: argparse.Namespace,
    fixed: dict[str, list[Told]],
    most: dict[str, list[Told]],
    scanned: dict[str, list[float]],
    reached: Sequence[Goal],
) -> None:
    """The figures of every round, as JSON."""

    def told(turn: Told) -> dict[str, float]:
        return {"requests": len(turn.ms), "failed": turn.failed, "per_s": turn.per_s} | {
            f"p{percent}_ms": turn.percentile(percent) for percent in (50, 90, 99)
        }

    report = {
        "asked": {name: value for name, value in vars(given).items() if name != "out"} | {"dim": DIM, "cores": os.cpu_count()},
        "fixed_load": {name: [told(turn) for turn in turns] for name, turns in fixed.items()},
        "full_load": {name: [told(turn) for turn in turns] for name, turns in most.items()},
        "scans_per_s": scanned,
        "goals": [asdict(goal) | {"met": goal.met} for goal in reached],
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"written: {given.out}")


if __name__ == "__main__":
    main()
