"""Every kind of partition behind both topologies: filters are exact, lists are whole, `exact` is, and pages fit together."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from conftest import make_encoder
from query_suite import pages
from serving_suite import Server, ids, listening
from test_serve_api import make_sharded, quick

from perdure.encoders import save_encoder
from perdure.index import BinaryPartition, build_segment
from perdure.records import Item, Release, SegmentUse
from perdure.registry import open_registry
from perdure.retrieval.retriever import encode
from serve.api import make_app
from serve.backend import FollowingBackend, FusedBackend

N, TEXT = 2600, "a red circle"


class Many:
    """A registry of one release, whose segment has N items and one kind of partition."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.kind, self.folder = kind, folder / "registry"
        registry, encoder = open_registry(self.folder), make_encoder(1, [TEXT])
        save_encoder(encoder, folder / "encoder")
        ref = registry.publish_encoder("many", 1, {path.name: path for path in (folder / "encoder").iterdir()})
        rng = np.random.default_rng(0)
        centres = rng.standard_normal((30, encoder.embedding_dim))
        vectors = (centres[rng.integers(0, 30, N)] + 0.5 * rng.standard_normal((N, encoder.embedding_dim))).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        self.items = [Item(f"{row}", f"class {row % 7}", payload={"price": row % 100}) for row in range(N)]
        files = build_segment(vectors, self.items, task=0, folder=folder / "segment", kind=kind, partitions=2, ivf_probes=4, ef_search=32)
        segment = registry.publish_segment("many", 1, files, made_by=ref)
        registry.publish_release(Release("many@v1", "many", 0, "reindex", "standardised", ref, (SegmentUse(segment, ref, ref),)))
        registry.promote("many@v1", by="test")
        query = encode(encoder, [TEXT])
        if kind == "binary":
            vectors, query = BinaryPartition.kept(vectors), BinaryPartition.kept(query)
        self.scores = (vectors @ query[0]).astype(np.float64).round(5)

    def best(self, rows: list[int], k: int) -> list[float]:
        """The scores of the best k of some rows; which of two equal ones comes first is not claimed here."""
        return sorted((self.scores[row] for row in rows), reverse=True)[:k]


@pytest.fixture(scope="module", params=["flat", "hnsw", "ivfpq", "binary"])
def many(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Many:
    return Many(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(params=["fused", "sharded"])
def server(request: pytest.FixtureRequest, many: Many, tmp_path: Path) -> Iterator[Server]:
    args = quick(many.folder, topology=request.param)
    backend: FollowingBackend = FusedBackend(args) if request.param == "fused" else make_sharded(args)
    backend.start()
    with listening(make_app(backend, args)) as url, httpx.Client(base_url=url, timeout=60) as client:
        yield Server(client, None, tmp_path, lambda: httpx.Client(base_url=url))  # type: ignore[arg-type]
    backend.stop()


def found(answer: httpx.Response) -> list[float]:
    assert answer.status_code == 200, answer.text
    return [hit["score"] for hit in answer.json()["hits"]]


def test_filters_lists_and_pages_of_every_kind(many: Many, server: Server) -> None:
    filters: list[tuple[dict[str, Any], list[int]]] = [
        ({"price": {"gte": 10, "lt": 12}}, [row for row in range(N) if row % 100 in (10, 11)]),
        ({"label": {"not": "class 3"}, "price": 5}, [row for row in range(N) if row % 7 != 3 and row % 100 == 5]),
        ({"label": ["class 0", "class 1"]}, [row for row in range(N) if row % 7 < 2]),
    ]
    for filter, rows in filters:
        for k in (10, 500):
            answer = server.search(text=TEXT, k=k, filter=filter)
            assert {int(name) for name in ids(answer)} <= set(rows)
            np.testing.assert_allclose(found(answer), many.best(rows, k), atol=2e-5)
    everything = list(range(N))
    np.testing.assert_allclose(found(server.search(text=TEXT, k=300, exact=True)), many.best(everything, 300), atol=2e-5)
    plain = server.search(text=TEXT, k=1000)
    assert len(set(ids(plain))) == 1000, "approximate or not, a list is never shorter than what there is"
    near = ids(server.search(text=TEXT, k=10))
    exact = many.best(everything, 10)[-1]
    assert sum(many.scores[int(name)] >= exact - 2e-5 for name in near) >= 9  # recall@10
    body = {"text": TEXT, "k": 10, "exact": True}
    paged = [name for page in pages(server, server.search(**body), 6, **body) for name in ids(page)]
    assert paged == ids(server.search(text=TEXT, k=60, exact=True))
    begun = server.search(text=TEXT, k=9)
    assert ids(begun) + ids(server.search(text=TEXT, k=9, cursor=begun.json()["next"])) == ids(server.search(text=TEXT, k=18))
    told = server.search(text=TEXT, explain=True).json()["explain"]["segments"][0]
    assert (told["kind"], told["exact"]) == (many.kind, many.kind in ("flat", "binary"))
