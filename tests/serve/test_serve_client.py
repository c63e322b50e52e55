"""`perdure.client` against the real app: what it reads, what it raises, what it sends again; and the examples of its page."""

import asyncio
import contextlib
import io
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Gallery, known
from fastapi import FastAPI
from serving_suite import listening, wait
from test_serve_api import quick

from perdure.client import (
    Answer,
    Ask,
    AsyncClient,
    BadRequest,
    Client,
    Gone,
    KeyRefused,
    Missing,
    NotAvailable,
    ServerProblem,
    UnexpectedAnswer,
    Unreachable,
)
from perdure.retrieval import Query, Retriever
from serve.api import make_app
from serve.backend import FusedBackend

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "search-client.md"


@pytest.fixture
def url(gallery: Gallery) -> Iterator[str]:
    args = quick(gallery.folder)
    backend = FusedBackend(args)
    backend.start()
    with listening(make_app(backend, args)) as address:
        yield address
    backend.stop()


def test_every_call_is_answered_and_typed(url: str, gallery: Gallery, tmp_path: Path) -> None:
    retriever = Retriever.load(gallery.registry(), "demo@v1")
    picture = tmp_path / "picture.png"
    picture.write_bytes(gallery.pictures[4])
    with Client(url) as client:
        answer = client.search("a red circle")
        assert isinstance(answer, Answer) and answer.release == "demo@v1" and len(answer) == 10 and answer.next is not None
        assert [hit.id for hit in answer] == [hit.id for hit in retriever.search(Query(text="a red circle")).hits]
        for image in (picture, gallery.pictures[4]):
            ask = Ask(image=image, text="green", image_weight=0.8, k=3, filter={"price": {"lt": 20}}, payload=["price"], explain=True)
            found = client.search(ask)
            query = Query(image=gallery.pictures[4], text="green", image_weight=0.8)
            assert [hit.id for hit in found] == [hit.id for hit in retriever.search(query, 3, {"price": {"lt": 20}}).hits]
            assert found[0].payload == {"price": known(int(found[0].id[4:6]))["price"]} and found[0].raw_score == found[0].score
            assert found.explain is not None and found.explain["segments"][0]["passing"] == 14
        assert [hit.id for page in client.pages(Ask(text="a", k=4)) for hit in page] == [
            hit.id for hit in client.search(Ask(text="a", k=15))
        ]
        one, two = client.batch(["a red circle", Ask(id="set/03.png", k=2, expand=2)])
        assert one.hits[0].id == answer[0].id and len(two) == 2
        item = client.item("set/03.png")
        assert item.id == "set/03.png" and item.payload == known(3) and client.image(item.id) == gallery.pictures[3]
        assert len(client.sample(5)) == 5
        assert client.promote("demo@v2", reason="newer").live
        assert client.releases().live == "demo@v2" and client.releases().releases[0].run == "demo"
        assert client.rollback().id == "demo@v1"


def test_asyncio_answers_the_same(url: str) -> None:
    async def scenario() -> None:
        async with AsyncClient(url) as client:
            answers = await asyncio.gather(*(client.search(Ask(text="a red circle", k=k)) for k in (1, 4, 15)))
            paged = [hit.id async for page in client.pages(Ask(text="a red circle", k=4)) for hit in page]
            assert paged == [hit.id for hit in answers[2]] and paged[:4] == [hit.id for hit in answers[1]]
            (batched,) = await client.batch([Ask(text="a red circle", k=1)])
            assert batched.hits == answers[0].hits
            item = (await client.sample(1))[0]
            assert await client.item(item.id) == item and (await client.image(item.id)).startswith(b"\x89PNG")
            assert (await client.promote("demo@v2")).live and (await client.releases()).live == "demo@v2"
            assert (await client.rollback()).id == "demo@v1"
            with pytest.raises(Missing, match="nobody"):
                await client.search(Ask(id="nobody"))

    asyncio.run(scenario())


