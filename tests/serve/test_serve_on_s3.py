"""A registry on S3 whose server hangs, and then is no more, while searches are answered; in one process."""

import asyncio
import signal
import time

import httpx
import pytest
from conftest import Gallery
from open_loop import TEXTS, K, Load, Truth, open_loop
from s3_server import S3Server

import perdure.retrieval.follow as follow_module
from serve.api import make_app
from serve.backend import FusedBackend
from serve.schemas import ServeArgs


@pytest.fixture
def own_s3(monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """A server that nobody else needs, reached through the environment of the test."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    server = S3Server.start()
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return server


def test_a_server_that_hangs_and_one_that_is_gone_take_nothing_away(
    own_s3: S3Server, gallery: Gallery, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(follow_module, "_SLOW_S", 2.0)
    client = own_s3.client()
    client.create_bucket(Bucket="tests")
    for path in gallery.folder.rglob("*"):
        if path.is_file() and not path.name.startswith("."):
            client.upload_file(str(path), "tests", f"registry/{path.relative_to(gallery.folder)}")
    backend = FusedBackend(ServeArgs(registry="s3://tests/registry", poll_s=0.2, retire_after_s=1.0))
    backend.start()
    truth = Truth(gallery, "demo@v1")
    transport = httpx.ASGITransport(make_app(backend, ServeArgs()))

    async def scenario() -> tuple[Load, list[str]]:
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=60) as client:
            looks: list[asyncio.Task[httpx.Response]] = []

            async def says(*words: str) -> str:
                """Wait until `/readyz` is 200 and says this, or nothing at all."""
                deadline = time.monotonic() + 60
                while True:
                    answer = await client.get("/readyz")
                    problem = answer.json()["problem"] or ""
                    if all(word in problem for word in words) and bool(words) == bool(problem):
                        assert answer.status_code == 200
                        return problem
                    assert time.monotonic() < deadline, problem
                    await asyncio.sleep(0.1)

            async def fault() -> list[str]:
                """The server hangs, goes on, and ends."""
                await asyncio.sleep(1.0)
                own_s3.process.send_signal(signal.SIGSTOP)
                hangs = await says("has not answered for")
                own_s3.process.send_signal(signal.SIGCONT)
                await says()
                own_s3.stop()
                return [hangs, await says("cannot be read", "gave no answer")]

            async def ask(number: int) -> str:
                if number % 100 == 0 and len(looks) < 8:  # people look at the page meanwhile, which asks the registry
                    looks.append(asyncio.create_task(client.get("/v1/releases")))
                text = TEXTS[number % len(TEXTS)]
                return truth.of(await client.post("/v1/search", json={"text": text, "k": K}), text)

            found = await open_loop(ask, per_s=100, requests=2000, meanwhile=fault())
            await asyncio.gather(*looks)
            return found

    try:
        load, said = asyncio.run(scenario())
    finally:
        own_s3.stop()
        backend.stop()
    with capsys.disabled():
        print(f"\n{load.line('S3 hangs, then is gone')}; said: {said}", end="")
    assert load.counts() == {"right demo@v1": len(load.came)} and len(load.came) >= 2000, load.counts()
    assert load.times()[-1] < 5.0
