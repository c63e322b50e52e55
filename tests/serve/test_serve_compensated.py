"""A release that takes queries back to older encoders is served, by either topology, as the plain retriever answers from it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import httpx
import numpy as np
import pytest
from conftest import Gallery, make_encoder
from serving_suite import Server, ids, listening
from test_serve_api import make_sharded, quick

from perdure.encoders import save_encoder
from perdure.index import build_segment
from perdure.records import EncoderRef, Release, SegmentUse
from perdure.retrieval.bridge import QUERY_BRIDGE, QueryBridge
from perdure.retrieval.compensation import QUERY_DRIFT, QueryDrift
from perdure.retrieval.retriever import Query, Retriever, encode
from serve.api import make_app
from serve.backend import FollowingBackend, FusedBackend

OLD, NEW = EncoderRef("demo", 1), EncoderRef("demo", 3)


def publish_keep(gallery: Gallery, scratch: Path) -> None:
    """A third encoder, the items of the second task by it, and releases under `keep`: v3 compensates, v4 does not, v5 has a bridge."""
    registry, encoder = gallery.registry(), make_encoder(3, [item.captions[0] for item in gallery.items])
    save_encoder(encoder, scratch / "encoder")
    drawn = (0.4 * np.random.default_rng(0).standard_normal((2, encoder.embedding_dim))).astype(np.float32)
    QueryDrift(drawn[0], drawn[1]).save(scratch / "encoder" / QUERY_DRIFT)
    turn = np.linalg.qr(np.random.default_rng(1).standard_normal((encoder.embedding_dim, encoder.embedding_dim)))[0].astype(np.float32)
    QueryBridge(turn, turn.T).save(scratch / "encoder" / QUERY_BRIDGE)
    registry.publish_encoder("demo", 3, {path.name: path for path in (scratch / "encoder").iterdir()}, parent=OLD)
    rows = range(15, 30)
    files = build_segment(
        encode(encoder, [gallery.pictures[row] for row in rows]),
        [gallery.items[row] for row in rows],
        task=1,
        partitions=3,
        thumbnails=lambda i: gallery.pictures[rows[i]],
        folder=scratch / "segment",
    )
    segment = registry.publish_segment("demo", 3, files, made_by=NEW)
    first = registry.release("demo@v1").segments[0]
    hops: list[tuple[int, bool | Literal["bridge"]]] = [(3, True), (4, False), (5, "bridge")]
    for version, compensated in hops:
        uses = (SegmentUse(first.segment, OLD, NEW, compensated), SegmentUse(segment, NEW, NEW))
        registry.publish_release(Release(f"demo@v{version}", "demo", 1, "keep", "standardised", NEW, uses))


@pytest.fixture(params=["fused", "sharded"])
def server(request: pytest.FixtureRequest, gallery: Gallery, tmp_path: Path) -> Iterator[Server]:
    publish_keep(gallery, tmp_path)
    gallery.registry().promote("demo@v3", by="test")
    args = quick(gallery.folder, topology=request.param)
    backend: FollowingBackend = FusedBackend(args) if request.param == "fused" else make_sharded(args)
    backend.start()
    with listening(make_app(backend, args)) as url, httpx.Client(base_url=url) as client:
        yield Server(client, gallery, tmp_path, lambda: httpx.Client(base_url=url))
    backend.stop()


@pytest.mark.parametrize(("release", "by"), [("demo@v3", True), ("demo@v5", "bridge")])
def test_what_is_served_is_what_the_plain_retriever_finds(server: Server, release: str, by: bool | str) -> None:
    assert server.state()["serving"] == "demo@v3"
    if release != "demo@v3":
        server.client.post(f"/v1/releases/{release}/promote").raise_for_status()
        server.wait(f"{release} serving", lambda state: state["serving"] == release)
    retriever = Retriever.load(server.gallery.registry(), release)
    plain = Retriever.load(server.gallery.registry(), "demo@v4")
    changed = 0
    for row in (0, 7, 16, 29):
        item, picture = server.gallery.items[row], server.gallery.pictures[row]
        text = server.search(text=item.captions[0], k=8)
        upload = server.client.post("/v1/search", files={"image": ("p.png", picture)}, data={"k": "8"})
        by_id = server.search(id=item.id, k=8)
        for answer, query in ((text, Query(text=item.captions[0])), (upload, Query(image=picture)), (by_id, Query(id=item.id))):
            expected = retriever.search(query, 8).hits
            assert ids(answer) == [hit.id for hit in expected]
            np.testing.assert_allclose([hit["score"] for hit in answer.json()["hits"]], [hit.score for hit in expected], atol=1e-4)
            changed += [hit.id for hit in expected] != [hit.id for hit in plain.search(query, 8).hits]
    assert changed >= 8, "with drifts as large as these, compensation has to be seen in the answers"
    explained = server.search(text=server.gallery.items[0].captions[0], explain=True).json()["explain"]["segments"]
    assert [segment["compensated"] for segment in explained] == [by, False]