def test_what_the_server_refuses_is_raised_with_its_words(url: str, gallery: Gallery, tmp_path: Path) -> None:
    with Client(url) as client:
        with pytest.raises(BadRequest, match="no column 'colour'") as caught:
            client.search(Ask(text="a", filter={"colour": "red"}))
        assert caught.value.status == 422 and caught.value.request_id
        with pytest.raises(BadRequest) as caught:
            client.search(Ask(text="a", k=0))
        assert caught.value.errors[0]["pointer"] == "#/k"
        with pytest.raises(Missing):
            client.item("nobody")
        cursor = client.search(Ask(text="a", k=1)).next
        with pytest.raises(BadRequest, match="another query"):
            client.search(Ask(text="b", cursor=cursor))
    keys = tmp_path / "keys"
    keys.write_text(f"search {'0' * 64}\n")
    args = quick(gallery.folder, keys_file=str(keys))
    backend = FusedBackend(args)
    backend.start()
    with listening(make_app(backend, args)) as address, Client(address, key="wrong") as client, pytest.raises(KeyRefused) as caught:
        client.search("a")
    assert caught.value.status == 401
    backend.stop()


def test_a_release_that_is_let_go_of_ends_its_pages(gallery: Gallery) -> None:
    args = quick(gallery.folder, retire_after_s=0.0)
    backend = FusedBackend(args)
    backend.start()
    with listening(make_app(backend, args)) as address, Client(address) as client:
        pages = client.pages(Ask(text="a", k=2))
        next(pages)
        client.promote("demo@v2")
        wait(lambda: backend.following.held() == ["demo@v2"])
        with pytest.raises(Gone, match="begin again without a cursor"):
            next(pages)
    backend.stop()


def test_a_release_is_tried_beside_the_live_one_and_asked_by_name(gallery: Gallery) -> None:
    args = quick(gallery.folder)
    backend = FusedBackend(args)
    backend.start()
    with listening(make_app(backend, args)) as address, Client(address) as client:
        assert client.try_beside("demo@v2", share=0, shadow=100, reason="look").candidate
        wait(lambda: (place := backend.candidate()) is not None and place.ready)
        told = client.releases()
        assert told.candidate is not None and told.candidate["release"] == "demo@v2" and told.candidate["shadow"] == 100
        assert {one.id for one in told.releases if one.held} == {"demo@v1", "demo@v2"} and told.serving == "demo@v1"
        assert client.search(Ask(text="a", release="demo@v2")).release == "demo@v2"
        assert client.search("a").release == "demo@v1"
    backend.stop()


def test_a_search_that_comes_too_early_is_sent_again_when_the_server_says(gallery: Gallery) -> None:
    args = quick(gallery.folder)
    backend = FusedBackend(args)
    with listening(make_app(backend, args)) as address, Client(address, retries=0) as hasty, Client(address, retries=30) as patient:
        with pytest.raises(NotAvailable) as caught:
            hasty.search("a red circle")
        assert caught.value.status == 503
        later = threading.Timer(0.3, backend.start)
        later.start()
        began = time.monotonic()
        assert len(patient.search("a red circle")) == 10
        assert time.monotonic() - began >= 1  # Retry-After: 1
        later.join()
    backend.stop()


def test_what_is_no_perdure_server(url: str) -> None:
    with Client(url + "/docs") as client, pytest.raises(ServerProblem):
        client.search("a")
    with Client("http://127.0.0.1:9", timeout_s=2) as client, pytest.raises(Unreachable, match="is the server up"):
        client.search("a")
    other = FastAPI()
    other.post("/v1/search")(lambda: {"answer": 42})
    with listening(other) as address, Client(address) as client, pytest.raises(UnexpectedAnswer, match="without release, hits"):
        client.search("a")


def test_it_is_light() -> None:
    heavy = "import sys, perdure.client; print([name for name in ('torch', 'faiss', 'ray', 'pyarrow', 'numpy') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_the_examples_of_its_page_run(url: str) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 7
    names: dict[str, object] = {}
    with contextlib.redirect_stdout(io.StringIO()) as said:
        for block in blocks:
            exec(block.replace("http://127.0.0.1:8000", url), names)
    assert "from release demo@v1" in said.getvalue() and "no column 'colour'" in said.getvalue()
