"""The arms of `benchmarks/serving.py`: the gallery that all of them search, the bare floors, what one would write first, and ours."""

import contextlib
import json
import multiprocessing
import multiprocessing.process
import socket
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import httpx
import numpy as np
import torch
import uvicorn
import yaml
from fastapi import FastAPI
from numpy.typing import NDArray
from pydantic import BaseModel

from perdure.encoders import build_encoder, load_encoder, save_encoder
from perdure.index import build_segment
from perdure.records import Item, Release, SegmentUse
from perdure.registry import open_registry
from perdure.retrieval.retriever import encode
from serve.run import start, stop
from serve.schemas import ServeArgs

ROOT = Path(__file__).resolve().parents[2]
DIM, CENTRES, BEST, SHARDS = 128, 1000, 10, 2
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
def running(folder: Path, names: Sequence[str]) -> Generator[list[Arm]]:
    """Some arms, in that order, until the block ends; one of the last three is among them."""
    from ray import serve

    from serve.graph import build

    served: dict[str, tuple[str, Callable[[], ServeArgs]]] = {
        "fused": ("/v1/search", lambda: ours(folder, "fused")),
        "fused, one by one": ("/v1/search", lambda: ours(folder, "fused", max_batch=1)),
        "sharded": ("/v1/search", lambda: ours(folder, "sharded", shards=SHARDS)),
    }
    floors: dict[str, Callable[[], Any]] = {"empty Serve app": empty_app, "naive Serve graph": lambda: naive_app(folder)}
    at_root = next(name for name in names if name in served)
    urls: dict[str, str] = {}
    plain: multiprocessing.process.BaseProcess | None = None
    up = start(served[at_root][1](), free_port(), num_cpus=16)
    try:
        applications: list[serve.RunTarget] = []
        for number, name in enumerate(names):
            if name == "FastAPI":
                port = free_port()
                plain = multiprocessing.get_context("spawn").Process(target=serve_plain, args=(folder, port), daemon=True)
                plain.start()
                urls[name] = f"http://127.0.0.1:{port}/search"
            elif name == at_root:
                urls[name] = f"{up.url}{served[name][0]}"
            else:
                path = f"/arm-{number}"
                application = floors[name]() if name in floors else build(served[name][1]())
                applications.append(serve.RunTarget(application, name=f"arm-{number}", route_prefix=path))
                urls[name] = f"{up.url}{path}{'/search' if name in floors else served[name][0]}"
        if applications:
            serve.run_many(applications)
        arms = [Arm(name, urls[name]) for name in names]
        for arm in arms:
            wait_for(arm)
        yield arms
    finally:
        stop(up)
        if plain is not None:
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
