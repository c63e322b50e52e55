"""Writes in one process: fused, and sharded with the replicas called directly; several gateways; keys; what the client does."""

import asyncio
import contextlib
import hashlib
import io
import json
import os
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Gallery
from serving_suite import Server, assert_problem, listening, wait
from test_serve_api import make_sharded, quick
from writing_suite import PICTURES, WritingSuite, item

from jobs import backfill as backfill_job
from jobs import write as write_job
from perdure.client import Ask, AsyncClient, Client, Put
from perdure.console import guarded
from perdure.encoders import build_encoder, save_encoder
from perdure.index import build_segment
from perdure.records import Item, Release, SegmentUse
from perdure.registry import open_registry
from perdure.retrieval import Query, Retriever
from perdure.retrieval.retriever import encode
from serve.api import make_app
from serve.backend import FollowingBackend, FusedBackend

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "write-items.md"


@pytest.fixture(autouse=True)
def _no_power_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """What these tests claim is not about a disk that loses its power."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(params=["fused", "sharded"])
def server(request: pytest.FixtureRequest, gallery: Gallery, tmp_path: Path) -> Iterator[Server]:
    args = quick(gallery.folder, topology=request.param)
    backend: FollowingBackend = FusedBackend(args) if request.param == "fused" else make_sharded(args)
    backend.start()
    with listening(make_app(backend, args)) as url, httpx.Client(base_url=url, timeout=30) as client:
        yield Server(client, gallery, tmp_path, lambda: httpx.Client(base_url=url))
    backend.stop()


class TestWritingInProcess(WritingSuite):
    pass


def test_two_gateways_take_writes_at_once_and_both_show_all_of_them_within_two_seconds(gallery: Gallery) -> None:
    args = quick(gallery.folder).model_copy(update={"poll_s": 1.0})  # as it is by default
    backends = [FusedBackend(args), FusedBackend(args)]
    for backend in backends:
        backend.start()
    apps = [make_app(backend, args) for backend in backends]
    with contextlib.ExitStack() as stack:
        first, second = (stack.enter_context(Client(stack.enter_context(listening(app)))) for app in apps)
        pool = stack.enter_context(ThreadPoolExecutor(2))
        told = list(pool.map(lambda at: (first, second)[at % 2].upsert([Put(f"both/{at}", text=["a thing"])]), range(16)))
        assert sorted({one.edit for one in told}) == list(range(1, 1 + max(one.edit for one in told))), "no edit without a write"
        began = time.monotonic()
        edit = first.upsert([Put("last", text=["the last thing"])]).edit
        for client in (first, second):
            wait(lambda client=client: client.releases().edit >= edit)
            took_s = time.monotonic() - began
            assert {hit.id for hit in client.search(Ask(text="a thing", k=100))} >= {"last", *(f"both/{at}" for at in range(16))}
        print(f"visible on both gateways after {took_s:.2f} s")
    for backend in backends:
        backend.stop()


def test_a_write_needs_its_scope_and_is_journalled_with_its_key(gallery: Gallery, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("".join(f"{scope} {hashlib.sha256(scope.encode()).hexdigest()}\n" for scope in ("search", "write")))
    args = quick(gallery.folder, keys_file=str(keys))
    backend = FusedBackend(args)
    backend.start()
    with listening(make_app(backend, args)) as url, httpx.Client(base_url=url) as client:
        for send in (
            lambda headers: client.post("/v1/items", json={"items": [item(0)]}, headers=headers),
            lambda headers: client.request("DELETE", "/v1/items", json={"ids": ["x"]}, headers=headers),
            lambda headers: client.delete("/v1/items/x", headers=headers),
        ):
            assert_problem(send({}), 401)
            assert_problem(send({"Authorization": "Bearer search"}), 403, "'write'")
            assert send({"Authorization": "Bearer write"}).status_code == 200
    backend.stop()
    log = gallery.registry().edits("demo")
    edit = log.edit(log.newest())
    assert edit.by == f"http:key-{hashlib.sha256(b'write').hexdigest()[:8]}" and edit.action == "write" and edit.user and edit.at


def test_without_keys_nobody_beyond_this_machine_writes(gallery: Gallery) -> None:
    args = quick(gallery.folder).model_copy(update={"host": "0.0.0.0"})
    backend = FusedBackend(args)
    backend.start()
    with listening(make_app(backend, args)) as url, httpx.Client(base_url=url) as client:
        assert_problem(client.post("/v1/items", json={"items": [item(0)]}), 403, "this machine")
        assert_problem(client.delete("/v1/items/x"), 403, "this machine")
    backend.stop()


def test_pictures_alone_cannot_be_searched_by_words_nor_words_be_written(gallery: Gallery, tmp_path: Path) -> None:
    registry = open_registry(tmp_path / "registry")
    encoder = build_encoder("small_resnet", {"embedding_dim": 16, "width": 4}, with_text=False, seed=1)
    encoder.grow(num_classes=3)
    save_encoder(encoder.eval(), tmp_path / "encoder")
    ref = registry.publish_encoder("blind", 1, {path.name: path for path in (tmp_path / "encoder").iterdir()})
    files = build_segment(encode(encoder, [PICTURES[0]]), [Item("a", "circle")], task=0, folder=tmp_path / "segment")
    segment = registry.publish_segment("blind", 1, files, made_by=ref)
    registry.publish_release(Release("blind@v1", "blind", 0, "reindex", "raw", ref, (SegmentUse(segment, ref, ref),)))
    registry.promote("blind@v1")
    args = quick(tmp_path / "registry")
    backend = FusedBackend(args)
    backend.start()
    with listening(make_app(backend, args)) as url, Client(url) as client:
        told = client.upsert([Put("words", text=["a circle"]), Put("picture", image=PICTURES[1])])
        assert [one.status for one in told.results] == ["refused", "stored"] and "no text tower" in (told.results[0].detail or "")
    backend.stop()


def test_both_clients_write_and_the_page_of_examples_runs(gallery: Gallery) -> None:
    args = quick(gallery.folder)
    backend = FusedBackend(args)
    backend.start()
    with listening(make_app(backend, args)) as url:

        async def scenario() -> None:
            async with AsyncClient(url) as client:
                told = await client.upsert([Put("x", image=PICTURES[2])], key="k")
                assert told == await client.upsert([Put("x", image=PICTURES[2])], key="k") and told.refused == 0
                assert [one.status for one in (await client.delete(["x"])).results] == ["deleted"]

        asyncio.run(scenario())
        blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
        assert len(blocks) >= 3
        names: dict[str, object] = {"picture": PICTURES[0]}
        with contextlib.redirect_stdout(io.StringIO()) as said:
            for block in blocks:
                exec(block.replace("http://127.0.0.1:8000", url), names)
        assert "sku-7 stored" in said.getvalue()
        names["client"].close()  # type: ignore[attr-defined]
    backend.stop()


def test_the_jobs_write_compact_and_delete(gallery: Gallery, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "one.png").write_bytes(PICTURES[0])
    lines = [{"id": "one", "image": "one.png", "label": "circle", "price": 3}, {"id": "two", "text": "a red circle"}, {"id": "three"}]
    (tmp_path / "items.jsonl").write_text("\n".join(map(json.dumps, lines)))
    pq.write_table(pa.table({"id": ["four"], "image": [PICTURES[3]], "text": [["a", "b"]]}), tmp_path / "items.parquet")
    (tmp_path / "ids.txt").write_text("two\n\nset/03.png\n")
    at = ["--registry", str(gallery.folder)]
    assert guarded(write_job.main, ["upsert", str(tmp_path / "items.jsonl"), *at]) == 2
    assert guarded(write_job.main, ["upsert", str(tmp_path / "items.parquet"), *at]) == 0
    assert guarded(write_job.main, ["delete", str(tmp_path / "ids.txt"), *at]) == 0
    assert guarded(backfill_job.main, ["--compact", *at]) == 0
    registry = gallery.registry()
    live = registry.channel()
    assert live is not None and live.edits_through == 3 and len(live.segments) == 1
    retriever = Retriever.load(registry, live)
    assert retriever.picture("one") == PICTURES[0] and retriever.entry("one").payload == {"price": 3}
    assert retriever.entry("four").text == ("a", "b")
    names = {hit.id for hit in retriever.search(Query(text="a"), 100).hits}
    assert {"one", "four"} <= names and not {"two", "three", "set/03.png"} & names and len(names) == 16
    assert guarded(backfill_job.main, ["--compact", *at]) == 0
    assert guarded(write_job.main, ["upsert", str(tmp_path / "one.png"), *at]) == 2
    said = capsys.readouterr()
    assert "refused 'three'" in said.out + said.err and "neither Parquet" in said.err
